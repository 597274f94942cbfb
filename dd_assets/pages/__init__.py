"""Pages about a data root, beside Dagster's UI: studies and what they found, figures, reports, curves of what trains.

Belongs here: a small web application (``app``) that reads the data root and knows nothing of Dagster, and what its pages
say (``landing``, ``live``, the templates). ``dd_assets.running.webserver`` puts it below ``/lab`` of Dagster's own web
server, so that links like ``/lab/figures/<figure>/<study>.html`` work in the UI; ``dd_assets.watch`` serves it alone.
"""
