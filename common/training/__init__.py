"""What pre-training, evaluation and fine-tuning share; the only part of common that imports torch and detectron2."""
