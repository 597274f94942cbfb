"""The two Dockerfiles. No engine builds them here: what can be known without one is checked.

That is: what they copy is there, versions are those of the lock file, nothing is root, and the lists of packages
suffice, by importing the code where every other package is out of reach.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dd_assets.compute.kubernetes.settings import KubernetesSettings
from environment.lock import canonical, closure, read
from tests.support import REPOSITORY

IMAGES = {
    "worker": ("Dockerfile", "requirements-worker.txt", ["dd_core"]),
    "dagster": ("Dockerfile.dagster", "requirements-dagster.txt", ["dd_core", "dd_assets"]),
}

Instruction = tuple[str, str]


def instructions(name: str) -> list[Instruction]:
    """A Dockerfile's instructions in order, with their arguments in one line."""
    text = (REPOSITORY / "k8s" / name).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in joined.splitlines()]


def arguments(name: str, instruction: str) -> list[str]:
    return [text for what, text in instructions(name) if what == instruction]


def requirements(name: str) -> list[str]:
    text = (REPOSITORY / "k8s" / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def run_without_others(packages: set[str], modules: list[str]) -> None:
    """Import modules in a process to which only these third-party packages exist."""
    denied = {
        top
        for top, owners in packages_distributions().items()
        if not {canonical(owner) for owner in owners} & (packages | {"double-descent-lab"})
    }
    assert denied
    code = (
        "import importlib, sys\n"
        f"denied = {denied!r}\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in denied:\n"
        "            raise ModuleNotFoundError(f'not in the image: {name}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def modules_of(package: str) -> dict[str, Path]:
    paths = sorted((REPOSITORY / package).rglob("*.py"))
    return {
        ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__"): path for path in paths
    }


def imports_within(path: Path) -> Iterator[str]:
    """Modules of the library that a file imports, be it within functions, but for those that only its types need."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    skipped = {child for node in for_types for child in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in skipped and (node.module or "").startswith("dd_core."):
            yield str(node.module)


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_is_not_root_and_gets_signals(image: str) -> None:
    name = IMAGES[image][0]
    uid = str(KubernetesSettings().run_as_user)
    assert arguments(name, "USER") == [f"{uid}:{uid}"]
    last_stage = [what for what, _ in instructions(name)]
    after = last_stage[len(last_stage) - last_stage[::-1].index("USER") :]
    assert set(after) == {"WORKDIR", "ENTRYPOINT", "CMD"}, "nothing is done as somebody else afterwards"
    assert arguments(name, "ENTRYPOINT") == ['["tini", "-g", "--"]']
    assert any("tini" in text for text in arguments(name, "RUN"))
    assert not arguments(name, "ADD")
    (environment,) = [text for text in arguments(name, "ENV") if "PYTHONPATH" in text]
    for setting in ("PATH=/opt/venv/bin:$PATH", "PYTHONDONTWRITEBYTECODE=1", "HOME=/tmp"):
        assert setting in environment, "the root file system is read-only"


@pytest.mark.parametrize("image", IMAGES)
def test_the_base_can_be_pinned_and_is_the_python_of_the_lock(image: str) -> None:
    name = IMAGES[image][0]
    assert arguments(name, "ARG") == ["PYTHON=python:3.11-slim-bookworm"]
    assert arguments(name, "FROM") == ["${PYTHON} AS dependencies", "${PYTHON}"]


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_not_ignored(image: str) -> None:
    name, listed, packages = IMAGES[image]
    copies = [text.split() for text in arguments(name, "COPY")]
    sources = [source for words in copies if not words[0].startswith("--from") for source in words[:-1]]
    assert sources == ["requirements.lock", f"k8s/{listed}", *packages]
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    kept = [line[1:] for line in ignored if line.startswith("!")]
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert any(Path(source).match(pattern) for pattern in kept), source


@pytest.mark.parametrize("image", IMAGES)
def test_a_change_of_code_does_not_install_packages_again(image: str) -> None:
    name, listed, _ = IMAGES[image]
    order = instructions(name)
    installed = next(number for number, (_, text) in enumerate(order) if "pip install" in text)
    code = next(number for number, (what, text) in enumerate(order) if what == "COPY" and text.startswith("dd_core"))
    brought = next(number for number, (_, text) in enumerate(order) if text.startswith("--from=dependencies"))
    assert installed < brought < code
    assert f"--constraint /build/requirements.lock --requirement /build/{listed}" in order[installed][1]
    assert sum("pip install" in text for _, text in order) == 1


@pytest.mark.parametrize("image", IMAGES)
def test_every_package_has_its_version_in_the_lock_file(image: str) -> None:
    locked = {name: version for section in read().values() for name, version in section.items()}
    wanted = requirements(IMAGES[image][1])
    for requirement in map(Requirement, wanted):
        version = locked.get(canonical(requirement.name))
        assert version is not None, f"{requirement.name} is not in requirements.lock"
        assert requirement.specifier.contains(version), f"{requirement} but {version} in requirements.lock"
    assert closure(wanted) <= set(locked), "what they need is locked as well"


def test_the_worker_needs_no_more_than_its_list() -> None:
    packages = closure(requirements("requirements-worker.txt"))
    assert {"torch", "dagster-pipes"} <= packages
    assert not packages & {"dagster", "dagster-shared", "dagster-k8s", "kubernetes", "grpcio", "sqlalchemy"}
    # Not by workers.
    drawn = ("dd_core.figures.charts", "dd_core.figures.panels", "dd_core.figures.drawing", "dd_core.reports")
    run_without_others(packages, [*(m for m in modules_of("dd_core") if not m.startswith(drawn)), "dagster_pipes"])


def test_dagster_needs_no_torch_and_no_more_than_its_list() -> None:
    packages = closure(requirements("requirements-dagster.txt"))
    assert not [name for name in packages if name.startswith(("torch", "triton", "nvidia-"))]
    assets = modules_of("dd_assets")
    library = {module for path in assets.values() for module in imports_within(path)}
    library.remove("dd_core.weights.importer")  # before it, the command asks for torch and says where there is some
    run_without_others(packages, [*assets, *sorted(library), "dagster_webserver", "dagster_postgres", "psycopg2"])
