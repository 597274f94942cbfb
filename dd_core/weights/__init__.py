"""Weights that were trained elsewhere, on their way in: found, read without running code, and made checkpoints of ours.

Metrics of other systems are the business of ``dd_core.exchange``, which loads without torch.
"""
