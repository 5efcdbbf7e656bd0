"""The training loop: detectron2's TrainerBase, with hooks for rates, monitors, writers, checkpoints and signals."""
