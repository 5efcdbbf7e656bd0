"""What is installed and at hand, and what to do about what is not."""
