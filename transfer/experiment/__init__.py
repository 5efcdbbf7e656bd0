"""From an experiment file to a graph of jobs, run where the user says, their state on disk; imports no torch."""
