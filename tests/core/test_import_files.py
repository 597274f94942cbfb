"""Files of other systems: what is read of them, and what is refused with its line."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dd_core.errors import UserError
from dd_core.exchange.places import Reading
from dd_core.study.files import read_study

from .exchanged import STEP, snapshot
from .import_bench import TRAINED, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# Files of other systems


def test_the_double_descent_script_of_seed_004(bench: Bench) -> None:
    lines = [
        '{"epoch": 1, "k": 5, "train_error": 0.85, "test_error": 0.87, "train_loss": 2.31, "test_loss": 2.35}',
        '{"epoch": 2, "k": 5, "train_error": 0.82, "test_error": 0.84, "train_loss": 2.12, "test_loss": 2.18}',
    ]
    bench.write("output/metrics_k5.jsonl", "\n".join(lines) + "\n")
    bench.load(**TRAINED)
    sql = (
        "SELECT arm, k, trial, epoch, step, train_error, test_error, train_loss, test_loss, train_error_clean FROM rows"
    )
    assert bench.rows("training_evals", sql) == [
        ("imported.k005", 5, 0, 1, None, 0.85, 0.87, 2.31, 2.35, None),
        ("imported.k005", 5, 0, 2, None, 0.82, 0.84, 2.12, 2.18, None),
    ]


def test_the_loss_slope_campaign_of_seeds_000_and_001(bench: Bench) -> None:
    text = "step,epoch,time,lr,wd,loss_train_nats,loss_train_bits,acc_train,loss_val_nats,lambda_max,grad_norm,host\n"
    text += "1.0,0,1.5,0.05,0.001,2.3,3.318,0.1,,,,rtx1\n2.0,0,2.5,0.1,0.001,2.2,3.17,0.2,2.25,31.5,,rtx1\n"
    bench.write("s-core/job_3/metrics.csv", text)
    settings_ = {**TRAINED["settings"], "optimizer": {"name": "sgd"}}
    done = bench.load(
        variant="s-core", reading=Reading(k=64, trial=3, first_epoch=0), settings=settings_, data=TRAINED["data"]
    )
    assert bench.rows(
        "training_batches", "SELECT variant, k, trial, epoch, step, learning_rate, weight_decay FROM rows"
    ) == [
        ("s-core", 64, 3, 1, 1, 0.05, 0.001),
        ("s-core", 64, 3, 1, 2, 0.1, 0.001),
    ]
    assert bench.rows("training_monitors", "SELECT epoch, step, metric, value FROM rows") == [
        (1, 2, "largest_eigenvalue", 31.5),
        (1, 2, "validation_loss", 2.25),
    ]
    assert done.left_out == [f'host, which is no number: {bench.files}/s-core/job_3/metrics.csv:2 ("rtx1")']
    optimizer = read_study(bench.studies / "other.yaml").variants["s-core"].optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (0.1, 0.001)  # the largest, and the only one


def test_the_graph_networks_of_seed_003(bench: Bench) -> None:
    rows = [{"epoch": e, "train_loss": 0.7, "val_loss": 0.69, "accuracy": 0.5902, "acc_class_0": 0.4} for e in (0, 1)]
    bench.write("causal/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    done = bench.load(reading=Reading(k=1, first_epoch=0), **TRAINED)
    assert bench.rows(
        "training_evals", "SELECT epoch, train_loss, validation_loss, validation_error, test_error FROM rows"
    ) == [
        (1, 0.7, 0.69, 1 - 0.5902, None),
        (2, 0.7, 0.69, 1 - 0.5902, None),
    ]
    assert bench.rows("training_monitors", "SELECT epoch, step, metric, value FROM rows") == [
        (1, None, "acc_class_0", 0.4),
        (2, None, "acc_class_0", 0.4),
    ]
    assert done.metrics == ["acc_class_0"]


def test_accuracies_become_errors_and_percent_fractions(bench: Bench) -> None:
    bench.write("metrics_k4.jsonl", '{"epoch": 1, "train_acc": 75, "test_accuracy": 50, "test_loss": 1.5}\n')
    bench.load(reading=Reading(percent=True), **TRAINED)
    assert bench.rows("training_evals", "SELECT train_error, test_error, test_loss FROM rows") == [(0.25, 0.5, 1.5)]


def test_keys_can_be_renamed_and_left_out(bench: Bench) -> None:
    bench.write("run.csv", "it,ep,train_loss,junk\n1,1,2.5,x\n")
    renames = {"it": "step", "ep": "epoch", "train_loss": "loss_train_nats", "junk": ""}
    done = bench.load(bench.files / "run.csv", renames=renames, reading=Reading(k=2), **TRAINED)
    assert bench.rows("training_batches", "SELECT epoch, step, train_loss, learning_rate FROM rows") == [
        (1, 1, 2.5, None)
    ]
    assert done.left_out == []


def test_a_logger_may_write_several_objects_at_a_step(bench: Bench) -> None:
    lines = [
        '{"step": 1, "epoch": 1, "loss_train_nats": 2.5}',
        '{"step": 1, "epoch": 1, "grad_norm": 3.5, "lr": null}',
        "",
    ]
    bench.write("k003/metrics.jsonl", "\ufeff" + "\n\n".join(lines))
    bench.load(**TRAINED)
    assert bench.rows("training_batches", "SELECT step, train_loss, learning_rate FROM rows") == [(1, 2.5, None)]
    assert bench.rows("training_monitors", "SELECT step, metric, value FROM rows") == [(1, "gradient_norm", 3.5)]


def test_nan_of_python_is_taken_where_the_user_says_so(bench: Bench) -> None:
    bench.write("k003/metrics.jsonl", '{"step": 1, "epoch": 1, "loss_train_nats": NaN, "grad_norm": -Infinity}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:1: NaN is not JSON; .* --accept-nan"):
        bench.load(**TRAINED)
    bench.load(accept_nan=True, **TRAINED)
    assert bench.rows("training_monitors", "SELECT value FROM rows") == [(-math.inf,)]
    assert bench.rows("training_batches", "SELECT train_loss FROM rows") == [(None,)]


BAD_FILES: dict[str, list[tuple[str | bytes, str]]] = {
    "k1/metrics.csv": [
        ("", "is empty"),
        ("step,epoch,lr\n", "is empty"),
        ("\n\n", "is empty"),
        ("step,lr\n1,0.1\n", "has no epoch, only step, lr; say which it is with --rename NAME=epoch"),
        ("step,epoch,lr\n1,1,0.1\n,1,0.1\n", ":3: has no step"),
        ("step,epoch,lr\n1,1,0.1\n2,,0.1\n", ":3: has no epoch"),
        ("step,epoch,lr\n1,1,0.1\n2.5,1,0.1\n", ":3: step is 2.5, not a whole number from 0"),
        ("step,epoch,lr\n-1,1,0.1\n", ":2: step is -1, not a whole number from 0"),
        ("step,epoch,lr\nNaN,1,0.1\n", ":2: step is nan, not a whole number"),
        ("step,epoch,lr\n1,1,0.1\ntwo,1,0.1\n", ':3: step is "two", not a whole number'),
        ("step,epoch,lr\n1,99999,0.1\n", ":2: epoch is 99999, not a whole number from 0 to 9999"),
        ("step,epoch,lr\n5,1,0.1\n4,1,0.1\n", ":3: step goes back from 5 to 4"),
        ("step,epoch,lr\n5,2,0.1\n6,1,0.1\n", ":3: epoch goes back from 2 to 1"),
        ("step,epoch,lr\n5,1,0.1\n5,2,0.1\n", ":3: step 5 is in epoch 2 and in the one before it"),
        ("step,epoch,lr\n5,1,0.1\n5,1,0.1\n", ":3: learning_rate is told twice for step 5, first in "),
        ("step,epoch,lr\n5,0,0.1\n", ":2: learning_rate of a batch in epoch 0, .* pass --first-epoch 0"),
        ("step,epoch,lr\n1,1,fast\n", ':2: lr is "fast", not a number; --rename lr= leaves the key out'),
        ("step,epoch,lr\n1,1,1_000\n", ':2: lr is "1_000", not a number'),
        ("step,epoch,lr\n1,1,1e999\n", ":2: 1e999 is too large for a float64"),
        ("step,epoch,lr\n1,1\n", ":2: has 2 fields, but the first line names 3"),
        ("step,epoch,lr,lr\n1,1,1,1\n", ":1: two columns are called lr"),
        ("step,epoch,\n1,1,1\n", ":1: column 3 has no name"),
        (
            "step,epoch,wd,weight_decay\n1,1,0.1,0.1\n",
            "has two keys for weight_decay; --rename weight_decay= leaves one",
        ),
        ("step,epoch\n1,1\n", "has no metric, only step, epoch"),
        ('step,epoch,lr\n1,1,"0.1\n', ":2: not CSV"),
        ("step epoch lr\n1 1 0.1\n", "has no epoch, only step epoch lr"),
        ("step;epoch;lr\n1;1;0.1\n2;1;0,2\n", ":3: 0,2 has another decimal sign than 0.1 in line 2"),
        ("step,epoch,train_loss\n1,1,-0.1\n", ":2: train_loss is -0.1, but a cross-entropy is never negative"),
        (
            "epoch,lr,loss,train_acc\n1,0.1,2,0.5\n",
            "loss does not say of which images it is; pass --rename loss=train_l",
        ),
        (
            "epoch,lr,train_loss\n0,0.1,2\n",
            ":2: learning_rate in epoch 0, which here is before training; pass --first-epoch 0",
        ),
        ("epoch,eval_acc\n1,0.5\n", "eval_acc does not say of which images .* eval_acc=train_acc, val_acc or test_acc"),
        (
            "epoch,loss,acc,val_loss,val_acc\n1,2,0.5,2,0.5\n",
            "begins with epoch 1, but keras counts from 0; pass --first",
        ),
        ("step,epoch,acc_train\n1,1,0.5\n2,1,55\n", ":3: acc_train is 55, not a fraction; pass --percent"),
        ("step,epoch,hutch_trace,hutch_trace_se\n1,1,5,1\n2,1,,1\n", ":3: has hutch_trace_se, .* without hutch_trace"),
        ("step,epoch,test_error\n1,1,0.5\n2,1,0.5\n", ":3: test_error is told twice for epoch 1"),
        ("step,epoch,lr\n1,1,0.1\n".encode("utf-16"), ":1: not UTF-8 text"),
        ("step,epoch,lr,läuft\n".encode() + "1,1,0.1,läuft\n".encode("latin-1"), ":2: not UTF-8 text"),
    ],
    "k1/metrics.jsonl": [
        ("\n", "is empty"),
        (STEP + '{"step": 2, "epoch": 1, "lr"', r":2: not a JSON object in one line \(.*\); if it is the last line"),
        (STEP + "[1, 2]\n", ":2: not a JSON object, but"),
        (STEP + "[" * 100_000, ":2: not a JSON object in one line"),
        (STEP + '{"step": 2, "epoch": 1, "lr": Infinity}', ":2: Infinity is not JSON"),
        (STEP + '{"step": 2, "epoch": 1, "lr": 1e999}', ":2: 1e999 is too large"),
        (STEP + '{"step": 2, "epoch": 1, "lr": 1, "lr": 2}', ":2: a key comes twice in one object"),
        (STEP + '{"step": 2, "lr": 1}', ":2: has no epoch"),
        (STEP + '{"step": 2, "epoch": 1, "lr": true}', ":2: lr is true, not a number"),
        (STEP + '{"step": 2, "epoch": 1, "lr": {"group": 0.1}}', r':2: lr is \{"group": 0.1\}, not a number'),
        (STEP + '{"step": "2", "epoch": 1, "lr": 0.1}', ':2: step is "2", not a whole number'),
        (STEP + '{"step": 2, "epoch": 1, "k": 7, "lr": 0.1}', ":1: has no k"),
        ('{"step": 2, "epoch": 1, "k": 7, "lr": 0.1}', ":1: k is 7, but its path says 1"),
        (
            '{"step": 2, "epoch": 1, "trial": 2147483648, "lr": 0.1}',
            ":1: trial is 2147483648, not a whole number from 0 to",
        ),
        ('{"step": 2, "epoch": 1, "\\ud800": 0.1}', r":1: the key \\ud800 is not text"),
    ],
    "metrics_k1.jsonl": [
        ('{"epoch": 1, "k": 2, "test_error": 0.5}', ":1: k is 2, but its path says 1"),
        (
            '{"epoch": 1, "test_error": 0.5}\n{"epoch": 1, "test_error": 0.5}',
            ":2: test_error is told twice for epoch 1",
        ),
        ('{"epoch": 2, "test_error": 0.5}\n{"epoch": 1, "test_error": 0.5}', ":2: epoch goes back from 2 to 1"),
        ('{"epoch": 1, "test_error": 50}', ":1: test_error is 50, not a fraction"),
        ('{"epoch": 1, "val_accuracy": 0.5, "val_acc": 0.5}', "has two keys for validation_error"),
        (
            '{"epoch": 1, "accuracy": 0.5}',
            "accuracy does not say of which images it is; pass --rename accuracy=train_acc",
        ),
    ],
    "metrics.jsonl": [(STEP, "neither the file nor its path says which k")],
    "notes.txt": [("step", "there is no metrics.csv")],
}


@pytest.mark.parametrize(
    ("name", "text", "sentence"), [(name, *case) for name, cases in BAD_FILES.items() for case in cases]
)
def test_a_bad_file_is_refused_with_its_line_and_nothing_is_written(
    name: str, text: str | bytes, sentence: str, bench: Bench
) -> None:
    bench.write("k002/metrics.jsonl", STEP)  # a good file beside it
    bench.load(bench.files / "k002", **TRAINED)
    before = snapshot(bench.store.root, bench.studies)
    path = bench.write(name, text)
    with pytest.raises(UserError, match=sentence) as caught:
        bench.load(
            *([bench.files / "k002", path.parent] if name != "notes.txt" else [bench.write("x/y.txt", "").parent])
        )
    assert "\n" not in str(caught.value)
    assert snapshot(bench.store.root, bench.studies) == before


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        ({"settings": {}, "data": {}}, "study other is new, .* pass --dataset"),
        (
            {"settings": {}, "data": {"dataset": "cifar10"}},
            "pass --architecture, --label-noise, --batch-size, --optimizer$",  # the file has a learning rate
        ),
        ({"variant": "Base"}, r"study other: variants\.Base: a name is lower-case letters"),
        ({"study": "Bad-Name"}, "name: 'Bad-Name' must match"),
        ({"study": "tables"}, "not be one of the platform's own"),
        (
            {"settings": {**TRAINED["settings"], "batch_size": 0}},
            "variant imported: batch_size: .*greater than or equal to 1",
        ),
        ({"reading": Reading(k=65537)}, "k cannot be 65537; it is a width up to 65536"),
        ({"reading": Reading(k=0)}, "k cannot be 0; it is a width up to 65536"),
        ({"study": "a" * 300}, "aaa… is too long for a name; at most 100 characters"),
        ({"variant": "a" * 300}, "aaa… is too long for a name; at most 100 characters"),
        ({"paths": (Path("a" * 300),)}, r"aaa…: cannot be read \(File name too long\)"),
        ({"reading": Reading(trial=-1)}, "trial cannot be -1; it is a number from 0 to 2147483647"),
    ],
)
def test_an_impossible_request_is_refused_and_nothing_is_written(
    request_: dict[str, Any], sentence: str, bench: Bench
) -> None:
    bench.write("k002/metrics.jsonl", STEP)
    with pytest.raises(UserError, match=sentence):
        bench.load(*request_.get("paths", ()), **{**TRAINED, **{k: v for k, v in request_.items() if k != "paths"}})
    assert snapshot(bench.store.root, bench.studies) == {}
