"""A place for tests of the importer: a store, a folder of study files, and a folder for files of other systems."""

import contextlib
from pathlib import Path
from typing import Any

from dd_core.exchange.gathering import Request
from dd_core.exchange.importer import Imported, import_metrics
from dd_core.store.store import Store
from dd_core.study.files import read_study
from dd_core.tables.warehouse import connect

# How a run of others was trained; only needed for new studies, and it never hurts.
TRAINED: dict[str, Any] = {
    "settings": {
        "architecture": "preact_resnet18",
        "label_noise": 0.15,
        "batch_size": 128,
        "optimizer": {"name": "adam", "learning_rate": 1e-4},
    },
    "data": {"dataset": "cifar10"},
}


class Bench:
    """A store, a folder of study files, and a folder for files of other systems."""

    def __init__(self, folder: Path):
        """All of them below one folder."""
        self.store, self.studies, self.files = Store(folder / "root"), folder / "studies", folder / "files"
        self.studies.mkdir()
        self.files.mkdir()

    def write(self, name: str, text: str | bytes) -> Path:
        """A file of another system."""
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def load(self, *paths: Path, study: str = "other", dry_run: bool = False, **request: Any) -> Imported:
        """Import."""
        wanted = Request(study, tuple(paths) or (self.files,), **request)
        return import_metrics(self.store, [self.studies], wanted, dry_run=dry_run)

    def rows(self, table: str, sql: str = "SELECT * FROM rows", study: str = "other") -> list[tuple[Any, ...]]:
        """Rows of the present recipe of the imported study, through the warehouse's view, sorted."""
        read = read_study(self.studies / f"{study}.yaml")
        recipes = [read.recipe_hash(arm) for arm in read.arms.values()]
        current = f"SELECT * FROM {table} WHERE study = $study AND list_contains($recipes, recipe)"
        with contextlib.closing(connect(self.store)) as connection:
            found = connection.execute(
                f"WITH rows AS ({current}) {sql} ORDER BY ALL", {"study": study, "recipes": recipes}
            )
            return found.fetchall()
