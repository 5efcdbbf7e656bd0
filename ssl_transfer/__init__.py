"""What pre-training and transfer both need and neither owns."""

__version__ = "0.1.0"
