"""The asset ``metric_exports``, the command that imports, and the figures of what was imported."""

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dd_assets.assets.metric_exports import metric_exports_asset
from dd_assets.definitions import build_defs
from dd_assets.import_metrics import main
from dd_assets.laboratory import Laboratory
from dd_core.figures import FIGURES
from dd_core.store.store import Store
from dd_core.study.files import Catalogue, read_studies, read_study
from dd_core.study.study import Study
from dd_core.tables.files import TABLES, to_arrow, write_parquet
from dd_core.tables.warehouse import connect

TRAINED = [
    *("--dataset", "cifar10", "--architecture", "preact_resnet18", "--label-noise", "0.15", "--batch-size", "128"),
    *("--optimizer", "adam", "--learning-rate", "1e-4"),
]
WIDTHS = (2, 4, 8, 16)


@pytest.fixture
def study(make_study: Callable[..., Study], store: Store) -> Study:
    """Ten batches and an evaluation of both trials of both arms."""
    study = make_study()
    for key, arm in study.arms.items():
        common = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm), "epoch": 4}
        batches = {**common, "trial": [0] * 10 + [1] * 10, "step": [*range(1, 11)] * 2}
        evals = {**common, "trial": [0, 1], "step": 10}
        for table, columns, rows in (("training_batches", batches, 20), ("training_evals", evals, 2)):
            names = [column.name for column in TABLES[table].file_columns]
            content = to_arrow(table, {name: columns.get(name, 0.5) for name in names}, rows)
            write_parquet(store.table_folder(table, study.name, key) / "0004.parquet", content)
    return study


def export(store: Store, known: dict[str, Study], /, **config: Any) -> dg.ExecuteInProcessResult:
    """Materialise the asset."""
    return dg.materialize(
        [metric_exports_asset(known)],
        resources={"laboratory": Laboratory(root=str(store.root))},
        run_config={"ops": {"metric_exports": {"config": config}}},
        raise_on_error=False,
    )


def metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """Of the one materialisation."""
    assert result.success
    (event,) = result.asset_materializations_for_node("metric_exports")
    return {name: value.value for name, value in event.metadata.items()}


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What a user is shown."""
    (event,) = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
    return str(event.step_failure_data.error)


def test_materialising_writes_every_file_and_says_how_much(store: Store, study: Study) -> None:
    told = metadata(export(store, {"tiny": study}))
    files = sorted(path for path in store.exports_folder("tiny").rglob("metrics*") if path.is_file())
    assert told == {
        "files": 10,  # of two arms: two trials in two forms, and the evaluations
        "files_written": 10,
        "dagster/row_count": 2 * (2 * 2 * 10 + 2),
        "bytes": sum(path.stat().st_size for path in files),
        "dagster/uri": str(store.root / "exports"),
    }
    before = [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files]
    again = metadata(export(store, {"tiny": study}))
    assert again == {**told, "files_written": 0}
    assert [(path.stat().st_ino, path.stat().st_mtime_ns) for path in files] == before


def test_config_narrows_what_is_exported(store: Store, study: Study) -> None:
    assert metadata(export(store, {"tiny": study}, studies=["tiny"], arms=["plain.k002"]))["files"] == 5
    assert not (store.exports_folder("tiny") / "plain.k001").exists()


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"studies": ["none"]}, "there is no study 'none'; there are tiny"),
        ({"arms": ["plain.k009"]}, "no study asked for has the arm plain.k009"),
    ],
)
def test_unknown_names_are_refused(config: dict[str, Any], sentence: str, store: Store, study: Study) -> None:
    assert sentence in failure(export(store, {"tiny": study}, **config))


def test_with_nothing_trained_one_sentence_says_so(store: Store, tiny_study: Study) -> None:
    message = failure(export(store, {"tiny": tiny_study}))
    assert f"there are no metrics of the present recipe of any study under {store.root}; train first" in message


# The command


@pytest.fixture
def command(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``python -m dd_assets.import_metrics ...`` in this process: exit code, stdout and stderr."""
    monkeypatch.setenv("DD_ROOT", str(store.root))
    monkeypatch.setenv("DD_STUDIES", str(tmp_path / "studies"))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """What the double-descent script of seed 004 leaves: one file per width, 30 epochs, a peak at k = 4."""
    folder = tmp_path / "output"
    folder.mkdir()
    for k in WIDTHS:
        rows = []
        for epoch in range(1, 31):
            train = 0.6 * math.exp(-epoch * k / 40)
            test = 0.2 + 0.3 * math.exp(-epoch / 5) + (0.1 if k == 4 else 0) * (1 - math.exp(-epoch / 10))
            metrics = {"train_error": train, "test_error": test, "train_loss": 2 * train, "test_loss": 3 * test}
            rows.append(json.dumps({"epoch": epoch, "k": k, **metrics}))
        (folder / f"metrics_k{k}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_the_command_imports_and_says_what_it_did(
    command: Callable[..., tuple[int, str, str]], output: Path, store: Store, tmp_path: Path
) -> None:
    code, told, error = command("figure1", output, *TRAINED, "--dry-run")
    assert (code, error) == (0, "")
    assert told.endswith("Nothing was written; without --dry-run 5 files would be.\n")
    assert not (tmp_path / "studies").exists()
    code, told, error = command("figure1", output, *TRAINED)
    assert (code, error) == (0, "")
    assert told.splitlines()[:2] == [
        "figure1: 4 runs of 4 arms (imported.k002, imported.k004, imported.k008, imported.k016)",
        "  training_evals: 120 rows",
    ]
    assert store.warehouse_path.exists()
    code, told, error = command("figure1", output)
    assert (code, error) == (0, "")
    assert told.endswith("All of it had been imported before; nothing was changed.\n")


def test_exports_are_imported_without_any_option(
    command: Callable[..., tuple[int, str, str]], study: Study, store: Store, tmp_path: Path
) -> None:
    export(store, {"tiny": study})
    code, told, error = command("copy", store.exports_folder("tiny"))
    assert (code, error) == (0, "")
    assert "copy: 4 runs of 2 arms (plain.k001, plain.k002)" in told
    copy = read_study(tmp_path / "studies" / "copy.yaml")
    told_again = metadata(export(store, {"tiny": study, "copy": copy}, studies=["copy"]))
    assert told_again["dagster/row_count"] == 2 * (2 * 2 * 10 + 2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["quickstart", "output", *TRAINED], "Error: quickstart is a study that is trained here; choose another name"),
        (["figure1", "output", *TRAINED, "--rename", "x"], "Error: --rename x: say KEY=NAME, or KEY= to leave the key"),
        (["figure1", "nowhere", *TRAINED], "nowhere: does not exist"),
        (["figure1", "output/metrics_k2.jsonl", *TRAINED, "--k", "3"], "k is 2, but --k says 3"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(
    arguments: list[str],
    sentence: str,
    command: Callable[..., tuple[int, str, str]],
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
) -> None:
    monkeypatch.chdir(output.parent)
    code, told, error = command(*arguments)
    assert (code, told) == (1, "")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (store.root / "tables").exists()


def test_without_a_folder_for_study_files_the_command_says_what_to_set(
    command: Callable[..., tuple[int, str, str]], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DD_STUDIES")
    code, _, error = command("figure1", output, *TRAINED)
    assert code == 1
    assert error.startswith("Error: DD_STUDIES is not set: name a folder for your study files")


# What Dagster and the figures make of it


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_an_imported_study_has_nothing_to_train_but_is_exported(
    command: Callable[..., tuple[int, str, str]], output: Path, tmp_path: Path, tiny_study: Study
) -> None:
    assert command("figure1", output, *TRAINED)[0] == 0
    found = read_studies([tmp_path / "studies"])
    assert not found.errors
    definitions = build_defs(Catalogue({"tiny": tiny_study, **found.studies}, {}))
    keys = {key for asset in definitions.assets or [] if isinstance(asset, dg.AssetsDefinition) for key in asset.keys}
    assert {key.path[0] for key in keys if len(key.path) > 1} == {"tiny"}
    assert dg.AssetKey("metric_exports") in keys


@pytest.mark.parametrize("name", ["double_descent_curve", "training_curves", "epoch_by_width"])
def test_figures_of_evaluations_are_drawn_for_imported_runs(
    name: str, command: Callable[..., tuple[int, str, str]], output: Path, store: Store, tmp_path: Path
) -> None:
    assert command("figure1", output, *TRAINED)[0] == 0
    study = read_study(tmp_path / "studies" / "figure1.yaml")
    figure = next(figure for figure in FIGURES if figure.name == name)
    with contextlib.closing(connect(store)) as connection:
        chart = figure.draw(study, store, connection)
    assert chart is not None
    drawn = json.dumps(chart.to_dict())
    if name == "double_descent_curve":
        assert "peaks at 29.6 % at k = 4" in drawn.replace("\\u00a0", " ").replace('", "', " ")
        assert "epoch 30 of 30" in drawn
    assert "Left out" not in drawn


def test_figures_of_what_was_not_imported_are_not_drawn(
    command: Callable[..., tuple[int, str, str]], output: Path, store: Store, tmp_path: Path
) -> None:
    assert command("figure1", output, *TRAINED)[0] == 0
    study = read_study(tmp_path / "studies" / "figure1.yaml")
    others = [figure for figure in FIGURES if figure.tables != ("training_evals",)]
    with contextlib.closing(connect(store)) as connection:
        assert [figure.name for figure in others if figure.draw(study, store, connection) is not None] == []
