"""Any ResNet checkpoint in, a proven Detectron2 file out: readers, the canonical backbone, writers and the proof."""
