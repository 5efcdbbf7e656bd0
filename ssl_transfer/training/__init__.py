"""What pre-training, evaluation and fine-tuning share; the only part here that imports torch and detectron2."""
