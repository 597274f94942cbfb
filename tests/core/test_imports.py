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


LIGHT = [
    *(
        "dd_core",
        "dd_core.study.study",
        "dd_core.study.calendar",
        "dd_core.study.curvature",
        "dd_core.study.hessian",
        "dd_core.study.datasets",
    ),
    *("dd_core.store.store", "dd_core.store.provenance", "dd_core.store.parts", "dd_core.store.retirement"),
    *("dd_core.tables.files", "dd_core.tables.attempts", "dd_core.forecast.speed", "dd_core.forecast.work"),
    *(
        "dd_core.tables.kinds",
        "dd_core.events",
        "dd_core.jobs.job",
        "dd_core.jobs.forecast",
        "dd_core.study.architectures",
    ),
    *("dd_core.machine.devices", "dd_core.training", "dd_core.curvature", "dd_core.models", "dd_core.figures"),
]


def test_what_the_orchestrator_needs_of_the_library_imports_without_torch() -> None:
    assert set(LIGHT) <= {"dd_core", *MODULES}
    code = f"import importlib, sys\nfor name in {LIGHT!r}: importlib.import_module(name)\n"
    assert run(code + f"print([name for name in {HEAVY!r} if name in sys.modules])") == "[]"


def test_the_definitions_load_without_heavy_libraries() -> None:
    code = "import sys, dd_assets.definitions\n"
    assert run(code + f"print([name for name in {HEAVY!r} if name in sys.modules])").endswith("[]")
