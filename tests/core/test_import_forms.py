"""Files as public programs write them: every value with its right meaning, or one sentence that says why not.

The files in ``metric_files`` are from public bug reports and repositories, shortened.
"""

import gzip
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from dd_core.errors import UserError
from dd_core.exchange.formats import FORMATS
from dd_core.exchange.importer import Imported
from dd_core.exchange.places import Reading
from dd_core.study.files import read_study

from .import_bench import TRAINED, Bench

FILES = Path(__file__).with_name("metric_files")
K8 = Reading(k=8)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def meanings(done: Imported) -> dict[str, str]:
    return {told.key: told.meaning for told in done.told}


def form(done: Imported) -> set[str]:
    return {told.format for told in done.told}


def test_timm_evaluates_on_the_test_set_in_percent_and_counts_epochs_from_0(bench: Bench) -> None:
    done = bench.load(FILES / "timm.csv", reading=K8, **TRAINED)
    assert form(done) == {"timm"}
    sql = "SELECT epoch, train_loss, test_loss, round(test_error, 6), train_error FROM rows"
    assert bench.rows("training_evals", sql) == [
        (1, 1.61, 0.71, 0.238, None),
        (2, 1.24, 0.58, 0.191, None),
        (3, 1.12, 0.53, 0.176, None),
    ]
    assert bench.rows("training_monitors", "SELECT epoch, metric, round(value, 6) FROM rows") == [
        *[(1, "eval_top5", 0.989), (1, "learning_rate", 0.05), (2, "eval_top5", 0.991)],
        *[(2, "learning_rate", 0.0452), (3, "eval_top5", 0.993), (3, "learning_rate", 0.0327)],
    ]
    # The same by the options that were needed before.
    renames = {"eval_loss": "test_loss", "eval_top1": "test_acc", "lr": ""}
    reading = Reading(k=8, first_epoch=0, percent=True)
    bench.load(FILES / "timm.csv", study="renamed", reading=reading, renames=renames, **TRAINED)
    assert bench.rows("training_evals", sql, "renamed") == bench.rows("training_evals", sql)


def test_a_rate_of_every_epoch_is_kept_for_every_epoch(bench: Bench) -> None:
    settings = {**TRAINED["settings"], "optimizer": {"name": "sgd"}}
    bench.load(FILES / "rate_by_epoch.csv", reading=K8, settings=settings, data=TRAINED["data"])
    sql = "SELECT epoch, step, metric, value FROM rows"
    rates = [(1, None, "learning_rate", 0.1), (2, None, "learning_rate", 0.05), (3, None, "learning_rate", 0.01)]
    assert bench.rows("training_monitors", sql) == rates
    assert read_study(bench.studies / "other.yaml").variants["imported"].optimizer.learning_rate == 0.1


@pytest.mark.parametrize("name", ["acc", "accuracy", "error"])
def test_percent_is_that_of_every_accuracy_and_error(name: str, bench: Bench) -> None:
    text = (FILES / "percent.csv").read_text().replace("acc", name)
    if name == "error":
        text = text.replace("30.5,28.0", "69.5,72.0").replace("40.1,38.0", "59.9,62.0")
    path = bench.write("log.csv", text)
    with pytest.raises(UserError, match=rf"log\.csv:2: train_{name} is .*, not a fraction; pass --percent"):
        bench.load(path, reading=K8, **TRAINED)
    alone = bench.write(
        "alone.csv", "\n".join(line.partition(",")[0] + "," + line.split(",")[2] for line in text.split())
    )
    with pytest.raises(UserError, match=rf"alone\.csv:2: val_{name} is .*, not a fraction; pass --percent"):
        bench.load(alone, reading=K8, **TRAINED)
    bench.load(path, reading=Reading(k=8, percent=True), **TRAINED)
    assert bench.rows("training_evals", "SELECT round(train_error, 6), round(validation_error, 6) FROM rows") == [
        (0.599, 0.62),
        (0.695, 0.72),
    ]


def test_keras_accuracy_is_of_the_training_set(bench: Bench) -> None:
    done = bench.load(FILES / "keras.csv", reading=K8, **TRAINED)
    assert form(done) == {"keras"}
    assert bench.rows(
        "training_evals", "SELECT epoch, round(train_error, 6), train_loss, validation_error FROM rows"
    ) == [
        (1, 0.06, 0.2, None),
        (2, 0.03, 0.08, None),
    ]
    whole = bench.write("whole.csv", "epoch,accuracy,loss,val_accuracy,val_loss,learning_rate\n0,0.5,2,0.25,3,0.1\n")
    bench.load(whole, study="whole", reading=K8, **TRAINED)
    sql = "SELECT epoch, train_error, train_loss, validation_error, validation_loss FROM rows"
    assert bench.rows("training_evals", sql, "whole") == [(1, 0.5, 2.0, 0.75, 3.0)]


def test_lightnings_steps_and_epochs_are_told_apart(bench: Bench) -> None:
    done = bench.load(FILES / "lightning.csv", reading=Reading(k=8, percent=True), **TRAINED)
    assert form(done) == {"lightning"}
    assert bench.rows("training_batches", "SELECT epoch, step, train_loss FROM rows") == [
        *[(1, 49, 0.63), (1, 99, 0.19), (2, 149, 0.15), (2, 199, 0.1)],
    ]
    # The test after two epochs of training stands under epoch 2, counted from 0: it is of the second.
    errors = ", ".join(f"round({split}_error, 6)" for split in ("train", "validation", "test"))
    sql = f"SELECT epoch, validation_loss, {errors} FROM rows"
    assert bench.rows("training_evals", sql) == [(1, 0.4, 0.088, 0.119, None), (2, 0.3, 0.05, 0.097, 0.101)]


def test_each_run_of_a_chart_is_an_arm_and_bounds_are_left_out_aloud(bench: Bench) -> None:
    done = bench.load(FILES / "wandb.csv", **TRAINED)
    assert form(done) == {"wandb"}
    rows = [("imported.k004", 1, 0.5), ("imported.k004", 2, 0.3), ("imported.k008", 1, 0.4), ("imported.k008", 2, 0.25)]
    assert bench.rows("training_evals", "SELECT arm, epoch, test_error FROM rows") == rows
    assert done.left_out == [f"__MIN and __MAX, which say how a chart was thinned: 4 columns of {FILES / 'wandb.csv'}"]


CHART = '"epoch","net-4 - val/acc","net-8 - val/acc","net-8 - val/acc__MIN"\n"1","0.5","","0"\n"2","0.5","0.25","0"\n'


def test_a_pattern_or_the_order_of_columns_says_what_runs_are(bench: Bench) -> None:
    path = bench.write("chart.csv", CHART)
    with pytest.raises(UserError, match=r"the runs net-4 and net-8 would be one; say with --runs how"):
        bench.load(path, **TRAINED)
    bench.load(path, reading=Reading(runs="{variant}-{k}"), **TRAINED)
    assert bench.rows("training_evals", "SELECT arm, trial, epoch, validation_error FROM rows") == [
        *[("net.k004", 0, 1, 0.5), ("net.k004", 0, 2, 0.5), ("net.k008", 0, 2, 0.75)],
    ]
    bench.load(path, study="trials", reading=Reading(k=3, runs="trials"), **TRAINED)
    assert bench.rows("training_evals", "SELECT arm, trial, epoch, validation_error FROM rows", "trials") == [
        *[("imported.k003", 0, 1, 0.5), ("imported.k003", 0, 2, 0.5), ("imported.k003", 1, 2, 0.75)],
    ]
    for pattern, sentence in {
        "net-seed{trial}": "the run net-4 is not called as --runs net-seed{trial} says",
        "net-{width}": "say where {k}, {trial} and {variant} are",
        "net": "say where {k}, {trial} and {variant} are",
    }.items():
        with pytest.raises(UserError) as caught:
            bench.load(path, study="wrong", reading=Reading(k=3, runs=pattern), **TRAINED)
        assert sentence in str(caught.value)
    with pytest.raises(UserError, match="--runs is for files with several runs side by side"):
        bench.load(FILES / "keras.csv", reading=Reading(k=3, runs="trials"), **TRAINED)


def test_data_sets_networks_widths_and_seeds_of_others_are_named_as_they_are(bench: Bench) -> None:
    how = {"settings": {**TRAINED["settings"], "architecture": "fcnn"}, "data": {"dataset": "mnist"}}
    bench.load(FILES / "mnist.csv", renames={"Hidden Neurons": "k"}, reading=Reading(trial=65537), **how)
    sql = "SELECT arm, k, trial, epoch, round(train_error, 6), test_loss FROM rows"
    assert bench.rows("training_evals", sql)[-1] == ("imported.k1000", 1000, 65537, 400, 0.0, 0.62)
    study = read_study(bench.studies / "other.yaml")
    assert (study.data.dataset, study.variants["imported"].architecture) == ("mnist", "fcnn")
    assert (study.widths, study.trials) == ((1, 1000), 1)
    bench.load(bench.write("k65536/trial-42/metrics.csv", "epoch,test_acc\n1,0.5\n"))
    assert read_study(bench.studies / "other.yaml").widths == (1, 1000, 65536)
    assert bench.rows("training_evals", "SELECT max(k), min(trial) FROM rows") == [(65536, 42)]


def test_fractions_of_widths_are_whole_numbers_of_a_unit_that_the_study_says(bench: Bench) -> None:
    for width in ("0.0625", "0.5", "64"):
        bench.write(f"metrics_k{width}.jsonl", '{"epoch": 1, "test_error": 0.5}\n')
    bench.load(**TRAINED)
    study = read_study(bench.studies / "other.yaml")
    assert (study.widths, study.width_unit) == ((1, 8, 1024), 0.0625)
    assert bench.rows("training_evals", "SELECT arm, k FROM rows") == [
        *[("imported.k001", 1), ("imported.k008", 8), ("imported.k1024", 1024)],
    ]
    bench.load(bench.write("x/metrics_k2.jsonl", '{"epoch": 1, "test_error": 0.25}\n'))
    assert bench.rows("training_evals", "SELECT arm FROM rows WHERE test_error = 0.25") == [("imported.k032",)]
    with pytest.raises(UserError, match=r"the width 0\.01 is no multiple of 1/16, in which study other counts widths"):
        bench.load(bench.write("y/metrics_k0.01.jsonl", '{"epoch": 1, "test_error": 0.25}\n'))
    with pytest.raises(UserError, match=r"the width 0\.333333 is 333333 times 1/1000000, and k ends at 65536"):
        third = bench.write("z/metrics_k0.333333.jsonl", '{"epoch": 1, "test_error": 0.25}\n')
        bench.load(third, study="thirds", **TRAINED)
    bench.load(third, study="thirds", reading=Reading(width_unit=Fraction(1, 3)), **TRAINED)
    assert read_study(bench.studies / "thirds.yaml").widths == (1,)


def test_the_numbers_of_rows_that_pandas_writes_are_left_out_aloud(bench: Bench) -> None:
    for name, text in {
        "index": (FILES / "pandas.csv").read_text(),
        "again": (FILES / "pandas.csv").read_text().replace(",epoch", "Unnamed: 0,epoch"),
    }.items():
        path = bench.write(f"{name}.csv", text)
        done = bench.load(path, study=name, reading=K8, **TRAINED)
        assert done.left_out == [f"the first column, which has no name and counts rows: {path}"]
        sql = "SELECT epoch, train_loss, test_loss FROM rows"
        assert bench.rows("training_evals", sql, name) == [(1, 2.0, 2.1), (2, 1.5, 1.7)]
    with pytest.raises(UserError, match=r":1: column 1 has no name, and does not count rows"):
        bench.load(bench.write("bad.csv", ",epoch,test_loss\n0.5,1,2\n"), reading=K8, **TRAINED)


def test_a_log_that_was_resumed_is_refused_or_its_later_rows_count(bench: Bench) -> None:
    path = FILES / "resumed.csv"
    with pytest.raises(UserError, match=r":5: test_loss is told twice for epoch 3, first in .*:4; --keep last"):
        bench.load(path, reading=K8, **TRAINED)
    done = bench.load(path, reading=Reading(k=8, keep_last=True), **TRAINED)
    assert done.left_out == [f"1 row that comes again later: {path}:4"]
    sql = "SELECT epoch, train_loss, test_loss FROM rows"
    assert bench.rows("training_evals", sql) == [(1, 2.0, 2.1), (2, 1.5, 1.7), (3, 1.41, 1.62), (4, 1.2, 1.5)]


def test_what_a_run_told_beyond_the_place_it_went_on_from_is_left_behind(bench: Bench) -> None:
    lines = ["epoch,step,lr", *(f"{1 + step // 4},{step},{step}" for step in (1, 2, 3, 4, 5, 3, 4))]
    path = bench.write("log.csv", "\n".join(lines))
    with pytest.raises(UserError, match=r":7: step goes back from 5 to 3; .* --keep last takes what came later"):
        bench.load(path, reading=K8, **TRAINED)
    done = bench.load(path, reading=Reading(k=8, keep_last=True), **TRAINED)
    assert done.left_out == [f"3 rows that come again later: {path}:4, 5, 6"]
    assert bench.rows("training_batches", "SELECT step, learning_rate FROM rows") == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_header_that_comes_again_is_left_out_aloud(bench: Bench) -> None:
    done = bench.load(FILES / "second_header.csv", reading=K8, **TRAINED)
    assert done.left_out == [f"the header again, as a resumed run writes it: {FILES / 'second_header.csv'}:3"]
    assert bench.rows("training_evals", "SELECT epoch, test_loss FROM rows") == [(1, 2.1), (2, 1.7)]


@pytest.mark.parametrize("sign", [";", "\t"])
def test_semicolons_tabs_and_decimal_commas_are_read(sign: str, bench: Bench) -> None:
    text = (FILES / "errors_only.csv").read_text().replace(",", sign).replace(".", ",")
    bench.load(bench.write("sweep.csv", text), reading=Reading(first_epoch=0), **TRAINED)
    bench.load(FILES / "errors_only.csv", study="plain", reading=Reading(first_epoch=0), **TRAINED)
    sql = "SELECT k, trial, epoch, train_error, test_error FROM rows"
    assert bench.rows("training_evals", sql) == bench.rows("training_evals", sql, "plain")
    assert len(bench.rows("training_evals", sql)) == 12


def test_packed_files_are_read_and_damaged_ones_named(bench: Bench) -> None:
    packed = gzip.compress((FILES / "keras.csv").read_bytes())
    bench.load(bench.write("k008/metrics.csv.gz", packed).parent, **TRAINED)
    assert bench.rows("training_evals", "SELECT k, train_loss FROM rows") == [(8, 0.08), (8, 0.2)]
    for name, content in {"short.csv.gz": packed[:-12], "no.jsonl.gz": b"epoch,test_loss\n"}.items():
        with pytest.raises(UserError, match=f"{name}: is no whole gzip file"):
            bench.load(bench.write(name, content), study="damaged", reading=K8, **TRAINED)


def test_nothing_that_a_file_has_is_dropped_in_silence(bench: Bench) -> None:
    text = "epoch,test_loss,note,rate\n1,2.5,first,nan\n2,,,\n3,1.5,,0.5\n"
    path = bench.write("metrics_k1.csv", text)
    beside = bench.write("summary.csv", text)
    done = bench.load(**TRAINED)
    assert done.left_out == [
        f"files of another name in these folders, which can be named one by one: {beside}",
        f'note, which is no number: {path}:2 ("first")',
        f"1 row that has no number: {path}:3",
    ]
    (rate,) = (told for told in done.told if told.key == "rate")
    assert (rate.values, rate.nan) == (2, 1)
    assert bench.rows("training_monitors", "SELECT epoch, value FROM rows") == [(1, None), (3, 0.5)]


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [("wandb", "is not of the format wandb .*; it has epoch, accuracy, loss"), ("tensorboard", "there is no format")],
)
def test_a_format_that_does_not_fit_is_refused(asked: str, sentence: str, bench: Bench) -> None:
    with pytest.raises(UserError, match=sentence):
        bench.load(FILES / "keras.csv", reading=Reading(k=8, format=asked), **TRAINED)


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir()))
def test_a_dry_run_tells_what_would_be_imported_and_writes_nothing(name: str, bench: Bench) -> None:
    reading: dict[str, Any] = {"percent": name in ("percent.csv", "lightning.csv"), "keep_last": True}
    if name not in ("errors_only.csv", "mnist.csv", "wandb.csv"):
        reading["k"] = 8
    request = {"reading": Reading(**reading), "renames": {"Hidden Neurons": "k"}, **TRAINED}
    would = bench.load(FILES / name, dry_run=True, **request)
    assert not bench.store.root.exists() or not list(bench.store.root.rglob("*.parquet"))
    assert not list(bench.studies.iterdir())
    done = bench.load(FILES / name, **request)
    assert (would.told, would.left_out, would.rows) == (done.told, done.left_out, done.rows)
    assert all(told.format in FORMATS and told.values for told in would.told)
