"""The Dagster side: what depends on what. Asset bodies are thin and call dd_core."""
