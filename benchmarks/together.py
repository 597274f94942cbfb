"""Processor time of arms that differ in learning rate alone: in one network, over each in its own.

Arms of 1 and of 3 trials, so many as share a network (where none would, two); an epoch's steps in one process on one
core, as a worker trains, monitors off. Keys: ``digits_k2`` to ``digits_k16`` for ResNet10k at 8x8 and batch 100, ``k2``
to ``k8`` for ResNet18k at CIFAR's 32x32x3 and batch 128, of made-up images; with ``_1`` or ``_3`` for the trials of
each arm. Ratios are those of processor time (more than 1: together is faster), which others on the machine hardly
change; wall time stands beside them. Ratios near 1, and below, are why such arms share none (``dd_core.study.stacks``).
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import interleaved, load_average, median_ratio, parse_arguments, write_json
from setups import make_setup, use_made_up_cifar, write_made_up_cifar

from dd_assets.compute.local import this_machine
from dd_core.jobs.worker import device_of, prepare_process
from dd_core.study.stacks import together
from dd_core.study.study import Study
from dd_core.training.shared_stack import SharedStack
from dd_core.training.trial_stack import TrialStack


@dataclass(frozen=True)
class Grid:
    """Arms that may share a network.

    Attributes:
        name: the key of its ratio.
        study: as many variants as share one, of different learning rates.
        num_steps: of each trial in a repetition.
    """

    name: str
    study: Study
    num_steps: int

    def apart(self) -> list[TrialStack]:
        """A network for each arm."""
        return [self._alone(name) for name in self.study.variants]

    def _alone(self, variant: str) -> TrialStack:
        arm = next(arm for arm in self.study.arms.values() if arm.variant == variant)
        return TrialStack(self.study, arm, list(self.study.trial_numbers), device_of(0), torch.float32)

    def together(self) -> list[TrialStack]:
        """One network for all."""
        arms = list(self.study.arms.values())
        return [SharedStack(self.study, arms, list(self.study.variants), device_of(0), torch.float32).stack]


def make_grid(dataset: str, k: int, trials: int, num_steps: int) -> Grid:
    """As many arms as share a network, of the learning rates 0.01, 0.02, ..., by SGD with momentum."""
    sgd = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
    setup = make_setup("", dataset, k, trials, num_steps, optimizer={**sgd, "learning_rate": 0.01})
    (variant,) = setup.study.variants.values()

    def with_rate(number: int) -> dict[str, Any]:
        optimizer = variant.optimizer.model_copy(update={"learning_rate": 0.01 * number})
        return {f"lr-{number}": variant.model_copy(update={"optimizer": optimizer})}

    many = {name: own for number in range(1, 25) for name, own in with_rate(number).items()}
    whole = setup.study.model_copy(update={"variants": many})
    whole.__dict__.pop("arms", None)
    arms = list(whole.arms.values())
    first = max(together(whole, arms, 1)[0], arms[:2], key=len)
    study = whole.model_copy(update={"variants": {arm.variant: many[arm.variant] for arm in first}})
    study.__dict__.pop("arms", None)
    return Grid(f"{'digits_' if dataset == 'digits' else ''}k{k}_{trials}", study, num_steps)


def _both_clocks() -> Any:
    return np.array([time.process_time(), time.perf_counter()])


def measure(grid: Grid, repeats: int) -> float:
    """Print a line; the ratio of processor times."""
    candidates = {"apart": grid.apart(), "together": grid.together()}

    def run(stacks: list[TrialStack]) -> Any:
        return lambda: [stack.run_steps(grid.num_steps) for stack in stacks]

    runs = {name: run(stacks) for name, stacks in candidates.items()}
    both = interleaved(runs, repeats, clock=_both_clocks)
    work = len(grid.study.variants) * grid.study.trials * grid.num_steps
    of_cpu = {name: [float(cpu) for cpu, _ in times] for name, times in both.items()}
    of_wall = {name: [float(wall) for _, wall in times] for name, times in both.items()}
    ratio, low, high = median_ratio(of_cpu["apart"], of_cpu["together"])
    apart, one = (1000 * statistics.median(of_cpu[name]) / work for name in ("apart", "together"))
    wall, _, _ = median_ratio(of_wall["apart"], of_wall["together"])
    print(
        f"{grid.name:14s}{len(grid.study.variants):3d} arms of {grid.study.trials}{apart:9.2f}{one:9.2f} ms"
        f"{ratio:8.2f} ({low:.2f} to {high:.2f}){wall:8.2f} by the wall   ({load_average()})",
        flush=True,
    )
    return ratio


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__)
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    scale = 1 if arguments.quick else 3
    prepare_process(1)
    print(f"One core of {this_machine().describe()}. Processor time per step and trial: apart, together, ratio.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_made_up_cifar(folder, num_train=2_000, num_test=500)
        use_made_up_cifar(folder)
        ratios = {}
        for dataset, widths, steps in (("digits", (2, 4, 8, 16), 3 * scale), ("cifar10", (2, 4, 8), scale)):
            for k in widths:
                for trials in (1, 3):
                    grid = make_grid(dataset, k, trials, steps)
                    ratios[grid.name] = measure(grid, repeats)
    write_json(arguments.json, ratios)


if __name__ == "__main__":
    main()
