"""Training images per second, over all trials: our stacked trainer against the loops it replaces.

Peers, with all threads of the machine, ``torch.optim.Adam`` as it comes and the same networks built plain: (a) a
DataLoader with 4 persistent workers, prefetching and, where there is CUDA, pinned memory, and torchvision's transforms
image by image (RandomCrop, RandomHorizontalFlip, ToTensor, Normalize), which is how the systems that this one replaces
train; (b) the same loop with the images in memory as one uint8 tensor, cropped and flipped batch by batch. They train
one trial after the other, so their images per second are those of one trial. (c) is our trainer with one trial at a
time. Ours runs as the local backend runs it: as many arms side by side as it starts workers, each in a process of its
own; and once as one process with all threads, for comparison.

CIFAR-10 is made up here: random images in CIFAR's own files, read by the real code (see ``setups``). Monitors are off,
as the peers have none (``monitors.py`` measures them). Keys: ``k2`` to ``k16`` for ResNet18k at 32x32x3 and batch 128,
``digits_k1`` and ``digits_k4`` for the quickstart's ResNet10k at 8x8 and batch 100: ours over (a). With ``_memory``
over (b), with ``_one`` over (c), with ``_threads`` one process of ours over (a). At least 2 is wanted for k <= 4 at
32x32, 3.5 at 8x8, and more than 1 everywhere. ``rates`` are the images per second themselves, which
``figure1_cost.py`` reads; on a GPU also those of wide networks, beside the share of what a large product reaches there.
"""

import functools
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import Crew, interleaved, load_average, median_ratio, parse_arguments, write_json
from plain_loop import PlainLoop
from setups import Setup, make_setup, use_made_up_cifar, write_made_up_cifar

from dd_assets.compute.local import this_machine
from dd_core.forecast.work import training_flops
from dd_core.jobs.worker import device_of, prepare_process
from dd_core.training.precision import tensor_cores
from dd_core.training.trial_stack import TrialStack, stacking

TRIALS = 4


class Ours:
    """All trials of an arm, stacked as we stack them, or the first trial alone."""

    def __init__(self, setup: Setup, device: torch.device, first_alone: bool = False):
        """Load the data and build the networks."""
        groups = [[0]] if first_alone else stacking(setup.study, setup.arm)
        self.stacks = [TrialStack(setup.study, setup.arm, group, device, torch.float32) for group in groups]
        self.num_steps = setup.num_steps

    def __call__(self) -> None:
        """A repetition."""
        for stack in self.stacks:
            stack.run_steps(self.num_steps)


def prepare(folder: Path, threads: int, is_ours: bool) -> None:
    """A process like our workers; the peers do not ask for deterministic kernels."""
    prepare_process(threads)
    if not is_ours:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.benchmark = True
    use_made_up_cifar(folder)


def make_plain(setup: Setup) -> dict[str, Callable[[], object]]:
    """(a) and (b)."""
    make = functools.partial(PlainLoop, setup.study, setup.arm, setup.num_steps, device_of(0))
    return {"loader": make(in_memory=False), "memory": make(in_memory=True)}


def make_ours(setup: Setup) -> dict[str, Callable[[], object]]:
    """Stacked, and (c)."""
    return {"ours": Ours(setup, device_of(0)), "one": Ours(setup, device_of(0), first_alone=True)}


@dataclass(frozen=True)
class Layout:
    """How many processes of ours share the machine (with a GPU: one GPU), and how many threads the CPU has for them."""

    processes: int
    threads: int
    cores: int
    devices: int

    @classmethod
    def of_local_backend(cls) -> "Layout":
        """As it would train a study of many arms."""
        machine = this_machine()
        processes = machine.workers_per_device(3, None, num_arms=1000)
        devices = 1 if machine.num_gpus else machine.num_cores
        return cls(processes, machine.threads(processes), machine.num_cores, devices)


def against_peers(setups: list[Setup], repeats: int, folder: Path) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measure and print; the ratios, and our rates."""
    layout = Layout.of_local_backend()
    print(
        f"{TRIALS} trials on {this_machine().describe()}. Plain loops: one process, the faster of {layout.cores} "
        f"threads and 1; (a) has 4 loading processes beside it. (c) and ours: {layout.processes} processes, threads of "
        f"each: {layout.threads}. 'threads': one process of ours with {layout.cores} threads. Images per second."
    )
    print(f"{'':10s}{'(a) loader':>11s}{'(b) memory':>11s}{'(c) one':>11s}{'threads':>11s}{'ours':>11s}", end="")
    print(f"{'over (a) (smallest to largest)':>35s}{'(b)':>8s}{'(c)':>8s}{'threads/(a)':>13s}")
    ratios: dict[str, float] = {}
    rates: list[dict[str, Any]] = []
    with (
        Crew(1, functools.partial(prepare, folder, layout.cores, False), make_plain) as plain,
        Crew(1, functools.partial(prepare, folder, 1, False), make_plain) as plain_on_one,
        Crew(1, functools.partial(prepare, folder, layout.cores, True), make_ours) as with_threads,
        Crew(layout.processes, functools.partial(prepare, folder, layout.threads, True), make_ours) as crew,
    ):
        runs = {"loader": (plain, "loader", 1), "loader on one": (plain_on_one, "loader", 1)}
        runs |= {"memory": (plain, "memory", 1), "memory on one": (plain_on_one, "memory", 1)}
        runs |= {"one": (crew, "one", layout.processes), "threads": (with_threads, "ours", TRIALS)}
        runs |= {"ours": (crew, "ours", layout.processes * TRIALS)}
        for setup in setups:
            for each in (plain, plain_on_one, with_threads, crew):
                each.build(setup)
            candidates = {n: functools.partial(each.run, what) for n, (each, what, _) in runs.items()}
            measured = interleaved(candidates, repeats)
            images = setup.num_steps * setup.study.variants[setup.arm.variant].batch_size
            # Seconds per image.
            seconds = {n: [value / (images * runs[n][2]) for value in values] for n, values in measured.items()}
            for name in ("loader", "memory"):
                seconds[name] = min(seconds[name], seconds.pop(f"{name} on one"), key=statistics.median)
            ratios |= _report(setup.name, seconds)
            rates.append(rate_row(setup, layout.devices, 1 / statistics.median(seconds["ours"])))
    return ratios, rates


def _report(name: str, seconds: dict[str, list[float]]) -> dict[str, float]:
    """Print a row of the table; its ratios by key."""
    over, low, high = median_ratio(seconds["loader"], seconds["ours"])
    ratios = {
        name: over,
        f"{name}_memory": median_ratio(seconds["memory"], seconds["ours"])[0],
        f"{name}_one": median_ratio(seconds["one"], seconds["ours"])[0],
        f"{name}_threads": median_ratio(seconds["loader"], seconds["threads"])[0],
    }
    columns = [1 / statistics.median(seconds[column]) for column in ("loader", "memory", "one", "threads", "ours")]
    print(f"{name:10s}" + "".join(f"{rate:11,.0f}" for rate in columns), end="")
    print(f"{over:15.2f} ({low:.2f} to {high:.2f})    ", end="")
    _, memory, one, threads = ratios.values()
    print(f"{memory:8.2f}{one:8.2f}{threads:13.2f}   {load_average()}", flush=True)
    return ratios


def rate_row(setup: Setup, num_devices: int, images_per_second: float) -> dict[str, Any]:
    """A row for figure1_cost.py; ``num_devices`` counts GPUs or cores."""
    return {
        "dataset": setup.study.data.dataset,
        "k": setup.arm.k,
        "trials": setup.study.trials,
        "device": this_machine().device,
        "num_devices": num_devices,
        "precision": setup.study.variants[setup.arm.variant].precision,
        "images_per_second": images_per_second,
    }


def ours_alone(setups: list[Setup], repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Our rates without any peer's, as the local backend trains."""
    layout = Layout.of_local_backend()
    rows = []
    with Crew(layout.processes, functools.partial(prepare, folder, layout.threads, True), make_ours) as crew:
        for setup in setups:
            crew.build(setup)
            seconds = interleaved({"ours": functools.partial(crew.run, "ours")}, repeats)["ours"]
            size = setup.study.variants[setup.arm.variant].batch_size
            images = layout.processes * setup.study.trials * setup.num_steps * size
            rows.append(rate_row(setup, layout.devices, images / statistics.median(seconds)))
            print(f"k = {setup.arm.k}: {rows[-1]['images_per_second']:,.0f} images/s   ({load_average()})", flush=True)
    return rows


def on_gpu(repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Images per second of one process with the GPU to itself, and the share of a large product's speed."""
    device = device_of(0)
    prepare(folder, this_machine().num_cores, is_ours=True)
    rows = []
    print(f"{this_machine().device}, one process, ResNet18k at 32x32x3, batch 128")
    for precision in ("float32", "tf32", "bfloat16"):
        peak = _product_speed(precision, device, repeats)
        print(f"{precision}: a product of 8192 x 8192 matrices reaches {peak / 1e12:.1f} TFLOP/s")
        for k in (4, 16, 64):
            for trials in (1, 5):
                setup = make_setup("", "cifar10", k, trials, 20, precision=precision)
                seconds = interleaved({"ours": Ours(setup, device)}, repeats)["ours"]
                rate = trials * setup.num_steps * 128 / statistics.median(seconds)
                share = rate * training_flops(setup.study, setup.arm) / peak
                print(f"   k = {k:2d}, trials: {trials} {rate:12,.0f} images/s {share:8.1%} of that", flush=True)
                rows.append(rate_row(setup, 1, rate) | {"share_of_peak": share})
    return rows


def _product_speed(precision: str, device: torch.device, repeats: int) -> float:
    """FLOP/s of a large matrix product: what can be had in practice."""
    size, times = 8192, 10
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)

    def multiply() -> None:
        with tensor_cores(precision):
            for _ in range(times):
                matrix @ matrix
        torch.cuda.synchronize(device)

    return times * 2 * size**3 / statistics.median(interleaved({"product": multiply}, repeats)["product"])


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__)
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    scale = 1 if arguments.quick else 4
    setups = [make_setup(f"k{k}", "cifar10", k, TRIALS, num * scale) for k, num in {2: 6, 4: 4, 8: 2, 16: 1}.items()]
    setups += [make_setup(f"digits_k{k}", "digits", k, TRIALS, 10 * scale) for k in (1, 4)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_made_up_cifar(folder, num_train=10_000, num_test=1_000)
        ratios, rates = against_peers(setups, repeats, folder)
        if torch.cuda.is_available():
            rates += on_gpu(repeats, folder)
        else:
            print("There is no GPU here, so images per second on one, and their share of its peak, are not measured.")
            if not arguments.quick:
                rates += ours_alone([make_setup("k64", "cifar10", 64, 1, 1)], repeats, folder)
    write_json(arguments.json, ratios, trials=TRIALS, rates=rates)


if __name__ == "__main__":
    main()
