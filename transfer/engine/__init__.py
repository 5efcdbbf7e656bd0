"""Fine-tuning one detector: trainer, precise BN, guards, resume, and the trial's result."""
