"""VOC and COCO metrics, in per cent, as Detectron2 defines and rounds them."""
