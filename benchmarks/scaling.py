"""How the work scales: workers of this machine, simulated GPUs, and the orchestrator alone.

1. ``here``: the same training and the same curvature with 1, 2 and 4 workers of one thread (``scaling_here.py``).
   Speed-up, and efficiency: speed-up over the cores that can be had.
2. ``simulation``: Figure 1's 320 trainings and the images of checkpoints on 8, 64 and 512 GPUs, by our own division and
   order (``scaling_simulation.py``; where the times come from: ``scaling_workloads.py``). Efficiency is work over (GPUs
   x makespan), with medians over draws of times; ``bound`` is the best that any order of these tasks could reach.
3. ``orchestrator``: what it costs to have 1,000 and 10,000 partitions computed, by a place that takes no time
   (``scaling_orchestrator.py``), and the requests to a simulated API server per look (``scaling_requests.py``).
4. ``rows``: planning, checking and SQL over 4,001 checkpoints with 105 million rows (``scaling_rows.py``).

``--only`` runs one of them. Keys: ``train_2``, ``curvature_2`` and so on: speed-up over one worker, at most the number
of cores. ``figure1_<law>_<tasks>_<GPUs>``, ``curvature_<checkpoints>_<trials>_<GPUs>``: efficiency as predicted; at
least 0.95 is wanted at 64 GPUs, which whole arms of five trials cannot have (see their bound).
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path

from common import write_json
from scaling_simulation import Conditions, Result, median_of
from scaling_workloads import LAWS, Workload, curvature, figure1

from dd_assets.catalogue import catalogue

GPUS = (8, 64, 512)
SIGMAS = (0.05, 0.1, 0.2)
START_SECONDS = 30.0
HOURS_BETWEEN_EVICTIONS = 6.0


def simulation(quick: bool) -> dict[str, float]:
    """Print the table; efficiencies as predicted, by key."""
    study = catalogue().studies["double_descent"]
    draws = 5 if quick else 20
    print("Pods of 8 GPUs; times as predicted, or off by a factor whose logarithm has the standard deviation sigma")
    print(f"(medians of {draws} draws). 'one queue': sigma 0.1, and all GPUs take their tasks from one queue. 'costs':")
    print(f"sigma 0.1, {START_SECONDS:.0f} s to start a pod, which is evicted every", end=" ")
    print(f"{HOURS_BETWEEN_EVICTIONS:.0f} h on average (not of CPUs).")
    ratios: dict[str, float] = {}
    for law in LAWS:
        print(f"\n{law.name}: an image takes {law.overhead * 1e6:.1f} us + FLOPs / {1e-9 / law.per_flop:,.0f} GFLOP/s")
        for workload in figure1(law, study):
            ratios |= _table(f"figure1_{law.name.lower()}_{workload.key}", workload, draws, law.name == "B200")
    print("\nPer-image curvature at the published speed")
    for num_checkpoints, trials in ((1, 1), (1, 5), (21, 1)):
        workload = curvature(study, num_checkpoints, trials)
        ratios |= _table(f"curvature_{workload.key}", workload, draws, True)
    return ratios


def _table(key: str, workload: Workload, draws: int, with_evictions: bool) -> dict[str, float]:
    """A line for each number of GPUs."""
    evictions = {"hours_between_evictions": HOURS_BETWEEN_EVICTIONS} if with_evictions else {}
    costs = Conditions(0.1, START_SECONDS, **evictions)
    seconds = workload.seconds
    print(f"{workload.name}: {len(seconds)} tasks, {min(seconds) / 3600:,.3g} to {workload.longest / 3600:,.3g} h each")
    print(f"   {'GPUs':>4s}{'bound':>8s}{'predicted':>11s}{'makespan':>12s}{'longest/mean pod':>18s}", end="")
    print("".join(f"{f'sigma {sigma}':>12s}" for sigma in SIGMAS), end="")
    print(f"{'one queue':>11s}{'costs':>8s}{'makespan':>12s}")
    ratios = {}
    for num_gpus in GPUS:
        play: Callable[[Conditions], Result] = functools.partial(_median, workload, num_gpus, draws)
        plain, jittered, real = play(Conditions()), [play(Conditions(sigma)) for sigma in SIGMAS], play(costs)
        print(f"   {num_gpus:4d}{workload.bound(num_gpus):8.1%}{plain.efficiency:11.1%}{plain.hours:10,.2f} h", end="")
        print(f"{plain.spread:18.3f}" + "".join(f"{each.efficiency:12.1%}" for each in jittered), end="")
        print(f"{jittered[1].one_queue:11.1%}{real.efficiency:8.1%}{real.hours:10,.2f} h", flush=True)
        ratios[f"{key}_{num_gpus}"] = plain.efficiency
    return ratios


def _median(workload: Workload, num_gpus: int, draws: int, conditions: Conditions) -> Result:
    return median_of(workload, num_gpus, conditions, draws)


def here(quick: bool) -> dict[str, float]:
    """Workers of this machine."""
    from scaling_here import report

    return report(quick)


def orchestrator(quick: bool) -> dict[str, float]:
    """What partitions cost who has them computed."""
    from scaling_orchestrator import report
    from scaling_requests import report_requests

    return report(quick) | report_requests(quick)


def rows(quick: bool) -> dict[str, float]:
    """What many files and rows cost."""
    from scaling_rows import report

    return report(quick)


PARTS: dict[str, Callable[[bool], dict[str, float]]] = {
    "here": here,
    "simulation": simulation,
    "orchestrator": orchestrator,
    "rows": rows,
}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and smaller repetitions")
    parser.add_argument("--json", type=Path, help='write {"ratios": {name: number}, ...} to this file')
    parser.add_argument("--only", choices=PARTS, help="one of the four parts")
    arguments = parser.parse_args()
    ratios: dict[str, float] = {}
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            started = time.monotonic()
            print(f"== {name}")
            ratios |= part(arguments.quick)
            print(f"({time.monotonic() - started:.0f} s)\n", flush=True)
    write_json(arguments.json, ratios)


if __name__ == "__main__":
    main()
