"""Requests that the Kubernetes place makes of the API server, counted by the simulator of the tests.

The place is the real one. Its pods run a stand-in for the worker, which reads the job file and writes outcomes at an
even pace: what is counted is not the work, and depends on how long it takes alone.
"""

import contextlib
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import dagster as dg
from scaling_partitions import study_of

from dd_assets.compute.kubernetes.place import KubernetesPlace
from dd_assets.compute.kubernetes.settings import KubernetesSettings
from dd_core.jobs.job import result_job
from dd_core.study.resources import Resources

_SECONDS, _POLL_SECONDS, _PODS = 10.0, 1.0, 2
_STAND_IN = f"""#!{sys.executable}
import os, sys, time
from dd_core.events import Finished
from dd_core.jobs.folder import JobFolder
from dd_core.store.store import Store

folder = JobFolder.at(Store(os.environ["DD_ROOT"]), sys.argv[-1])
job = folder.read_job()
numbers = job.places[int(os.environ["JOB_COMPLETION_INDEX"])]
for number in numbers:
    time.sleep({_SECONDS} / len(numbers))
    folder.write_outcome(number, Finished(task=job.tasks[number].name, number=number, seconds=0.0))
"""


def report_requests(quick: bool) -> dict[str, float]:
    """Print; requests per look by key."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    print(f"\nRequests to a simulated API server: {_PODS} pods for {_SECONDS:.0f} s, a look every {_POLL_SECONDS:g} s")
    ratios: dict[str, float] = {}
    for num_tasks in (10, 100):
        counts = _counted(num_tasks)
        looks = counts["list pods"]
        each = (counts["get jobs"] + looks) / looks
        kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
        print(f"   {num_tasks:4d} tasks: {counts.total():4d}, ", end="")
        print(f"{each:.2f} for each of {looks} looks ({kinds})", flush=True)
        ratios |= {f"requests_{num_tasks}": float(counts.total()), f"requests_per_look_{num_tasks}": each}
    return ratios


def _counted(num_tasks: int) -> Counter[str]:
    """Requests by verb and resource while a job of so many tasks runs."""
    from kubernetes_simulator import Cluster  # type: ignore[import-not-found]

    study = study_of(1000)
    work = [(study.name, checkpoint) for checkpoint in study.iter_checkpoints()][:num_tasks]
    # Not below /tmp, over which pods have a volume.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        image, root = Path(name) / "image", Path(name) / "data"
        image.mkdir()
        (image / "python").write_text(_STAND_IN, encoding="utf-8")
        (image / "python").chmod(0o755)
        with Cluster(images={"stand-in*": image}) as cluster:
            cluster.volume("data", root)
            settings: dict[str, Any] = {
                "kubeconfig": str(cluster.kubeconfig()),
                "image": "stand-in:1",
                "data_volume": {"claim": "data", "mount_path": str(root)},
                "poll_seconds": _POLL_SECONDS,
            }
            place = KubernetesPlace(
                KubernetesSettings(
                    **settings, resources=Resources(pods=_PODS, gpus_per_pod=0, cpus_per_pod=1, memory_gib_per_pod=2)
                )
            )
            job = result_job("per_image_curvature", root, {study.name: study}, work, 1, 1)

            @dg.asset
            def work_on_it(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
                with contextlib.closing(place.run(context, job)) as events:
                    ended = [event for event in events if event.name in ("finished", "failed")]
                if len(ended) != num_tasks or any(event.name == "failed" for event in ended):
                    raise RuntimeError(f"{len(ended)} of {num_tasks} tasks ended: {ended[:3]}")
                return dg.MaterializeResult()

            before = len(cluster.requests)
            quiet = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
            if not dg.materialize([work_on_it], run_config=quiet).success:
                raise RuntimeError("the run failed")
            return Counter(
                _kind(request) for request in cluster.requests[before:] if request.user == "kubernetes-admin"
            )


def _kind(request: Any) -> str:
    """Verb and resource: ``get jobs``, ``get pods/log``."""
    path = request.path.partition("?")[0]
    found = re.search(r"/(?:v1|v1beta1)(?:/namespaces/[^/]+)?/(\w+)(?:/[^/]+(/log)?)?$", path)
    return f"{request.verb} {found[1]}{found[2] or ''}" if found else f"{request.verb} {path}"
