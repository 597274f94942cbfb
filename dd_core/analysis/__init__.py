"""Pure functions from tables to findings: summaries, the double descent and its regression check."""
