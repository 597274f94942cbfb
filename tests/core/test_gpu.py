"""What only a GPU can show: the same code there, equal to the CPU within float32, and resumed to the bit."""

import pytest
import torch

from dd_core.curvature import curve_checkpoint, per_image_curvature
from dd_core.jobs.worker import prepare_process
from dd_core.provenance import curvature_manifest
from dd_core.store import Store
from dd_core.studies import Arm
from dd_core.tables import read_parquet
from dd_core.training import train_arm
from dd_core.training.checkpoints import load_checkpoint

from .dense import assert_close, network, pictures, relative_errors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]


def test_resumed_training_on_a_gpu_has_the_same_bits(tiny_study, tmp_path):
    prepare_process(threads=1)
    arm = next(iter(tiny_study.arms.values()))
    last = tiny_study.checkpoints[-1]
    weights = []
    for name, stops in (("whole", [last]), ("parts", [*tiny_study.checkpoints[1:-1], last])):
        store = Store(tmp_path / name)
        for until in stops:
            train_arm(tiny_study, arm, store, until, device=torch.device("cuda"))
        checkpoint = tiny_study.checkpoint(f"{Arm(arm.variant, arm.k).key}|{last:04d}")
        weights.append(load_checkpoint(store, tiny_study, checkpoint)[0])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("architecture", ["preact_resnet18", "cnn5"])
def test_curvature_on_a_gpu_equals_the_cpu(architecture, classes):
    prepare_process(threads=1)
    model, images = network(architecture, 4, 3, classes), pictures(3, 20, side=32)
    labels = torch.arange(20) % classes
    expected = per_image_curvature(model, images, labels).columns
    model, images, labels = model.float().cuda(), images.float().cuda(), labels.cuda()
    for batch_size in (None, 7):
        got = per_image_curvature(model, images, labels, batch_size=batch_size)
        assert got.method == "exact"
        assert_close(got.columns, expected, rel=1e-4, atol=0)
    narrow = per_image_curvature(model, images, labels, precision=torch.bfloat16).columns
    for name, errors in relative_errors(narrow, expected).items():
        assert errors.median() < 1e-2, name


def test_top_directions_on_a_gpu_equal_the_cpu():
    """The probes belong to the images, so that even the random part is the same."""
    prepare_process(threads=1)
    model, images = network("cnn5", 16, 3, 100), pictures(3, 30)
    for parameter in model.linear.parameters():
        parameter.data *= 5
    settings = {"method": "top_directions", "relative_error": 0.1}
    labels = model(images).argmax(1)
    expected = per_image_curvature(model, images, labels, **settings)
    got = per_image_curvature(model.cuda(), images.cuda(), labels.cuda(), **settings)
    assert got.num_passes == expected.num_passes
    assert_close(got.columns, expected.columns, rel=1e-8)


def test_a_checkpoint_curved_on_a_gpu_has_the_values_of_the_cpu(trained, make_study):
    prepare_process(threads=1)
    study = make_study(curvature={"estimators": ("exact", "finite_difference"), "finite_difference": {"num_probes": 2}})
    checkpoint = study.checkpoint("plain.k002|0004")
    rows = []
    for device in ("cpu", "cuda"):
        trained.curvature_path(study.name, checkpoint).unlink(missing_ok=True)
        curve_checkpoint(study, checkpoint, trained, device=torch.device(device))
        rows.append(read_parquet(trained.curvature_path(study.name, checkpoint)).to_pandas())
    for name in ("trace", "frobenius_norm", "largest_eigenvalue", "gradient_norm", "fd_norm_h1", "fd_norm_h3"):
        assert (rows[1][name] / rows[0][name] - 1).abs().median() < 1e-4, name
    manifest = curvature_manifest(trained, study, checkpoint)
    assert manifest["device"] == torch.cuda.get_device_name()
    assert manifest["headline"]["gpu_seconds"] > 0
