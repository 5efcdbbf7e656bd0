"""Optimisers and schedules: which parameters learn, and how fast at which iteration."""
