"""The attempts at each place of a Job: what follows one that ended, and when the next one may begin.

Kubernetes makes the pod of a retry, and counts them. With ``retry_seconds`` each pod is made with a gate, which keeps
it from being scheduled; a retry's is taken away when its time has come. Until then it holds no GPU, and no autoscaler
adds a node for it.
"""

import time
from dataclasses import replace

from dd_assets.compute.elsewhere import News
from dd_assets.compute.kubernetes.api import Cluster, Object
from dd_assets.compute.kubernetes.explain import Ending, attempt_of, created_at, is_gated, phase, place_of
from dd_assets.compute.retries import Retries, named


class Attempts:
    """Those of one Job that is followed."""

    def __init__(self, cluster: Cluster, manifest: Object, news: News, retries: Retries):
        """``manifest`` is the Job as the cluster has it: what it says counts, whatever is asked for by now."""
        self._cluster, self._news = cluster, news
        self._limit: int | None = manifest["spec"].get("backoffLimitPerIndex")
        rules = (manifest["spec"].get("podFailurePolicy") or {}).get("rules") or []
        self._are_disruptions_counted = not any(rule["action"] == "Ignore" for rule in rules)
        self._retries = replace(retries, most=self._limit if self._are_disruptions_counted else None)
        self._ended: dict[int, float] = {}

    def describe(self, ending: Ending, otherwise: str = "") -> str:
        """What people are told of an attempt that ended: who it was, how it ended, when it is tried again, and how."""
        now = time.time()
        self._ended[ending.place] = now if ending.at is None else min(now, ending.at + 1)
        places = self._news.job.places
        tasks = set(places[ending.place]) if ending.place < len(places) else set()
        who = named([self._news.job.tasks[n].name for n in sorted(tasks & self._news.left)], f"place {ending.place}")
        is_counted = self._are_disruptions_counted or not ending.is_disruption
        is_last = is_counted and self._limit is not None and ending.failures >= self._limit
        again = self._retries.announce(ending.attempt, "as soon as there is room", is_last)
        return f"{who} {ending.reason} (pod {ending.pod}); {again}{'' if is_last else otherwise}"

    def let_begin(self, pods: list[Object]) -> None:
        """Take away the gates of those pods whose time has come."""
        for pod in filter(is_gated, pods):
            pause = self._retries.seconds(attempt_of(pod) - 1)
            # From when the last attempt ended or, where that pod is gone, from when this one was made.
            since, now = self._ended.get(place_of(pod), created_at(pod)), time.time()
            if now >= min(since, now) + pause and phase(pod) == "Pending":
                self._cluster.let_begin(pod["metadata"]["name"])
