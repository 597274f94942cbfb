"""Tasks that several processes share, under torchrun."""
