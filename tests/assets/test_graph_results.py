"""Results of a study of graphs by the commands a user types: curvature of its graphs, and sentences for the rest."""

import numpy as np
import pytest
import torch
from support import Lab

from dd_core.curvature.input_space.graphs import graph_curvature
from dd_core.curvature.trained import trained_network
from dd_core.errors import UserError
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.store.checkpoints import load_checkpoint
from dd_core.study.files import read_study
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.files import read_parquet
from dd_core.tables.kinds import HESSIAN, PER_IMAGE_CURVATURE
from dd_core.tasks.graphs import GraphExamples
from dd_core.training.train import train_arm

from .conftest import narrowed

GRAPHS = """\
description: a few graphs
data: {dataset: nsm, num_train: 12, num_validation: 4, graphs: {labels: grounded, num_test: 4, num_features: 4}}
variants:
  causal:
    architecture: nsm
    nsm: {domain: causal}
    label_noise: 0.25
    batch_size: 6
    optimizer: {name: adam, learning_rate: 1.0e-3}
widths: [2]
trials: 2
epochs: 2
checkpoints: [0, 2]
curvature: {precision: float64}
"""
MATERIALIZE = ("asset", "materialize", "--select")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A trained study of graphs beside one of images of which nothing is trained."""
    lab = Lab(tmp_path_factory.mktemp("graph_results") / "lab")
    study = few(lab, GRAPHS)
    train_arm(study, study.arms["causal.k002"], lab.store, until=2)
    lab.forked_dagster(*MATERIALIZE, "curvature").succeeded()
    return lab


def few(lab: Lab, text: str = "") -> Study:
    path = lab.studies / "few.yaml"
    return read_study(lab.write_study("few", text) if text else path)


def test_rows_are_the_curvature_of_each_training_graph(lab: Lab) -> None:
    study = few(lab)
    checkpoint = Checkpoint(study.arms["causal.k002"], 2)
    found = read_parquet(PER_IMAGE_CURVATURE.path(lab.store, study, checkpoint)).to_pandas()
    weights, _ = load_checkpoint(lab.store, study, checkpoint)
    for trial in range(2):
        own = found[found.trial == trial]
        examples = GraphExamples(study, "causal", [trial], torch.device("cpu"), torch.float64)
        assert own.image_id.tolist() == examples.data[0].train_ids.tolist()
        assert own.given_label.tolist() == examples.data[0].train_labels.tolist()
        assert own.is_noisy.sum() == 3 and set(own.method) == {"exact"}
        for row in own.iloc[:2].itertuples():  # each by itself: no company, no order
            place = examples.data[0].train_ids.tolist().index(row.image_id)
            graphs, labels = examples.evaluated(examples.whole, place, place + 1)
            model = trained_network(study, checkpoint, weights, trial).double()
            for name, values in graph_curvature(model, graphs, labels[:, 0]).items():
                np.testing.assert_allclose(getattr(row, name), values[0], rtol=1e-8, atol=1e-14, err_msg=name)


def test_the_summary_has_every_subset(lab: Lab) -> None:
    path = lab.store.table_folder("curvature", "few", "causal.k002") / "summary.parquet"
    rows = read_parquet(path).to_pandas().query("epoch == 2")
    found = sorted(zip(rows.trial, rows.subset, rows.num_images, strict=True))
    assert found == [(trial, *own) for trial in (0, 1) for own in (("all", 12), ("clean", 9), ("noisy", 3))]
    assert np.isfinite(rows[["mean_trace", "mean_largest_eigenvalue", "auroc_trace"]]).all(axis=None)


REFUSED = {
    "hessian_of_a_checkpoint": (
        ("few/hessian", "--partition", "causal.k002|0002"),
        "Error: there is no asset few/hessian: the Hessian in the weights is computed of networks of images alone; of "
        "graphs the monitor hessian looks at the weights while they train",
    ),
    "hessian_driver": (
        ("hessian_spectra", "--config-json", '{"ops": {"hessian_spectra": {"config": {"studies": ["few"]}}}}'),
        "few: the Hessian in the weights is computed of networks of images alone",
    ),
    "finite_difference": (
        ("curvature", *narrowed(studies=["few"], estimators=["finite_difference", "exact"])),
        "few: estimators: of graphs there is exact alone, by double backward, not finite_difference",
    ),
    "curvature_exports": (
        ("curvature_exports",),
        "few/causal.k002|0000: what is exported is a finite difference in images, and there is none of graphs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_for_images_says_so(case: str, lab: Lab) -> None:
    arguments, sentence = REFUSED[case]
    lab.forked_dagster(*MATERIALIZE, *arguments).refused(sentence)


def test_a_job_of_the_hessian_is_refused_too(lab: Lab) -> None:
    study = few(lab)
    checkpoint = Checkpoint(study.arms["causal.k002"], 2)
    with pytest.raises(UserError, match="few: the Hessian in the weights is computed of networks of images alone"):
        hessian_of_checkpoint(study, checkpoint, lab.store)
    assert HESSIAN.missing(lab.store, study) == []
