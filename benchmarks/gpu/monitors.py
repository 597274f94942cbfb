"""What logging and monitors cost, as shares of the time of training; see ``monitors.py`` beside ``on_gpu.py``."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import monitors as costs
import torch
from setups import use_made_up_cifar, write_made_up_cifar

from dd_core.curvature.parameter_space.by_trial import hessian_product, lanczos_largest
from dd_core.jobs.worker import prepare_process
from dd_core.store.store import Store
from gpu.timing import DEVICE, captured, medians


def hessian_parts(case: costs.Case, repeats: int, folder: Path) -> dict[str, Any]:
    """Milliseconds of a step, of the Hessian monitor, and of what it computes as one CUDA graph, if it were one."""
    trainings = costs.Trainings(case, Store(folder), DEVICE)
    stack, settings = trainings.stack, case.study.monitors.active(True)["hessian"].model_dump()
    num_products = settings["iterations"] + settings["num_probes"]
    positions = torch.arange(min(settings["num_images"], stack.num_train), device=DEVICE)
    inputs, targets = stack.training_examples(positions[:, None].expand(-1, len(stack.trials)))

    def make() -> Any:
        return hessian_product(stack.model, lambda: stack.losses(inputs, targets, torch.float64))

    with stack.evaluating():
        product, size = make()
        vectors = torch.randn(len(stack.trials), size, device=DEVICE)
        runs = {
            "steps": trainings.steps,
            "measurement": lambda: trainings.measure("hessian"),
            "one product": lambda: product(vectors),
            "measurement as a graph": captured(lambda: lanczos_largest(make()[0], vectors, num_products)),
        }
        seconds = medians(runs, repeats)
    seconds["step"] = seconds.pop("steps") / trainings.num_steps
    return {"what": f"{case.name}, ms", **{name: 1000 * value for name, value in seconds.items()}}


def run(clock: Any, small: bool) -> Iterator[dict[str, Any]]:
    """A row for every share, and one for what the Hessian takes."""
    prepare_process(threads=1)
    with tempfile.TemporaryDirectory() as name:
        write_made_up_cifar(Path(name), num_train=10_000, num_test=1_000)
        use_made_up_cifar(Path(name))
        cases = costs.cases(quick=small)[: 1 if small else 2]
        for case in reversed(cases):
            for key, share in costs.costs(case, 1 if small else 5, Path(name)).items():
                yield {"what": key, "share": share}
            if clock.left < 10:
                return
        for case in reversed(cases):
            try:
                yield hessian_parts(case, 1 if small else 5, Path(name) / f"{case.name} again")
            except RuntimeError as error:  # what cannot be captured costs the other rows nothing
                yield {"what": f"{case.name}, ms", "error": str(error)[:300]}
