"""What ``compile`` brings, and costs at the start: modes of torch.compile against none, which is a CUDA graph."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from setups import make_setup, use_made_up_cifar, write_made_up_cifar

from dd_core.jobs.worker import prepare_process
from gpu.timing import forget, medians, wait
from gpu.training import ours


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """A row for every width."""
    if small:  # a minute on a CPU, and not what is asked
        yield {"what": "only on a GPU"}
        return
    prepare_process(threads=4)
    with tempfile.TemporaryDirectory() as name:
        write_made_up_cifar(Path(name), num_train=10_000, num_test=1_000)
        use_made_up_cifar(Path(name))
        for k, trials in ((4, 5), (64, 1)):
            forget()
            row: dict[str, Any] = {"k": k, "trials": trials, "precision": "bfloat16"}
            candidates: dict[str, Callable[[], object]] = {}
            for mode in (None, "default", "reduce-overhead"):
                setup = make_setup("", "cifar10", k, trials, 40, precision="bfloat16", compile=mode)
                candidates[mode or "none"] = ours(setup)
            for mode in ("default", "reduce-overhead"):
                started = time.monotonic()
                candidates[mode]()
                wait()
                row[f"seconds to compile, {mode}"] = time.monotonic() - started
            for mode, seconds in medians(candidates, repeats=5, warm_up=1).items():
                row[mode] = trials * 40 * 128 / seconds
            yield row
            if clock.left < 60:
                return
