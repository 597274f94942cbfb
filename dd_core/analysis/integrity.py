"""Are the results on disk whole? Each function returns problems as sentences, and how many things it looked at."""

import duckdb

from dd_core.errors import StaleError
from dd_core.provenance import curvature_is_current, curvature_manifest, trained_checkpoints
from dd_core.store import Store
from dd_core.studies import Study


def damaged_checkpoints(store: Store, study: Study) -> tuple[list[str], int]:
    """Compare every file of every trained checkpoint with its manifest."""
    problems = []
    trained = trained_checkpoints(store, study)
    for checkpoint, manifest in trained.items():
        for role in manifest["files"]:
            try:
                store.verify(manifest, role)
            except StaleError as error:
                problems.append(f"{checkpoint.key}: {error}")
    return problems, len(trained)


def metric_gaps(store: Store, study: Study, connection: duckdb.DuckDBPyConnection) -> tuple[list[str], int]:
    """Look for steps and evaluations that are missing, doubled, not finite or out of range.

    Only what must be there is asked for: everything up to the last checkpoint of each arm.
    """
    last: dict[str, int] = {}
    for checkpoint in trained_checkpoints(store, study):
        last[checkpoint.arm.key] = max(last.get(checkpoint.arm.key, 0), checkpoint.epoch)
    if not last:
        return [], 0
    problems = []
    batches = _per_arm(
        connection,
        study,
        "training_batches",
        "max(step), bool_and(isfinite(loss_train_nats) AND loss_train_nats >= 0 AND acc_train BETWEEN 0 AND 1 "
        "AND lr >= 0), count(DISTINCT step)",
    )
    evals = _per_arm(
        connection,
        study,
        "training_evals",
        "max(epoch), bool_and(isfinite(train_loss) AND train_error BETWEEN 0 AND 1 AND "
        "(test_error IS NULL OR isnan(test_error) OR test_error BETWEEN 0 AND 1)), count(DISTINCT epoch)",
    )
    for arm, epoch in last.items():
        wanted = {e for e in range(epoch + 1) if e % study.evaluation.every == 0 or e in study.checkpoints} | {0}
        for trial in range(study.trials):
            where = f"{arm} trial {trial}"
            rows, end, in_range, distinct = evals.get((arm, trial), (0, 0, True, 0))
            if rows != len(wanted) or distinct != len(wanted) or end != epoch:
                problems.append(f"{where}: {distinct} different evaluations in {rows} rows, expected {len(wanted)}")
            if not in_range:
                problems.append(f"{where}: an evaluation is not finite or out of range")
            if epoch:
                rows, end, in_range, distinct = batches.get((arm, trial), (0, 0, True, 0))
                if rows != end or distinct != rows or rows == 0 or rows % epoch:
                    problems.append(f"{where}: {distinct} different steps in {rows} rows, the last is step {end}")
                if not in_range:
                    problems.append(f"{where}: a batch metric is not finite or out of range")
    return problems, len(last) * study.trials


def _per_arm(
    connection: duckdb.DuckDBPyConnection, study: Study, table: str, aggregates: str
) -> dict[tuple[str, int], tuple[int, int, bool, int]]:
    """Count and aggregates by (arm, trial); empty if the table has no file yet."""
    try:
        rows = connection.execute(
            f"SELECT arm, trial, count(*), {aggregates} FROM {table} WHERE study = ? GROUP BY arm, trial", [study.name]
        ).fetchall()
    except duckdb.CatalogException:
        return {}
    return {(arm, trial): (count, end, in_range, distinct) for arm, trial, count, end, in_range, distinct in rows}


def curvature_gaps(store: Store, study: Study, connection: duckdb.DuckDBPyConnection) -> tuple[list[str], int]:
    """Compare the images of every current curvature file with the manifest and with each other."""
    expected = {}
    for checkpoint, weights in trained_checkpoints(store, study).items():
        manifest = curvature_manifest(store, study, checkpoint)
        if manifest is not None and curvature_is_current(manifest, weights):
            expected[checkpoint.arm.key, checkpoint.epoch] = manifest["rows"]["table"]
    if not expected:
        return [], 0
    rows = connection.execute(
        "SELECT arm, epoch, count(*), count(DISTINCT (trial, image_id)), "
        "bool_and(isfinite(trace) AND isfinite(frobenius_norm) AND trace >= 0 AND largest_eigenvalue <= trace * 1.001) "
        "FROM per_image_curvature WHERE study = ? GROUP BY arm, epoch",
        [study.name],
    ).fetchall()
    found = {(arm, epoch): (count, distinct, sound) for arm, epoch, count, distinct, sound in rows}
    problems = []
    for (arm, epoch), count in expected.items():
        there, distinct, sound = found.get((arm, epoch), (0, 0, True))
        if (there, distinct) != (count, count):
            problems.append(f"{arm}|{epoch:04d}: {there} rows with {distinct} images, its manifest says {count}")
        if not sound:
            problems.append(f"{arm}|{epoch:04d}: a value is not finite or impossible")
    return problems, len(expected)
