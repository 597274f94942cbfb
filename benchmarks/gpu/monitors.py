"""What logging and monitors cost, as shares of the time of training; see ``monitors.py`` beside ``on_gpu.py``."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monitors as costs
from setups import use_made_up_cifar, write_made_up_cifar

from dd_core.jobs.worker import prepare_process


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """A row for every share."""
    prepare_process(threads=1)
    with tempfile.TemporaryDirectory() as name:
        write_made_up_cifar(Path(name), num_train=10_000, num_test=1_000)
        use_made_up_cifar(Path(name))
        for case in costs.cases(quick=small)[: 1 if small else 2]:
            for key, share in costs.costs(case, 1 if small else 5, Path(name)).items():
                yield {"what": key, "share": share}
