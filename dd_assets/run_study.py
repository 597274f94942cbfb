"""A whole study in one go: ``python -m dd_assets.run_study quickstart`` (``make quickstart``).

Two ordinary ``dagster asset materialize`` commands (checkpoints; then curvature, tables, loss slopes and figures, the
scores of memorisation where the study asks for them, and of graphs their results instead of curvature), printed as they
are run so that a reader can type them again; then what was found, and where it lies.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time

from dd_assets.assets import graphs, memorization
from dd_assets.assets.loss_slopes import LOSS_SLOPE_TABLES
from dd_assets.assets.tables import TRAINING_TABLES
from dd_assets.catalogue import catalogue
from dd_assets.laboratory import writable_store
from dd_assets.running.instance import dagster_home
from dd_assets.steps.checkpoint_results import training_command
from dd_core.errors import UserError
from dd_core.figures import FIGURES
from dd_core.store.store import Store
from dd_core.study.study import Study


def main(arguments: list[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dd_assets.run_study", description=__doc__)
    parser.add_argument("study", help="name of a study")
    started = time.monotonic()
    try:
        study = catalogue().get(parser.parse_args(arguments).study)
        if study.imported:
            what = "curvature,group:figures" if study.has_checkpoints else "group:figures,group:loss_slopes"
            raise UserError(
                f"{study.name} was imported, so there is nothing to train; draw its figures with: dagster asset "
                f"materialize --select '{what}'"
            )
        store = writable_store()
        _set_up()
        return _materialize(study) or _tell(store, study, started)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _set_up() -> None:
    """What env.sh sets, where it has not been sourced or the package is alone."""
    os.environ.setdefault("DAGSTER_MODULE_NAME", "dd_assets.definitions")
    os.environ.setdefault("PYTHONWARNINGS", r"ignore:Function `asset_materialize_command`")
    os.environ["DAGSTER_HOME"] = str(dagster_home())


def _materialize(study: Study) -> int:
    """Run the commands; returns the first exit code that is not 0."""
    left_out = _left_out(study)
    names = ("curvature", *TRAINING_TABLES, *LOSS_SLOPE_TABLES, *memorization.NAMES, *graphs.NAMES)
    tables = [name for name in names if name not in left_out]
    figures = [figure.name for figure in FIGURES if left_out.isdisjoint(figure.tables)]
    steps = [step for step in ("curvature", "loss_slopes", "memorization", "nsm_results") if step not in left_out]
    only = json.dumps({"ops": {step: {"config": {"studies": [study.name]}} for step in steps}})
    for options in (
        training_command(study),
        f"--select '{','.join([*tables, *figures])}' --config-json '{only}'",
    ):
        print(f"\n$ dagster asset materialize {options}", flush=True)
        command = [sys.executable, "-m", "dagster", "asset", "materialize", *shlex.split(options)]
        code = subprocess.run(command, check=False).returncode
        if code:
            return code
    return 0


def _left_out(study: Study) -> set[str]:
    """The tables that are left to those who ask for them."""
    data = study.data
    left_out = {"hessian_spectra"}  # costs as much again as all others
    if data.graphs is None:
        left_out |= set(graphs.NAMES)
    else:
        left_out |= {"curvature", *LOSS_SLOPE_TABLES}  # of graphs whoever wants them asks for them
    if not any((data.subset, data.duplicates, data.classes, study.evaluation.image_values)):
        left_out |= set(memorization.NAMES)  # nothing of the study is about single images
    if data.classes:
        left_out |= set(LOSS_SLOPE_TABLES)  # the loss jumps with every task: no curve for a power law
    return left_out


def _tell(store: Store, study: Study, started: float) -> int:
    """Print findings and places; for the quickstart study, fail if the double descent is not there."""
    from dd_core.analysis import graph_report, incremental_report, loss_slope_report, memorization_report
    from dd_core.analysis.double_descent import quickstart_check
    from dd_core.analysis.report import report

    text, curves = report(store, study)
    reports = (loss_slope_report, incremental_report, memorization_report, graph_report)
    print("\n".join(["", text, *(sentence for told in reports for sentence in told.findings(store, study))]))
    passed = True
    if study.name == "quickstart":
        passed, check = quickstart_check(next(iter(curves.values())))
        print(check)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Look at")
    for figure in sorted((store.root / "figures").glob(f"*/{study.name}.html")):
        print(f"  {figure}")
    if "://" not in store.address:
        print(f"or ask (source env.sh first): duckdb -readonly {store.warehouse_path}")
    print(f"or ask whether its runs are fit for conclusions: python -m dd_assets.check_campaign {study.name}")
    print("or see the assets with: make ui")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
