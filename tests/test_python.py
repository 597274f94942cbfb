"""The notebook and docs/python.md, run on a small data root: they find the numbers that were computed there."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.files import read_parquet
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.training.train import train_arm

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def study(make_study: Any) -> Study:
    return make_study(name="quickstart")


@pytest.fixture(scope="module")
def root(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("data"))
    for arm in study.arms.values():
        train_arm(study, arm, store, until=4)
        compute_curvature(study, Checkpoint(arm, 4), store)
    return store


def test_the_notebook_runs_and_its_numbers_are_those_of_the_tables(
    study: Study, root: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DD_ROOT", str(root.root))
    spec = importlib.util.spec_from_file_location("notebook", DOCS / "notebook/quickstart.py")
    assert spec is not None and spec.loader is not None
    notebook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(notebook)
    outputs, found = notebook.app.run()
    assert sum(output is not None for output in outputs) == 7
    assert list(found["widths"].k) == [1, 2]
    shown = Checkpoint(study.arms[f"plain.k{found['chosen'].value:03d}"], 4)
    assert found["checkpoint"].checkpoint == shown
    table = read_parquet(PER_IMAGE_CURVATURE.path(root, study, shown)).to_pandas().query("trial == 0")
    expected = table.nlargest(12, "trace")
    assert list(found["top"].image_id) == list(expected.image_id)
    np.testing.assert_allclose(found["by_hand"], expected.trace, rtol=1e-5)
    rows = root.table_folder("training_evals", "quickstart", shown.arm.key) / "0004.parquet"
    own = read_parquet(rows).to_pandas().query("trial == 0 and epoch == 4")
    assert found["wrong"] == pytest.approx(own.train_error.item(), abs=1e-6)


def test_the_page_about_python_runs_as_typed_but_for_names(
    root: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").symlink_to(root.root)
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    for typed, here in (('"preact-resnet10", k=4, epoch=120', '"plain", k=2, epoch=4'), ("epoch = 120", "epoch = 4")):
        assert typed in text
        text = text.replace(typed, here)
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "lab.figure" not in block]
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace('10", 4, 1, 10', '10", 2, 1, 10'), names)
    assert names["lab"].studies == ["quickstart"]
    by_name, plain = names["checkpoint"].model(0), names["model"]
    with torch.no_grad():
        torch.testing.assert_close(plain(names["data"].images), by_name(names["data"].images), rtol=1e-5, atol=1e-5)
