"""Study files: what is refused and how it is said, keys, and the recipe hash that ties results to what made them."""

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dd_assets.catalogue import catalogue
from dd_core.errors import StudyError, UserError
from dd_core.store.store import Store, write_text
from dd_core.study import yaml_files
from dd_core.study.files import read_studies, read_study
from dd_core.study.recipe import Loss, Optimizer, Schedule, Variant
from dd_core.study.study import Arm, Study

GOOD = """\
description: a question
data: {dataset: digits, num_train: 100}
variants:
  plain:
    architecture: preact_resnet10
    label_noise: 0.2
    batch_size: 32
    optimizer: {name: adam, learning_rate: 0.002}
widths: [2, 1]
trials: 2
epochs: 4
checkpoints: [0, 4, 2]
"""


def with_(section: str) -> tuple[str, str]:
    """A section is added to GOOD."""
    return "trials: 2", f"trials: 2\n{section}"


# What is changed in GOOD, and the path of the key that must be named (with a part of the reason).
REFUSED = {
    "unknown key of the study": (
        "trials: 2",
        "trials: 2\ntrails: 3",
        ["trails: there is no such key; did you mean 'trials'?"],
    ),
    "unknown key of a variant": ("batch_size: 32", "batch_size: 32\n    momentum: 0.9", ["variants.plain.momentum"]),
    "unknown key of the optimiser": ("name: adam,", "name: adam, beta: 1,", ["variants.plain.optimizer.beta"]),
    "text for a number": ("trials: 2", "trials: two", ["trials", "'two'"]),
    "quoted number": ("epochs: 4", 'epochs: "4"', ["epochs", "'4'"]),
    "text for a rate": ("learning_rate: 0.002", "learning_rate: fast", ["variants.plain.optimizer.learning_rate"]),
    "float for an integer": ("trials: 2", "trials: 2.0", ["trials", "2.0"]),
    "float for a width": ("widths: [2, 1]", "widths: [2, 1.5]", ["widths.1", "1.5"]),
    "bool for an integer": ("trials: 2", "trials: true", ["trials", "True"]),
    "bool for a rate": ("label_noise: 0.2", "label_noise: true", ["variants.plain.label_noise", "True"]),
    "integer for a bool": ("batch_size: 32", "batch_size: 32\n    augmentation: {flip: 1}", ["augmentation.flip"]),
    "width below one": ("widths: [2, 1]", "widths: [2, 0]", ["widths.1", "greater than or equal to 1"]),
    "width of four digits": ("widths: [2, 1]", "widths: [1000]", ["widths.0", "999"]),
    "no width": ("widths: [2, 1]", "widths: []", ["widths"]),
    "width twice": ("widths: [2, 1]", "widths: [2, 1, 2]", ["widths: listed twice: 2"]),
    "checkpoint twice": ("checkpoints: [0, 4, 2]", "checkpoints: [0, 4, 4]", ["checkpoints: listed twice: 4"]),
    "checkpoint before the beginning": ("checkpoints: [0, 4, 2]", "checkpoints: [-1]", ["checkpoints.0"]),
    "checkpoint beyond the end": ("checkpoints: [0, 4, 2]", "checkpoints: [0, 5]", ["checkpoints: epoch 5", "4"]),
    "epochs of five digits": ("epochs: 4", "epochs: 10000", ["epochs", "9999"]),
    "infinite rate": ("learning_rate: 0.002", "learning_rate: .inf", ["variants.plain.optimizer.learning_rate"]),
    "rate not a number": ("learning_rate: 0.002", "learning_rate: .nan", ["variants.plain.optimizer.learning_rate"]),
    "infinite weight decay": ("0.002}", "0.002, weight_decay: .inf}", ["variants.plain.optimizer.weight_decay"]),
    "all labels wrong": ("label_noise: 0.2", "label_noise: 1.0", ["variants.plain.label_noise"]),
    "seed beyond 64 bits": ("trials: 2", "trials: 2\nseed: 9223372036854775808", ["seed"]),
    "momentum for adam": ("0.002}", "0.002, momentum: 0.9}", ["variants.plain.optimizer", "momentum"]),
    "validation images for what looks at them": (
        "0.002}",
        "0.002}\n    early_stopping: {patience: 3}",
        ["variants.plain.early_stopping.metric: loss_val_nats needs validation images", "num_validation"],
    ),
    "a plateau of images that are not there": (
        "0.002}",
        "0.002}\n    schedule: {name: plateau, metric: acc_val}",
        ["variants.plain.schedule.metric: acc_val needs validation images"],
    ),
    "a decision by the test set": (
        "0.002}",
        "0.002}\n    early_stopping: {metric: test_error, patience: 3}",
        ["variants.plain.early_stopping.metric", "'test_error'"],
    ),
    "metric as tables call it": (
        "0.002}",
        "0.002}\n    early_stopping: {metric: validation_error, patience: 3}",
        ["variants.plain.early_stopping.metric", "; did you mean 'acc_val'?"],
    ),
    "no patience": (
        "0.002}",
        "0.002}\n    early_stopping: {metric: train_loss, patience: 0}",
        ["variants.plain.early_stopping.patience"],
    ),
    "patience without a plateau": (
        "0.002}",
        "0.002}\n    schedule: {name: cosine, patience: 3}",
        ["variants.plain.schedule: patience belongs to plateau"],
    ),
    "more images than there are": ("num_train: 100", "num_train: 1798", ["data.num_train: 1798", "1797"]),
    "more validation images than are left": (
        "num_train: 100",
        "num_train: 1790, num_validation: 8",
        ["data.num_validation: 1790 images to train on and 8", "1797"],
    ),
    "unknown precision of training": (
        "batch_size: 32",
        "batch_size: 32\n    precision: int8",
        ["variants.plain.precision", "'int8'"],
    ),
    "an interval without a unit": (*with_("monitors: {norms: {every: 3}}"), ["monitors.norms.every"]),
    "an interval of another unit": (*with_("monitors: {norms: {every: 3 hours}}"), ["monitors.norms.every", "3 hours"]),
    "no interval": (*with_("monitors: {norms: {every: 0 steps}}"), ["monitors.norms.every", "positive"]),
    "half a step": (*with_("monitors: {norms: {every: 1/2 steps}}"), ["monitors.norms.every", "whole number"]),
    "an unknown monitor": (*with_("monitors: {entropy: {every: 1 epoch}}"), ["monitors.entropy", "no such key"]),
    "a monitor that is no class": (
        *with_("monitors: {custom: {own: {use: my.module, every: 1 epoch}}}"),
        ["monitors.custom.own.use", "package.module:Class"],
    ),
    "a negative price": (*with_("price_per_gpu_hour: -1"), ["price_per_gpu_hour"]),
    "unknown optimiser": ("name: adam", "name: lion", ["variants.plain.optimizer.name", "'lion'"]),
    "nesterov without momentum": (
        "name: adam, learning_rate: 0.002}",
        "name: sgd, learning_rate: 0.1, nesterov: true}",
        ["variants.plain.optimizer: nesterov needs momentum"],
    ),
    "betas for sgd": (
        "name: adam, learning_rate: 0.002}",
        "name: sgd, learning_rate: 0.1, betas: [0.8, 0.9]}",
        ["variants.plain.optimizer: betas belong to adam and adamw"],
    ),
    "beta of one": ("0.002}", "0.002, betas: [0.9, 1.0]}", ["variants.plain.optimizer: betas", "below 1"]),
    "nothing left of a gradient": ("0.002}", "0.002, clip_norm: 0}", ["variants.plain.optimizer.clip_norm"]),
    "unknown schedule": (
        "0.002}",
        "0.002}\n    schedule: {name: linear}",
        ["variants.plain.schedule.name", "'linear'"],
    ),
    "step without milestones": (
        "0.002}",
        "0.002}\n    schedule: {name: step}",
        ["schedule: milestones belong to step"],
    ),
    "milestones of a cosine": (
        "0.002}",
        "0.002}\n    schedule: {name: cosine, milestones: [2]}",
        ["schedule: milestones belong to step"],
    ),
    "milestones that turn back": (
        "0.002}",
        "0.002}\n    schedule: {name: step, milestones: [3, 2]}",
        ["schedule: milestones must ascend"],
    ),
    "milestone at the end": (
        "0.002}",
        "0.002}\n    schedule: {name: step, milestones: [2, 4]}",
        ["variants.plain.schedule.milestones: epoch 4 is not before the last epoch, 4"],
    ),
    "warm-up to the end": (
        "0.002}",
        "0.002}\n    schedule: {warmup_epochs: 4.0}",
        ["variants.plain.schedule.warmup_epochs: 4 is not before the last epoch, 4"],
    ),
    "an end for a constant": ("0.002}", "0.002}\n    schedule: {final: 0.5}", ["schedule: final belongs to cosine"]),
    "a factor for a cosine": (
        "0.002}",
        "0.002}\n    schedule: {name: cosine, factor: 0.5}",
        ["schedule: factor belongs to step"],
    ),
    "unknown architecture": ("preact_resnet10", "vgg", ["variants.plain.architecture", "'vgg'"]),
    "unknown data set": ("dataset: digits", "dataset: letters", ["data.dataset", "'letters'"]),
    "batch larger than the data": ("batch_size: 32", "batch_size: 101", ["variants.plain.batch_size", "101", "100"]),
    "last batch of one image": ("batch_size: 32", "batch_size: 33", ["variants.plain.batch_size", "single image"]),
    "unknown estimator": (*with_("curvature: {estimators: [hutchinson]}"), ["curvature.estimators.0", "'hutchinson'"]),
    "two Hessian estimators": (
        *with_("curvature: {estimators: [exact, top_directions]}"),
        ["curvature: estimators: name exactly one of exact"],
    ),
    "estimator twice": (*with_("curvature: {estimators: [exact, exact]}"), ["curvature: estimators: name exactly one"]),
    "no estimator": (*with_("curvature: {estimators: []}"), ["curvature: estimators: name exactly one"]),
    "differences alone": (*with_("curvature: {estimators: [finite_difference]}"), ["curvature: estimators: name"]),
    "unknown precision": (*with_("curvature: {precision: float16}"), ["curvature.precision", "'float16'"]),
    "too narrow for second derivatives": (
        *with_("curvature: {estimators: [double_backward], precision: bfloat16}"),
        ["curvature: precision: bfloat16 has too few digits"],
    ),
    "no error at all": (*with_("curvature: {relative_error: 0}"), ["curvature.relative_error"]),
    "no probes": (*with_("curvature: {num_probes: 0}"), ["curvature.num_probes"]),
    "unknown key of curvature": (*with_("curvature: {method: exact}"), ["curvature.method", "no such key"]),
    "step twice": (
        *with_("curvature: {finite_difference: {steps: [1, 0.5, 1.0]}}"),
        ["curvature.finite_difference.steps", "a step is listed twice"],
    ),
    "negative step": (*with_("curvature: {finite_difference: {steps: [-1]}}"), ["curvature.finite_difference.steps.0"]),
    "step of zero": (*with_("curvature: {finite_difference: {steps: [0.0]}}"), ["curvature.finite_difference.steps.0"]),
    "infinite step": (*with_("curvature: {finite_difference: {steps: [.inf]}}"), ["finite_difference.steps.0"]),
    "no step": (*with_("curvature: {finite_difference: {steps: []}}"), ["curvature.finite_difference.steps"]),
    "one probe": (*with_("curvature: {finite_difference: {num_probes: 1}}"), ["finite_difference.num_probes"]),
    "unknown normalisation": (
        *with_("curvature: {finite_difference: {normalisation: max}}"),
        ["curvature.finite_difference.normalisation", "'max'"],
    ),
    "mean of how many": (
        *with_("curvature: {finite_difference: {normalisation: mean}}"),
        ["curvature.finite_difference: normalisation mean needs mean_batch_size"],
    ),
    "batch size of no mean": (
        *with_("curvature: {finite_difference: {mean_batch_size: 32}}"),
        ["curvature.finite_difference: normalisation mean needs mean_batch_size"],
    ),
    "differences at no checkpoint": (
        *with_("curvature: {finite_difference: {epochs: [2, 3]}}"),
        ["curvature.finite_difference.epochs: there is no checkpoint at epoch 3"],
    ),
    "Hessian at no checkpoint": (
        *with_("hessian: {epochs: [0, 1, 3]}"),
        ["hessian.epochs: there is no checkpoint at epoch 1, 3"],
    ),
    "loss over all outputs without tasks": (
        *with_("curvature: {logits: all}"),
        ["curvature.logits: all is for classes that come one group after the other; set data.classes"],
    ),
    "early after the end": (
        *with_("memorization: {early: 5}"),
        ["memorization.early: epoch 5 is beyond the last epoch, 4"],
    ),
    "unknown quantity": (*with_("hessian: {quantities: [trace]}"), ["hessian.quantities.0", "'trace'"]),
    "broken pattern": (*with_('hessian: {layers: ["conv("]}'), ["hessian.layers.0", "not a regular expression"]),
    "too few Lanczos steps": (*with_("hessian: {lanczos_steps: 5}"), ["hessian: lanczos_steps", "10 eigenvalues"]),
    "unknown key of hessian": (
        *with_("hessian: {probes: 5}"),
        ["hessian.probes: there is no such key; did you mean 'density_probes'?"],
    ),
    "missing key": ("trials: 2\n", "", ["trials", "missing"]),
    "no variant": (GOOD[GOOD.index("variants:") : GOOD.index("widths")], "variants: {}\n", ["variants"]),
    "bar in a variant's name": ("  plain:", "  a|b:", ["variants.a|b", "lower-case"]),
    "dot in a variant's name": ("  plain:", "  a.b:", ["variants.a.b", "lower-case"]),
    "comma in a variant's name": ("  plain:", '  "a,b":', ["variants.a,b", "lower-case"]),
    "slash in a variant's name": ("  plain:", "  a/b:", ["variants.a/b", "lower-case"]),
    "space in a variant's name": ("  plain:", "  a b:", ["variants.a b", "lower-case"]),
    "capital in a variant's name": ("  plain:", "  Plain:", ["variants.Plain", "lower-case"]),
    "variant twice": ("widths:", "  plain: {}\nwidths:", ["line", '"plain"']),
    "key twice": ("trials: 2", "trials: 2\ntrials: 3", ["line", 'duplicate key "trials")']),
    "date": ("trials: 2", "trials: 2020-01-01", ["only numbers, text"]),
    "name of another study": ("trials: 2", "trials: 2\nname: other", ["name", "'other'", "'question'"]),
    "list that holds itself": ("widths: [2, 1]", "widths: &a [*a]", ["only numbers, text"]),
    "broken YAML": ("trials: 2", "trials: [2", ["not valid YAML at line"]),
    "tab": ("trials: 2", "\ttrials: 2", ["not valid YAML at line"]),
}


def write(folder: Path, text: str | bytes, name: str = "question.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    """The one line that refuses the file."""
    with pytest.raises(StudyError) as caught:
        read_study(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_good_file_is_read_with_sorted_widths_and_epochs(tmp_path: Path) -> None:
    study = read_study(write(tmp_path, GOOD))
    assert (study.name, study.widths, study.checkpoints) == ("question", (1, 2), (0, 2, 4))
    assert list(study.arms) == ["plain.k001", "plain.k002"]
    assert study.epoch_keys == ("0000", "0002", "0004")


def test_a_text_is_parsed_once_and_anew_where_it_or_what_is_kept_of_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parsed, parse = [], yaml_files._parsed
    monkeypatch.setattr(yaml_files, "_parsed", lambda text: parsed.append(text) or parse(text))
    first = read_study(write(tmp_path, GOOD))
    assert read_study(write(tmp_path, GOOD)) == first
    assert len(parsed) == 1
    assert read_study(write(tmp_path, GOOD.replace("trials: 2", "trials: 3"))).trials == 3
    assert len(parsed) == 2
    for kept in (tmp_path / "cache").rglob("*.json"):
        kept.write_bytes(kept.read_bytes()[:-3])
    assert read_study(write(tmp_path, GOOD)) == first
    assert len(parsed) == 3
    refusal(write(tmp_path, "trials: [1"))
    refusal(write(tmp_path, "trials: [1"))
    assert len(parsed) == 5


@pytest.mark.parametrize("what", REFUSED)
def test_a_mistake_is_refused_with_the_path_of_file_and_key(what: str, tmp_path: Path) -> None:
    old, new, named = REFUSED[what]
    assert GOOD.count(old) == 1
    message = refusal(write(tmp_path, GOOD.replace(old, new)))
    for part in named:
        assert part in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "a mapping of keys to values"),
        (b"- a\n- b\n", "a mapping of keys to values"),
        (b"words", "a mapping of keys to values"),
        (GOOD.replace("a question", "é").encode("latin-1"), "not UTF-8"),
        (b"\x00\x01", "not valid YAML"),
    ],
    ids=["empty", "list", "text", "latin-1", "binary"],
)
def test_a_file_that_is_no_study_is_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    assert reason in refusal(write(tmp_path, content))


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, GOOD.replace("trials: 2", "trials: 0").replace("epochs: 4", "epochs: 0")))
    assert "trials: " in message
    assert "epochs: " in message


# Files that once took minutes, or ended in a stack trace, and with it every command.
HARMFUL = {
    "billion laughs": (
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)),
        "its aliases unfold to 1.2e+10 values",
    ),
    "merged mappings": (
        "m0: &m0 {a: 1, b: 2}\n"
        + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 20)}]}}\n" for i in range(1, 9)),
        "its aliases unfold to",
    ),
    "number of 5,000 digits": (GOOD + f"seed: {'9' * 5000}\n", "digits"),
    "number of 4,000 digits": (GOOD + f"seed: {'9' * 4000}\n", "is a number of 4000 digits"),
    "nested 2,000 times": (GOOD + f"seed: {'[' * 2000}{']' * 2000}\n", "nested too deeply for a study"),
    "10 MB of text": (GOOD.replace("a question", "a question " * 1_000_000), "is larger than 1 MiB"),
    "date that there is not": (GOOD + "seed: 2020-13-45\n", "cannot be used (month must be in 1..12"),
    "key that is a list": ("? [a, b]\n: 1\n", ""),
    "long text for a number": (GOOD.replace("trials: 2", f"trials: {'x' * 100_000}"), "trials: "),
}


@pytest.mark.parametrize("what", HARMFUL)
def test_a_harmful_file_is_refused_at_once_in_a_short_sentence(what: str, tmp_path: Path) -> None:
    content, reason = HARMFUL[what]
    path = write(tmp_path, content)
    write(tmp_path, GOOD, "good.yaml")
    began = time.process_time()
    message = refusal(path)
    assert set(read_studies([tmp_path]).studies) == {"good"}
    assert time.process_time() - began < 10, "was minutes"
    assert reason in message
    assert len(message) < 400


def test_aliases_and_merged_mappings_serve_studies(tmp_path: Path) -> None:
    text = GOOD.replace("  plain:\n", "  plain: &plain\n").replace(
        "widths:", "  more:\n    <<: *plain\n    label_noise: 0.4\nwidths:"
    )
    study = read_study(write(tmp_path, text))
    assert [study.variants[name].label_noise for name in ("plain", "more")] == [0.2, 0.4]
    assert study.variants["more"].batch_size == 32


@pytest.mark.parametrize("shift", [8, 10, 20_000, 10**18])
def test_a_shift_of_the_whole_image_is_refused(shift: int, tmp_path: Path) -> None:
    of = {axis: GOOD.replace("32\n", f"32\n    augmentation: {{{axis}: {shift}}}\n") for axis in ("shift_x", "shift_y")}
    for axis, text in of.items():
        assert f"variants.plain.augmentation.{axis}: must be below 8" in refusal(write(tmp_path, text))
    read_study(write(tmp_path, of["shift_x"].replace(f"shift_x: {shift}", "shift_x: 7")))


def test_names_leave_room_for_what_is_added_to_them_in_names_of_files(tmp_path: Path) -> None:
    """A study of a longer name was trained before its table could not be written."""
    study, variant = "s" * 100, "v" * 80
    text = GOOD.replace("plain", variant).replace("[2, 1]", "[999]").replace("trials: 2", "trials: 100")
    arm = next(iter(read_study(write(tmp_path, text, f"{study}.yaml")).arms))
    store = Store(tmp_path / "root")
    with store.lock(study, arm, "trials-099"):
        pass
    for path in (
        store.root / "figures/curvature_over_training" / f"{study}.json",
        store.table_folder("curvature", study, arm) / "summary.parquet",
    ):
        write_text(path, "fits")
    assert "has 101 characters; at most 100 fit" in refusal(write(tmp_path, GOOD, f"{study}s.yaml"))
    longer = GOOD.replace("plain", f"{variant}v")
    assert "has 81 characters; at most 80 fit" in refusal(write(tmp_path, longer))


@pytest.mark.parametrize("name", ["a-b", "Caps", "1st", "a b", "a.b", "figures", "null", "a|b", "é"])
def test_a_file_name_unfit_for_a_key_is_refused(name: str, tmp_path: Path) -> None:
    assert repr(name) in refusal(write(tmp_path, GOOD, f"{name}.yaml"))


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "question.yaml").mkdir()
    assert "cannot be read" in refusal(tmp_path / "question.yaml")


def test_one_image_in_the_last_batch_is_fine_where_batchnorm_sees_more_than_one_pixel(tmp_path: Path) -> None:
    for old, new in (("preact_resnet10", "cnn5"), ("dataset: digits", "dataset: cifar10")):
        read_study(write(tmp_path, GOOD.replace("batch_size: 32", "batch_size: 33").replace(old, new)))


def test_broken_files_do_not_keep_the_others_from_loading(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "good.yaml")
    write(tmp_path, GOOD, "better.yml")
    broken = [write(tmp_path, GOOD.replace(*REFUSED[what][:2]), f"b{i}.yaml") for i, what in enumerate(REFUSED)]
    found = read_studies([tmp_path])
    assert set(found.studies) == {"good", "better"}
    assert set(found.errors) == set(broken)
    with pytest.raises(StudyError, match="trails"):
        found.get("b0")
    with pytest.raises(UserError, match=r"'absent'.*better, good"):
        found.get("absent")


def test_the_second_of_two_files_with_one_name_and_an_absent_folder_are_reported(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, GOOD.replace("a question", folder))
    found = read_studies([tmp_path / "first", tmp_path / "second", tmp_path / "absent"])
    assert found.studies["question"].description == "first"
    assert set(found.errors) == {tmp_path / "second/question.yaml", tmp_path / "absent"}


VARIANT_CHANGES: dict[str, dict[str, Any]] = {
    "architecture": {"architecture": "cnn5"},
    "label_noise": {"label_noise": 0.1},
    "batch_size": {"batch_size": 16},
    "optimizer.name": {"optimizer": {"name": "sgd", "learning_rate": 0.002}},
    "optimizer.learning_rate": {"optimizer": {"name": "adam", "learning_rate": 0.001}},
    "optimizer.weight_decay": {"optimizer": {"name": "adam", "learning_rate": 0.002, "weight_decay": 1e-4}},
    "schedule.name": {"schedule": {"name": "constant"}},
    "schedule.period": {"schedule": {"name": "cosine", "period": 100}},
    "augmentation.shift_x": {"augmentation": {"shift_x": 2}},
    "augmentation.shift_y": {"augmentation": {"shift_x": 1, "shift_y": 1}},
    "augmentation.flip": {"augmentation": {"shift_x": 1, "flip": True}},
}
STUDY_CHANGES: dict[str, dict[str, Any]] = {
    "data.num_train": {"data": {"dataset": "digits", "num_train": 99}},
    "data.dataset": {"data": {"dataset": "cifar10", "num_train": 100}},
    "trials": {"trials": 3},
    "seed": {"seed": 1},
    "epochs of a cosine": {"epochs": 5},
}
ARM = Arm("plain", 1)


@pytest.mark.parametrize("field", [*VARIANT_CHANGES, *STUDY_CHANGES])
def test_the_recipe_hash_changes_with_all_that_changes_the_weights(field: str, make_study: Any) -> None:
    changed = make_study(variant=VARIANT_CHANGES.get(field), **STUDY_CHANGES.get(field, {}))
    assert changed.recipe_hash(ARM) != make_study().recipe_hash(ARM)


def test_the_recipe_hash_changes_with_momentum_and_width(make_study: Any) -> None:
    def sgd(momentum: float) -> Study:
        return make_study(variant={"optimizer": {"name": "sgd", "learning_rate": 0.1, "momentum": momentum}})

    assert sgd(0.5).recipe_hash(ARM) != sgd(0.9).recipe_hash(ARM)
    assert sgd(0.5).recipe_hash(ARM) != sgd(0.5).recipe_hash(Arm("plain", 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoints": (0, 1, 4)},
        {"evaluation": {"every": 2, "image_progress": "checkpoints"}},
        {"description": "other words"},
        {"widths": (1, 8)},
        {"name": "other"},
        {"curvature": {"estimators": ("top_directions", "finite_difference"), "precision": "bfloat16"}},
        {"hessian": {"epochs": (0,), "num_images": 10}},
        {"monitors": {"hessian": None, "norms": {"every": "3 steps"}}},
        {"keep_best": 0},
        {"price_per_gpu_hour": 2.5},
        {"variant": {"workers_per_gpu": 1}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_recipe_hash_does_not_change_with_what_leaves_the_weights_alone(changes: Any, make_study: Any) -> None:
    assert make_study(**changes).recipe_hash(ARM) == make_study().recipe_hash(ARM)


@pytest.mark.parametrize("schedule", ["constant", "inverse_sqrt"])
def test_a_study_whose_schedule_has_no_end_can_be_prolonged(schedule: str, make_study: Any) -> None:
    variant = {"schedule": {"name": schedule}}
    assert make_study(variant, epochs=400).recipe_hash(ARM) == make_study(variant).recipe_hash(ARM)


# Keys that came later: at their defaults they leave the recipe as it was, so that nothing is trained again for them.
SGD = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9}
PLATEAU = {"name": "plateau", "metric": "train_loss"}
ADDED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "optimizer.nesterov": ({"optimizer": SGD}, {"optimizer": {**SGD, "nesterov": True}}),
    "optimizer.betas": ({}, {"optimizer": {"name": "adam", "learning_rate": 0.002, "betas": (0.9, 0.99)}}),
    "optimizer.decay_all": ({}, {"optimizer": {"name": "adam", "learning_rate": 0.002, "decay_all": False}}),
    "optimizer.clip_norm": ({}, {"optimizer": {"name": "adam", "learning_rate": 0.002, "clip_norm": 1.0}}),
    "schedule.warmup_epochs": ({}, {"schedule": {"name": "cosine", "warmup_epochs": 1.0}}),
    "schedule.final": ({}, {"schedule": {"name": "cosine", "final": 0.1}}),
    "schedule.milestones": (
        {"schedule": {"name": "step", "milestones": (1,)}},
        {"schedule": {"name": "step", "milestones": (2,)}},
    ),
    "schedule.factor": (
        {"schedule": {"name": "step", "milestones": (1,)}},
        {"schedule": {"name": "step", "milestones": (1,), "factor": 0.2}},
    ),
    **{
        f"schedule.{name}": ({"schedule": PLATEAU}, {"schedule": {**PLATEAU, name: value}})
        for name, value in {"metric": "train_error", "patience": 3, "threshold": 0.1, "smallest": 0.01}.items()
    },
    "schedule.restarts": ({"schedule": PLATEAU}, {"schedule": {**PLATEAU, "restarts": False}}),
    "early_stopping": ({}, {"early_stopping": {"metric": "train_loss", "patience": 3}}),
    "precision": ({}, {"precision": "bfloat16"}),
    "loss": ({}, {"loss": {"name": "mean_squared_error"}}),
    "loss.label_smoothing": ({"loss": {"label_smoothing": 0.2}}, {"loss": {"label_smoothing": 0.1}}),
    "loss.options": (
        {"loss": {"name": "no.matter:What", "sha256": "0" * 64}},
        {"loss": {"name": "no.matter:What", "sha256": "0" * 64, "options": {"gamma": 1.0}}},
    ),
    "loss.sha256": (
        {"loss": {"name": "no.matter:What", "sha256": "0" * 64}},
        {"loss": {"name": "no.matter:What", "sha256": "1" * 64}},
    ),
    "label_noise_kind": ({}, {"label_noise_kind": "pair_flip"}),
    "compile": ({}, {"compile": "default"}),
    "interventions": ({}, {"interventions": {"l2_init": 0.1}}),
    "network": ({}, {"network": {"norm": "none"}}),
    "architecture_sha256": (
        {"architecture": "no.matter:what", "architecture_sha256": "0" * 64},
        {"architecture": "no.matter:what", "architecture_sha256": "1" * 64},
    ),
}


@pytest.mark.parametrize("field", ADDED)
def test_the_recipe_hash_changes_with_keys_that_came_later(field: str, make_study: Any) -> None:
    before, after = ADDED[field]
    assert make_study(variant=after).recipe_hash(ARM) != make_study(variant=before).recipe_hash(ARM)


def test_every_key_that_came_later_is_covered_above() -> None:
    models = {"optimizer.": Optimizer, "schedule.": Schedule, "loss.": Loss, "": Variant}
    later = {
        f"{owner}{name}"
        for owner, model in models.items()
        for name, f in model.model_fields.items()
        if "left_out_of_recipe_at_default" in (f.json_schema_extra or {})
    }
    assert later == {*ADDED, "nsm"}  # which belongs to graphs: tests/core/test_graph_training.py


def test_validation_images_are_part_of_the_recipe_of_every_study_that_has_some(make_study: Any) -> None:
    with_validation = make_study(data={"dataset": "digits", "num_train": 100, "num_validation": 10})
    assert with_validation.recipe_hash(ARM) != make_study().recipe_hash(ARM)


@pytest.mark.parametrize("added", [{"subset": 0.7}, {"duplicates": {"exact": 3}}])
def test_subsets_and_duplicates_are_part_of_the_recipe_of_every_study_that_has_some(
    added: Any, make_study: Any
) -> None:
    changed = make_study(data={"dataset": "digits", "num_train": 100, **added})
    assert changed.recipe_hash(ARM) != make_study().recipe_hash(ARM)


@pytest.mark.parametrize(
    "variant", [{"schedule": PLATEAU}, {"early_stopping": {"metric": "train_loss", "patience": 3}}]
)
def test_when_evaluations_decide_their_interval_is_part_of_the_recipe(variant: Any, make_study: Any) -> None:
    assert make_study(variant, evaluation={"every": 2}).recipe_hash(ARM) != make_study(variant).recipe_hash(ARM)


def test_a_recipe_without_later_keys_is_still_that_of_the_first_version() -> None:
    """Its hash names results on disk; another one would have everybody train again."""
    assert catalogue().studies["quickstart"].recipe_hash(Arm("preact-resnet10", 4)) == "3a1f1c5e2121e34e"


def test_every_field_of_a_recipe_is_covered_above(tiny_study: Study) -> None:
    """So that a new field cannot be left out of the hash, or of these tests, by oversight."""
    recipe = tiny_study.recipe(ARM)
    assert set(recipe) == {"trainer_version", "data", "variant", "k", "trials", "seed", "horizon_epochs"}
    variant = {f"{key}.{sub}" for key in ("optimizer", "schedule", "augmentation") for sub in recipe["variant"][key]}
    variant |= set(recipe["variant"]) - {"optimizer", "schedule", "augmentation"}
    assert variant - {"optimizer.momentum"} == set(VARIANT_CHANGES)
    assert {f"data.{key}" for key in recipe["data"]} <= set(STUDY_CHANGES)


def test_curvature_and_hessian_sections_are_read(tmp_path: Path) -> None:
    sections = """\
curvature:
  estimators: [top_directions, finite_difference]
  relative_error: 0.02
  finite_difference: {steps: [1, 0.001], normalisation: mean, mean_batch_size: 32, epochs: [4]}
hessian: {epochs: [0, 4], quantities: [exact_trace, density], layers: [conv1, "blocks.*"], num_images: null}
"""
    study = read_study(write(tmp_path, GOOD + sections))
    assert study.curvature.hessian_estimator == "top_directions"
    assert study.curvature.finite_difference.steps == (1.0, 0.001)
    assert study.hessian_epochs == (0, 4)
    assert study.hessian.num_images is None
    assert Study.model_validate_json(study.model_dump_json()) == study
    plain = read_study(write(tmp_path, GOOD))
    assert plain.curvature.families(4) == {"hessian": {"estimator": "exact", "precision": "float32"}}
    assert plain.hessian_epochs == (4,)


names = st.from_regex(r"[a-z0-9]{1,5}(-[a-z0-9]{1,5}){0,2}", fullmatch=True)


@given(
    variants=st.sets(names, min_size=1, max_size=3),
    widths=st.sets(st.integers(1, 999), min_size=1, max_size=4),
    checkpoints=st.sets(st.integers(0, 9999), min_size=1, max_size=4),
)
def test_every_checkpoint_is_found_by_its_key_and_keys_sort_as_checkpoints_do(
    variants: set[str], widths: set[int], checkpoints: set[int], tiny_study: Study
) -> None:
    content = tiny_study.model_dump() | {
        "variants": dict.fromkeys(variants, tiny_study.variants["plain"].model_dump()),
        "widths": tuple(widths),
        "checkpoints": tuple(checkpoints),
        "epochs": 9999,
    }
    study = Study.model_validate(content)
    found = list(study.iter_checkpoints())
    assert len({c.key for c in found}) == len(found) == len(variants) * len(widths) * len(checkpoints)
    for checkpoint in found:
        assert study.checkpoint(checkpoint.key) == checkpoint
        assert not set(checkpoint.key.replace("|", "", 1)) & set("|,[]/ ")
    for variant in variants:
        own = [c for c in found if c.arm.variant == variant]
        assert sorted(c.key for c in own) == [c.key for c in sorted(own)]


@pytest.mark.parametrize("key", ["", "plain.k001", "plain.k001|2", "plain.k1|0002", "plain.k001|0003", "x.k001|0002"])
def test_a_key_of_no_checkpoint_is_refused_with_those_there_are(key: str, tiny_study: Study) -> None:
    with pytest.raises(UserError, match=r"plain\.k001, plain\.k002.*0000, 0002, 0004"):
        tiny_study.checkpoint(key)
