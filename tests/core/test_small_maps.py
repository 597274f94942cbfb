"""Convolutions of maps of at most 2x2 pixels, computed as matrix products, against PyTorch's."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dd_core.models.small_maps import as_product
from dd_core.models.stacking import Convolution


def value_and_gradients(value: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
    """Of the sum of squares, also a second derivative, which Hessian monitors take."""
    gradients = torch.autograd.grad(value.square().sum(), (x, weight), create_graph=True)
    second = torch.autograd.grad(gradients[1].square().sum(), (x, weight))
    return [value, *gradients, *second]


@pytest.mark.parametrize(
    ("kernel", "stride", "height", "width"),
    [(3, 1, 2, 2), (3, 2, 2, 2), (3, 1, 1, 1), (3, 2, 1, 2), (3, 1, 2, 1), (1, 2, 4, 4), (1, 2, 3, 3), (1, 1, 2, 2)],
)
@pytest.mark.parametrize("groups", [1, 3])
def test_products_are_pytorchs_convolutions(kernel: int, stride: int, height: int, width: int, groups: int) -> None:
    torch.manual_seed(0)
    layer = Convolution(2, 5, kernel, groups, stride=stride, bias=True).double()
    x = torch.randn(4, groups * 2, height, width, dtype=torch.float64, requires_grad=True)
    product = as_product(x, layer.weight, layer.bias, stride, groups)
    assert product is not None
    assert product.is_contiguous(memory_format=torch.channels_last)
    convolved = functional.conv2d(x, layer.weight, layer.bias, stride, kernel // 2, 1, groups)
    for ours, theirs in zip(
        value_and_gradients(product, x, layer.weight), value_and_gradients(convolved, x, layer.weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 3), (3, 2, 4), (1, 2, 6), (5, 1, 2)])
def test_other_convolutions_are_left_to_pytorch(kernel: int, stride: int, side: int) -> None:
    layer = Convolution(2, 2, kernel, 2, stride=stride)
    assert as_product(torch.zeros(1, 4, side, side), layer.weight, None, stride, 2) is None


def test_products_round_as_convolutions_do_where_autocast_asks_for_it() -> None:
    layer = Convolution(2, 5, 3, 2, bias=True)
    x = torch.randn(4, 4, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        value = layer(x)
        convolved = functional.conv2d(x, layer.weight, layer.bias, 1, 1, 1, 2)
    assert value.dtype == convolved.dtype == torch.bfloat16
    torch.testing.assert_close(value, convolved, rtol=0.02, atol=0.02)  # of bfloat16, which has 8 bits
    value.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
