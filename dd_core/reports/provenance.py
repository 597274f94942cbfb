"""Where results come from: recipes, data, weights, machines, dates, the code; and how to cite them."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from dd_core.reports.parts import NOTHING, Grid, num_bytes
from dd_core.store.manifests import Manifest
from dd_core.study.study import TRAINER_VERSION, Checkpoint, Study
from dd_core.words import counted

_PACKAGE = "double-descent-lab"
_AUTHORS = "Double descent lab contributors"


@dataclass(frozen=True)
class Provenance:
    """Where results come from.

    Attributes:
        facts: about all of them.
        arms: recipe, weights and date of each.
        citation: BibTeX.
        references: who else is to be cited.
    """

    facts: Grid
    arms: Grid
    citation: str
    references: list[str]


def provenance(
    study: Study, trained: Mapping[Checkpoint, Manifest], devices: list[str], torch_versions: list[str]
) -> Provenance:
    """What manifests say of the checkpoints of the present recipe.

    Args:
        study: whose.
        trained: its checkpoints; none of a study of which only metrics were imported.
        devices: that it was trained on.
        torch_versions: that it was trained with.
    """
    last = {checkpoint.arm.key: (checkpoint.epoch, manifest) for checkpoint, manifest in trained.items()}
    dates = sorted(
        str(manifest.content["written_at"]) for manifest in trained.values() if "written_at" in manifest.content
    )
    versions = torch_versions or sorted(
        {str(m.content["torch_version"]) for m in trained.values() if "torch_version" in m.content}
    )
    record = study.data.record if study.data.is_known else None
    weights = sum(entry.bytes for manifest in trained.values() for entry in manifest.weights)
    facts = {
        "data": study.data.title,
        "SHA-256 of the data": ", ".join(sorted({manifest.data_sha256 for manifest in trained.values()} - {""})),
        "licence of the data": record.licence if record else "",
        "checkpoints": f"{len(trained):,}, {num_bytes(weights)} of weights" if trained else "",
        "trained": _span(dates),
        "on": ", ".join(devices),
        "with PyTorch": ", ".join(versions),
        "version of the trainer": "" if study.imported else TRAINER_VERSION,
        "page made by": f"{_PACKAGE} {version()}{_commit()}",
    }
    return Provenance(
        Grid.of_facts(facts),
        _arms(study, last),
        _bibtex(study, dates),
        [record.citation] if record and record.citation else [],
    )


def version() -> str:
    """That of the installed package."""
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return "(version unknown)"


def _commit() -> str:
    """The last commit of this package, where it lies in a repository that knows it."""
    folder = Path(__file__).parent.parent
    command = ["git", "-C", str(folder), "log", "-1", "--format=%H", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    commit = done.stdout.strip()
    return f", commit {commit[:12]}" if done.returncode == 0 and commit else ""


def _arms(study: Study, last: Mapping[str, tuple[int, Manifest]]) -> Grid:
    rows = []
    for key, arm in study.arms.items():
        epoch, manifest = last.get(key, (None, None))
        if last and manifest is None:
            continue
        weights = manifest.weights_sha256[:16] if manifest and manifest.weights else NOTHING
        date = _moment(str(manifest.content.get("written_at", ""))) if manifest else ""
        rows.append([key, study.recipe_hash(arm), NOTHING if epoch is None else str(epoch), weights, date or NOTHING])
    head = ["arm", "recipe", "last checkpoint", "SHA-256 of its weights", "written"]
    return Grid(head, rows, frozenset({2}))


def _span(dates: list[str]) -> str:
    return "" if not dates else " to ".join(dict.fromkeys(_moment(date) for date in (dates[0], dates[-1])))


def _moment(date: str) -> str:
    """``2026-11-26 22:45 UTC`` of a date in ISO 8601."""
    return f"{date[:16].replace('T', ' ')} UTC" if date else ""


def _bibtex(study: Study, dates: list[str]) -> str:
    year = f"  year = {{{dates[-1][:4]}}},\n" if dates else ""
    recipes = list(dict.fromkeys(study.recipe_hash(arm) for arm in study.arms.values()))
    which = (
        f"recipe {recipes[0]}"
        if len(recipes) == 1
        else f"{counted(len(recipes), 'recipe')}, {recipes[0]} to {recipes[-1]}"
    )
    return (
        f"@misc{{{study.name},\n"
        f"  author = {{{{{_AUTHORS}}}}},\n"
        f"  title = {{{study.name}: a study with the double descent lab}},\n"
        f"{year}"
        f"  note = {{{_PACKAGE} {version()}, {which}}},\n"
        "}"
    )
