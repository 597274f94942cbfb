"""How Dagster itself runs here: its command line, instance, executor, and which process is where."""
