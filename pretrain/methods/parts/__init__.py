"""What methods share: one concept a file."""
