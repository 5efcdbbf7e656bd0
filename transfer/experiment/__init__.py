"""Experiments: from an experiment file to a graph of jobs, run locally or with Slurm. Imports no torch."""
