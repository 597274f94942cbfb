"""The quickstart's study from nothing, through the workers that every training has: training, curvature and Hessian."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dd_assets
from dd_core.jobs.crew import run_crew
from dd_core.jobs.job import result_job, training_job
from dd_core.study.files import read_study

STUDY = Path(dd_assets.__file__).parent / "studies" / "quickstart.yaml"


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """Seconds of each kind of job by the number of workers; what failed is named."""
    study = read_study(STUDY)
    if small:
        study = study.model_copy(update={"widths": (1,)})
    for workers in (3, 1):
        with tempfile.TemporaryDirectory() as name:
            root = Path(name)
            checkpoints = [(study.name, checkpoint) for checkpoint in study.iter_checkpoints()]
            jobs = {
                "training": training_job(root, study, [checkpoint for _, checkpoint in checkpoints], workers, 1),
                "curvature": result_job("per_image_curvature", root, {study.name: study}, checkpoints, workers, 1),
            }
            if study.hessian_epochs:
                asked = [pair for pair in checkpoints if pair[1].epoch in study.hessian_epochs]
                jobs["hessian"] = result_job("hessian", root, {study.name: study}, asked, workers, 1)
            for kind, job in jobs.items():
                started = time.monotonic()
                events = list(run_crew(job, root))
                failures = [event.error for event in events if event.name == "failed"]
                yield {
                    "what": kind,
                    "workers": workers,
                    "tasks": len(job.tasks),
                    "seconds": time.monotonic() - started,
                    "failed": len(failures),
                    "error": " ".join(map(str, failures[:1]))[:600],
                }
        if clock.left < 25:
            return
