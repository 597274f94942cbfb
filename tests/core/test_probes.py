"""Random signs that belong to an image: against Philox written out, their independence of batches, and column names."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dd_core.curvature.input_space.signs import Stream, rademacher
from dd_core.errors import UserError
from dd_core.study.curvature_names import columns_of_step, step_name, step_of

WORD = 2**64 - 1


def philox(counter: int, key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 as in Salmon et al. 2011, section 3.4: four 64-bit words for a 256-bit counter."""
    c = [(counter >> (64 * i)) & WORD for i in range(4)]
    k0, k1 = key
    for _ in range(10):
        first, second = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
        c = [(second >> 64) ^ c[1] ^ k0, second & WORD, (first >> 64) ^ c[3] ^ k1, first & WORD]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return c


@pytest.mark.parametrize(("seed", "stream", "image_id"), [(0, 0, 0), (7, 3, 49_999), (WORD, 2**63, 2**62)])
def test_signs_are_the_bits_of_philox(seed: int, stream: int, image_id: int) -> None:
    signs = rademacher(torch.tensor([image_id]), 3, (70,), seed=seed, stream=stream)
    words: list[int] = []
    for block in range(1, 4):  # NumPy counts up before it draws
        words += philox((image_id << 192) + block, (seed, stream))
    for probe in range(3):  # 70 entries take two words
        bits = words[2 * probe] | words[2 * probe + 1] << 64
        assert signs[0, probe].tolist() == [2 * (bits >> entry & 1) - 1 for entry in range(70)]


@given(
    ids=st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    probes=st.integers(1, 4),
    shape=st.sampled_from([(1,), (3, 4, 4), (65,), (2, 64)]),
    seed=st.integers(0, 2**64 - 1),
)
def test_an_images_signs_depend_on_nothing_but_its_id(
    ids: list[int], probes: int, shape: tuple[int, ...], seed: int
) -> None:
    together = rademacher(torch.tensor(ids), probes + 2, shape, seed=seed, stream=1)
    assert together.shape == (len(ids), probes + 2, *shape)
    assert together.dtype == torch.int8
    assert (together.abs() == 1).all()
    for row, image_id in enumerate(ids):
        alone = rademacher(torch.tensor([image_id]), probes, shape, seed=seed, stream=1)
        assert torch.equal(alone[0], together[row, :probes])


def test_signs_of_images_probes_streams_seeds_and_entries_are_uncorrelated() -> None:
    ids = torch.arange(60)
    rows = [rademacher(ids, 3, (4096,), seed=seed, stream=stream) for seed in (0, 1) for stream in Stream]
    rows_of_signs = torch.cat(rows).flatten(0, 1).double()
    gram = rows_of_signs @ rows_of_signs.T / 4096
    # 1440 rows: a million correlations of standard deviation 1/64; six deviations are exceeded once in 500 million.
    assert (gram - torch.eye(len(gram))).abs().max() < 6 / 64
    entries = rows_of_signs.mean(0)
    assert entries.abs().max() < 6 / math.sqrt(len(gram))
    assert abs(rows_of_signs.mean().item()) < 6 / math.sqrt(rows_of_signs.numel())


def test_the_type_asked_for_is_given() -> None:
    signs = rademacher(torch.arange(2), 1, (5,), seed=0, stream=0, dtype=torch.float64)
    assert signs.dtype == torch.float64
    assert torch.equal(signs, rademacher(torch.arange(2), 1, (5,), seed=0, stream=0).double())
    assert rademacher(torch.arange(0), 2, (5,), seed=0, stream=0).shape == (0, 2, 5)


@pytest.mark.parametrize(("ids", "probes", "seed"), [([-1], 1, 0), ([0], 0, 0), ([0], 1, -1)])
def test_impossible_requests_for_signs_are_refused(ids: list[int], probes: int, seed: int) -> None:
    with pytest.raises(UserError, match="probe"):
        rademacher(torch.tensor(ids), probes, (5,), seed=seed, stream=0)


# Names of columns


@pytest.mark.parametrize(
    ("h", "name"), [(1e-3, "h0p001"), (1.0, "h1"), (3, "h3"), (1e-5, "h0p00001"), (2.5, "h2p5"), (100.0, "h100")]
)
def test_steps_are_named_in_plain_decimals(h: float, name: str) -> None:
    assert step_name(h) == name
    norm, norm_error, directional, directional_error = columns_of_step(h)
    assert (norm, norm_error) == (f"fd_norm_{name}", f"fd_norm_{name}_standard_error")
    assert (directional, directional_error) == (f"fd_directional_{name}", f"fd_directional_{name}_standard_error")


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_a_step_can_be_read_back_from_its_columns(h: float) -> None:
    for name in (step_name(h), *columns_of_step(h)):
        assert re.fullmatch("[a-z][a-z0-9_]*", name)
        assert step_of(name) == h


@pytest.mark.parametrize("h", [0.0, -1.0, math.nan, math.inf, np.float64(-0.0)])
def test_a_step_that_is_none_has_no_name(h: float) -> None:
    with pytest.raises(UserError, match="positive finite step"):
        step_name(h)


@pytest.mark.parametrize("name", ["trace", "fd_norm", "h1_error", "fd_norm_h"])
def test_a_column_without_a_step_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="does not end in a step"):
        step_of(name)
