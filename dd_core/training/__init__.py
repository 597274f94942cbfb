"""Training all trials of an arm: the loop (``train``), optimisers, evaluation, what is recorded when, exact resume."""
