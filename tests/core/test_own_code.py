"""Code of the user's own is found beside the study files and on the path, and what is wrong with it is one sentence."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from dd_core.errors import UserError
from dd_core.study.own_code import is_own_code, load_own_code, source_digest


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of study files, forgotten afterwards, with the modules in it."""
    folder = tmp_path / "studies"
    folder.mkdir()
    monkeypatch.setenv("DD_STUDIES", str(folder))
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("own_")]:
        monkeypatch.delitem(sys.modules, name)
    return folder


def test_a_module_beside_the_study_files_is_found_with_what_it_imports(studies: Path) -> None:
    (studies / "own_first.py").write_text("from own_second import NUMBER\n\n\ndef make():\n    return NUMBER\n")
    (studies / "own_second.py").write_text("NUMBER = 7\n")
    assert load_own_code("own_first:make", "here")() == 7


def test_no_file_beside_the_studies_stands_for_a_library(studies: Path) -> None:
    (studies / "csv.py").write_text("raise RuntimeError\n")
    code = "from dd_core.study.own_code import load_own_code; print(load_own_code('csv:reader', 'x'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "built-in function reader" in done.stdout


def test_the_digest_is_of_the_file_and_runs_nothing(studies: Path) -> None:
    package = studies / "own_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('was run')\n")
    (package / "models.py").write_text("raise RuntimeError('was run')\n")
    expected = hashlib.sha256((package / "models.py").read_bytes()).hexdigest()
    assert source_digest("own_package.models:make") == expected
    assert not [name for name in sys.modules if name.startswith("own_package")]


def test_a_changed_source_is_told_or_loaded_anew(studies: Path) -> None:
    path = studies / "own_changing.py"
    path.write_text("VALUE = 1\n")
    before = source_digest("own_changing:VALUE")
    assert load_own_code("own_changing:VALUE", "x", before) == 1
    path.write_text("VALUE = 22\n")
    with pytest.raises(UserError, match="x: the source of own_changing has changed since the study was read"):
        load_own_code("own_changing:VALUE", "x", before)
    assert load_own_code("own_changing:VALUE", "x", source_digest("own_changing:VALUE")) == 22


@pytest.mark.parametrize(
    ("code", "target", "reason"),
    [
        (
            "",
            "own_nowhere:make",
            r"x: own_nowhere:make cannot be imported \(there is no module own_nowhere in .*studies",
        ),
        ("", "own_code_here:make", r"x: there is no make in own_code_here"),
        (
            "import own_absent",
            "own_code_here:make",
            r"cannot be imported \(ModuleNotFoundError: No module named 'own_absent'",
        ),
        ("def make(:", "own_code_here:make", r"cannot be imported \(SyntaxError: .*own_code_here.py:1"),
        (
            "1 / 0",
            "own_code_here:make",
            r"cannot be imported \(ZeroDivisionError: division by zero, .*own_code_here.py:1",
        ),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(studies: Path, code: str, target: str, reason: str) -> None:
    (studies / "own_code_here.py").write_text(f"{code}\n")
    with pytest.raises(UserError, match=reason) as told:
        load_own_code(target, "x")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("module", ["own_absent", "json.absent", "own_file.inside"])
def test_a_module_that_is_absent_has_no_digest(studies: Path, module: str) -> None:
    (studies / "own_file.py").write_text("")
    with pytest.raises(UserError, match=f"there is no module {module} in .*studies"):
        source_digest(f"{module}:make")


def test_names() -> None:
    assert is_own_code("my_models:make") and is_own_code("a.b:C")
    assert not any(map(is_own_code, ("resnet18", "a:b:c", "a/b:c", ":c", "a:", "a b:c", "1a:b", "a..b:c")))
