"""The table ``resource_probe``: one file per arm and kind of device, and what it recommends. Needs no torch."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dd_core.machine.devices import Machine, product_of
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study

if TYPE_CHECKING:
    import duckdb

# SQL: the device is of a product (``product_of``), which is how a study names a GPU.
SAME_DEVICE: Final = "trim(regexp_replace(device, '[^A-Za-z0-9.]+', '-', 'g'), '-') = ?"
# Fewer workers are worth more than the last percents: they leave memory, and less is lost when one is killed.
_CLOSE_TO_BEST = 0.97
_UNAVOIDABLE = 0.1  # repetitions differ by as much on any machine, of the highest throughput


@dataclass(frozen=True)
class Measurement:
    """Some workers training one arm each, at the same time on one device.

    Attributes:
        num_workers: on the GPU, or on the cores of the CPU.
        threads: CPU threads of each.
        status: ok, or out of memory, with nothing below.
        device: ``cpu`` or the GPU's name.
        samples_per_second: training images of all trials and workers together, median of all repetitions.
        spread: how far these lie apart, largest minus smallest over the median.
        peak_memory_bytes: of one worker, the largest.
        utilisation: share of the GPU's time, or of the cores; None where it cannot be told.
        num_steps: that each worker was timed for.
    """

    study: Study
    arm: Arm
    num_workers: int
    threads: int
    status: str
    device: str
    samples_per_second: float | None = None
    peak_memory_bytes: int | None = None
    utilisation: float | None = None
    num_steps: int = 0
    torch_version: str | None = None
    spread: float | None = None


def recommended_workers(measurements: Sequence[Measurement]) -> int | None:
    """The fewest workers within 3 % of the highest throughput, of those that memory was enough for.

    Returns:
        None where memory was enough for none, or the measurements are too uneven to tell, see ``is_uneven``.
    """
    speeds = {m.num_workers: m.samples_per_second or 0.0 for m in measurements if m.status == "ok"}
    if not speeds or is_uneven(measurements):
        return None
    return min(count for count, speed in speeds.items() if speed >= _CLOSE_TO_BEST * max(speeds.values()))


def is_uneven(measurements: Sequence[Measurement]) -> bool:
    """Whether repetitions lie so far apart that another number of workers might be the best.

    So it is where they spread by more than a tenth, and by more than the speeds to be compared differ.
    """
    known = [m for m in measurements if m.status == "ok" and m.samples_per_second]
    if len(known) < 2:
        return False
    best = max(known, key=lambda m: m.samples_per_second or 0.0)
    for other in known:
        spread = max((m.spread or 0.0) * (m.samples_per_second or 0.0) for m in (best, other))
        difference = (best.samples_per_second or 0.0) - (other.samples_per_second or 0.0)
        if other is not best and spread > max(difference, _UNAVOIDABLE * (best.samples_per_second or 0.0)):
            return True
    return False


def write_measurements(store: Store, machine: Machine, measurements: Sequence[Measurement]) -> Path:
    """Replace what is known of one arm on this kind of device; returns the file."""
    from dd_core.tables.files import to_arrow, write_result

    study, arm = measurements[0].study, measurements[0].arm
    best = recommended_workers(measurements)
    columns = {
        "variant": arm.variant,
        "k": arm.k,
        "recipe": study.recipe_hash(arm),
        "device": machine.device,
        **{
            name: [getattr(m, name) for m in measurements]
            for name in (
                *("num_workers", "threads", "status", "samples_per_second"),
                *("spread", "peak_memory_bytes", "utilisation", "num_steps"),
            )
        },
        "recommended": [m.num_workers == best for m in measurements],
        "torch_version": next((m.torch_version for m in measurements if m.torch_version), None),
        "measured_at": datetime.datetime.now(datetime.UTC),
    }
    kind = machine.device if machine.num_gpus else f"cpu of {machine.num_cores}"
    name = re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-")
    path = store.table_folder("resource_probe", study.name, arm.key) / f"{name}.parquet"
    write_result(store, path, to_arrow("resource_probe", columns, len(measurements)))
    return path


@dataclass(frozen=True)
class Probed:
    """What the probe found for an arm on a machine like this one.

    Attributes:
        recommended: number of workers.
        speeds: by number of workers, training images per second of all of them together.
    """

    recommended: int
    speeds: dict[int, float]

    def seconds_per_image(self, num_workers: int) -> float:
        """Seconds of one worker among so many; where these were not measured, among the recommended number."""
        count = num_workers if num_workers in self.speeds else self.recommended
        return count / self.speeds[count]


def read_probe(connection: "duckdb.DuckDBPyConnection", study: Study, machine: Machine) -> dict[Arm, Probed]:
    """What is known of the arms of a study in their present recipe."""
    rows = connection.execute(
        f"""SELECT variant, k, recipe, num_workers, threads, samples_per_second, recommended FROM resource_probe
        WHERE study = ? AND {SAME_DEVICE} AND status = 'ok' ORDER BY measured_at""",
        [study.name, product_of(machine.device)],
    ).fetchall()
    speeds: dict[Arm, dict[int, float]] = {}
    best: dict[Arm, int] = {}
    for variant, k, recipe, workers, threads, speed, is_recommended in rows:
        arm = study.arms.get(Arm(variant, k).key)
        # On a CPU with more or fewer cores as many workers would have other numbers of threads.
        is_like_this = machine.num_gpus or threads == machine.threads(workers)
        if arm is not None and recipe == study.recipe_hash(arm) and is_like_this:
            speeds.setdefault(arm, {})[workers] = speed
            if is_recommended:
                best[arm] = workers
    return {arm: Probed(best[arm], speeds[arm]) for arm in best}
