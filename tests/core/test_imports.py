"""Who may import what: the library works without Dagster, and the command line answers before torch is loaded."""

import pkgutil
import subprocess
import sys

import dd_core

MODULES = sorted(module.name for module in pkgutil.walk_packages(dd_core.__path__, "dd_core."))
HEAVY = ("torch", "torchvision", "pandas", "pyarrow", "altair", "duckdb", "kubernetes", "sklearn", "scipy")


def run(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_library_imports_without_dagster() -> None:
    assert "dd_core.training.session" in MODULES
    run(
        "import importlib, sys\n"
        "for name in ('dagster', 'dagster_shared', 'dagster_k8s', 'dd_assets'): sys.modules[name] = None\n"
        f"for name in {MODULES!r}: importlib.import_module(name)"
    )


def test_what_the_orchestrator_needs_of_the_library_imports_without_torch() -> None:
    names = ("studies", "store", "provenance", "tables", "curvature_settings", "hessian_settings", "jobs.job")
    light = [f"dd_core.{name}" for name in names]
    assert set(light) <= set(MODULES)
    code = f"import importlib, sys\nfor name in {light!r}: importlib.import_module(name)\n"
    assert run(code + f"print([name for name in {HEAVY!r} if name in sys.modules])") == "[]"


def test_the_definitions_load_without_heavy_libraries() -> None:
    code = "import sys, dd_assets.definitions\n"
    assert run(code + f"print([name for name in {HEAVY!r} if name in sys.modules])").endswith("[]")
