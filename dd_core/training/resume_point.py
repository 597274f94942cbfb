"""A resume point as a file: used only if it is whole, of this recipe and data, and no checkpoint before it is harmed.

What is in it, ``Session`` knows.
"""

import json
from dataclasses import asdict

import torch
from torch import Tensor

from dd_core.errors import StaleError
from dd_core.machine.memory import name_of
from dd_core.store.checkpoints import check_checkpoint, digest, identity, read_tensors, save_tensors
from dd_core.store.provenance import harmed_best
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study

# Raise it when what a resume point holds changes: one of another format is not used.
_FORMAT = "2"


def keep(store: Store, study: Study, arm: Arm, tensors: dict[str, Tensor], content: dict[str, str]) -> None:
    """Write tensors, and what else is to be remembered, with a digest of all."""
    content = {"format": _FORMAT, "identity": _identity(study, arm), **content}
    metadata = {**content, "digest": digest(tensors) + json.dumps(content, sort_keys=True)}
    save_tensors(store.resume_path(study.name, arm.key), tensors, metadata)


def usable(store: Store, study: Study, arm: Arm) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors and the content of an arm's resume point; None where there is none.

    Raises:
        StaleError: there is one, but it cannot be used, or a checkpoint before it is not sound; says why.
    """
    path = store.resume_path(study.name, arm.key)
    if not path.exists():
        return None
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != _FORMAT:
        raise StaleError("the resume point was written by an earlier version")
    if metadata.get("identity") != _identity(study, arm):
        raise StaleError("the resume point belongs to another recipe or data set")
    content = {name: text for name, text in metadata.items() if name != "digest"}
    if metadata.get("digest") != digest(tensors) + json.dumps(content, sort_keys=True):
        raise StaleError("the resume point is damaged")
    for kept in study.checkpoints:
        if kept <= int(metadata["epoch"]):
            check_checkpoint(store, study, Checkpoint(arm, kept))
    if (harm := next(harmed_best(store, study, arm), None)) is not None:
        raise StaleError(harm)
    return tensors, metadata


def _identity(study: Study, arm: Arm) -> str:
    return json.dumps(asdict(identity(study, arm)), sort_keys=True)


def conditions(device: torch.device, precision: str, together: list[str] | None) -> dict[str, str]:
    """What bits depend on besides: kind of device, version of PyTorch, precision, who shares the network, if any."""
    kind = f"cpu ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else name_of(device)
    shared = {} if together is None else {"together": json.dumps(together)}
    return {"device": kind, "torch_version": str(torch.__version__), "precision": precision, **shared}


def differences(metadata: dict[str, str], now: dict[str, str]) -> str:
    """In words; earlier versions did not write what there was."""
    words = {"device": "on", "torch_version": "PyTorch", "precision": "in"}
    found = [
        f"{words[name]} {now[name]} instead of {metadata[name]}"
        for name in words
        if metadata.get(name, now[name]) != now[name]
    ]
    if metadata.get("together") != now.get("together"):
        found.append("in a network shared with other arms than before")
    return ", ".join(found)
