"""Processor seconds of every arm of the quickstart: training, evaluation and monitors, on one core.

The study is the shipped one. A few epochs of each arm are done in one process on one thread, as a worker trains, and
their median counts for all epochs; writing files is left out. ``library`` is the same with every convolution computed
by PyTorch's own (no products in place of convolutions of small maps, ``dd_core.models.small_maps``), in turn with ours.
Keys: ``k1`` to ``k16`` for training and ``k1_evaluation`` to ``k16_evaluation``: the library's seconds over ours. More
than 1: ours is faster. As on a processor without AVX-512:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 python benchmarks/quickstart.py
"""

import functools
import statistics
import time
from pathlib import Path

import torch
from common import interleaved, load_average, median_ratio, parse_arguments, write_json

import dd_assets
from dd_core.jobs.worker import device_of, prepare_process
from dd_core.models.stacking import Convolution
from dd_core.study.files import read_study
from dd_core.study.study import Arm, Study
from dd_core.training.monitors import Moment, make_monitors
from dd_core.training.trial_stack import TrialStack, stacking


class Stacks:
    """An arm's networks without monitors, at some epoch."""

    def __init__(self, study: Study, arm: Arm, takes_products: bool):
        """Untrained ones."""
        bare = study.model_copy(update={"monitors": study.monitors.model_copy(update=dict.fromkeys(_MONITORS))})
        groups = stacking(bare, arm)
        self.stacks = [TrialStack(bare, arm, group, device_of(0), torch.float32) for group in groups]
        self.epoch = 0
        for module in (module for stack in self.stacks for module in stack.model.modules()):
            if isinstance(module, Convolution):
                module.takes_products = takes_products

    def train(self) -> None:
        """An epoch on."""
        self.epoch += 1
        for stack in self.stacks:
            stack.train_epoch(self.epoch, [])

    def evaluate(self) -> None:
        """Every image."""
        for stack in self.stacks:
            stack.evaluate(self.epoch)


_MONITORS = ("validation", "norms", "hessian", "noise", "plasticity")


def seconds_of_monitors(study: Study, stacks: list[TrialStack]) -> float:
    """What all their measurements in a training take, from one of each."""
    total = 0.0
    for stack in stacks:
        stack.study = study
        timetable = make_monitors(stack)
        last = stack.calendar.steps_after(study.epochs)
        for name, (_, monitor) in timetable._entries.items():
            number = sum(timetable._is_due(name, step) for step in range(1, last + 1))
            moment = Moment(1, 1, torch.ones(len(stack.trials)), stack.stepper.gradient_norms)
            monitor.observe(moment)
            monitor.measure(moment)
            started = time.process_time()
            monitor.measure(moment)
            total += number * (time.process_time() - started)
    return total


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__)
    repeats = arguments.repeats or (5 if arguments.quick else 15)
    prepare_process(1)
    assert dd_assets.__file__ is not None
    study = read_study(Path(dd_assets.__file__).parent / "studies" / "quickstart.yaml")
    print(
        f"Processor seconds of an arm of {study.epochs} epochs on {torch.backends.cpu.get_cpu_capability()}; library's:"
    )
    ratios: dict[str, float] = {}
    measure = functools.partial(interleaved, repeats=repeats, warm_up=3, clock=time.process_time)
    for arm in study.arms.values():
        ours, library = Stacks(study, arm, True), Stacks(study, arm, False)
        training = measure({"ours": ours.train, "library": library.train})
        evaluation = measure({"ours": ours.evaluate, "library": library.evaluate})
        line = f"k = {arm.k:2d}"
        for what, key, seconds in (("training", "", training), ("evaluation", "_evaluation", evaluation)):
            own, theirs = (statistics.median(seconds[name]) * study.epochs for name in ("ours", "library"))
            ratios[f"k{arm.k}{key}"] = median_ratio(seconds["library"], seconds["ours"])[0]
            line += f"   {what} {own:6.2f} ({theirs:6.2f}, {ratios[f'k{arm.k}{key}']:.2f} times)"
        print(f"{line}   monitors {seconds_of_monitors(study, ours.stacks):5.2f}   {load_average()}", flush=True)
    write_json(arguments.json, ratios)


if __name__ == "__main__":
    main()
