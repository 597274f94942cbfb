"""What every step shares: partitions, recording, following a job, users' errors, versions."""
