"""A power cut at any moment: in each state that it may leave on disk files are whole, and no manifest says too much.

Every writer of the platform is recorded at its work, and beginning with a root where its files are already; then the
rules are broken one by one, which the record must notice.
"""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import pytest

from dd_core.events import Finished
from dd_core.exchange.exporter import export_arm
from dd_core.exchange.importer import Request, import_metrics
from dd_core.figures.drawing.render import render
from dd_core.forecast.probe_table import Measurement, write_measurements
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job, TrainTask
from dd_core.machine.devices import Machine
from dd_core.results import rows
from dd_core.results.curvature_summary import rebuild
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.loss_slopes import rebuild as rebuild_loss_slopes
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store import files
from dd_core.store.files import write_text
from dd_core.store.store import Store
from dd_core.study import study as studies
from dd_core.study.curvature import shards as usual_shards
from dd_core.study.stacks import stacking
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.images import write_images
from dd_core.tables.warehouse import refresh
from dd_core.training.train import train_arm
from dd_core.training.train_part import train_part

from .comparison import ARM, Killed, killer
from .crash_states import Recorder, recorded

MakeStudy = Callable[..., Study]
VALIDATED = {"data": {"dataset": "digits", "num_train": 60, "num_validation": 20}, "keep_best": 1}
HESSIAN = {"num_images": 20, "num_eigenvalues": 1, "quantities": ("eigenvalues",)}
LAST = Checkpoint(ARM, 4)


def watched(root: Path, write: Callable[[], Any]) -> Recorder:
    """What was seen while something was written."""
    root.mkdir(exist_ok=True)
    with recorded(root) as recorder:
        write()
    return recorder


# Every writer


@pytest.fixture
def small(make_study: MakeStudy) -> Study:
    """Validated, so that best checkpoints come and go; every monitor writes."""
    return make_study({"batch_size": 30}, monitors={"norms": {"every": "1 epoch"}}, hessian=HESSIAN, **VALIDATED)


def test_training(small: Study, store: Store) -> None:
    seen = watched(store.root, lambda: train_arm(small, ARM, store, 4, resume_seconds=0))
    assert seen.violations == []
    written = {path.relative_to(store.root).parts[0] for path in seen.states}
    assert written == {"checkpoints", "live", "manifests", "tables"}
    assert sum("best" in path.parts for path, states in seen.states.items() if states[-1]) == 4, "one of each trial"
    assert len(seen.states) > 25 and seen.calls > 90


def test_training_that_goes_on_writes_checkpoints_again(small: Study, store: Store) -> None:
    """The manifest of a checkpoint must not vouch for what is written in place of its files."""
    with pytest.raises(Killed):
        train_arm(small, ARM, store, 4, report=killer("checkpoint", 4))
    resume = store.resume_path(small.name, ARM.key)
    resume.unlink()
    store.checkpoint_manifest_path(small.name, Checkpoint(ARM, 0)).unlink()
    seen = watched(store.root, lambda: train_arm(small, ARM, store, 4))
    assert seen.violations == []
    assert any(None in states[:-1] for states in seen.states.values()) or seen.calls > 60


def test_training_whose_checkpoints_are_cut_otherwise(make_study: MakeStudy, store: Store) -> None:
    train_arm(make_study(), ARM, store, 4)
    store.checkpoint_manifest_path("tiny", LAST).unlink()
    seen = watched(store.root, lambda: train_arm(make_study(checkpoints=(0, 3, 4)), ARM, store, 4))
    assert seen.violations == []


def test_parts_that_are_put_together(make_study: MakeStudy, store: Store) -> None:
    study = make_study({"precision": "float16", "architecture": "cnn5", "batch_size": 30}, **VALIDATED)
    trials = [range(stack[0], stack[-1] + 1) for stack in stacking(study, ARM)]
    assert len(trials) == 2
    seen = watched(store.root, lambda: [train_part(study, ARM, store, 4, part) for part in trials])
    assert seen.violations == []
    assert {"parts", "checkpoints", "live", "manifests", "tables"} == {
        path.relative_to(store.root).parts[0] for path in seen.states
    }


def test_curvature_with_shards_its_summary_and_another_estimator(
    trained: Store, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "shards", lambda *arguments: usual_shards(*arguments, target=60))
    monkeypatch.setattr(rows, "_NUM_RANKING_IMAGES", 4)  # few enough to pay, so that a ranking is written
    more = {
        "estimators": ("top_directions", "finite_difference"),
        "finite_difference": {"steps": (0.1,), "num_probes": 2},
    }

    def write() -> None:
        for study in (make_study(), make_study(curvature=more)):
            compute_curvature(study, LAST, trained)
            rebuild(trained, study)

    seen = watched(trained.root, write)
    assert seen.violations == []
    assert {"shards", "tables"} <= {path.relative_to(trained.root).parts[0] for path in seen.states}
    assert any("ranking" in path.name for path in seen.states)


def test_the_hessian(trained: Store, make_study: MakeStudy) -> None:
    for count in (1, 2):
        study = make_study(hessian={**HESSIAN, "num_eigenvalues": count})
        assert watched(trained.root, lambda: hessian_of_checkpoint(study, LAST, trained)).violations == []  # noqa: B023


def test_loss_slopes(trained: Store, make_study: MakeStudy) -> None:
    def write() -> None:
        for count in (100, 50):
            rebuild_loss_slopes(trained, make_study(loss_slopes={"num_points": count}))

    seen = watched(trained.root, write)
    assert seen.violations == []
    assert any("loss_slopes" in path.parts for path in seen.states)


def test_images_warehouse_and_the_probe_of_the_root(trained: Store, tiny_study: Study) -> None:
    def write() -> None:
        trained.check_writable()
        write_images(trained, tiny_study)
        refresh(trained)
        refresh(trained)

    seen = watched(trained.root, write)
    assert seen.violations == []
    assert trained.warehouse_path in seen.states


def test_exports_and_imports(trained: Store, make_study: MakeStudy, tmp_path: Path) -> None:
    study, folder = make_study(), tmp_path / "studies"
    folder.mkdir()

    def export() -> None:
        write_images(trained, study)
        export_arm(trained, study, ARM)
        # Again, of other rows: the manifest there is must not vouch for the new files.
        files.remove(trained.checkpoint_manifest_path(study.name, LAST))
        files.remove(trained.table_folder("training_evals", study.name, ARM.key) / "0004.parquet")
        export_arm(trained, study, ARM)

    assert watched(trained.root, export).violations == []
    exported = trained.exports_folder(study.name)
    seen = watched(trained.root, lambda: import_metrics(trained, [folder], Request("copy", (exported,))))
    assert seen.violations == [] and len(seen.states) > 5


def test_an_import_that_takes_the_place_of_another(store: Store, tmp_path: Path) -> None:
    folder, source = tmp_path / "studies", tmp_path / "plain.k002" / "trial-000" / "metrics.jsonl"
    for made in (folder, source.parent):
        made.mkdir(parents=True)
    trained = {"data": {"dataset": "digits"}, "settings": {"architecture": "cnn5", "batch_size": 10}}
    trained["settings"] |= {"label_noise": 0.0, "optimizer": {"name": "adam", "learning_rate": 0.001}}

    def write() -> None:
        for loss in (1.0, 2.0):
            source.write_text(json.dumps({"step": 1, "epoch": 1, "loss_train_nats": loss}))
            import_metrics(store, [folder], Request("mine", (source.parents[1],), replace=True, **trained))

    seen = watched(store.root, write)
    assert seen.violations == [] and sum(states[-1] is not None for states in seen.states.values()) == 2


def test_figures(store: Store) -> None:
    chart = alt.Chart(pd.DataFrame({"x": [1]})).mark_point().encode(x="x")
    seen = watched(store.root, lambda: [render(chart, store.figure_folder("points"), "tiny") for _ in range(2)])
    assert seen.violations == [] and len(seen.states) == 3


def test_jobs_and_probes(store: Store, tiny_study: Study) -> None:
    def write() -> None:
        folder = JobFolder.of(store, job)
        folder.prepare(job)
        folder.write_outcome(0, Finished(seconds=1.0))
        folder.halve(0)
        folder.prepare(job)
        write_measurements(store, Machine("cpu", 0, 2), [Measurement(tiny_study, ARM, 1, 1, "ok", "cpu", 100.0)])

    task = TrainTask(study="tiny", variant="plain", k=2, until=4)
    job = Job(root=store.root, studies={"tiny": tiny_study}, tasks=(task,), num_workers=1, threads=1)
    seen = watched(store.root, write)
    assert seen.violations == [] and len(seen.states) == 5


# What the record notices


def write_in_place(path: Path, write: Callable[[Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)


def put_without_the_folder(written: Path, path: Path) -> None:
    written.replace(path)


FAULTS: dict[str, tuple[Any, str, Any, str]] = {
    "files are not flushed": (
        files, "flush", lambda path, usual=files.flush: usual(path) if path.is_dir() else None, "without its bytes",
    ),
    "folders are not flushed": (files, "put_in_place", put_without_the_folder, "may be there without"),
    "new folders are not flushed": (
        files, "make_folder", lambda folder: folder.mkdir(parents=True, exist_ok=True), "whose folder is not on disk",
    ),
    "files are written in place": (files, "write_atomically", write_in_place, "was written in place"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_rule_that_is_broken_is_noticed(fault: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, broken, sentence = FAULTS[fault]
    weights, manifest = store.root / "checkpoints" / "weights", store.root / "tables" / "manifest.json"

    def write() -> None:
        for text in ("first", "second"):
            files.remove(manifest)
            write_text(weights, text)
            store.write_manifest(manifest, {}, {"weights": weights})

    assert watched(store.root, write).violations == []
    monkeypatch.setattr(module, name, broken)
    other = Store(store.root / "other")
    weights, manifest = other.root / "checkpoints" / "weights", other.root / "tables" / "manifest.json"
    store = other
    violations = watched(other.root, write).violations
    assert any(sentence in violation for violation in violations), violations


def test_a_manifest_that_stays_while_its_file_is_replaced_or_removed_is_noticed(store: Store) -> None:
    data, manifest = store.root / "data", store.root / "data.json"
    write_text(data, "first")
    store.write_manifest(manifest, {}, {"data": data})
    assert "may be there without data" in " ".join(watched(store.root, lambda: write_text(data, "second")).violations)
    write_text(data, "first")

    def remove_both_at_once() -> None:
        manifest.unlink()
        data.unlink()

    assert "may be there without data" in " ".join(watched(store.root, remove_both_at_once).violations)


def test_a_writer_that_goes_on_after_its_file_was_flushed_is_noticed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = files.flush

    def flush_too_early(path: Path) -> None:
        usual(path)
        if path.is_file():
            path.write_text("and more")

    monkeypatch.setattr(files, "flush", flush_too_early)
    assert "without its bytes" in " ".join(watched(store.root, lambda: write_text(store.root / "a", "1")).violations)


# Calls by which a file gets its bytes or its name, and where they may stand.
WRITING = {"write_bytes", "write_text", "rename", "touch", "symlink_to", "hardlink_to", "save_file", "save", "savez"}
WRITING |= {"to_csv", "to_json", "to_parquet", "write_table", "savefig", "copyfile", "copytree", "copy2"}
ALLOWED = {
    "dd_core/store/files.py": "all of it is about this",
    "dd_core/tables/files.py": "fills a temporary",
    "dd_core/store/checkpoints.py": "fills a temporary",
    "dd_core/weights/class_orders.py": "fills a temporary",
    "dd_core/exchange/curvature_exporter.py": "fills temporaries",
    "dd_core/exchange/exporter.py": "fills temporaries",
    "dd_core/exchange/tensorboard.py": "fills a temporary",
    "dd_core/data/datasets.py": "copies of data sets, flushed before their folder gets its name",
    "dd_core/store/retirement.py": "moves folders of whole files, and flushes where they were and are",
    "dd_core/data/graphs/kept.py": "fills memory",
    "dd_core/machine/devices.py": "settings of the operating system",
    "dd_core/machine/memory.py": "likewise",
    "dd_core/jobs/pod.py": "news, a line at a time",
    "dd_assets/running/console.py": "the terminal",
}


def _writes(call: ast.Call) -> bool:
    function = call.func
    if not isinstance(function, ast.Attribute):
        return isinstance(function, ast.Name) and function.id in {"open", *WRITING} - {"write_text"}
    if function.attr == "open":
        modes = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
        modes += [keyword.value.value for keyword in call.keywords if isinstance(keyword.value, ast.Constant)]
        return any(isinstance(mode, str) and set(mode) & set("wax+") and len(mode) < 4 for mode in modes)
    return function.attr in WRITING


def test_nobody_writes_past_these_functions() -> None:
    """A writer that no test calls could not be recorded."""
    repository = Path(__file__).parents[2]
    found = {
        str(path.relative_to(repository)): f"line {node.lineno}"
        for package in ("dd_core", "dd_assets")
        for path in sorted((repository / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and _writes(node)
    }
    assert {path: line for path, line in found.items() if path not in ALLOWED} == {}
    assert set(ALLOWED) == set(found)
