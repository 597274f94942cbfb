"""What a study has to know of images of a user's own before it is used: their shape, sizes and digest.

Files are read once, and the answer is kept in the user's cache folder by name, size and times of the files, so that a
study file is read in no time afterwards. A function is called once in each process that reads the study file, in a
child of its own: whatever its module imports, prints or breaks stays there.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dd_core.cache import cache_folder, keep
from dd_core.errors import DataMissingError

# Raised when the checks or the digest change.
_VERSION = 2
_SECONDS = 600
_known: dict[str, dict[str, Any]] = {}


def examine(source: dict[str, Any]) -> dict[str, Any]:
    """Look at images.

    Args:
        source: the keys of an ``OwnDataset``, without what was found.

    Returns:
        Its keys ``found`` and, of class folders, ``class_names``.

    Raises:
        DataMissingError: they are not there, or cannot be used.
    """
    if "function" in source:
        key = json.dumps(source, sort_keys=True)
        if key not in _known:
            _known[key] = _in_child(source)
        return _known[key]
    files = _state_of_files(Path(source.get("npz") or source["folder"]))
    key = hashlib.sha256(json.dumps([_VERSION, source, files], sort_keys=True).encode()).hexdigest()
    if key not in _known:
        _known[key] = _kept(key) or _look_at(source)
        _keep(key, _known[key])
    return _known[key]


def _look_at(source: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from dd_core.data.datasets import digest
    from dd_core.data.own.sources import read_source

    own = read_source(source)
    parts = (own.labels[: own.num_train], own.labels[own.num_train :])
    found = {
        "sha256": digest(own.images, own.labels),
        "image_shape": own.images.shape[1:],
        "num_classes": own.num_classes,
        "num_train": own.num_train,
        "num_test": len(own.images) - own.num_train,
        "highest": int(own.images.max()),
        "rarest": [int(np.bincount(labels, minlength=own.num_classes).min()) for labels in parts],
    }
    return {"found": found, **({"class_names": own.class_names} if own.class_names else {})}


def _in_child(source: dict[str, Any]) -> dict[str, Any]:
    """``_look_at`` in a process of its own."""
    command = [sys.executable, "-m", "dd_core.data.own.examination"]
    try:
        done = subprocess.run(
            command, input=json.dumps(source), capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise DataMissingError(f"{source['function']} did not return within {_SECONDS} s") from None
    if done.returncode == 0:
        answer: dict[str, Any] = json.loads(done.stdout)
        if "reason" in answer:
            raise DataMissingError(answer["reason"])
        return answer
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise DataMissingError(f"{source['function']} ended its process with exit code {done.returncode} ({last})")


def _state_of_files(path: Path) -> list[tuple[str, int, int, int]]:
    """Name, size and times of a file, or of all files of a folder; empty where nothing can be seen."""
    paths = [path] if path.is_file() else sorted(Path(top, name) for top, _, names in os.walk(path) for name in names)
    state = []
    for file in paths:
        with contextlib.suppress(OSError):
            seen = file.stat()
            state.append((str(file), seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns))
    return state


def _cache_file(key: str) -> Path | None:
    folder = cache_folder("own-data")
    return folder / f"{key}.json" if folder else None


def _kept(key: str) -> dict[str, Any] | None:
    path = _cache_file(key)
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8")) if path else None
        if isinstance(content, dict) and "found" in content:
            return content
    return None


def _keep(key: str, content: dict[str, Any]) -> None:
    """Remember an answer."""
    path = _cache_file(key)
    if path is not None and not path.exists():
        keep(path, json.dumps(content).encode())


def main() -> int:
    """The child's entry point: a source from stdin, the answer to stdout; what the function prints goes to stderr."""
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        content = _look_at(json.load(sys.stdin))
    except DataMissingError as error:
        content = {"reason": str(error)}
    with answer:
        json.dump(content, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
