"""The search of the fine-tuning learning rate: from the points' results to a recorded choice; no torch."""
