"""The command ``ddlab``: everything that is more than one asset, without a checkout and without env.sh.

A command is a module with ``main(arguments) -> exit code``, imported when it is called; ``python -m`` runs the same.
"""

import argparse
import importlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from dd_assets.catalogue import catalogue, study_folders
from dd_assets.running.ending import ends_well
from dd_core.errors import UserError
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import store_at
from dd_core.words import advice


@dataclass(frozen=True)
class Command:
    """A word behind ``ddlab``.

    Attributes:
        arguments: what follows it, for people.
        description: a line.
        main: ``module`` with a ``main``, or ``module:function``.
    """

    arguments: str
    description: str
    main: str


COMMANDS = {
    "run": Command("STUDY", "train a study, analyse it, draw its figures, say what was found", "dd_assets.run_study"),
    "studies": Command("", "which studies there are, and how much of each is there", f"{__name__}:studies"),
    "paths": Command("", "where results, study files and data sets lie", f"{__name__}:paths"),
    "watch": Command("", "curves of what trains now, in the browser", "dd_assets.watch"),
    "report": Command("STUDY", "one page about a study: findings, figures, costs, provenance", "dd_assets.report"),
    "check": Command("STUDY", "are its runs fit for conclusions? GO or NO-GO", "dd_assets.check_campaign"),
    "ui": Command("", "Dagster's UI, on 127.0.0.1 and port DD_PORT (3000)", f"{__name__}:ui"),
    "import-metrics": Command("STUDY FILES", "logs of other programs, as a study", "dd_assets.import_metrics"),
    "import-checkpoints": Command("STUDY FOLDER", "weights trained elsewhere", "dd_assets.import_checkpoints"),
    "import-memorization": Command("STUDY FILE", "published memorisation scores", "dd_assets.import_memorization"),
}
_BELOW_ROOT = {"SQL": "warehouse.duckdb", **{name: name for name in ("figures", "reports", "exports", "checkpoints")}}
_END = """
ddlab COMMAND --help says more about one. Single assets: dagster asset materialize --select ...
From Python: dd_core.open("data"). Settings are variables: DD_ROOT (default: data), DD_STUDIES, DD_DATASETS."""


@ends_well(mistake=2)
def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    name, *others = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(_help())
        return 0
    if name not in COMMANDS:
        raise UserError(f"there is no command {name!r}; {advice(name, COMMANDS)}")
    module, _, function = COMMANDS[name].main.partition(":")
    code: int = getattr(importlib.import_module(module), function or "main")(others)
    return code


def _help() -> str:
    words = [f"{name} {command.arguments}" for name, command in COMMANDS.items()]
    width = max(map(len, words))
    lines = [f"  {word:{width}}  {command.description}" for word, command in zip(words, COMMANDS.values(), strict=True)]
    return "\n".join(["usage: ddlab COMMAND ...", "", *lines, _END])


def _parsed(name: str, arguments: list[str], description: str, **options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"ddlab {name}", description=description)
    for option, default in options.items():
        parser.add_argument(f"--{option}", default=default, help=f"default {default}")
    return parser.parse_args(arguments)


def studies(arguments: list[str]) -> int:
    """Print every study with its size and how many of its checkpoints are here; returns the exit code."""
    _parsed("studies", arguments, "Which studies there are: arms, checkpoints here of all, what each asks.")
    store, found = store_at(), catalogue()
    rows = [("study", "arms", "checkpoints", "")]
    for name, study in sorted(found.studies.items()):
        number = len(study.arms) * len(study.checkpoints)
        here = f"{len(trained_checkpoints(store, study))} of {number}" if study.has_checkpoints else "metrics"
        rows.append((name, str(len(study.arms)), here, study.description))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for name, arms, here, description in rows:
        print(f"{name:{widths[0]}}  {arms:>{widths[1]}}  {here:>{widths[2]}}  {description}".rstrip())
    for reason in found.errors.values():
        print(f"broken: {reason}", file=sys.stderr)
    return 0


def paths(arguments: list[str]) -> int:
    """Print where everything lies; returns the exit code."""
    from dd_assets.running.instance import home_folder
    from dd_core.data.datasets import data_address

    _parsed("paths", arguments, "Where everything lies, and which variable says so.")
    root = store_at().root
    own, *further = study_folders()
    places = [
        ("results", str(root), "DD_ROOT"),
        *((f"  {name}", str(root / place), "") for name, place in _BELOW_ROOT.items()),
        ("data sets", data_address(), "DD_DATASETS"),
        ("study files", str(own), "that come with the platform"),
        *(("", str(folder), "DD_STUDIES") for folder in further or [Path("none of your own")]),
        ("Dagster", str(home_folder()), "DAGSTER_HOME"),
        ("program", str(Path(__file__).parent), ""),
    ]
    width = max(len(path) for _, path, _ in places)
    for name, path, said_by in places:
        print(f"{name:13} {path:{width}}  {said_by}".rstrip())
    return 0


def ui(arguments: list[str]) -> int:
    """Become Dagster's UI with its daemon; returns only if it cannot be started."""
    from dd_assets.running import instance

    port = os.environ.get("DD_PORT", "3000")
    options = _parsed("ui", arguments, "Dagster's UI, in which every asset can be made.", host="127.0.0.1", port=port)
    if code := instance.main(["port", options.port]):
        return code
    quiet = "ignore:Function `dev_command`"  # it recommends another at every call
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), quiet]))
    command = ["-m", "dagster", "dev", "-m", "dd_assets.definitions", "-h", options.host, "-p", options.port]
    os.execve(sys.executable, [sys.executable, *command], dict(os.environ))


if __name__ == "__main__":
    sys.exit(main())
