"""What YAML files have been found to say, in the user's cache folder: a file that has not changed is not parsed again.

The parser in Python takes four milliseconds for a study, and every command reads all of them. The name of what is kept
covers the text, this version's reading of it and the parser's; what is damaged is as good as none.
"""

import contextlib
import hashlib
import json
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dd_core.cache import cache_folder, keep


def kept_mapping(text: str) -> dict[str, Any] | None:
    """The content of a file of this text, if it was parsed and found to be usable before."""
    path = _path(text)
    with contextlib.suppress(OSError, ValueError):
        content = json.loads(path.read_bytes()) if path else None
        if isinstance(content, dict):
            return content
    return None


def keep_mapping(text: str, content: dict[str, Any]) -> None:
    """Keep it for the next process, where the cache folder can be written."""
    if path := _path(text):
        keep(path, json.dumps(content).encode())


def _path(text: str) -> Path | None:
    folder = cache_folder("yaml")
    return folder / f"{hashlib.sha256(f'{_reader()} {text}'.encode()).hexdigest()}.json" if folder else None


@cache
def _reader() -> str:
    """Everything but the text that the content follows from."""
    code = Path(__file__).with_name("yaml_files.py").read_bytes()
    return f"{version('ruamel.yaml')} {hashlib.sha256(code).hexdigest()}"
