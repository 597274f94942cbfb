"""The library: studies, models, training, curvature, tables. It never imports Dagster.

Nothing is imported here, so that ``import dd_core.study.study`` stays cheap for the command line; import the module
that owns what you need (``dd_core.study.study``, ``dd_core.training``, ``dd_core.curvature``, ...).
"""
