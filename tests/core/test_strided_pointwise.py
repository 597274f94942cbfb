"""Strided 1x1 convolutions: the same bits as PyTorch's where these are right, and right where they are not.

oneDNN decides once in a process which kernels it uses, and wrong ones corrupt memory: each setting has a process of its
own, in which float32 is compared with float64 (which oneDNN never computes).
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dd_core.models.stacking import Convolution
from dd_core.models.strided_pointwise import SoundConvolutions, without_stride

SETTINGS = (("DEFAULT", 1), ("AVX2", 1), ("AVX2", 2), ("AVX", 1))
GRADIENTS_OF_OURS = """
import torch
from torch.nn.functional import cross_entropy
from dd_core.models.build import build
torch.set_num_threads({threads})
worst = 0.0
for architecture, k, trials in (("preact_resnet10", 2, None), ("preact_resnet10", 6, 1), ("preact_resnet10", 3, 2)):
    torch.manual_seed(0)
    images, labels = torch.randn(50, 3 * (trials or 1), 16, 16), torch.randint(0, 10, (50 * (trials or 1),))
    single = build(architecture, k, 3, 10, trials).to(memory_format=torch.channels_last)
    double = build(architecture, k, 3, 10, trials).double()
    double.load_state_dict(single.state_dict())
    images = images.contiguous(memory_format=torch.channels_last)
    for model, x in ((single, images), (double, images.double())):
        model.eval()
        cross_entropy(model(x).reshape(len(labels), -1), labels).backward()
    for ours, exact in zip(single.parameters(), double.parameters(), strict=True):
        worst = max(worst, float((ours.grad - exact.grad).norm() / exact.grad.norm()))
print(worst)
"""
CURVATURE_OF_OTHERS = """
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock
from dd_core.curvature.parameter_space.gradient_statistics import gradient_sums
from dd_core.curvature.parameter_space.gauss_newton import exact_trace
from dd_core.curvature.parameter_space.operator import HessianOperator
torch.set_num_threads({threads})
torch.manual_seed(0)

class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.narrow, self.middle, self.wide = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 9, 1)
        self.shortcut, self.head = nn.Conv2d(3, 9, 1, stride=(2, 2)), nn.Linear(9, 4)
    def forward(self, x):
        y = torch.relu(self.middle(torch.relu(self.narrow(x))))
        y = torch.relu(self.wide(y[:, :, ::2, ::2]) + self.shortcut(x))
        padded = nn.functional.conv2d(y[:, :7], self.head.weight[:, :7, None, None], stride=3, padding=3)
        return self.head(y.mean((2, 3))) + padded.mean((2, 3))

def resnet():
    shortcut = nn.Sequential(nn.Conv2d(3, 6, 1, stride=2, bias=False), nn.BatchNorm2d(6))
    return nn.Sequential(BasicBlock(3, 6, 2, shortcut), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


class Narrow(nn.Module):
    def __init__(self):
        super().__init__()
        first, shortcut = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 1, stride=2, bias=False)
        self.body = nn.Sequential(first, nn.ReLU(), shortcut, nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, 4)
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

images, labels = torch.randn(40, 3, 16, 16), torch.randint(0, 4, (40,))
for number, make in enumerate((Bottleneck, Narrow, resnet)):
    torch.manual_seed(number)
    model = make().eval().to(memory_format=torch.channels_last)
    values = []
    for dtype in (torch.float32, torch.float64):
        x = images.to(dtype, memory_format=torch.channels_last)
        operator = HessianOperator(model, x, labels, dtype=dtype)
        v = torch.randn(operator.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        found = [operator.loss_and_gradient()[1], operator.matvec(v)]
        if make is Narrow:
            net = make().eval(); net.load_state_dict(model.state_dict())
            net = net.to(dtype).to(memory_format=torch.channels_last)
            sums = gradient_sums(net, x, labels)
            found += [*sums.total.values(), *sums.total_squared.values()]
            found.append(torch.from_numpy(exact_trace(net, x, dtype=dtype).per_image))
        values.append(found)
    for ours, exact in zip(*values, strict=True):
        worst = max(worst, float((ours - exact).norm() / exact.norm()))
print(worst)
"""


@pytest.mark.parametrize(("setting", "threads"), SETTINGS)
def test_weight_gradients_are_right_on_every_processor(setting: str, threads: int) -> None:
    """Without the mending: SIGABRT, SIGSEGV, no end, or errors of 100 % and more with AVX2."""
    command = [sys.executable, "-c", (GRADIENTS_OF_OURS + CURVATURE_OF_OTHERS).format(threads=threads)]
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": setting, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, f"ended by {done.returncode}: {done.stderr[-2000:]}"
    assert float(done.stdout.split()[-1]) < 1e-3


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7, 8, 15])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_values_and_gradients_keep_their_bits_and_their_layout(channels: int, layout: torch.memory_format) -> None:
    """On a processor where PyTorch's own are right, stored results stay what they are."""
    if "AVX512" not in torch.backends.cpu.get_cpu_capability() or "ONEDNN_MAX_CPU_ISA" in os.environ:
        pytest.skip("PyTorch's own gradient is wrong here, or may be")
    torch.manual_seed(0)
    ours = Convolution(channels, 2 * channels, 1, 1, stride=2).to(memory_format=layout)
    x = torch.randn(100, channels, 8, 8).contiguous(memory_format=layout).requires_grad_()
    assert without_stride(x, ours.weight, 2, 0, 1) is not None
    results = []
    for value in (ours(x), functional.conv2d(x, ours.weight, None, 2)):
        cotangent = torch.ones_like(value).cumsum(0)
        results.append((value, *torch.autograd.grad(value, (x, ours.weight), cotangent)))
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine, theirs)
    assert results[0][1].stride() == results[1][1].stride()


def test_stacked_and_wide_convolutions_are_left_to_pytorch() -> None:
    x = torch.randn(2, 8, 8, 8)
    for convolution in (
        Convolution(4, 4, 1, 2, stride=2),
        Convolution(8, 4, 1, 1),
        Convolution(8, 4, 3, 1, stride=2),
    ):
        kept = without_stride(x, convolution.weight, convolution.stride, convolution.padding, convolution.groups)
        assert kept is None
    wide = torch.randn(2, 16, 8, 8)
    assert without_stride(wide, torch.randn(4, 16, 1, 1), 2, 0, 1) is None


@pytest.mark.parametrize(
    ("stride", "padding"), [(2, 0), ((2, 1), 0), ((1, 3), 0), (2, 1), ([3, 2], (0, 2)), (2, "valid")]
)
def test_every_form_of_the_call_gives_pytorchs_value_and_derivatives(stride: object, padding: object) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 7, 9, dtype=torch.float64, requires_grad=True)
    layer = nn.Conv2d(4, 5, 1, stride=stride, padding=padding).double()  # type: ignore[arg-type]

    def derivatives() -> list[Tensor]:
        value = layer(x) + functional.conv2d(input=x, weight=layer.weight, stride=stride, padding=padding)  # type: ignore[call-overload]
        inputs = [x, layer.weight]
        first = torch.autograd.grad(value.sin().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), inputs)
        return [value, *first, *second]

    expected = derivatives()
    with SoundConvolutions():
        got = derivatives()
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
