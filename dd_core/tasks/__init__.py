"""What is learned: examples, losses, what counts as right."""
