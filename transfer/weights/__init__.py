"""Convert ResNet checkpoints to Detectron2: layouts, the backbone's tensors, output formats and their verification."""
