"""Are the results on disk whole? Each function returns problems as sentences, and how many things it looked at."""

import duckdb

from dd_core.checks.metrics import metric_gaps
from dd_core.errors import StaleError
from dd_core.store.provenance import harmed_best, trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.kinds import PER_IMAGE_CURVATURE

__all__ = ["curvature_gaps", "damaged_checkpoints", "largest_batch_loss", "metric_gaps"]


def damaged_checkpoints(store: Store, study: Study) -> tuple[list[str], int]:
    """Compare every file of every trained checkpoint, and every best one, with its manifest."""
    problems = []
    trained = trained_checkpoints(store, study)
    for checkpoint, manifest in trained.items():
        for entry in manifest.files.values():
            try:
                store.verify(entry)
            except StaleError as error:
                problems.append(f"{checkpoint.key}: {error}")
    for arm in sorted({checkpoint.arm for checkpoint in trained}):
        problems += [f"{arm.key}: {harm}" for harm in harmed_best(store, study, arm)]
    return problems, len(trained)


def largest_batch_loss(study: Study, connection: duckdb.DuckDBPyConnection) -> tuple[float, str] | None:
    """The largest finite batch loss of the study, nats, and where it is; None without any.

    No bound is right for every study: a loss of 10 nats is a failure for one and a warm-up for another.
    """
    try:
        row = connection.execute(
            "SELECT train_loss, arm, trial, step FROM training_batches "
            "WHERE study = $study AND isfinite(train_loss) ORDER BY train_loss DESC LIMIT 1",
            {"study": study.name},
        ).fetchone()
    except duckdb.CatalogException:
        return None
    return None if row is None else (row[0], f"{row[1]} trial {row[2]}, step {row[3]}")


def curvature_gaps(store: Store, study: Study, connection: duckdb.DuckDBPyConnection) -> tuple[list[str], int]:
    """Compare the images of every current curvature file with the manifest and with each other."""
    expected = {}
    trained = trained_checkpoints(store, study)
    present = PER_IMAGE_CURVATURE.manifests(store, study, trained)
    for checkpoint, weights in trained.items():
        manifest = present[checkpoint]
        if manifest is not None and PER_IMAGE_CURVATURE.describes(manifest, weights):
            expected[checkpoint.arm.key, checkpoint.epoch] = manifest.rows["table"]
    if not expected:
        return [], 0
    try:
        rows = connection.execute(
            "SELECT arm, epoch, count(*), count(DISTINCT (trial, image_id)), bool_and(coalesce(isfinite(trace) AND "
            "isfinite(frobenius_norm) AND isfinite(largest_eigenvalue) AND (method = 'double_backward' "
            "OR (trace >= 0 AND largest_eigenvalue <= trace * 1.001)), false)) "
            "FROM per_image_curvature WHERE study = ? GROUP BY arm, epoch",
            [study.name],
        ).fetchall()
    except duckdb.CatalogException:  # every file is gone
        rows = []
    found = {(arm, epoch): (count, distinct, sound) for arm, epoch, count, distinct, sound in rows}
    problems = []
    for (arm, epoch), count in expected.items():
        there, distinct, sound = found.get((arm, epoch), (0, 0, True))
        if (there, distinct) != (count, count):
            problems.append(f"{arm}|{epoch:04d}: {there} rows with {distinct} examples, its manifest says {count}")
        if not sound:
            problems.append(f"{arm}|{epoch:04d}: a value is not finite or impossible")
    return problems, len(expected)
