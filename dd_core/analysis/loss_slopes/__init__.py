"""Loss curves: whether and from where they are power laws, how steep, and what that says of the trained network.

Pure functions on arrays (numpy, scipy, statsmodels, ruptures), without tables, files or torch. ``run.analyse_run`` does
everything for one run, ``hypotheses`` looks at many. docs/loss_slopes.md has formulas, sources and their conflicts.
"""
