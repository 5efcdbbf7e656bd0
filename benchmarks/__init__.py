"""Benchmarks against named peers, and of commands in processes of their own; not part of the installed package."""
