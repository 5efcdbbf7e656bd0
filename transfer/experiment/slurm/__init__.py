"""`--cluster slurm`: jobs are filed with sbatch through submitit; their state is read from disk and queue."""
