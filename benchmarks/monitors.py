"""What logging and monitors cost, as shares of the time of training without any of it.

One thread, all trials of an arm stacked. ``steps`` is training that records nothing at all, with the same stacked
network, data and optimiser, on a GPU as a CUDA graph wherever the trainer's steps are one; ``batches`` the trainer with
every batch's metrics, ready to observe for its monitors, and written to the tables. A monitor's cost is the time of one
measurement over that of the steps between two. All run in turn in one process, timed by its processor time (on a GPU:
by the wall, waiting for the device); medians of the ratios of each turn.

Setups: ResNet18k, k = 4, on 45,000 images of 32x32x3 and 5,000 for validation, 4 trials, the monitors at their defaults
(made-up images, see ``setups``; monitors that come once in many steps are measured alone and weighted with how often
they come); and the study ``quickstart`` as it is shipped, at k = 1 and 4, where ``everything`` is also measured as
it comes, over as many epochs as it takes until every monitor has been due.

Keys: ``cifar_k4_logging`` and so on, fractions of training time. ``logging``: batches and norms, at most 0.03 is
wanted; ``validation``: the passes over the validation images, which no monitor can save; ``curvature``: at most 0.1;
``noise``; ``everything`` (quickstart). ``evaluation``: one pass over all images, per image and over a training image.
"""

import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import interleaved, load_average, median_ratio, parse_arguments, write_json
from setups import make_setup, use_made_up_cifar, write_made_up_cifar

from dd_assets.catalogue import catalogue
from dd_core.jobs.worker import device_of, prepare_process
from dd_core.store.store import Store
from dd_core.study.calendar import Calendar
from dd_core.study.monitors import MonitorSettings, next_due
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.training.cuda_graph import GraphedStep
from dd_core.training.monitors import Moment, Monitor, monitor_class
from dd_core.training.recorder import Recorder
from dd_core.training.trial_stack import TrialStack, stacking


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained and watched.

    Attributes:
        name: begins the keys.
        study: with the monitors that are measured.
        arm: of it.
        calendar: as monitors count, where the made-up images are fewer than the real ones.
        num_epochs: of the images there are, in one repetition.
    """

    name: str
    study: Study
    arm: Arm
    calendar: Calendar
    num_epochs: int


def cases(quick: bool) -> list[Case]:
    """CIFAR at k = 4 and the quickstart at k = 1 and 4."""
    setup = make_setup("", "cifar10", 4, 4, 0)
    data = setup.study.data.model_copy(update={"num_train": 640 if quick else 2560, "num_validation": 5000})
    cifar = setup.study.model_copy(update={"monitors": MonitorSettings(), "data": data})
    quickstart = catalogue().get("quickstart")
    (variant,) = quickstart.variants
    calendar = quickstart.calendar(variant)
    num_epochs = max(
        calendar.epoch_of(next_due(m.every, calendar, 0)) for m in quickstart.monitors.active(True).values()
    )
    return [
        Case("cifar_k4", cifar, setup.arm, Calendar(45_000, 128), 1),
        *(Case(f"quickstart_k{k}", quickstart, Arm(variant, k), calendar, num_epochs) for k in (1, 4)),
    ]


class Trainings:
    """The candidates of a case, all with one network."""

    def __init__(self, case: Case, store: Store, device: torch.device):
        """The first stack of the arm."""
        never = {
            name: {**settings.model_dump(), "every": "9999 epochs"}
            for name, settings in case.study.monitors.active(case.study.data.num_validation > 0).items()
        }
        waiting = case.study.model_copy(update={"monitors": MonitorSettings.model_validate(never)})
        trials = stacking(case.study, case.arm)[0]
        make = functools.partial(TrialStack, arm=case.arm, trials=trials, device=device, dtype=torch.float32)
        self.case, self.store, self.device, self.stack = case, store, device, make(waiting)
        # Without a graph of its own training would be slower than what also records.
        self.graph = GraphedStep(list(self.stack.model.parameters())) if self.stack.stepper.graph else None
        self.watched = make(case.study)
        self.recorder = Recorder(case.study, case.arm, self.stack.data)
        self.monitors = {name: self._monitor(name) for name in never}

    def _monitor(self, name: str) -> Monitor:
        settings = self.case.study.monitors.active(True)[name]
        monitor = monitor_class(name, settings)(self.stack, **settings.model_dump(exclude={"every"}))
        loss = torch.rand(len(self.stack.trials), device=self.device)
        for step in range(1, 513):  # what it wants to have seen before it measures
            monitor.observe(Moment(step, 1, loss, loss))
        return monitor

    def steps(self) -> None:
        """Nothing recorded."""
        stack, size = self.stack, self.stack.variant.batch_size
        stack.model.train()
        for epoch in range(1, self.case.num_epochs + 1):
            plan = stack.examples.plan(epoch)
            for start in range(0, stack.num_train, size):
                images, labels = stack.examples.batch(plan, start, min(start + size, stack.num_train))
                if self.graph is None:
                    self._step(images, labels)
                else:
                    self.graph(self._step, images, labels)

    def _step(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.stack.stepper.optimizer.zero_grad()
        self.stack.losses(images, labels).mean(0).sum().backward()
        self.stack.stepper.optimizer.step()
        return ()

    def batches(self, watched: bool = False) -> None:
        """Every batch recorded and written; ``watched``: with the monitors of the study."""
        stack = self.watched if watched else self.stack
        for epoch in range(1, self.case.num_epochs + 1):
            first_step = stack.calendar.steps_before(epoch) + 1
            self.recorder.add_batches(epoch, first_step, [stack.train_epoch(epoch)])
        self.recorder.flush(self.store, Checkpoint(self.case.arm, self.case.num_epochs))

    def measure(self, name: str) -> None:
        """One measurement of a monitor."""
        loss = torch.ones(len(self.stack.trials), device=self.device)
        self.monitors[name].measure(Moment(1000, 1, loss, self.stack.stepper.gradient_norms))

    @property
    def num_steps(self) -> int:
        """In one repetition."""
        return self.stack.calendar.steps_after(self.case.num_epochs)


def costs(case: Case, repeats: int, folder: Path) -> dict[str, float]:
    """Measure and print; fractions of training time by key."""
    device = device_of(0)
    trainings = Trainings(case, Store(folder / case.name), device)
    candidates: dict[str, Callable[[], object]] = {"steps": trainings.steps, "batches": trainings.batches}
    if case.name.startswith("quickstart"):
        candidates["everything"] = functools.partial(trainings.batches, watched=True)
    candidates["steps again"] = trainings.steps  # before and after: the machine drifts by more than logging costs
    candidates |= {name: functools.partial(trainings.measure, name) for name in trainings.monitors}
    candidates["evaluation"] = functools.partial(trainings.stack.evaluate, 1)
    clock = time.process_time if device.type == "cpu" else functools.partial(_clock, device)
    seconds = interleaved(candidates, repeats, clock=clock)
    unit = [(a + b) / 2 / trainings.num_steps for a, b in zip(seconds["steps"], seconds["steps again"], strict=True)]
    cost = {name: median_ratio(values, unit)[0] for name, values in seconds.items()}  # in steps

    per_step = statistics.median(unit)
    print(f"\n{case.name}: {len(trainings.stack.trials)} trials, {per_step * 1e3:.1f} ms a step   ({load_average()})")
    shares = {n: cost[n] / trainings.num_steps - 1 for n in ("batches", "everything") if n in cost}
    print(f"   every batch recorded and written {shares['batches']:26.2%}")
    active = case.study.monitors.active(True)
    for name in trainings.monitors:
        period = next_due(active[name].every, case.calendar, 0)
        shares[name] = cost[name] / period
        print(f"   {name:10s} takes {cost[name]:6.2f} steps every {period:6d} {shares[name]:22.2%}")
    if "everything" in shares:
        print(f"   all of it as it comes, with against without {shares['everything']:15.2%}")
    num_images = trainings.stack.examples.splits(1).num_examples
    shares["evaluation"] = cost["evaluation"] * trainings.stack.variant.batch_size / num_images
    print(f"   an image evaluated costs {shares['evaluation']:.2f} of one trained on")
    groups = {"logging": ("batches", "norms"), "curvature": ("hessian",)}
    groups |= {name: (name,) for name in ("validation", "noise", "everything", "evaluation") if name in shares}
    return {f"{case.name}_{group}": sum(shares[name] for name in names) for group, names in groups.items()}


def _clock(device: torch.device) -> float:
    torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__)
    prepare_process(threads=1)
    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_made_up_cifar(folder, num_train=10_000, num_test=1_000)
        use_made_up_cifar(folder)
        for case in cases(arguments.quick):
            # Steps of small networks take milliseconds, whose small differences need more turns.
            turns = (3 if arguments.quick else 7) * (1 if case.name.startswith("cifar") else 3)
            ratios |= costs(case, arguments.repeats or turns, folder)
    print("\nwanted: logging at most 3 %, curvature at most 10 %")
    for key, value in ratios.items():
        print(f"{key:28s} {value:8.4f}")
    write_json(arguments.json, ratios)


if __name__ == "__main__":
    main()
