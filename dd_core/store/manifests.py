"""What a manifest is in bytes: JSON that also says where it lies and what its own digest is.

A manifest decides which files count. One whose text has changed since it was written, or that lies in another's place,
is therefore as good as none. Those of earlier versions say nothing of themselves; of them only the form is checked.
"""

import hashlib
import json
from typing import Any

_SEAL = "manifest"


def sealed(content: dict[str, Any], place: str) -> dict[str, Any]:
    """The content as it is written: with its place, a path below the data root, and the digest of both."""
    plain = json.loads(json.dumps({name: value for name, value in content.items() if name != _SEAL}))
    return {**plain, _SEAL: {"path": place, "sha256": _digest(plain, place)}}


def opened(text: bytes | None, place: str) -> dict[str, Any] | None:
    """The content of a manifest that was read at a place, or None where it is none, damaged, or another's."""
    try:
        manifest = json.loads(text.decode("utf-8")) if text is not None else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(manifest, dict) or not _names_files(manifest.get("files")):
        return None
    if _SEAL in manifest:
        seal = manifest.pop(_SEAL)
        if seal != {"path": place, "sha256": _digest(manifest, place)}:
            return None
    return manifest


def _digest(content: dict[str, Any], place: str) -> str:
    return hashlib.sha256(json.dumps([place, content], sort_keys=True).encode()).hexdigest()


def _names_files(files: Any) -> bool:
    wanted = {"path": str, "sha256": str, "bytes": int}
    return isinstance(files, dict) and all(
        isinstance(entry, dict) and all(isinstance(entry.get(name), kind) for name, kind in wanted.items())
        for entry in files.values()
    )
