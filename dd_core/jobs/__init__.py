"""What a worker machine runs: a job file in, result files out. ``python -m dd_core.jobs.worker JOB``."""
