"""Made-up files in the public forms: each is read with its right meaning or refused in one sentence, row for row."""

import io
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_core.errors import UserError
from dd_core.exchange.places import Reading
from dd_core.study.former_names import now

from .import_bench import TRAINED, Bench

# What a form calls the quantities of the tables: training, validation, test; loss and accuracy (or error).
_SPELLINGS: dict[str, list[str]] = {
    "train_loss": [
        "train_loss",
        "Train Loss",
        "train/loss",
        "loss_train",
        "trainLoss",
        "training_loss",
        "train_loss_epoch",
    ],
    "train_acc": [
        "train_acc",
        "Train Accuracy",
        "train/acc",
        "acc_train",
        "training_accuracy",
        "train_top1",
        "Train.Acc",
    ],
    "val_loss": ["val_loss", "valid_loss", "Validation Loss", "val/loss", "loss_val", "dev_loss"],
    "val_acc": ["val_acc", "val_accuracy", "valid/acc", "Validation Accuracy", "val_top1", "val/acc_epoch"],
    "test_loss": ["test_loss", "Test Loss", "test/loss", "loss/test", "testLoss"],
    "test_acc": ["test_acc", "test_accuracy", "test/acc", "Test Acc", "test_top1", "acc/test"],
}
_COLUMN = {
    "train_loss": ("train_loss", False), "train_acc": ("train_error", True), "val_loss": ("validation_loss", False),
    "val_acc": ("validation_error", True), "test_loss": ("test_loss", False), "test_acc": ("test_error", True),
}  # fmt: skip


@dataclass
class Log:
    """A made-up log: what it calls its quantities, its values by epoch from 1, and how it is written."""

    names: dict[str, str]
    values: dict[str, list[float | None]]
    first_epoch: int
    percent: bool
    extra: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def num_epochs(self) -> int:
        """Of the log."""
        return len(next(iter(self.values.values())))

    def frame(self) -> pd.DataFrame:
        """One row an epoch, as the file has it."""
        columns: dict[str, Any] = {"epoch": range(self.first_epoch, self.first_epoch + self.num_epochs)}
        for quantity, name in self.names.items():
            scale = 100 if self.percent and quantity.endswith("acc") else 1
            columns[name] = [None if value is None else value * scale for value in self.values[quantity]]
        return pd.DataFrame({**columns, **self.extra})

    def expected(self) -> dict[int, dict[str, float]]:
        """By epoch from 1, what the table must have, to the digits written."""
        rows: dict[int, dict[str, float]] = {}
        for quantity, values in self.values.items():
            column, is_complement = _COLUMN[quantity]
            for epoch, value in enumerate(values, start=1):
                if value is not None:
                    rows.setdefault(epoch, {})[column] = 1 - value if is_complement else value
        return rows


def _values(quantity: str, size: int) -> st.SearchStrategy[list[float | None]]:
    upper = 1.0 if quantity.endswith("acc") else 1000.0
    value = st.floats(0, upper).map(lambda number: round(number, 4))
    return st.lists(st.one_of(value, value, st.none()), min_size=size, max_size=size).filter(any)


@st.composite
def plain_logs(draw: st.DrawFn) -> Log:
    """Of no program in particular: every quantity in one of the spellings in use."""
    size = draw(st.integers(1, 4))
    chosen = draw(st.sets(st.sampled_from(sorted(_SPELLINGS)), min_size=1))
    names = {quantity: draw(st.sampled_from(_SPELLINGS[quantity])) for quantity in sorted(chosen)}
    values = {quantity: draw(_values(quantity, size)) for quantity in names}
    extra = {"gpu_mem": [1.5] * size} if draw(st.booleans()) else {}
    return Log(names, values, 1, draw(st.booleans()), extra)


@st.composite
def keras_logs(draw: st.DrawFn) -> Log:
    """``loss`` and ``accuracy`` are of training; ``val_`` of validation; epochs from 0."""
    size = draw(st.integers(2, 4))
    accuracy = draw(st.sampled_from(["accuracy", "acc", "sparse_categorical_accuracy"]))
    names = {"train_acc": accuracy, "train_loss": "loss"}
    if draw(st.booleans()):
        names |= {"val_acc": f"val_{accuracy}", "val_loss": "val_loss"}
    return Log(names, {quantity: draw(_values(quantity, size)) for quantity in names}, 0, False)


@st.composite
def timm_logs(draw: st.DrawFn) -> Log:
    """``eval_`` is the test set, always in percent; epochs from 0."""
    size = draw(st.integers(1, 4))
    names = {"train_loss": "train_loss", "test_loss": "eval_loss", "test_acc": "eval_top1"}
    values = {quantity: draw(_values(quantity, size)) for quantity in names}
    return Log(names, values, 0, True, {"eval_top5": [99.0] * size, "lr": [0.1] * size})


@dataclass
class Writing:
    """How a table is written."""

    separator: str
    decimal: str
    index: bool
    header_again: bool

    def text(self, frame: pd.DataFrame) -> str:
        """The file."""
        buffer = io.StringIO()
        frame.to_csv(buffer, sep=self.separator, decimal=self.decimal, index=self.index)
        lines = buffer.getvalue().splitlines()
        if self.header_again:
            lines.insert(1 + len(frame) // 2, lines[0])
        return "\n".join(lines) + "\n"


@st.composite
def writings(draw: st.DrawFn) -> Writing:
    separator = draw(st.sampled_from([",", ",", ";", "\t"]))
    decimal = "." if separator == "," else draw(st.sampled_from([".", ","]))
    return Writing(separator, decimal, draw(st.booleans()), draw(st.booleans()))


FORMS: dict[str, Callable[[], st.SearchStrategy[Log]]] = {"plain": plain_logs, "keras": keras_logs, "timm": timm_logs}


@pytest.mark.parametrize("name", FORMS)
def test_every_value_of_an_epoch_file_arrives_where_it_belongs(name: str) -> None:
    @settings(max_examples=20)
    @given(log=FORMS[name](), writing=writings())
    def check(log: Log, writing: Writing) -> None:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(Path(folder))
            path = bench.write("log.csv", writing.text(log.frame()))
            done = bench.load(path, reading=Reading(k=4, percent=log.percent), **TRAINED)
            assert {told.format for told in done.told} == {name}
            assert read_evals(bench) == rounded(log.expected())
            metrics = bench.rows("training_monitors", "SELECT DISTINCT metric FROM rows") if log.extra else []
            assert {metric for (metric,) in metrics} == {now(name).name for name in log.extra}
            empty = sum(all(v[e] is None for v in log.values.values()) for e in range(log.num_epochs)) * (not log.extra)
            named = [text for text in done.left_out if "no number: " in text]
            assert bool(named) == bool(empty)
            if named:
                assert named[0].startswith(f"{empty} row")

    check()


@st.composite
def lightning_logs(draw: st.DrawFn) -> tuple[str, dict[int, dict[str, float]], list[tuple[int, int, float]], bool]:
    """Batch losses at some steps, values of training and validation at the end of epochs, a test after training."""
    percent, per_epoch = draw(st.booleans()), draw(st.integers(2, 3))
    size = draw(st.integers(1, 3))
    accuracies = {name: draw(_values("val_acc", size)) for name in ("train_acc", "val_acc")}
    test = draw(st.one_of(st.none(), _values("test_acc", 1)))
    suffix = draw(st.sampled_from(["", "_step"]))
    lines = [f"epoch,step,train_loss{suffix},train_acc,val_acc,test_acc"]
    batches: list[tuple[int, int, float]] = []
    rows: dict[int, dict[str, float]] = {}

    def told(value: float | None) -> str:
        return "" if value is None else repr(value * (100 if percent else 1))

    for epoch in range(size):
        for position in range(per_epoch):
            step = epoch * per_epoch + position
            loss = round(draw(st.floats(0, 9)), 3)
            lines.append(f"{epoch},{step},{loss},,,")
            batches.append((epoch + 1, step, loss))
        train, val = accuracies["train_acc"][epoch], accuracies["val_acc"][epoch]
        lines.append(f"{epoch},{step},,{told(train)},{told(val)},")
        if train is not None:
            rows.setdefault(epoch + 1, {})["train_error"] = 1 - train
        if val is not None:
            rows.setdefault(epoch + 1, {})["validation_error"] = 1 - val
    if test:
        lines.append(f"{size},{size * per_epoch},,,,{told(test[0])}")
        rows.setdefault(size, {})["test_error"] = 1 - (test[0] or 0)
    return "\n".join(lines) + "\n", rows, batches, percent


@settings(max_examples=20)
@given(log=lightning_logs())
def test_every_value_of_a_step_file_arrives_where_it_belongs(
    log: tuple[str, dict[int, dict[str, float]], list[tuple[int, int, float]], bool],
) -> None:
    text, rows, batches, percent = log
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        done = bench.load(bench.write("metrics.csv", text), reading=Reading(k=4, percent=percent), **TRAINED)
        assert {told.format for told in done.told} == {"lightning"}
        assert read_evals(bench) == rounded(rows)
        assert bench.rows("training_batches", "SELECT epoch, step, train_loss FROM rows") == sorted(batches)


@st.composite
def charts(draw: st.DrawFn) -> tuple[str, list[tuple[int, int, int, float]]]:
    """A chart of Weights & Biases: several runs, thinned or not, each with values at some epochs."""
    runs = draw(st.lists(st.tuples(st.integers(1, 2000), st.integers(0, 50)), unique=True, min_size=1, max_size=4))
    epochs = draw(st.integers(1, 4))
    keep = draw(st.sampled_from(["net-k{}-seed{}", "k={} seed={}", "resnet18 - k{}, trial-{}"]))
    header, columns, rows = ["epoch"], [], []
    for k, trial in runs:
        values = [draw(st.one_of(st.none(), st.floats(0, 1).map(lambda v: round(v, 4)))) for _ in range(epochs)]
        values[0] = 0.5
        name = f"{keep.format(k, trial)} - test_error"
        header += [name, f"{name}__MIN", f"{name}__MAX"]
        columns += [values] * 3
        rows += [(k, trial, epoch, value) for epoch, value in enumerate(values, start=1) if value is not None]
    lines = [header, *([str(epoch + 1), *(c[epoch] for c in columns)] for epoch in range(epochs))]
    text = "\n".join(",".join('""' if v is None else f'"{v}"' for v in line) for line in lines)
    return text + "\n", sorted(rows)


@settings(max_examples=15)
@given(chart=charts())
def test_every_value_of_every_run_of_a_chart_arrives(chart: tuple[str, list[tuple[int, int, int, float]]]) -> None:
    text, rows = chart
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bench.load(bench.write("chart.csv", text), **TRAINED)
        assert bench.rows("training_evals", "SELECT k, trial, epoch, test_error FROM rows") == rows


_NAMES = [name for names in _SPELLINGS.values() for name in names]
_OTHERS = ["loss", "accuracy", "epoch", "step", "k", "trial", "lr", "seed", "width", "error", "eval_loss", "time", ""]
_OTHERS += ["note", "eval_top1", "a - b", "a - b__MIN", "loss_val_nats", "train_loss_se"]
_WORDS = st.sampled_from([*_NAMES, *_OTHERS])
_TAME = st.sampled_from(["", "0.5", "0.25", "1", "0"])
_WILD = st.one_of(
    st.sampled_from(["", "1", "2", "0.5", "nan", "inf", "-1", "55", "x", "1,5", "1e999", " ", "N/A"]),
    st.integers(0, 3).map(str),
)


@settings(max_examples=100)
@given(
    header=st.lists(_WORDS, min_size=1, max_size=6, unique=True),
    has_epochs=st.booleans(),
    rows=st.sampled_from([_TAME, _TAME, _WILD]).flatmap(
        lambda cells: st.lists(st.lists(cells, min_size=7, max_size=7), min_size=1, max_size=5)
    ),
    separator=st.sampled_from([",", ";", "\t"]),
    request_=st.fixed_dictionaries(
        {"percent": st.booleans(), "keep_last": st.booleans(), "first_epoch": st.sampled_from([None, 0, 1])}
    ),
)
def test_whatever_a_table_holds_it_is_read_or_refused_in_one_sentence(
    header: list[str], has_epochs: bool, rows: list[list[str]], separator: str, request_: dict[str, Any]
) -> None:
    """No other exception, and of what is read every number is somewhere: in a table, or named as left out."""
    if has_epochs:
        header = ["epoch", *(name for name in header if name != "epoch")]
        rows = [[str(1 + number), *row] for number, row in enumerate(rows)]
    lines = [header, *(row[: len(header)] for row in rows)]
    quoted = (separator.join(f'"{cell}"' if separator in cell else cell for cell in line) for line in lines)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        path = bench.write("log.csv", "\n".join(quoted) + "\n")
        try:
            done = bench.load(path, reading=Reading(k=None if "k" in header else 4, **request_), **TRAINED)
        except UserError as error:
            assert "\n" not in str(error)
            return
        stored = sum(count for tables in done.rows.values() for count in tables.values())
        numbers = sum(told.values for told in done.told if "." in told.meaning or "metric" in told.meaning)
        assert 0 < stored <= numbers
        assert count_values(bench, done.rows) == numbers - sum(told.nan for told in done.told)


def count_values(bench: Bench, rows: dict[Any, dict[str, int]]) -> int:
    """Numbers in the tables that are no place."""
    columns = {
        "training_evals": "train_error, train_loss, validation_loss, validation_error, test_error, test_loss",
        "training_batches": "time, learning_rate, weight_decay, train_loss, train_error",
        "training_monitors": "value",
    }
    total = 0
    for table in {name for tables in rows.values() for name in tables}:
        counts = " + ".join(f"count({name})" for name in columns[table].split(", "))
        total += bench.rows(table, f"SELECT {counts} FROM rows")[0][0]
    return total


def read_evals(bench: Bench) -> dict[int, dict[str, float]]:
    """By epoch, the values of the table that are there."""
    names = [column for column, _ in _COLUMN.values()]
    found = bench.rows("training_evals", f"SELECT epoch, {', '.join(names)} FROM rows")
    told = {epoch: {n: v for n, v in zip(names, values, strict=True) if v is not None} for epoch, *values in found}
    return rounded({epoch: values for epoch, values in told.items() if values})


def rounded(rows: dict[int, dict[str, float]]) -> dict[int, dict[str, float]]:
    """Percent and complements cost the last digits."""
    assert all(math.isfinite(value) for values in rows.values() for value in values.values())
    return {epoch: {name: round(value, 9) + 0.0 for name, value in values.items()} for epoch, values in rows.items()}
