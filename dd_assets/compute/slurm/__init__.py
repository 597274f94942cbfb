"""Jobs on a SLURM cluster: the same job file through sbatch, one array element a machine, on a shared file system."""
