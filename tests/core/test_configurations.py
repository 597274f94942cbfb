"""A folder of others' runs of several configurations: which variant each run is of, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dd_core.errors import UserError
from dd_core.exchange.places import Reading
from dd_core.study.files import read_study

from .exchanged import snapshot
from .import_bench import Bench

TRAINED: dict[str, Any] = {
    "settings": {"architecture": "resnet18", "label_noise": 0.0, "batch_size": 128, "optimizer": {"name": "sgd"}},
    "data": {"dataset": "cifar10"},
    "reading": Reading(k=64),
}
BY = ("lr", "wd")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def lines(rate: float, steps: int = 12, warm_up: int = 4, **more: Any) -> str:
    """JSON lines of a run whose rate rises to ``rate`` and falls again; more keys are the same in each line."""
    rows = []
    for step in range(1, steps + 1):
        lr = rate * min(1.0, step / warm_up) * (1.0 if step <= warm_up else math.cos((step - warm_up) / 8))
        place = {"step": step, "epoch": 1 + (step - 1) // 4}
        rows.append({**place, "lr": round(lr, 6), "wd": 1e-4, "loss_train_nats": 2.0, **more})
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def load(bench: Bench, by: tuple[str, ...] = BY, **changes: Any) -> Any:
    return bench.load(by=by, **{**TRAINED, **changes})


def test_rates_and_words_make_the_variants_of_a_grid(bench: Bench) -> None:
    for number, (variant, rate, seed) in enumerate(
        (variant, rate, seed) for variant in ("base", "bn_off") for rate in (0.05, 0.1) for seed in (0, 1)
    ):
        optimizer = "sgd" if variant == "base" else "AdamW"
        more = {"variant": variant, "seed": seed, "optimizer": optimizer}
        bench.write(f"job_{number}/metrics.jsonl", lines(rate, **more))
    settings = {key: value for key, value in TRAINED["settings"].items() if key != "optimizer"}
    load(bench, settings=settings)
    study = read_study(bench.studies / "other.yaml")
    assert list(study.arms) == [
        f"{family}-lr{rate}-wd1e-4.k064" for family in ("base", "bn-off") for rate in ("0-05", "0-1")
    ]
    assert study.families["bn-off-lr0-1-wd1e-4"] == "bn-off"
    variant = study.variants["bn-off-lr0-1-wd1e-4"]
    assert variant.grid_values == {"learning_rate": 0.1, "weight_decay": 1e-4}
    optimizer = variant.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.weight_decay) == ("adamw", 0.1, 1e-4)
    assert bench.rows("training_batches", "SELECT arm, trial, count(*) FROM rows GROUP BY ALL") == [
        (arm, trial, 12) for arm in study.arms for trial in (0, 1)
    ]
    before = snapshot(bench.store.root, bench.studies)
    load(bench, settings=settings)
    assert snapshot(bench.store.root, bench.studies) == before


def test_a_grid_that_somebody_has_written_into_the_file_stays_as_it_is(bench: Bench) -> None:
    for number, rate in enumerate((0.05, 0.1)):
        bench.write(f"job_{number}/metrics.jsonl", lines(rate))
    load(bench)
    path = bench.studies / "other.yaml"
    by_hand = path.read_text().split("variants:")[0] + (
        "variants:\n  imported:  # by hand\n    architecture: resnet18\n    batch_size: 128\n"
        "    optimizer: {name: sgd, learning_rate: 0.1}\n"
        "    grid: {learning_rate: [0.05, 0.1, 0.2], weight_decay: [1.0e-4]}\n"
        "widths: [64]\ntrials: 1\nepochs: 3\ncheckpoints: [3]\n"
    )
    path.write_text(by_hand)
    bench.write("job_2/metrics.jsonl", lines(0.2))
    load(bench)
    assert "# by hand" in path.read_text()
    assert list(read_study(path).variants) == [f"imported-lr{rate}-wd1e-4" for rate in ("0-05", "0-1", "0-2")]


def test_a_run_that_ended_in_its_warm_up_is_of_the_rate_that_rose_alike(bench: Bench) -> None:
    for seed, (rate, steps) in enumerate([(0.05, 12), (0.1, 12), (0.1, 2)]):
        bench.write(f"seed-{seed}/metrics.jsonl", lines(rate, steps))
    load(bench, by=("lr",))
    found = bench.rows("training_batches", "SELECT variant, trial, count(*) FROM rows GROUP BY ALL")
    assert found == [("imported-lr0-05", 0, 12), ("imported-lr0-1", 1, 12), ("imported-lr0-1", 2, 2)]


def test_a_folder_may_say_the_rate(bench: Bench) -> None:
    bench.write("run_lr0.2_seed/seed-4/metrics.jsonl", lines(0.2, 2))
    load(bench, by=("lr",))
    assert list(read_study(bench.studies / "other.yaml").variants) == ["imported-lr0-2"]


def test_variants_at_other_widths_have_widths_of_their_own(bench: Bench) -> None:
    bench.write("a/metrics.jsonl", lines(0.1, variant="base", k=64))
    bench.write("b/metrics.jsonl", lines(0.1, variant="narrow", k=32))
    load(bench, reading=Reading(), by=())
    study = read_study(bench.studies / "other.yaml")
    assert list(study.arms) == ["base.k064", "narrow.k032"]
    bench.load(bench.write("c/metrics.jsonl", lines(0.1, variant="narrow", k=64)), **{**TRAINED, "reading": Reading()})
    assert list(read_study(bench.studies / "other.yaml").arms) == ["base.k064", "narrow.k032", "narrow.k064"]


REFUSED: dict[str, tuple[dict[str, str], dict[str, Any], str]] = {
    "unknown": ({"a": lines(0.1)}, {"by": ("seed",)}, "--by seed: runs can be told apart by lr and wd"),
    "rising": (
        {"a": lines(0.1, 2)},
        {},
        "metrics.jsonl: its learning rate still rose when it ended, so it does not say which run of --by lr it is; "
        "name it in its folder, such as lr0.05, or leave it out",
    ),
    "no rate": ({"a": '{"step": 1, "epoch": 1, "loss_train_nats": 1}\n'}, {}, "it has no lr, so it does not say"),
    "changing": (
        {"a": lines(0.1).replace('"wd": 0.0001', '"wd": 0.1', 1)},
        {},
        "its wd changes, so it does not tell runs apart",
    ),
    "two kinds": (
        {"a": lines(0.1, variant="base") + '{"step": 13, "epoch": 4, "variant": "other"}\n'},
        {},
        "has runs of two kinds, variant base and other; give each a file of its own",
    ),
    "disagreement": (
        {"a": lines(0.1, optimizer="adamw")},
        {},
        "variant imported-lr0-1-wd1e-4: name is adamw as the files say, but sgd as the option says",
    ),
    "same run": (
        {"a": lines(0.1), "b": lines(0.2)},
        {"by": ()},
        "if these are two runs, a column seed or variant tells them apart, or their folders (seed-1), or --by lr,wd",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_does_not_tell_runs_apart_is_refused_and_nothing_is_written(mistake: str, bench: Bench) -> None:
    files, changes, sentence = REFUSED[mistake]
    for name, text in files.items():
        bench.write(f"{name}/metrics.jsonl", text)
    with pytest.raises(UserError) as refused:
        load(bench, **changes)
    assert sentence in str(refused.value)
    assert list(bench.studies.iterdir()) == []


def test_six_decimals_make_zeros_of_small_values_and_are_read(bench: Bench) -> None:
    rows = "".join(f"{step},{1 + step // 11},{max(0.0, 1e-5 * (8 - step)):.6f},0.000000\n" for step in range(1, 21))
    bench.write("seed-0/metrics.csv", f"step,epoch,loss_train_nats,psd_tail\n{rows}")
    load(bench, by=(), settings={**TRAINED["settings"], "optimizer": {"name": "sgd", "learning_rate": 0.1}})
    assert bench.rows("training_batches", "SELECT count(*) FROM rows WHERE train_loss = 0") == [(13,)]
