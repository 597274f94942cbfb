"""The machine at hand, and whether PyTorch computes rightly on it. What it is used for belongs to ``dd_core.jobs``."""
