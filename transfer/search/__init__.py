"""The search of the fine-tuning learning rate: from the candidates' results to a recorded choice; no torch."""
