"""What pre-training and transfer both need and neither owns."""
