"""Does curvature look at classes that a network has seen, and at no others?

A checkpoint at the end of a task is saved before the next classes come. Published code counts by the epoch alone (first
+ add * (epoch // every)) and so looks, at these very checkpoints, at images of classes that the network has never seen.
"""

from dataclasses import dataclass

import duckdb

from dd_core.data.class_schedule import class_order
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.kinds import PER_IMAGE_CURVATURE


@dataclass(frozen=True)
class EpochRow:
    """One epoch of the table of verification.

    Attributes:
        epoch: of checkpoints.
        num_seen: classes trained on by then, 0 at the initialisation.
        num_active: classes that published code takes for these.
        num_expected: rows that a curvature file should have, of all trials.
        num_found: rows that the files of this epoch have: of all arms the smallest and the largest number.
    """

    epoch: int
    num_seen: int
    num_active: int
    num_expected: int
    num_found: tuple[int, int]


def seen_classes(
    store: Store, study: Study, connection: duckdb.DuckDBPyConnection
) -> tuple[list[str], list[EpochRow], int]:
    """Compare the classes in every current curvature file of a study with a class schedule with those seen.

    Args:
        store: of the files.
        study: whose classes come one group after the other.
        connection: with a view of per_image_curvature.

    Returns:
        Sentences about files that lack images, or have some of classes never seen; the table; and how many files.
    """
    trained = trained_checkpoints(store, study)
    present = PER_IMAGE_CURVATURE.manifests(store, study, trained)
    live = {
        (checkpoint.arm.key, checkpoint.epoch): weights.live_trials
        for checkpoint, weights in trained.items()
        if (manifest := present[checkpoint]) is not None and PER_IMAGE_CURVATURE.describes(manifest, weights)
    }
    rows = connection.execute(
        "SELECT arm, epoch, trial, list(true_label), list(num)::BIGINT[] FROM (SELECT arm, epoch, trial, true_label, "
        "count(*) AS num FROM per_image_curvature WHERE study = ? GROUP BY ALL) GROUP BY ALL ORDER BY ALL",
        [study.name],
    ).fetchall()
    found = {
        (arm, epoch, trial): dict(zip(labels, numbers, strict=True)) for arm, epoch, trial, labels, numbers in rows
    }
    problems, totals = [], dict[int, list[int]]()
    classes, num_classes = study.data.classes, study.data.record.num_classes
    assert classes is not None
    orders = [class_order(classes, study.seed, trial, num_classes).tolist() for trial in range(study.trials)]
    for (arm, epoch), trials in live.items():
        numbers = [found.get((arm, epoch, trial), {}) for trial in trials]
        totals.setdefault(epoch, []).append(sum(sum(own.values()) for own in numbers))
        for trial, own in zip(trials, numbers, strict=True):
            if reason := _wrong(study, orders[trial], epoch, own):
                problems.append(f"{arm}|{epoch:04d}, trial {trial}: {reason}")
    return problems, [_row(study, epoch, totals[epoch]) for epoch in sorted(totals)], len(live)


def _wrong(study: Study, order: list[int], epoch: int, found: dict[int, int]) -> str:
    """What is wrong with the rows of a trial, by class, whose classes come in this order; empty if nothing is."""
    num_classes = study.num_classes_at(epoch)
    of_class = study.num_train_images // len(order)
    seen = order[:num_classes]
    unseen = [label for label in order[num_classes:] if label in found]
    if unseen:
        shown = ", ".join(map(str, unseen[:5])) + ("" if len(unseen) <= 5 else f" and {len(unseen) - 5} others")
        is_next = len(seen) + len(unseen) == _published(study, epoch)
        why = ": those of the next task, as published code counts" if is_next else ""
        return f"{sum(found[label] for label in unseen)} rows are of classes never seen by then ({shown}){why}"
    lacking = [label for label in seen if found.get(label, 0) != of_class]
    if lacking:
        return f"class {lacking[0]} has {found.get(lacking[0], 0)} rows instead of {of_class}"
    return ""


def _published(study: Study, epoch: int) -> int:
    """Classes that published code takes for those seen: first + add * (epoch // every), at most all."""
    classes = study.data.classes
    assert classes is not None
    return min(classes.first + classes.add * (epoch // classes.every), study.data.record.num_classes)


def _row(study: Study, epoch: int, totals: list[int]) -> EpochRow:
    seen, _ = study.seen_and_active(epoch)
    expected = study.trials * study.num_seen_images(epoch)
    return EpochRow(epoch, seen or 0, _published(study, epoch), expected, (min(totals), max(totals)))


def verification_table(rows: list[EpochRow], most: int = 100) -> str:
    """The table as Markdown; of more epochs than that, evenly many."""
    shown = rows if len(rows) <= most else [rows[i * (len(rows) - 1) // (most - 1)] for i in range(most)]
    lines = ["| epoch | classes seen | published formula | rows expected | rows found |", "|---:|---:|---:|---:|---:|"]
    for row in shown:
        low, high = row.num_found
        found = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        lines.append(f"| {row.epoch} | {row.num_seen} | {row.num_active} | {row.num_expected:,} | {found} |")
    return "\n".join(lines)
