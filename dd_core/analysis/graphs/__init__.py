"""How well graphs are classified, judged honestly: intervals, collapse, calibration, floors, and what was claimed.

Pure functions on arrays (numpy, scipy, statsmodels), without tables, files or torch. ``measures.measure`` does all of
an evaluation; ``claims`` says what was claimed of the published networks, ``verdicts`` whether it holds.
"""
