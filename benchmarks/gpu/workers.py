"""How many processes should share a GPU? All do the same at the same time, each on a stack of its own."""

import functools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import Crew
from setups import Setup, make_setup, use_made_up_cifar, write_made_up_cifar

from dd_core.jobs.worker import prepare_process
from gpu.timing import medians
from gpu.training import ours


def prepare(folder: Path) -> None:
    """A process like our workers."""
    prepare_process(threads=1)
    use_made_up_cifar(folder)


def make(setup: Setup) -> dict[str, Callable[[], object]]:
    """What each process does."""
    return {"ours": ours(setup)}


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """Images per second of all processes together."""
    with tempfile.TemporaryDirectory() as name:
        write_made_up_cifar(Path(name), num_train=10_000, num_test=1_000)
        steps = 1 if small else 40
        for k, trials, precision in ((4, 5, "bfloat16"), (64, 1, "bfloat16"), (16, 5, "float32")):
            setup = make_setup("", "cifar10", 1 if small else k, 2 if small else trials, steps, precision=precision)
            row: dict[str, Any] = {"k": setup.arm.k, "trials": setup.study.trials, "precision": precision}
            for number in (1, 2) if small else (1, 2, 4):
                with Crew(number, functools.partial(prepare, Path(name)), make) as crew:
                    crew.build(setup)
                    seconds = medians({"ours": functools.partial(crew.run, "ours")}, repeats=3, warm_up=1)["ours"]
                row[f"{number} processes"] = number * setup.study.trials * steps * 128 / seconds
            yield row
            if small:
                return
