"""What a study of graphs cannot be: one sentence each, with the path of the key, before anything is made or trained."""

from pathlib import Path

import pytest

from dd_core.errors import StudyError
from dd_core.study.files import read_study
from dd_core.study.study import Study

GRAPHS = """\
description: a few graphs
data: {dataset: nsm, num_train: 12, num_validation: 4, graphs: {labels: grounded, num_test: 4, num_features: 4}}
variants:
  causal:
    architecture: nsm
    nsm: {domain: causal}
    batch_size: 6
    optimizer: {name: adam, learning_rate: 1.0e-3}
widths: [2]
trials: 2
epochs: 2
checkpoints: [0, 2]
"""
IMAGES = """\
description: a few digits
data: {dataset: digits, num_train: 40}
variants:
  causal:
    architecture: preact_resnet10
    batch_size: 20
    optimizer: {name: adam, learning_rate: 1.0e-3}
widths: [2]
trials: 2
epochs: 2
checkpoints: [0, 2]
"""
DATA = "graphs: {labels: grounded, num_test: 4, num_features: 4}}"
END = "checkpoints: [0, 2]"


def of_graphs(old: str, new: str) -> str:
    assert old in GRAPHS
    return GRAPHS.replace(old, new)


REFUSED = {
    "no_graphs": (of_graphs(", " + DATA, "}"), "data.graphs: nsm is made of graphs; say how, as {labels: grounded"),
    "graphs_of_digits": (
        IMAGES.replace("num_train: 40}", f"num_train: 40, {DATA}"),
        "data.graphs: digits has images, not graphs; leave it out",
    ),
    "network_of_images": (
        of_graphs("architecture: nsm\n    nsm: {domain: causal}", "architecture: mlp"),
        "variants.causal.architecture: mlp takes images, but nsm has graphs",
    ),
    "network_of_graphs": (
        IMAGES.replace("preact_resnet10", "nsm"),
        "variants.causal.architecture: nsm takes graphs, but digits has images",
    ),
    "nsm_settings_of_images": (
        IMAGES.replace("preact_resnet10", "preact_resnet10\n    nsm: {domain: causal}"),
        "variants.causal.nsm: belongs to the architecture nsm alone; leave it out",
    ),
    "no_nsm_settings": (
        of_graphs("    nsm: {domain: causal}\n", ""),
        "variants.causal.nsm: say which domain it learns, for example {domain: causal}",
    ),
    "odd_width": (of_graphs("widths: [2]", "widths: [2, 3]"), "widths: k = 3 is odd, but a coupling halves the width"),
    "odd_features": (of_graphs("num_features: 4", "num_features: 5"), "data.graphs.num_features: 5 is odd"),
    "unknown_domain": (
        of_graphs("domain: causal", "domain: chess"),
        "variants.causal.nsm.domain: Input should be 'planning', 'causal' or 'knowledge_graph' (got 'chess')",
    ),
    "no_number": (of_graphs("num_train: 12, ", ""), "data.num_train: graphs are made as they are needed"),
    "too_many": (
        of_graphs("num_train: 12, ", "num_train: 1000000, "),
        "data: 1,000,008 graphs of each trial are more than the 1,000,000 there may be",
    ),
    "no_validation": (
        of_graphs("num_validation: 4, ", "").replace("batch_size", "early_stopping: {patience: 1}\n    batch_size"),
        "loss_val_nats needs validation graphs; set data.num_validation",
    ),
    "nothing_kept": (
        of_graphs("{domain: causal}", "{domain: causal, pool_ratio: 0}"),
        "variants.causal.nsm.pool_ratio: Input should be greater than 0 (got 0)",
    ),
    "few_graphs": (
        of_graphs("batch_size: 6", "batch_size: 13"),
        "variants.causal.batch_size: 13 graphs in a batch but only 12 to train on",
    ),
    "augmentation": (
        of_graphs("    batch_size", "    augmentation: {shift_x: 1}\n    batch_size"),
        "variants.causal.augmentation: ",
    ),
    "flip": (of_graphs("    batch_size", "    augmentation: {flip: true}\n    batch_size"), "causal.augmentation: "),
    "compile": (of_graphs("    batch_size", "    compile: default\n    batch_size"), "variants.causal.compile: "),
    "classes": (of_graphs(DATA, f"classes: {{first: 1, add: 1, every: 1}}, {DATA}"), "data.classes: is for images"),
    "subset": (of_graphs(DATA, f"subset: 0.5, {DATA}"), "data.subset: is for images, and nsm has graphs; leave it out"),
    "duplicates": (of_graphs(DATA, f"duplicates: {{exact: 1}}, {DATA}"), "data.duplicates: is for images"),
    "asymmetric_noise": (
        of_graphs("    batch_size", "    label_noise: 0.2\n    label_noise_kind: asymmetric\n    batch_size"),
        "variants.causal.label_noise_kind: ",
    ),
    "network_settings": (
        of_graphs("    batch_size", "    network: {norm: group}\n    batch_size"),
        "variants.causal: network.norm: nsm has no such setting; it has none",
    ),
    "image_values": (of_graphs(END, f"{END}\nevaluation: {{image_values: [margin]}}"), "evaluation.image_values: is "),
    "finite_difference": (
        of_graphs(END, f"{END}\ncurvature: {{estimators: [exact, finite_difference]}}"),
        "curvature.estimators: of graphs there is exact alone, by double backward, not finite_difference",
    ),
    "top_directions": (
        of_graphs(END, f"{END}\ncurvature: {{estimators: [top_directions]}}"),
        "curvature.estimators: of graphs there is exact alone, by double backward, not top_directions",
    ),
    "bfloat16": (of_graphs(END, f"{END}\ncurvature: {{precision: bfloat16}}"), "curvature.precision: bfloat16 has too"),
    "steps": (
        of_graphs(END, f"{END}\ncurvature: {{finite_difference: {{steps: [1.0]}}}}"),
        "curvature.finite_difference: belongs to estimators for images",
    ),
    "hessian": (of_graphs(END, f"{END}\nhessian: {{num_eigenvalues: 2}}"), "hessian: is for networks of images"),
    "grand": (of_graphs(END, f"{END}\nmemorization: {{grand: [2]}}"), "memorization.grand: looks at images once more"),
    "out_of_fold": (of_graphs(END, f"{END}\nmemorization: {{out_of_fold: true}}"), "memorization.out_of_fold: "),
}


def read(text: str, folder: Path) -> Study:
    path = folder / "few.yaml"
    path.write_text(text, encoding="utf-8")
    return read_study(path)


@pytest.mark.parametrize("text", [GRAPHS, IMAGES], ids=["graphs", "images"])
def test_what_is_changed_below_is_a_study(text: str, tmp_path: Path) -> None:
    assert read(text, tmp_path).name == "few"


@pytest.mark.parametrize("case", REFUSED)
def test_an_impossible_study_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    text, sentence = REFUSED[case]
    with pytest.raises(StudyError) as refused:
        read(text, tmp_path)
    assert sentence in " ".join(str(refused.value).split())
    assert "\n" not in str(refused.value)
