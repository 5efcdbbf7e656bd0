"""`--cluster slurm`: jobs are submitted with sbatch through submitit; their state is read from disk and queue."""
