"""A job as one Indexed Job of Kubernetes: each pod is a place and does its share, ``python -m dd_core.jobs.pod``.

``place.py`` is the way in, ``settings.py`` what a cluster can be told. Within: ``manifests.py`` builds what is sent to
the cluster, ``api.py`` speaks with it, ``checks.py`` finds out beforehand what would go wrong, ``follow.py`` looks
after a Job until it ends, ``logs.py`` reads events from its pods' logs, ``explain.py`` says in words what pods are up
to, ``verdict.py`` what became of tasks that left no outcome.
"""
