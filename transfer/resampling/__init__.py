"""AP on resampled test images, and what it says about a difference between two detectors. No torch, no Detectron2."""
