"""``python -m dd_core.jobs.probe.worker JOB``: one of the workers that are measured side by side (see ``team``).

Questions come on stdin, one line of JSON each; every one gets one answer on stdout, an event prepared, timed, out of
memory or failed. ``{"prepare": 3}``: build the arm of task 3 and train until its steps are steady. ``{"steps": 40}``:
train 40 steps and tell how long that took.
"""

import argparse
import gc
import json
import sys
import threading
import time
import traceback
from pathlib import Path

import torch

from dd_core.errors import UserError
from dd_core.events import Event, Failed, OutOfMemory, Prepared, Timed
from dd_core.jobs.job import Job, TrainTask
from dd_core.jobs.worker import Events, device_of, prepare_process
from dd_core.machine.arithmetic import usable
from dd_core.machine.devices import be_killed_first
from dd_core.machine.memory import is_out_of_memory, peak_memory, reset_peak_memory
from dd_core.training.trial_stack import TrialStack, stacking

_WARM_UP_STEPS = 2
_WARM_UP_SECONDS = 5.0
_STEADY = 0.1  # steps that differ less are taken for equal


class Trainee:
    """The arm in hand: all its stacks on the device, as training has them."""

    def __init__(self, job: Job, device: torch.device):
        """None yet."""
        self._job, self._device = job, device
        self._stacks: list[TrialStack] = []

    def answer(self, question: dict[str, int]) -> Event:
        """Do what is asked; whatever goes wrong is the answer."""
        try:
            return self.prepare(question["prepare"]) if "prepare" in question else self.time(question["steps"])
        except UserError as error:
            problem: Event = Failed(error=str(error), is_user_error=True)
        except Exception as error:
            if is_out_of_memory(error):
                problem = OutOfMemory()
            else:
                traceback.print_exc()
                problem = Failed(error=f"{type(error).__name__}: {error}")
        # Only here, after the exception and with it the frames that hold its tensors are gone.
        self.forget()
        return problem

    def prepare(self, number: int) -> Prepared:
        """Build an arm, train until it is warm, and tell how long a step takes."""
        task = self._job.tasks[number]
        assert isinstance(task, TrainTask)
        study, arm = self._job.studies[task.study], task.arm
        self.forget()
        precision = usable(study.variants[arm.variant].precision, self._device)  # may measure, in memory of its own
        reset_peak_memory(self._device)
        for trials in stacking(study, arm, on_gpu=self._device.type == "cuda"):
            stack = TrialStack(study, arm, trials, self._device, torch.float32)
            stack.compute_in(precision)
            self._stacks.append(stack)
        return Prepared(seconds_per_step=self._warm_up())

    def _warm_up(self) -> float:
        """Train until a step takes as long as the ones before it, or for long enough; returns how long it takes.

        The first steps load code, choose algorithms and fill caches: they may take a hundred times as long.
        """
        deadline = time.monotonic() + _WARM_UP_SECONDS
        before, steps = self._train(_WARM_UP_STEPS) / _WARM_UP_STEPS, _WARM_UP_STEPS
        while True:
            seconds = self._train(steps) / steps
            if abs(seconds - before) <= _STEADY * before or time.monotonic() > deadline:
                return seconds
            before, steps = seconds, 2 * steps

    def time(self, num_steps: int) -> Timed:
        """Train that many steps of every stack; what a row of the table resource_probe needs of one worker."""
        with _GpuUtilisation(self._device) as gpu:
            cpu_before = time.process_time()
            seconds = self._train(num_steps)
            num_cores_used = (time.process_time() - cpu_before) / seconds
        is_gpu = self._device.type == "cuda"
        return Timed(
            seconds=seconds,
            samples=sum(_images(stack, num_steps) for stack in self._stacks),
            num_steps=num_steps * len(self._stacks),
            utilisation=gpu.mean if is_gpu else num_cores_used,
            peak_memory_bytes=peak_memory(self._device),
            torch_version=str(torch.__version__),
        )

    def _train(self, num_steps: int) -> float:
        """Seconds it took."""
        self._synchronize()
        started = time.monotonic()
        for stack in self._stacks:
            stack.run_steps(num_steps)
        self._synchronize()
        return time.monotonic() - started

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def forget(self) -> None:
        """Free the arm in hand."""
        self._stacks = []
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _images(stack: TrialStack, num_steps: int) -> int:
    """How many images the trials of a stack see in so many steps; the last batch of an epoch may be a smaller one."""
    return stack.calendar.examples_within(num_steps) * len(stack.trials)


class _GpuUtilisation:
    """Mean of what the driver reports five times a second; None on a CPU, or without the package nvidia-ml-py."""

    def __init__(self, device: torch.device):
        self._device = device
        self._shares: list[float] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_GpuUtilisation":
        if self._device.type == "cuda":
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.2):
            try:
                self._shares.append(torch.cuda.utilization(self._device) / 100)
            except Exception:  # the package, the driver or the permission is missing, each with an error of its own
                return

    @property
    def mean(self) -> float | None:
        """Share of the time in which the GPU did something."""
        return sum(self._shares) / len(self._shares) if self._shares else None


def main() -> None:
    """Answer until stdin is closed."""
    parser = argparse.ArgumentParser(prog="python -m dd_core.jobs.probe.worker", description=__doc__)
    parser.add_argument("job", type=Path, help="job file, JSON")
    events = Events()
    job = Job.model_validate_json(parser.parse_args().job.read_text(encoding="utf-8"))
    be_killed_first()
    prepare_process(job.threads)
    trainee = Trainee(job, device_of(0))
    for line in sys.stdin:
        events.emit(trainee.answer(json.loads(line)))


if __name__ == "__main__":
    main()
