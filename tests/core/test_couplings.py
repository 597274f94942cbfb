"""RealNVP's couplings: their inverse, their determinant, and where they begin."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from dd_core.errors import UserError
from dd_core.models.nsm.coupling import Coupling
from tests.core.graph_batches import general


@settings(max_examples=10, deadline=None)
@given(width=st.sampled_from([2, 4, 6, 64]), seed=st.integers(0, 1000))
def test_the_inverse_is_exact(width: int, seed: int) -> None:
    torch.manual_seed(seed)
    coupling = general(Coupling(width, 2 * width))
    x = torch.randn(50, width, dtype=torch.float64)
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        coupling, x = coupling.to(dtype), x.to(dtype)
        y = coupling(x)
        assert (y - x).abs().max() > 0.01
        scale = torch.maximum(x.abs(), y.abs()).max()
        assert (coupling.inverse(y) - x).abs().max() <= error * scale
        assert (coupling(coupling.inverse(x)) - x).abs().max() <= error * scale


@pytest.mark.parametrize("width", [2, 6, 10])
def test_the_determinant_is_that_of_the_dense_jacobian(width: int) -> None:
    coupling = general(Coupling(width, 8))
    x = torch.randn(3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    dense = jacobian(coupling, x)
    for row in range(3):
        sign, logarithm = torch.linalg.slogdet(dense[row, :, row])
        assert sign == 1
        torch.testing.assert_close(coupling.log_determinant(x)[row], logarithm, rtol=1e-10, atol=1e-12)


def test_it_begins_as_the_identity_and_leaves_the_first_third_alone() -> None:
    coupling, x = Coupling(12, 7), torch.randn(5, 12)
    assert torch.equal(coupling(x), x)
    assert torch.equal(coupling.log_determinant(x), torch.zeros(5))
    y = general(coupling)(x.double())
    changes = (y != x).any(0)
    assert not changes[:4].any() and changes[4:].all()


@pytest.mark.parametrize("width", [0, 1, 7])
def test_an_odd_width_is_refused(width: int) -> None:
    with pytest.raises(
        UserError, match=f"a coupling halves the width of a node's features, so {width} must be an even"
    ):
        Coupling(width, 4)
