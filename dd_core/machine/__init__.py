"""The machine at hand: cores, GPUs and memory. Needs no torch to import."""
