"""Are the results on disk whole? Each function returns problems as sentences, and how many things it looked at."""

import duckdb

from dd_core.errors import StaleError
from dd_core.provenance import curvature_manifest, describes, trained_checkpoints
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
    # A comparison alone is not enough: DuckDB may decide it from a file's statistics, which leave NaN out.
    batches = _per_arm(
        connection,
        study,
        "training_batches",
        "list(DISTINCT step), max(epoch), bool_and(isfinite(loss_train_nats) AND isfinite(acc_train) AND isfinite(lr) "
        "AND loss_train_nats >= 0 AND acc_train BETWEEN 0 AND 1 AND lr >= 0)",
    )
    evals = _per_arm(
        connection,
        study,
        "training_evals",
        "list(DISTINCT epoch), max(epoch), bool_and(isfinite(train_loss) AND isfinite(train_error) AND train_error "
        "BETWEEN 0 AND 1 AND (test_error IS NULL OR isnan(test_error) OR test_error BETWEEN 0 AND 1))",
    )
    for arm, epoch in last.items():
        # A study file may have asked for more when this was trained; more is no problem.
        wanted = {e for e in range(epoch + 1) if e % study.evaluation.every == 0 or e in study.checkpoints} | {0}
        for trial in range(study.trials):
            where = f"{arm} trial {trial}"
            rows, found, _, in_range = evals.get((arm, trial), (0, [], 0, True))
            if rows != len(found) or wanted - set(found):
                problems.append(
                    f"{where}: {len(found)} different evaluations in {rows} rows, {len(wanted - set(found))} missing"
                )
            if not in_range:
                problems.append(f"{where}: an evaluation is not finite or out of range")
            if epoch:
                rows, found, end, in_range = batches.get((arm, trial), (0, [], 0, True))
                if rows != len(found) or set(found) != set(range(1, rows + 1)) or end < epoch or rows % end:
                    problems.append(
                        f"{where}: {len(found)} different steps in {rows} rows, up to step {max(found, default=0)} "
                        f"and epoch {end} of {epoch}"
                    )
                if not in_range:
                    problems.append(f"{where}: a batch metric is not finite or out of range")
    return problems, len(last) * study.trials


def _per_arm(
    connection: duckdb.DuckDBPyConnection, study: Study, table: str, aggregates: str
) -> dict[tuple[str, int], tuple[int, list[int], int, bool]]:
    """Count and three aggregates by (arm, trial); empty if the table has no file yet."""
    try:
        rows = connection.execute(
            f"SELECT arm, trial, count(*), {aggregates} FROM {table} WHERE study = ? GROUP BY arm, trial", [study.name]
        ).fetchall()
    except duckdb.CatalogException:
        return {}
    return {(arm, trial): tuple(values) for arm, trial, *values in rows}


def curvature_gaps(store: Store, study: Study, connection: duckdb.DuckDBPyConnection) -> tuple[list[str], int]:
    """Compare the images of every current curvature file with the manifest and with each other."""
    expected = {}
    for checkpoint, weights in trained_checkpoints(store, study).items():
        manifest = curvature_manifest(store, study, checkpoint)
        if manifest is not None and describes(manifest, weights):
            expected[checkpoint.arm.key, checkpoint.epoch] = manifest["rows"]["table"]
    if not expected:
        return [], 0
    try:
        rows = connection.execute(
            "SELECT arm, epoch, count(*), count(DISTINCT (trial, image_id)), bool_and(isfinite(trace) AND "
            "isfinite(frobenius_norm) AND isfinite(largest_eigenvalue) AND (method = 'double_backward' "
            "OR (trace >= 0 AND largest_eigenvalue <= trace * 1.001))) "
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
            problems.append(f"{arm}|{epoch:04d}: {there} rows with {distinct} images, its manifest says {count}")
        if not sound:
            problems.append(f"{arm}|{epoch:04d}: a value is not finite or impossible")
    return problems, len(expected)
