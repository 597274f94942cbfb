"""requirements.lock: exact versions of everything, in sections by who needs them.

`python -m environment.lock` writes it, of the environment that runs it; `make lock` makes a fresh one for this.
"""

import contextlib
import re
import subprocess
import tomllib
from collections.abc import Collection, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
SECTIONS = {
    "run": "what the quickstart, the UI and ddlab need",
    "cuda": "libraries that PyTorch from the package index is linked with: without them it cannot be imported",
    "gpu": "what PyTorch loads only to compute on an NVIDIA GPU",
    "dev": "tests, checks, documentation, the notebook, and the peers in benchmarks",
}
# The README's table of assets has them; small.
_RUN_EXTRAS = ("tensorboard",)
_ACCELERATOR = re.compile(r"nvidia-|cuda-|triton$")


def canonical(name: str) -> str:
    """A package's name as all spellings of it are compared."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read(path: Path = LOCK) -> dict[str, dict[str, str]]:
    """Names and versions by section."""
    sections: dict[str, dict[str, str]] = {name: {} for name in SECTIONS}
    packages: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"# \[(\w+)\]", line):
            packages = sections[heading[1]]
        elif "==" in line and not line.startswith("#"):
            name, _, version = line.partition("==")
            packages[canonical(name)] = version.strip()
    return sections


def closure(wanted: Iterable[str]) -> set[str]:
    """Names of everything that pip would install for these requirements, as far as this environment has them."""
    from packaging.requirements import Requirement

    found: set[tuple[str, str]] = set()
    todo = [(Requirement(text), "") for text in wanted]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonical(requirement.name)
        new = {(name, extra) for extra in ("", *requirement.extras)} - found
        found |= new
        try:
            needs = [Requirement(text) for text in distribution(name).requires or []] if new else []
        except PackageNotFoundError:
            continue
        todo += [(need, extra) for need in needs for _, extra in new]
    return {name for name, _ in found}


def linked_with_torch(names: Collection[str]) -> set[str]:
    """Those of the packages of which the dynamic linker loads a file when torch is imported.

    Packages that are not here count as not needed: torch was imported without them. Needs Linux if there are any.
    """
    if not names:
        return set()
    library = distribution("torch").locate_file("torch/lib/libtorch_python.so")
    said = subprocess.run(["ldd", str(library)], check=True, capture_output=True, text=True).stdout
    files = {Path(path).resolve() for path in re.findall(r"=> (/\S+)", said)}
    return {name for name in names if not files.isdisjoint(_files(name))}


def _files(name: str) -> Iterator[Path]:
    with contextlib.suppress(PackageNotFoundError):
        yield from (Path(str(file.locate())).resolve() for file in distribution(name).files or [])


def sections_here() -> dict[str, set[str]]:
    """Names by section, of the environment that this runs in; it must have the locked build of torch with CUDA."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    run = closure([*project["dependencies"], *(text for extra in _RUN_EXTRAS for text in extras[extra])])
    everything = closure(project["dependencies"] + [text for texts in extras.values() for text in texts])
    accelerator = {name for name in run if _ACCELERATOR.match(name)}
    linked = linked_with_torch(accelerator)
    return {
        "run": run - accelerator,
        "cuda": linked,
        "gpu": accelerator - linked,
        "dev": everything - run - {canonical(project["name"])},
    }


def write(path: Path = LOCK) -> None:
    """Write down what this environment has."""
    have = {canonical(package.metadata["Name"]): package for package in distributions()}
    lines = ["# Exact versions of everything; written by `make lock`, read by environment/install.py."]
    for section, names in sections_here().items():
        lines += ["", f"# [{section}] {SECTIONS[section]}"]
        lines += [f"{have[name].metadata['Name']}=={have[name].version}" for name in sorted(names)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
