"""What is computed of trained checkpoints and written beside them, each kind in a file of its own."""
