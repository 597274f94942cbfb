"""The README and docs/ keep their word: queries run, links hold, the site builds, its references have no gaps."""

import contextlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from dd_assets.catalogue import catalogue
from dd_core.results.curvature_summary import rebuild
from dd_core.results.loss_slopes import rebuild as rebuild_loss_slopes
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.former_names import NOW
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.images import write_images
from dd_core.tables.warehouse import connect
from dd_core.training.train import train_arm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks/README.md"]
}
TRAINING = PAGES[ROOT / "docs/training.md"]
# Those of tasks and memorisation ask for other studies: tests/figures/test_memorization_figures.py runs them.
QUERIES = [
    query
    for query in re.findall(r"```sql\n(.*?)```", PAGES[ROOT / "docs/queries.md"], flags=re.DOTALL)
    if "'quickstart'" in query
]


@pytest.fixture(scope="module")
def small_quickstart(tmp_path_factory):
    """The quickstart study at its full length on a tenth of the images: every table, in seconds."""
    full = catalogue().get("quickstart")
    content = {**full.model_dump(mode="json"), "widths": [2, 4], "checkpoints": [0, 60, 120]}
    content["data"]["num_train"] = 100
    content["evaluation"]["every"] = 10
    study = type(full).model_validate(content, strict=False)
    store = Store(tmp_path_factory.mktemp("data"))
    for arm in study.arms.values():
        train_arm(study, arm, store, 120)
    for checkpoint in study.iter_checkpoints():
        compute_curvature(study, checkpoint, store)
    write_images(store, study)
    rebuild(store, study)
    rebuild_loss_slopes(store, study)
    return store


@pytest.fixture(scope="module")
def views_of_small_quickstart(small_quickstart):
    with contextlib.closing(connect(small_quickstart)) as connection:
        yield connection


def test_there_are_nine_queries_and_the_readme_shows_one():
    assert len(QUERIES) == 9
    assert re.findall(r"```sql\n(.*?)```", README, flags=re.DOTALL) == QUERIES[:1]


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: re.sub(r"\W+", "_", query)[:40])
def test_readme_query_runs_and_finds_rows(views_of_small_quickstart, query):
    rows = views_of_small_quickstart.sql(query).fetchall()
    assert rows
    assert all(value is not None for value in rows[0])


def test_the_python_of_the_readme_runs(small_quickstart, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(small_quickstart.root)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL):
        exec(code, names)
    assert (names["curvature"].method, len(names["curvature"].columns["trace"])) == ("exact", 50)


def test_learned_epoch_query_tells_noisy_from_clean(small_quickstart):
    """The join on images must match each trial's own labels: mislabelled images are learned later."""
    with contextlib.closing(connect(small_quickstart)) as connection:
        rows = connection.sql(next(query for query in QUERIES if "median_epoch" in query)).fetchall()
    epochs = {(k, noisy): epoch for k, noisy, epoch, _ in rows}
    assert epochs[4, True] > epochs[4, False]


def test_the_monitor_of_the_readme_measures_what_it_says(tmp_path, monkeypatch, make_study):
    """Put into a file and named in a study, as the README says; against plain counting in the checkpoint."""
    code = next(
        block for block in re.findall(r"```python\n(.*?)```", TRAINING, flags=re.DOTALL) if "(Monitor)" in block
    )
    assert len(code.strip().splitlines()) <= 20
    (tmp_path / "my_monitors.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    entry = {"use": "my_monitors:SmallWeights", "every": "1 epoch", "options": {"limit": 0.01}}
    study = make_study(monitors={"custom": {"sparsity": entry}})
    arm, store = next(iter(study.arms.values())), Store(tmp_path / "root")
    train_arm(study, arm, store, 4)
    weights, _ = load_checkpoint(store, study, Checkpoint(arm, 4))
    with contextlib.closing(connect(store)) as connection:
        rows = connection.sql(
            "SELECT trial, value FROM training_monitors WHERE metric = 'small_weights' AND epoch = 4 ORDER BY trial"
        ).fetchall()
    for trial, value in rows:
        entries = torch.cat([t[trial].flatten() for name, t in weights.items() if "running" not in name])
        assert value == pytest.approx(float((entries.abs() < 0.01).double().mean()), rel=1e-12)
    assert [trial for trial, _ in rows] == [0, 1]


def test_the_study_settings_of_the_readme_are_valid(make_study):
    block = next(b for b in re.findall(r"```yaml\n(.*?)```", TRAINING, flags=re.DOTALL) if "keep_best" in b)
    content = YAML(typ="safe", pure=True).load(block)
    study = make_study(**content | {"epochs": 50, "checkpoints": (0, 50)})
    assert study.variants["s-core"].precision == "bfloat16"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    links = [link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if not link.startswith("http")]
    targets = [((page.parent / file).resolve() if file else page, heading) for file, _, heading in links]
    assert [str(target) for target, _ in targets if not target.exists()] == []
    assert [heading for target, heading in targets if heading and heading not in _headings(target)] == []


def _headings(page: Path) -> set[str]:
    """The headings of a page as links name them, on GitHub and on the site."""
    headings = re.findall("^#+ (.*)", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_site_builds_and_fetches_nothing_from_elsewhere(tmp_path):
    """Strictly: a link, a heading, a page that is not in the menu or a docstring that cannot be read is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.html")}
    loads = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?https?:")
    assert [name for name, page in pages.items() if loads.search(page)] == []
    assert "variants.NAME.optimizer" in pages["study_keys.html"] and "clip_norm" in pages["study_keys.html"]
    assert "image_progress" in pages["tables.html"] and "double_descent_curve" in pages["figures.html"]


def test_every_key_of_a_study_file_says_what_it_is_for():
    """The site's reference is made of these."""
    schema = Study.model_json_schema()
    models = {"Study": schema, **schema["$defs"]}
    del models["FoundOrder"]  # filled in, no key of a file
    described = {
        f"{name}.{key}": setting.get("description") or "$ref" in str(setting)
        for name, model in models.items()
        for key, setting in model.get("properties", {}).items()
    }
    assert [key for key, words in described.items() if not words] == []


def test_every_study_that_comes_with_it_is_told_of():
    names = {path.stem for path in (ROOT / "dd_assets/studies").glob("*.yaml")}
    assert {name for name in names if f"`{name}`" not in PAGES[ROOT / "docs/studies.md"]} == set()
    assert {name for name in names if f"`{name}`" not in README} == set()


def test_every_benchmark_stands_in_the_table_of_all():
    told, folder = PAGES[ROOT / "benchmarks/README.md"], ROOT / "benchmarks"
    named = set(re.findall(r"[\w/*]+\.py", told)) - {"scaling_*.py"}
    scripts = {str(path.relative_to(folder)) for path in folder.rglob("*.py") if path.name != "__init__.py"}
    assert {name for name in scripts if not name.startswith("scaling_")} - named == set()
    quick = re.findall(r'"(\w+\.py)",', (folder / "bench.py").read_text(encoding="utf-8"))
    assert set(quick) <= scripts & named and len(quick) > 5


def test_citation_and_package_agree():
    citation = YAML(typ="safe", pure=True).load(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in project["authors"]]
    assert f"## {project['version']} " in PAGES[ROOT / "CHANGELOG.md"]


def test_the_changelog_tells_every_name_that_changed():
    """Somebody's query fails with the old one, and they will look for it here."""
    told = {
        name: row.partition(" | ")[2]
        for row in re.findall(r"^\| (`.*)", PAGES[ROOT / "CHANGELOG.md"], re.MULTILINE)
        for name in re.findall("`(.*?)`", row.partition(" | ")[0])
    }
    wrong = {name: was.name for name, was in NOW.items() if f"`{was.name}" not in told.get(name, "")}
    assert wrong == {}


def test_environment_variables_of_the_readme_are_read_somewhere():
    sources = [*ROOT.glob("dd_*/**/*.py"), *ROOT.glob("environment/*.py"), ROOT / "Makefile"]
    code = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = set(re.findall(r"`(DD_[A-Z_]+)", "".join(PAGES.values())))
    assert named
    assert {name for name in named if name not in code} == set()
