"""May these networks be trained here? The self-test's verdicts, kept for each processor, version of torch and setting.

The test itself (``self_test``) runs in a process of its own, once for each kind of network: what it finds on a broken
machine would kill or corrupt ours. Verdicts lie in the user's cache folder, not at the data root, which machines share.
Each is a file that is renamed into place when whole, so that kills and several workers do no harm; where nothing can be
written the test runs each time. Only good verdicts are kept: a failed test is made again, after whatever was changed.
Needs no torch to import.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import filelock

from dd_core.cache import cache_folder
from dd_core.errors import UserError
from dd_core.machine.arithmetic import usable
from dd_core.machine.processor import kind_of_machine, processor
from dd_core.store.files import write_text
from dd_core.study.architectures import architecture_called
from dd_core.study.stacks import stacking
from dd_core.study.study import Arm, Study

# Raised when the test looks at more than before: old verdicts count no longer.
_TEST_VERSION = 2
# Others that test at the same time are waited for; then the test is made twice.
_PATIENCE = 60.0
_PAGE = "docs/troubleshooting.md#the-self-test-failed"


@dataclass(frozen=True, order=True)
class Network:
    """A kind of network, as far as its convolutions are concerned.

    Attributes:
        architecture: as in a study file.
        k: width multiplier.
        copies: trials in a stack, 1 for a network alone.
        side: of its images, pixels; those that are not square are tested as two kinds that are.
        channels: of its images.
        precision: of training.
        settings: of the architecture, pairs of name and value.
    """

    architecture: str
    k: int
    copies: int
    side: int
    channels: int
    precision: str = "float32"
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """JSON knows no tuples."""
        object.__setattr__(self, "settings", tuple((name, value) for name, value in self.settings))

    @property
    def name(self) -> str:
        """For people and files."""
        size = f"{self.side}x{self.side}x{self.channels}"
        settings = "".join(f".{name}-{value}" for name, value in self.settings)
        return f"{self.architecture}.k{self.k:03d}.{self.copies}-stacked.{size}.{self.precision}{settings}"


def networks_of(study: Study, arm: Arm, places: int = 1) -> set[Network]:
    """What an arm trains, in a network with so many arms: a network for each size of its stacks."""
    import torch

    variant = study.variants[arm.variant]
    record = architecture_called(variant.architecture)
    if record.is_own or record.examples != "images":
        # The fault that is known, of convolutions, is kept away from one's own (dd_core.models.own); others are not
        # looked for, and networks of graphs have no convolution of that kind.
        return set()
    *sides, channels = study.data.record.image_shape
    precision = usable(variant.precision, torch.device("cpu"))
    sizes = {len(group) * places for group in stacking(study, arm)}
    settings = tuple(variant.network.items())
    return {
        Network(variant.architecture, arm.k, size, side, channels, precision, settings)
        for size in sizes
        for side in set(sides)
    }


def require_sound(wanted: Collection[Network], others: Collection[Network], threads: int) -> str | None:
    """See that networks are computed rightly on this CPU.

    Args:
        wanted: to be trained now.
        others: to be trained later; tested at once if the test has to run.
        threads: that PyTorch will use.

    Returns:
        None, or a sentence if the test could not be made.

    Raises:
        UserError: one of ``wanted`` is computed wrongly; says what, and which setting makes it right.
    """
    folder = _folder(threads)
    if not _unknown(folder, wanted):
        return None
    with _alone(folder):
        unknown = _unknown(folder, {*wanted, *others})
        if not unknown & set(wanted):
            return None  # tested meanwhile
        verdicts, problem = run_test(unknown, threads, folder)
    if problem:
        return f"PyTorch was not tested on this machine: {problem}"
    failed = [verdicts[network.name] for network in sorted(wanted) if verdicts.get(network.name, {}).get("faults")]
    if failed:
        raise UserError(describe(failed[0]["faults"], failed[0]["way_out"]))
    return None


def describe(faults: list[str], way_out: str | None) -> str:
    """The sentence about a machine that fails."""
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    go_on = f"set {way_out}, with which the same test was right, and run the same command again" if way_out else ""
    return (
        f"PyTorch computes wrongly on this machine ({processor()[0]}, torch {version('torch')}): {faults[0]}{more}; "
        f"{go_on or 'no setting makes it right, so install another version of torch'} ({_PAGE})"
    )


def run_test(networks: Collection[Network], threads: int, folder: Path | None) -> tuple[dict[str, dict[str, Any]], str]:
    """Run the self-test in a process of its own, which keeps good verdicts in the folder.

    Returns:
        Verdicts by the networks' names, or why there are none.
    """
    question = {
        "threads": threads,
        "folder": str(folder) if folder else None,
        "networks": [asdict(network) for network in sorted(networks)],
    }
    command = [sys.executable, "-m", "dd_core.checks.self_test", "--json"]
    done = subprocess.run(command, input=json.dumps(question), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {}, f"the self-test ended with exit code {done.returncode} ({last})"
    return json.loads(done.stdout), ""


def _folder(threads: int) -> Path | None:
    """Where verdicts of this kind of machine lie; None where there is no home."""
    if (folder := cache_folder("self-test")) is None:
        return None
    return folder / kind_of_machine(_TEST_VERSION, threads)


def _unknown(folder: Path | None, networks: Collection[Network]) -> set[Network]:
    """Those without a good verdict."""
    return {network for network in networks if folder is None or not _is_proven(folder, network)}


def _is_proven(folder: Path, network: Network) -> bool:
    try:
        content = json.loads((folder / f"{network.name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("sound") == json.loads(json.dumps(asdict(network)))


def keep(folder: Path, network: Network) -> None:
    """Remember that a network is computed rightly, where that can be written."""
    content = {"sound": asdict(network), "processor": processor()[0], "torch": version("torch")}
    with contextlib.suppress(OSError, UserError):
        write_text(folder / f"{network.name}.json", json.dumps(content))


@contextlib.contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """Hold the folder against others that would test the same, where that can be done."""
    with contextlib.ExitStack() as stack:
        if folder is not None:
            with contextlib.suppress(OSError, NotImplementedError, filelock.Timeout):
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(filelock.FileLock(folder / ".lock", timeout=_PATIENCE))
        yield
