"""A small deterministic world of shapes, drawn as an ImageFolder, VOC and COCO."""
