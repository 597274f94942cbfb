"""A ranking of directions that the shards of a checkpoint share: a file beside them, with a manifest of its own."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dd_core.curvature.input_space.top_directions import MAX_CANDIDATES, Ranking
from dd_core.errors import StaleError
from dd_core.store.checkpoints import read_tensors, save_tensors
from dd_core.store.files import remove
from dd_core.store.store import Store


def write_ranking(store: Store, path: Path, about: Mapping[str, Any], ranking: Ranking) -> None:
    """Write one; hold the lock of what it belongs to.

    Args:
        store: the data root.
        path: safetensors.
        about: what it belongs to, as the shards' manifests say it.
        ranking: equal ones are equal files.
    """
    remove(path.with_suffix(".json"))
    # A single entry, because safetensors writes several in random order.
    numbers = torch.cat([ranking.known, ranking.left, ranking.root.flatten()])
    save_tensors(path, {"known_left_root": numbers}, {})
    store.write_manifest(path.with_suffix(".json"), about, {"ranking": path})


def read_ranking(store: Store, path: Path, about: Mapping[str, Any]) -> Ranking | None:
    """The ranking on the CPU, to the last bit, or None if it is absent, damaged or of something else."""
    manifest = store.read_manifest(path.with_suffix(".json"))
    if manifest is None or manifest.content != about:
        return None
    try:
        numbers = read_tensors(store.verify(manifest.files["ranking"]))[0]["known_left_root"]
    except (StaleError, OSError):  # a merge in another process removes it
        return None
    known, left, root = numbers.split([MAX_CANDIDATES + 1, MAX_CANDIDATES + 1, len(numbers) - 2 * MAX_CANDIDATES - 2])
    return Ranking(root.unflatten(0, (math.isqrt(len(root)), -1)), known, left)
