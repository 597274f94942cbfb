"""A whole study in one go: ``python -m dd_assets.run_study quickstart`` (``make quickstart``).

Two ordinary ``dagster asset materialize`` commands in one process: checkpoints, with their curvature beside; then
curvature, tables, loss slopes and figures of this study, the scores of memorisation where it asks for them, and of
graphs their results instead of curvature. There is a bar for each phase. Where there is no terminal, the commands are
printed as they are run, and short lines instead of bars. In the end: what was found, and where it lies.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dd_assets.assets import graphs, memorization, report
from dd_assets.assets.loss_slopes import LOSS_SLOPE_TABLES
from dd_assets.assets.tables import TRAINING_TABLES
from dd_assets.catalogue import catalogue
from dd_assets.laboratory import writable_store
from dd_assets.running.console import LOG_FILE, add_line
from dd_assets.running.ending import ends_well
from dd_assets.running.in_process import run_dagster
from dd_assets.running.instance import dagster_home
from dd_assets.steps.checkpoint_results import training_command
from dd_core.errors import UserError
from dd_core.figures import FIGURES
from dd_core.store.files import write_text
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.words import counted, duration


@ends_well()
def main(arguments: list[str] | None = None) -> int:
    """Run everything; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ddlab run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help="name of a study")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    study = catalogue().get(options.study)
    if study.imported:
        what = "curvature,group:figures" if study.has_checkpoints else "group:figures,group:loss_slopes"
        raise UserError(
            f"{study.name} was imported, so there is nothing to train; draw its figures with: dagster asset "
            f"materialize --select '{what}'"
        )
    store = writable_store()
    _set_up()
    return _materialize(study) or _tell(store, study, started)


def _set_up() -> None:
    """What env.sh sets, where it has not been sourced or the package is alone."""
    os.environ.setdefault("DAGSTER_MODULE_NAME", "dd_assets.definitions")
    os.environ["DAGSTER_HOME"] = str(dagster_home())
    try:
        _folder().mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder {_folder()} cannot be made ({error.strerror})") from error


def _materialize(study: Study) -> int:
    """Run the commands; returns the first exit code that is not 0."""
    say = _announced(study) if sys.stderr.isatty() else print
    for options in _commands(study):
        say(f"\n$ dagster asset materialize {options}")
        sys.stdout.flush()
        if code := run_dagster(["asset", "materialize", *shlex.split(options)]):
            return code
    return 0


def _announced(study: Study) -> Callable[[str], object]:
    """Say what is begun, and let all that is said of it go to a file, so that the terminal has room for bars.

    Returns:
        What adds a line to the file.
    """
    path = _folder() / f"{study.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    os.environ[LOG_FILE] = str(path)
    print(
        f"{study.name}: {counted(len(study.arms), 'arm')}, {counted(study.trials, 'trial')} each, "
        f"{counted(study.epochs, 'epoch')}. Commands and messages: {path}"
    )
    return lambda line: add_line(path, line)


def _folder() -> Path:
    """Where settings and messages of this command are."""
    return Path(os.environ["DAGSTER_HOME"]) / "run_study"


def _commands(study: Study) -> Iterator[str]:
    """The options of the two commands."""
    left_out = _left_out(study)
    beside = [PER_IMAGE_CURVATURE.name] if PER_IMAGE_CURVATURE.driver not in left_out else []
    training = {"ops": {f"{study.name}__checkpoints": {"config": {"beside": beside}}}}
    yield f"{training_command(study)} --config-json '{json.dumps(training)}'" if beside else training_command(study)
    names = ("curvature", *TRAINING_TABLES, *LOSS_SLOPE_TABLES, *memorization.NAMES, *graphs.NAMES)
    tables = [name for name in names if name not in left_out]
    figures = [figure.name for figure in FIGURES if left_out.isdisjoint(figure.tables)]
    steps = [step for step in ("curvature", "loss_slopes", "memorization", "nsm_results") if step not in left_out]
    own = {step: {"config": {"studies": [study.name]}} for step in (*steps, *figures, report.NAME)}
    settings = _folder() / f"{study.name}.yaml"  # as an option it would fill the screen
    write_text(settings, json.dumps({"ops": own}, indent=1))
    yield f"--select '{','.join([*tables, *figures, report.NAME])}' --config {shlex.quote(str(settings))}"


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
    if not data.classes:
        left_out.add("class_progress")
    else:
        left_out |= set(LOSS_SLOPE_TABLES)  # the loss jumps with every task: no curve for a power law
    return left_out


def _tell(store: Store, study: Study, started: float) -> int:
    """Print findings and places; for the quickstart study, fail if the double descent is not there."""
    from dd_core.analysis import graph_report, incremental_report, loss_slope_report, memorization_report
    from dd_core.analysis.double_descent import quickstart_check
    from dd_core.analysis.report import report as table_of

    text, curves = table_of(store, study)
    reports = (loss_slope_report, incremental_report, memorization_report, graph_report)
    print("\n".join(["", text, *(sentence for told in reports for sentence in told.findings(store, study))]))
    passed = True
    if study.name == "quickstart":
        passed, check = quickstart_check(next(iter(curves.values())))
        print(check)
    _tell_where(store, study, started)
    return 0 if passed else 1


def _tell_where(store: Store, study: Study, started: float) -> None:
    """Print the places of what was made, the page that has all of it last."""
    ui = f"http://127.0.0.1:{os.environ.get('DD_PORT', '3000')}"
    drawn = {path.parent.name: path for path in sorted((store.root / "figures").glob(f"*/{study.name}.html"))}
    figures = {figure.name: drawn[figure.name] for figure in FIGURES if figure.name in drawn}
    print(f"\nDone in {duration(time.monotonic() - started)}. Figures:")
    for figure in figures.values():
        print(f"  {figure}")
    is_checkout = (Path(__file__).parents[1] / "env.sh").exists()
    print(f"In the UI ({'source env.sh; ' * is_checkout}ddlab ui):")
    for place in (f"assets/{study.name}/checkpoints", *(f"assets/{name}" for name in list(figures)[:1])):
        print(f"  {ui}/{place}")
    print(f"  {ui}/lab/reports/{study.name}.html")
    if "://" not in store.address:
        print(f"In SQL:\n  duckdb -readonly {store.warehouse_path}")
    print(f"Are its runs fit for conclusions?\n  ddlab check {study.name}")
    page = store.report_path(study.name)
    print(f"All of it on one page:\n  {page if '://' in store.address else page.as_uri()}")


if __name__ == "__main__":
    sys.exit(main())
