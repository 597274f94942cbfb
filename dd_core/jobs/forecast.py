"""What a training will take, said before it begins: who shares what, in which order, how long, at what price."""

from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from dd_core.errors import UserError
from dd_core.forecast.speed import Known, Prediction
from dd_core.jobs.job import Job, TrainTask
from dd_core.jobs.placement import makespan
from dd_core.machine.devices import Machine
from dd_core.store.parts import Part
from dd_core.store.resume_points import trained_epoch
from dd_core.store.store import Store
from dd_core.study.price import price_per_gpu_hour
from dd_core.study.study import Arm, Study
from dd_core.words import counted, duration


@dataclass(frozen=True)
class Forecast:
    """What is expected of a job of training.

    Attributes:
        job: its tasks say what each arm shares and is predicted to take.
        predictions: by arm, of its parts together; an arm of which nothing is known is missing.
        price: per GPU hour, None without one.
        problem: why the tables could not be looked into.
    """

    job: Job
    machine: Machine
    predictions: dict[Arm, Prediction]
    price: float | None
    problem: str = ""

    @property
    def tasks(self) -> list[TrainTask]:
        """In the order in which they begin."""
        return [task for task in self.job.tasks if isinstance(task, TrainTask)]

    @property
    def seconds(self) -> float | None:
        """Until the last arm is trained; None where one is unknown."""
        predicted = [task.predicted_seconds for task in self.tasks]
        known = [seconds for seconds in predicted if seconds is not None]
        shares = [Fraction(1, task.workers_per_device or 1) for task in self.tasks]
        if len(known) < len(predicted):
            return None
        limit = self.machine.num_places * self.job.num_workers
        return makespan(shares, self.machine.num_devices, limit, known)

    def gpu_hours(self, arm: Arm) -> float | None:
        """GPU-hours of one arm; None where they are unknown, or it trains on a CPU."""
        if not self.machine.num_gpus or arm not in self.predictions:
            return None
        return self.predictions[arm].seconds * self._gpu_shares[arm] / 3600

    @cached_property
    def _gpu_shares(self) -> dict[Arm, float]:
        """That of each arm; all its parts have the same."""
        return {arm: task.gpu_share for task in self.tasks for arm in task.arms}

    def metadata(self, arm: Arm) -> dict[str, float]:
        """For the partitions of an arm."""
        if arm not in self.predictions:
            return {}
        hours = self.gpu_hours(arm)
        priced = {} if hours is None or self.price is None else {"predicted_cost": hours * self.price}
        return {"predicted_seconds": self.predictions[arm].seconds, **priced}

    def order(self) -> str:
        """One line: on what, and in which order."""
        workers = min(len(self.tasks), self.machine.num_places * self.job.num_workers)
        return (
            f"training on {self.machine.describe()} with up to {counted(workers, 'worker')}, longest first "
            f"by predicted cost (FLOPs x epochs), beginning with {self.tasks[0].arm.key}"
        )

    def describe(self) -> str:
        """One line: how long, from what, and what it costs."""
        if self.seconds is None:
            reason = "nothing has been trained or probed under such conditions yet; the asset resource_probe tells"
            return f"how long this takes is unknown: {self.problem or reason}"
        text = f"predicted to take {duration(self.seconds)} from {self._sources()}"
        if self.machine.num_gpus:
            hours = sum(self.gpu_hours(arm) or 0.0 for arm in self.predictions)
            text += f", {hours:.3g} GPU-hours"
            if self.price is not None:
                text += f", which cost {hours * self.price:.2f} at {self.price:g} per GPU-hour"
        return text

    def _sources(self) -> str:
        counts = Counter(prediction.source for prediction in self.predictions.values())
        if len(counts) == 1:
            return next(iter(counts))
        return " and ".join(f"{source} ({counted(count, 'arm')})" for source, count in counts.most_common())

    def compare(self, seconds: float, of_arms: dict[str, float]) -> str:
        """One line: how far off it was, if all arms finished.

        Args:
            seconds: from the start of the first arm to the end of the last.
            of_arms: of each arm that finished, by the name of its task.
        """
        took = f"training took {duration(seconds)}"
        if self.seconds is None or len(of_arms) < len(self.tasks):
            return took
        text = f"{took}, predicted {duration(self.seconds)} from {self._sources()}: {_off(seconds, self.seconds)}"
        ratios = [of_arms[task.name] / task.predicted_seconds for task in self.tasks if task.predicted_seconds]
        if len(ratios) > 1:
            text += f"; single arms from {_off(min(ratios), 1.0)} to {_off(max(ratios), 1.0)}"
        return text


def _off(took: float, predicted: float) -> str:
    """How far off a prediction was: in percent where that says something, else how many times as long."""
    if not predicted:
        return "it was to take no time"
    ratio = took / predicted
    if abs(ratio - 1) < 0.005:
        return "as predicted"
    if ratio >= 3:
        return f"{ratio:.2g} times as long" if ratio < 100 else f"{ratio:,.0f} times as long"
    return f"{abs(100 * (ratio - 1)):.0f} % {'longer' if ratio > 1 else 'shorter'}"


def _begun(store: Store, study: Study, task: TrainTask, arm: Arm) -> int:
    """The epoch from which training of one of its arms will go on."""
    if task.trials is None:
        return trained_epoch(store, study, arm)
    part = Part.of(store, study, task.arm, range(*task.trials))
    return trained_epoch(part.store, part.study, task.arm)


def forecast(store: Store, study: Study, job: Job, machine: Machine) -> Forecast:
    """Give every task of a job of training its share of the machine, and predict how long it takes.

    Raises:
        UserError: ``DD_PRICE_PER_GPU_HOUR`` is not a price.
    """
    price, problem = price_per_gpu_hour(study), ""
    try:
        known = Known.read(store, study, machine)
    except UserError as error:  # a damaged file, which this very training may replace
        known, problem = Known(study, machine), str(error)
    predictions: dict[Arm, Prediction] = {}
    tasks = []
    for task in job.tasks:
        assert isinstance(task, TrainTask)
        workers = known.workers_per_device(task.arm, len(job.tasks))
        seconds: float | None = 0.0
        for arm in task.arms:
            epochs = min(_begun(store, study, task, arm), task.until), task.until
            prediction = known.predict(arm, epochs, workers, len(task.arms))
            if prediction is None:
                seconds = None
                break
            of_arm = prediction.seconds * task.share(study)
            before = predictions[arm].seconds if arm in predictions else 0.0
            predictions[arm] = Prediction(before + of_arm, prediction.source)
            seconds = (seconds or 0.0) + of_arm
        given = {"workers_per_device": workers, "threads": machine.threads(workers)}
        tasks.append(task.model_copy(update={**given, "predicted_seconds": seconds}))
    room = machine.devices_per_place * max(task.workers_per_device or 1 for task in tasks)
    num_workers = min(room, machine.num_workers or room, len(tasks))
    job = job.model_copy(update={"tasks": tuple(tasks), "num_workers": num_workers})
    return Forecast(job, machine, predictions, price, problem)
