"""Data roots of earlier versions, brought up to date once.

Version 2 has the manifests of table files below ``manifests/``. Before it they lay beside the files, where other
readers of these folders stumbled over them.
"""

import json

from dd_core.store.manifests import opened
from dd_core.store.store import Store, write_text

_VERSION = "2"


def bring_up_to_date(store: Store) -> None:
    """Move the manifests of an earlier version; killed at any moment, it goes on when called again."""
    mark = store.root / "manifests" / "layout"
    if mark.exists():
        return
    with store.lock("layout"):
        for path in sorted((store.root / "tables").glob("**/*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                content.pop("manifest", None)  # the seal, which holds for this place only
                if (manifest := opened(json.dumps(content).encode(), "")) is not None:
                    store.seal(store.manifest_path(path), manifest)
            except (TypeError, AttributeError, ValueError):
                pass  # it is none, and its file does not exist then
            path.unlink()
        write_text(mark, _VERSION)
