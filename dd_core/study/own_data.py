"""Data sets of a user's own, as a study file names them and as they were found when it was read. Needs no NumPy.

A study is complete once it is read: shape, sizes and digest of the images are part of it, so that its recipe, the
division of its work and its costs follow from it alone, on any machine. Whoever needs the images reads them
(``dd_core.data.own``), and refuses them if they are others by then.
"""

import importlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, ValidationInfo, model_validator

from dd_core.errors import UserError
from dd_core.study.datasets import DATASETS, DatasetRecord
from dd_core.study.yaml_files import Strict, describe_problems

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}")
_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FINDER = ("dd_core.data.own.examination", "examine")
_FORMS = "the name of a data set, module:function, {npz: path} or {folder: path}"


def _source(**settings: Any) -> Any:
    """A key that says where images are; only what they are is part of a recipe."""
    return Field(default=None, json_schema_extra={"left_out_of_recipe": True}, **settings)


class Found(Strict):
    """What the images are; part of the recipe.

    Attributes:
        sha256: of images and labels, as ``dd_core.data.datasets.Dataset`` computes it.
        image_shape: height, width, channels.
        num_classes: labels run from 0 to one less.
        num_train: images that are not test images.
        num_test: test images of their own; 0: what a split leaves over is tested on.
        highest: largest pixel value.
        rarest: images of the rarest class for training, and for test; None where a study was read before this was
            looked at. It follows from the images, so that it is no part of the recipe.
    """

    sha256: str
    image_shape: tuple[int, int, int]
    num_classes: int
    num_train: int
    num_test: int
    highest: int
    rarest: tuple[int, int] | None = _source()


class OwnDataset(Strict):
    """One of function, npz and folder; none of them in a study that was imported.

    Attributes:
        function: ``module:function``, without arguments; returns images and labels.
        module_folder: absolute, where its module is looked for first: the folder of the study file.
        npz: absolute path of a file with the arrays images and labels, and perhaps test_images and test_labels.
        folder: absolute path of a folder with a folder of PNG or JPEG files for each class.
        resize: height and width that these are brought to.
        class_names: the names of these folders.
        found: what the images are.
    """

    function: str | None = _source()
    module_folder: str | None = _source()
    npz: str | None = _source()
    folder: str | None = _source()
    resize: tuple[int, int] | None = _source()
    class_names: tuple[str, ...] | None = _source()
    found: Found

    @model_validator(mode="after")
    def _has_one_source(self) -> "OwnDataset":
        if sum(source is not None for source in (self.function, self.npz, self.folder)) > 1:
            raise ValueError(f"is {_FORMS}, one of them")
        return self

    @property
    def source(self) -> str:
        """Where the images are, for people."""
        return self.npz or self.folder or self.function or f"the images {self.found.sha256[:12]}"

    @property
    def title(self) -> str:
        """A short name, for figures."""
        return self.function.partition(":")[2] if self.function else Path(self.source).stem

    @property
    def record(self) -> DatasetRecord:
        """The same facts as of a data set that the platform knows by name."""
        found = self.found
        return DatasetRecord(
            name=self.title,
            title=self.title,
            image_shape=found.image_shape,
            num_classes=found.num_classes,
            num_train=found.num_train,
            num_test=found.num_test,
            reader="",
            rarest=found.rarest,
            highest=found.highest,
            class_names=self.class_names or (),
        )


def shape_and_classes(dataset: Any) -> tuple[tuple[int, int, int], int] | None:
    """Image shape and classes of a data set as a recipe tells it; None of one that is not known any more."""
    if isinstance(dataset, dict):
        height, width, channels = dataset["found"]["image_shape"]
        return (height, width, channels), dataset["found"]["num_classes"]
    record = DATASETS.get(dataset)
    return None if record is None else (record.image_shape, record.num_classes)


def read_dataset(value: Any, info: ValidationInfo) -> str | OwnDataset:
    """The value of ``data.dataset``; images of the user's own are looked at, in a process of their own if need be.

    Args:
        value: as in a study file, or as a study that was read before has it.
        info: its context says in which folder the study file lies, if there is one; else that is the working folder.

    Raises:
        ValueError: it is none of the forms, or the images cannot be used.
    """
    if isinstance(value, OwnDataset):
        return value
    if isinstance(value, str) and ":" not in value:
        if not _NAME.fullmatch(value):
            raise ValueError(f"is {_FORMS}; a name is letters, digits, and _ . + - behind the first")
        return value
    if info.context and isinstance(value, dict) and "found" in value and len(value) > 1:
        raise ValueError("found: is what the platform finds out, and not for study files")
    folder = Path((info.context or {}).get("folder") or Path.cwd()).absolute()
    content = _absolute(value, folder)
    try:
        if "found" not in content:
            module, function = _FINDER
            content |= getattr(importlib.import_module(module), function)(content)
        return OwnDataset.model_validate_json(json.dumps(content))
    except ValidationError as error:
        raise ValueError(describe_problems(error, OwnDataset)) from error
    except UserError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # somebody's files or code: whatever they do, other studies must load
        raise ValueError(f"cannot be used ({type(error).__name__}: {error})") from error


def _absolute(value: Any, folder: Path) -> dict[str, Any]:
    """The keys of an ``OwnDataset``, with paths that hold on every machine that shares the files."""
    if isinstance(value, str):
        if not _FUNCTION.fullmatch(value):
            raise ValueError("is not of the form module:function")
        return {"function": value, "module_folder": str(folder)}
    if not isinstance(value, dict):
        raise ValueError(f"is {_FORMS}")
    if "found" in value:
        return dict(value)
    sources = {"npz", "folder"} & set(value)
    unknown = sorted(map(str, set(value) - {"npz", "folder", "resize"}))
    if len(sources) != 1 or unknown:
        raise ValueError(f"is {_FORMS}" + (f"; there is no key {', '.join(unknown)}" if unknown else ""))
    (source,) = sources
    if not isinstance(value[source], str) or not value[source]:
        raise ValueError(f"{source}: is the path of a {'file' if source == 'npz' else source}")
    # Not Path.resolve, since the name by which a machine knows a shared folder may be a link.
    content: dict[str, Any] = {source: os.path.normpath(folder / Path(value[source]).expanduser())}
    if "resize" in value:
        size = value["resize"]
        size = [size, size] if isinstance(size, int) else size
        is_size = isinstance(size, list | tuple) and len(size) == 2 and all(type(side) is int for side in size)
        if source != "folder" or not is_size or not all(1 <= side <= 4096 for side in size):
            raise ValueError("resize: is for {folder: path}, a number of pixels or [height, width]")
        content["resize"] = list(size)
    return content


def _plain(dataset: str | OwnDataset) -> str | dict[str, Any]:
    return dataset if isinstance(dataset, str) else dataset.model_dump(mode="json", exclude_none=True)


# Not a union that pydantic looks through: its sentences would name the members of the union instead of the key.
DatasetName = Annotated[str | OwnDataset, PlainValidator(read_dataset), PlainSerializer(_plain)]
