"""Orders in which classes came, as files of NumPy, brought beside the study file of what was trained with them."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dd_core.data.class_schedule import read_orders
from dd_core.errors import UserError
from dd_core.store.files import remove, write_atomically

_PUBLISHED = "class_order/index-{trial}.npy"


@dataclass
class Orders:
    """The orders of some trials, by the text of their files.

    Attributes:
        texts: by trial; empty: all classes are there from the beginning.
        name: absolute path of the files, with {trial}, once they lie beside the study file; None without any.
    """

    texts: dict[int, bytes]
    name: str | None = None
    _new: list[Path] = field(default_factory=list)

    @contextlib.contextmanager
    def beside(self, folder: Path, study: str) -> Iterator[None]:
        """Put them beside a study file while it is made, and for ever if ``keep`` is called.

        Raises:
            UserError: other orders lie there.
        """
        if self.texts:
            self.name = str(folder.absolute() / f"{study}_order" / "index-{trial}.npy")
        try:
            for trial, text in self.texts.items():
                path = Path(str(self.name).replace("{trial}", str(trial)))
                if not path.exists():
                    self._new.append(path)
                    write_atomically(path, partial(_write, text))
                elif path.read_bytes() != text:
                    raise UserError(f"{path} is another order of classes than that of trial {trial} in these files")
            yield
        finally:
            remove(*self._new)
            for place in {path.parent for path in self._new}:
                with contextlib.suppress(OSError):  # there is something else in it, or it is gone
                    place.rmdir()

    def keep(self) -> None:
        """Let them stay."""
        self._new.clear()


def _write(text: bytes, path: Path) -> None:
    path.write_bytes(text)


def orders_of(folder: Path, asked: str | None, is_published: bool, trials: Collection[int]) -> Orders:
    """The orders of classes of some trials.

    Args:
        folder: of the files that are imported.
        asked: path, below it or absolute, with {trial} or {index} where each has its own; None: where published code
            has it; empty: there is none.
        is_published: whether the files are called as the published code calls them, which always has orders.
        trials: whose.

    Raises:
        UserError: one is missing, or no order of all classes from 0.
    """
    if asked == "" or (asked is None and not is_published):
        return Orders({})
    places = [asked] if asked else [_PUBLISHED, f"../{_PUBLISHED}"]
    orders = {}
    for trial in sorted(trials):
        paths = [folder / place.replace("{index}", "{trial}").replace("{trial}", str(trial)) for place in places]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            hint = "" if asked else "; say where it is with --class-order, or pass --all-classes if there is none"
            raise UserError(f"{paths[0]}, the order in which classes came, does not exist{hint}")
        read_orders(str(path))  # refuses what is none
        orders[trial] = path.read_bytes()
    return Orders(orders)
