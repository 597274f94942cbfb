"""How long training will take, from what has been measured: the resource probe, else earlier runs, else FLOPs.

What is measured as images per second becomes seconds per image of one worker. The probe knows nothing of evaluations:
they count as images in the proportion of their FLOPs and overhead (``dd_core.forecast.work``). Needs no torch.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dd_core.errors import UserError
from dd_core.forecast.probe_table import SAME_DEVICE, Probed, read_probe
from dd_core.forecast.work import OVERHEAD_FLOPS, equivalent_images, num_examples, training_flops
from dd_core.machine.devices import Machine, product_of
from dd_core.store.store import Store
from dd_core.study.architectures import forward_flops
from dd_core.study.own_data import shape_and_classes
from dd_core.study.stacks import fills_a_gpu
from dd_core.study.study import Arm, Study

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Run:
    """How fast earlier attempts to train an arm, of any study, were under equal conditions.

    Attributes:
        study: its name.
        content: what the speed depends on, see ``speed_key``.
        threads: CPU threads; None where an earlier version did not write it.
        gpu_share: of a GPU; 0 on a CPU; None likewise.
        seconds_per_image: training images; evaluations, checkpoints and monitors took part of these seconds.
        arms_together: that shared a network.
    """

    study: str
    content: tuple[Any, ...]
    threads: int | None
    gpu_share: float | None
    seconds_per_image: float
    arms_together: int = 1

    @property
    def flops(self) -> int:
        """Seconds of training on an image."""
        k, _, (image_shape, num_classes), architecture, *_, graphs, network = self.content
        return 3 * forward_flops(architecture, k, image_shape, num_classes, dict(network or graphs))


@dataclass(frozen=True)
class Prediction:
    """Wall time of an arm, and what it was predicted from."""

    seconds: float
    source: str


# How large graphs are follows from the first two.
_OF_GRAPHS = ("domain", "labels", "num_features", "pool_ratio", "num_bases", "num_relations", "fusion")


def speed_key(recipe: dict[str, Any]) -> tuple[Any, ...]:
    """The part of a recipe that decides how fast an arm trains on a given device."""
    variant = recipe["variant"]
    names = ("architecture", "batch_size", "precision", "compile", "architecture_sha256")
    values = (variant.get(name) for name in names)
    network = tuple(sorted(variant.get("network", {}).items()))
    shape = shape_and_classes(recipe["data"]["dataset"])
    known = {**recipe["data"].get("graphs", {}), **variant.get("nsm", {})}
    if known and shape:
        shape = (1, 1, known["num_features"]), shape[1]
    graphs = tuple((name, known[name]) for name in _OF_GRAPHS if name in known)
    return (recipe["k"], recipe["trials"], shape, *values, variant["optimizer"]["name"], graphs, network)


def as_fast_as(study: Study, probe: Mapping[Arm, Probed]) -> dict[Arm, Probed]:
    """What the probe found, for arms too that differ from a measured one in nothing that takes time, as in a grid."""
    by_key = {speed_key(study.recipe(arm)): found for arm, found in probe.items()}
    keys = {arm: speed_key(study.recipe(arm)) for arm in study.arms.values()} if probe else {}
    return {arm: by_key[key] for arm, key in keys.items() if key in by_key} | dict(probe)


def read_runs(connection: "duckdb.DuckDBPyConnection", study: Study, device: str) -> list[Run]:
    """Every arm of any study that has been trained on that kind of device."""
    rows = connection.execute(
        f"""SELECT study, recipe, any_value(settings), any_value(threads), any_value(gpu_share),
            any_value(coalesce(arms_together, 1)), any_value(seconds), any_value(samples_per_second)
        FROM runs WHERE status IN ('finished', 'stopped early') AND samples_per_second > 0 AND {SAME_DEVICE}
        GROUP BY study, arm, recipe, attempt ORDER BY ALL""",
        [product_of(device)],
    ).fetchall()
    own = {study.recipe_hash(arm): study.recipe(arm) for arm in study.arms.values()}
    seconds_of: dict[tuple[str, tuple[Any, ...], int | None, float | None, int], float] = defaultdict(float)
    images_of = seconds_of.copy()
    for name, recipe, settings, threads, gpu_share, together, seconds, speed in rows:
        # Earlier versions did not write the settings; runs of other systems have others.
        content = json.loads(settings) if settings else own.get(recipe)
        if content is not None and "trials" in content and shape_and_classes(content["data"]["dataset"]):
            which = (name, speed_key(content), threads, gpu_share, together)
            seconds_of[which] += seconds
            images_of[which] += seconds * speed
    return [Run(*which[:4], seconds_of[which] / images, which[4]) for which, images in images_of.items()]


@dataclass(frozen=True)
class Known:
    """What the tables say about the speed of a study's arms on a machine.

    Attributes:
        probe: by arm of the study in its present recipe.
        runs: earlier ones of any study.
    """

    study: Study
    machine: Machine
    probe: Mapping[Arm, Probed] = field(default_factory=dict)
    runs: Sequence[Run] = ()

    @classmethod
    def read(cls, store: Store, study: Study, machine: Machine) -> "Known":
        """Look into the tables.

        Raises:
            UserError: one of them is damaged.
        """
        import duckdb

        from dd_core.tables.warehouse import connect

        try:
            with contextlib.closing(connect(store, ("resource_probe", "runs"))) as connection:
                probe = as_fast_as(study, read_probe(connection, study, machine))
                runs = read_runs(connection, study, machine.device)
        except duckdb.Error as error:
            raise UserError(f"a table cannot be read ({str(error).splitlines()[0]})") from error
        return cls(study, machine, probe, runs)

    def workers_per_device(self, arm: Arm, num_arms: int) -> int:
        """How many arms should share a device when so many are trained."""
        recommended = self.probe[arm].recommended if arm in self.probe else None
        per_gpu = 1 if fills_a_gpu(arm) else self.study.variants[arm.variant].workers_per_gpu
        return self.machine.workers_per_device(per_gpu, recommended, num_arms)

    def predict(self, arm: Arm, epochs: tuple[int, int], num_workers: int, arms_together: int = 1) -> Prediction | None:
        """Wall time of training an arm; None where nothing like it is known.

        Args:
            arm: of the study.
            epochs: from the first to the second.
            num_workers: that share its device.
            arms_together: that share a network, of whose time this is one's share. The probe measures arms alone, which
                take longer; such runs come before it.
        """
        study, probe = self.study, self.probe
        images = study.trials * num_examples(study, arm, *epochs)
        with_evaluations = equivalent_images(study, arm, *epochs)
        content, flops = speed_key(study.recipe(arm)), training_flops(study, arm)
        runs = [run for run in self.runs if self._has_these_conditions(run, num_workers, arms_together)]
        same = [run for run in runs if run.content == content]
        if arm in probe and not (same and arms_together > 1):
            return Prediction(with_evaluations * probe[arm].seconds_per_image(num_workers), "the resource probe")
        if same:
            # Another study may evaluate more or less often, so its own runs come first.
            own = [run for run in same if run.study == study.name] or same
            return Prediction(images * _mean(run.seconds_per_image for run in own), "earlier runs")
        if probe:
            known = [(size, probed.seconds_per_image(num_workers)) for size, probed in self._measured]
            return Prediction(with_evaluations * scaled(known, flops), "the resource probe of other arms, by FLOPs")
        if runs:
            known = [(run.flops, run.seconds_per_image) for run in runs]
            return Prediction(images * scaled(known, flops), "earlier runs of other arms, by FLOPs")
        return None

    @cached_property
    def _measured(self) -> list[tuple[int, Probed]]:
        """FLOPs of training on an image, and what the probe found: once for all arms that are equally fast."""
        distinct = {speed_key(self.study.recipe(arm)): arm for arm in self.probe}
        return [(training_flops(self.study, arm), self.probe[arm]) for arm in distinct.values()]

    def _has_these_conditions(self, run: Run, num_workers: int, arms_together: int) -> bool:
        """On a GPU its share decides about the speed, on a CPU the threads."""
        if run.arms_together != arms_together:
            return False
        if self.machine.num_gpus:
            return run.gpu_share is None or abs(run.gpu_share - 1 / num_workers) < 0.01
        return run.threads in (None, self.machine.threads(num_workers))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def scaled(known: Sequence[tuple[int, float]], flops: int) -> float:
    """Seconds per image of a network with so many FLOPs, from others.

    Time is overhead plus FLOPs over rate. Both are fitted where two networks of different size are known, by least
    squares of relative errors and not below 0; from one, with the overhead of ``dd_core.forecast.work``.

    Args:
        known: FLOPs of training on an image, and seconds per image.
        flops: of the network asked for.
    """
    if len({size for size, _ in known}) == 1:
        return _mean(seconds for _, seconds in known) * (OVERHEAD_FLOPS + flops) / (OVERHEAD_FLOPS + known[0][0])
    import numpy as np
    from scipy.optimize import nnls

    largest = max(size for size, _ in known)  # keeps both columns of the system near 1
    system = np.array([[1 / seconds, size / largest / seconds] for size, seconds in known])
    (overhead, per_size), _ = nnls(system, np.ones(len(known)))
    return float(overhead + per_size * flops / largest)
