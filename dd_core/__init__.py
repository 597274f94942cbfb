"""The library: studies, models, training, curvature, tables. It never imports Dagster.

Nothing is imported here, so that ``import dd_core.studies`` stays cheap for the command line; import the module
that owns what you need (``dd_core.studies``, ``dd_core.training``, ``dd_core.curvature``, ...).
"""
