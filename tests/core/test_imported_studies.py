"""The study of imported runs: what later imports add, replace, or must not touch."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dd_core.errors import StoreError, UserError
from dd_core.exchange.staging import replace_if_changed
from dd_core.store.store import Store
from dd_core.study.files import read_study
from dd_core.study.study import Study
from dd_core.tables.files import write_parquet

from .exchanged import STEP, snapshot
from .import_bench import TRAINED, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def study(make_study: Callable[..., Study]) -> Study:
    return make_study()


# The study of imported runs


def test_a_study_that_trains_is_never_imported_into(bench: Bench, study: Study) -> None:
    text = json.dumps(study.model_dump(mode="json", exclude={"name"}))
    (bench.studies / "tiny.yaml").write_text(text)
    bench.write("k002/metrics.jsonl", STEP)
    with pytest.raises(UserError, match="tiny is a study that is trained here; choose another name"):
        bench.load(study="tiny", **TRAINED)
    bench.store.arm_folder("gone", "plain.k001").mkdir(parents=True)
    with pytest.raises(UserError, match="a study called gone has been trained under"):
        bench.load(study="gone", **TRAINED)
    (bench.studies / "broken.yaml").write_text("description: [")
    with pytest.raises(UserError, match=r"broken\.yaml: not valid YAML"):
        bench.load(study="broken", **TRAINED)


def test_importing_again_changes_nothing(bench: Bench) -> None:
    for trial in (0, 1):
        bench.write(f"k002/trial-{trial}/metrics.jsonl", STEP)
        bench.write(f"k002/trial-{trial}/metrics_k2.jsonl", '{"epoch": 1, "test_error": 0.5}\n')
    first = bench.load(**TRAINED)
    before = snapshot(bench.store.root, bench.studies)
    again = bench.load(**TRAINED)
    assert snapshot(bench.store.root, bench.studies) == before
    assert len(first.written) == 5  # two tables of two trials, and the study
    assert again.written == []
    assert again.rows == first.rows


def test_a_dry_run_says_what_would_be_written_and_writes_nothing(bench: Bench) -> None:
    bench.write("k002/metrics.jsonl", STEP)
    would = bench.load(dry_run=True, **TRAINED)
    assert snapshot(bench.store.root, bench.studies) == {}
    assert bench.load(**TRAINED) == would


def test_runs_imported_later_join_the_study_and_leave_the_earlier_rows_current(bench: Bench) -> None:
    bench.load(bench.write("k002/trial-0/metrics_k2.jsonl", '{"epoch": 4, "test_error": 0.5}'), **TRAINED)
    path = bench.studies / "other.yaml"
    path.write_text("# by hand\n" + path.read_text())
    bench.load(bench.write("k008/trial-2/metrics_k8.jsonl", '{"epoch": 6, "test_error": 0.25}'))
    bench.load(bench.write("metrics_k8.jsonl", '{"epoch": 9, "test_error": 0.125}'), variant="wide", **TRAINED)
    sql = "SELECT arm, trial, epoch, test_error FROM rows"
    assert bench.rows("training_evals", sql) == [
        ("imported.k002", 0, 4, 0.5),
        ("imported.k008", 2, 6, 0.25),
        ("wide.k008", 0, 9, 0.125),
    ]
    study = read_study(path)
    assert (study.widths, study.trials, study.epochs, study.checkpoints) == ((2, 8), 2, 9, (4, 6, 9))
    assert list(study.variants) == ["imported", "wide"]
    assert path.read_text().startswith("# by hand\n")
    with pytest.raises(UserError, match="other has several; pass --variant with one of imported, wide, or a new one"):
        bench.load(bench.write("metrics_k1.jsonl", '{"epoch": 9, "test_error": 0.5}'))


@pytest.mark.parametrize(
    ("contradiction", "sentence"),
    [
        (
            {"settings": {"label_noise": 0.2}},
            r"variant imported: label_noise is \(0.15\) and cannot be \(0.2\) as well",
        ),
        (
            {"settings": {"optimizer": {"learning_rate": 1.0}}},
            "variant imported: optimizer is .* choose another --variant",
        ),
        ({"data": {"dataset": "digits"}}, r"data of other: dataset is \(cifar10\) and cannot be \(digits\) as well"),
    ],
)
def test_a_variant_is_trained_in_one_way(contradiction: dict[str, Any], sentence: str, bench: Bench) -> None:
    bench.load(bench.write("metrics_k2.jsonl", '{"epoch": 4, "test_error": 0.5}'), **TRAINED)
    before = snapshot(bench.store.root, bench.studies)
    with pytest.raises(UserError, match=sentence):
        bench.load(bench.write("metrics_k4.jsonl", '{"epoch": 4, "test_error": 0.5}'), **contradiction)
    assert snapshot(bench.store.root, bench.studies) == before


def test_rows_of_other_files_give_way_only_where_the_user_says_so(bench: Bench) -> None:
    path = bench.write("metrics_k2.jsonl", '{"epoch": 1, "test_error": 0.5}\n')
    bench.load(**TRAINED)
    path.write_text('{"epoch": 1, "test_error": 0.5}\n{"epoch": 2, "test_error": 0.25}\n')
    before = snapshot(bench.store.root, bench.studies)
    with pytest.raises(UserError, match=r"other/imported\.k002, trial 0 has rows of other files already .* --replace"):
        bench.load()
    assert snapshot(bench.store.root, bench.studies) == before
    bench.load(replace=True)
    assert bench.rows("training_evals", "SELECT epoch, test_error FROM rows") == [(1, 0.5), (2, 0.25)]


def test_two_files_of_one_run_must_not_tell_the_same(bench: Bench) -> None:
    for job in ("job-1", "job-2"):
        bench.write(f"{job}/metrics_k2.jsonl", '{"epoch": 1, "test_error": 0.5}\n')
    with pytest.raises(
        UserError, match=r"job-2/metrics_k2\.jsonl:1: test_error is told twice for epoch 1, first in .*job-1"
    ):
        bench.load(**TRAINED)


def test_correcting_the_study_file_and_importing_again_makes_rows_current(bench: Bench) -> None:
    bench.write("metrics_k2.jsonl", '{"epoch": 1, "test_error": 0.5}\n')
    bench.load(**TRAINED)
    path = bench.studies / "other.yaml"
    path.write_text(path.read_text().replace("label_noise: 0.15", "label_noise: 0.1"))
    assert bench.rows("training_evals") == []
    bench.load()
    assert bench.rows("training_evals", "SELECT test_error FROM rows") == [(0.5,)]


def test_long_runs_keep_a_hundred_epochs_for_figures_and_the_last_of_each_arm(bench: Bench) -> None:
    for k, last in ((1, 4000), (2, 3777)):
        lines = (f'{{"epoch": {e}, "test_error": 0.5}}\n' for e in range(1, last + 1))
        bench.write(f"metrics_k{k}.jsonl", "".join(lines))
    bench.load(**TRAINED)
    study = read_study(bench.studies / "other.yaml")
    assert {1, 3777, 4000} <= set(study.checkpoints)
    assert len(study.checkpoints) <= 102
    assert bench.rows("training_evals", "SELECT count(*) FROM rows") == [(7777,)]


@pytest.mark.parametrize("moment", range(6))
def test_an_import_that_is_killed_is_completed_by_the_same_command(
    moment: int, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trial in (0, 1):
        bench.write(f"k002/trial-{trial}/metrics.jsonl", STEP)
    undisturbed = bench.files.parent / "undisturbed"
    undisturbed.mkdir()
    reference = Bench(undisturbed)
    reference.files = bench.files
    reference.load(**TRAINED)
    calls: Iterator[int] = iter(range(100))

    def killed_at(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if next(calls) == moment:
                raise KeyboardInterrupt
            return function(*arguments, **keywords)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr("dd_core.exchange.importer.write_parquet", killed_at(write_parquet))
        patch.setattr("dd_core.exchange.importer.replace_if_changed", killed_at(replace_if_changed))
        patch.setattr(Store, "write_manifest", killed_at(Store.write_manifest))
        with pytest.raises(KeyboardInterrupt):
            bench.load(**TRAINED)
        if moment < 2:  # while it was still writing aside
            assert snapshot(bench.store.root, bench.studies) == {}
    bench.load(**TRAINED)
    for folder in ("root/tables", "studies"):
        bases = (bench.files.parent / folder, undisturbed / folder)
        contents = [
            {str(path.relative_to(base)): path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()}
            for base in bases
        ]
        assert contents[0] == contents[1]


def test_where_the_disk_is_full_nothing_is_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write("k002/metrics.jsonl", STEP)

    def full(*_: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr("dd_core.exchange.study_file.write_text", full)
    with pytest.raises(StoreError):
        bench.load(**TRAINED)
    assert snapshot(bench.store.root, bench.studies) == {}
