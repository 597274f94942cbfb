"""Where a job runs. One module per place; every place takes the same job file and yields the same events."""
