"""Orders in which classes came, as files of NumPy, brought beside the study file of what was trained with them."""

import contextlib
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

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


def read_orders(folder: Path, asked: str | None, is_published: bool, trials: Collection[int]) -> Orders:
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
        orders[trial] = _read(path)
    return Orders(orders)


def _read(path: Path) -> bytes:
    """The text of a file, if it is an order."""
    text = path.read_bytes()
    try:
        order = np.load(io.BytesIO(text), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        is_pickled = "pickle" in str(error).lower() and text.startswith(b"\x93NUMPY")
        what = "holds Python objects, not numbers" if is_pickled else "is no whole .npy file"
        raise UserError(f"{path}: {what}; save the order as np.save(path, np.array(order))") from error
    if order.ndim != 1 or order.dtype.kind not in "iu" or not len(order):
        raise UserError(f"{path}: is no list of whole numbers, but {order.dtype} of shape {order.shape}")
    classes, counts = np.unique(order, return_counts=True)
    if (counts > 1).any():
        raise UserError(f"{path}: lists class {classes[counts > 1][0]} twice")
    missing = np.setdiff1d(np.arange(len(order)), classes)
    if len(missing):
        raise UserError(f"{path}: lists {len(order)} classes, but class {missing[0]} is missing")
    return text
