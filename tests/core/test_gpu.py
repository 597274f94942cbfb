"""What only a GPU can show: the same code there, equal to the CPU within float32, and resumed to the bit."""

import pytest
import torch

from dd_core.curvature import per_image_curvature
from dd_core.jobs.worker import prepare_process
from dd_core.models import build
from dd_core.store import Store
from dd_core.studies import Arm
from dd_core.training import train_arm
from dd_core.training.checkpoints import load_checkpoint

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


def test_curvature_on_a_gpu_equals_the_cpu():
    prepare_process(threads=1)
    torch.manual_seed(0)
    model = build("preact_resnet18", 4, 3, 10).eval()
    images, labels = torch.randn(20, 3, 32, 32), torch.randint(0, 10, (20,))
    expected = per_image_curvature(model.double(), images.double(), labels)
    got = per_image_curvature(model.float().cuda(), images.cuda(), labels.cuda())
    torch.testing.assert_close(got.trace, expected.trace, rtol=1e-4, atol=0)
