"""What Dagster sees without running anything: the assets of the shipped studies, and the specification of each kind."""

import importlib.util
import re
import shutil
import tomllib

import dagster as dg
import pytest
from support import REPOSITORY, Lab

from dd_assets.catalogue import study_folders
from dd_core.study.files import Catalogue, read_studies
from dd_core.study.study import Study
from dd_core.study.yaml_files import read_mapping

FIGURES = {
    "double_descent_curve",
    "training_curves",
    "epoch_by_width",
    "curvature_by_width",
    "curvature_over_training",
    "most_curved_images",
    "curvature_definitions",
    "hessian_spectrum",
    "hessian_by_width",
    "hessian_over_training",
    "gpu_hours",
    "training_dynamics",
    "loss_slope_straightness",
    "loss_slope_mosaic",
    "loss_slope_prediction",
    "loss_slope_windows",
    "loss_slope_knee",
    "loss_slope_grid",
    "loss_slope_units",
    "loss_slope_noise",
    "loss_slope_by_width",
    *("plasticity", "curvature_by_class_age", "forgetting_at_boundaries", "detection_by_score", "scores_against_truth"),
    *("score_ranks", "memorization_histogram", "memorized_images"),
    *("graph_curves", "graph_collapse", "accuracy_against_ceiling", "cycle_loss", "graph_widths"),
    "nsm_claims_page",
}
TABLES = {
    *("images", "runs", "training_batches", "training_evals", "image_progress", "curvature", "hessian_spectra"),
    "class_progress",
    *("loss_slopes", "loss_slope_fits", "resource_probe", "training_monitors"),
    *("trained_checkpoints", "computed_curvature", "computed_hessians"),
    *("memorization", "memorization_detection", "memorization_truth", "memorization_influence"),
    *("memorization_agreement", "boundary_forgetting", "graph_progress", "nsm_results", "nsm_claims"),
}
EXPORTS = {"metric_exports", "curvature_exports", "tensorboard_exports"}
REPORTS = {"report"}
SHIPPED = {
    *("quickstart", "double_descent", "label_noise_20", "loss_slope", "loss_slope_digits", "mislabelled_digits"),
    *("incremental_cifar100", "incremental_digits", "memorization_digits"),
}
OF_GRAPHS = {"nsm_grounded", "nsm_published", "nsm_width"}

# asset | group | kinds | reads | partitions, code version, checks
SPECS = """
accuracy_against_ceiling | nsm | altair | nsm_results |
boundary_forgetting | memorization | duckdb parquet | \
    computed_curvature settings-memorization-DIGEST trained_checkpoints |
class_progress | tables | duckdb parquet | trained_checkpoints |
computed_curvature | tables | json | tiny/per_image_curvature |
computed_hessians | tables | json | tiny/hessian |
curvature | tables | duckdb parquet | computed_curvature |
curvature_by_class_age | incremental | altair | class_progress computed_curvature images |
curvature_by_width | figures | altair | curvature training_evals |
curvature_definitions | figures | altair | computed_curvature curvature training_evals |
curvature_exports | exports | json numpy | computed_curvature |
curvature_over_training | figures | altair | curvature training_evals |
cycle_loss | nsm | altair | graph_progress |
detection_by_score | memorization | altair | memorization_detection |
double_descent_curve | figures | altair | training_evals |
epoch_by_width | figures | altair | training_evals |
forgetting_at_boundaries | incremental | altair | boundary_forgetting class_progress |
gpu_hours | figures | altair | runs |
graph_collapse | nsm | altair | graph_progress nsm_results |
graph_curves | nsm | altair | graph_progress nsm_results |
graph_progress | nsm | duckdb parquet | settings-nsm_results-DIGEST trained_checkpoints |
graph_widths | nsm | altair | nsm_results |
hessian_by_width | figures | altair | hessian_spectra training_evals |
hessian_over_training | figures | altair | hessian_spectra training_evals |
hessian_spectra | tables | duckdb parquet | computed_hessians |
hessian_spectrum | figures | altair | hessian_spectra training_evals |
image_progress | tables | duckdb parquet | trained_checkpoints |
images | tables | duckdb parquet | trained_checkpoints |
loss_slope_by_width | loss_slopes | altair | loss_slope_fits loss_slopes training_evals |
loss_slope_fits | loss_slopes | duckdb parquet | settings-loss_slopes-DIGEST trained_checkpoints |
loss_slope_grid | loss_slopes | altair | loss_slopes |
loss_slope_knee | loss_slopes | altair | loss_slopes |
loss_slope_mosaic | loss_slopes | altair | loss_slope_fits loss_slopes training_batches |
loss_slope_noise | loss_slopes | altair | loss_slopes |
loss_slope_prediction | loss_slopes | altair | loss_slopes |
loss_slope_straightness | loss_slopes | altair | loss_slopes |
loss_slope_units | loss_slopes | altair | loss_slopes |
loss_slope_windows | loss_slopes | altair | loss_slope_fits loss_slopes |
loss_slopes | loss_slopes | duckdb parquet | settings-loss_slopes-DIGEST trained_checkpoints |
memorization | memorization | duckdb parquet | computed_curvature settings-memorization-DIGEST trained_checkpoints |
memorization_agreement | memorization | duckdb parquet | \
    computed_curvature settings-memorization-DIGEST trained_checkpoints |
memorization_detection | memorization | duckdb parquet | \
    computed_curvature settings-memorization-DIGEST trained_checkpoints |
memorization_histogram | memorization | altair | memorization_truth |
memorization_influence | memorization | duckdb parquet | \
    computed_curvature settings-memorization-DIGEST trained_checkpoints |
memorization_truth | memorization | duckdb parquet | \
    computed_curvature settings-memorization-DIGEST trained_checkpoints |
memorized_images | memorization | altair | memorization memorization_truth |
metric_exports | exports | csv json | training_batches training_evals training_monitors |
most_curved_images | figures | altair | computed_curvature curvature training_evals |
nsm_claims | nsm | duckdb parquet | settings-nsm_results-DIGEST trained_checkpoints |
nsm_claims_page | nsm | altair | nsm_claims |
nsm_results | nsm | duckdb parquet | settings-nsm_results-DIGEST trained_checkpoints |
plasticity | incremental | altair | class_progress training_monitors |
report | reports | html | FIGURES |
resource_probe | tables | duckdb parquet | |
runs | tables | duckdb parquet | trained_checkpoints |
score_ranks | memorization | altair | memorization memorization_truth |
scores_against_truth | memorization | altair | memorization_agreement |
settings-loss_slopes-DIGEST | loss_slopes | yaml | |
settings-memorization-DIGEST | memorization | yaml | |
settings-nsm_results-DIGEST | nsm | yaml | |
tensorboard_exports | exports | tensorboard | training_batches training_evals training_monitors |
tiny/checkpoints | tiny | pytorch safetensors | tiny/recipe-plain-DIGEST \
    | arm x epoch, 1, files_match_manifests metrics_complete_and_in_range
tiny/hessian | tiny | parquet pytorch | tiny/checkpoints tiny/recipe-plain-DIGEST tiny/settings-hessian-DIGEST \
    | arm x epoch, 1,
tiny/per_image_curvature | tiny | parquet pytorch | tiny/checkpoints tiny/recipe-plain-DIGEST \
    tiny/settings-per_image_curvature-DIGEST | arm x epoch, 2, one_row_per_image
tiny/recipe-plain-DIGEST | tiny | yaml | | arm x epoch, DIGEST,
tiny/settings-hessian-DIGEST | tiny | yaml | | arm x epoch, DIGEST,
tiny/settings-per_image_curvature-DIGEST | tiny | yaml | | arm x epoch, DIGEST,
trained_checkpoints | tables | json | tiny/checkpoints |
training_batches | tables | duckdb parquet | trained_checkpoints |
training_curves | figures | altair | training_evals |
training_dynamics | figures | altair | training_evals training_monitors |
training_evals | tables | duckdb parquet | trained_checkpoints |
training_monitors | tables | duckdb parquet | trained_checkpoints |
"""


def build(studies: Catalogue | None = None) -> dg.Definitions:
    from dd_assets.definitions import build_defs

    return build_defs(studies or read_studies(study_folders()[:1]))


def spec_line(spec: dg.AssetSpec, checks: list[str]) -> str:
    reads = " ".join(sorted(dep.asset_key.to_user_string() for dep in spec.deps))
    columns = [spec.key.to_user_string(), str(spec.group_name), " ".join(sorted(spec.kinds)), reads]
    if spec.partitions_def is not None:
        assert isinstance(spec.partitions_def, dg.MultiPartitionsDefinition)
        names = " x ".join(spec.partitions_def.partition_dimension_names)
        columns.append(f"{names}, {spec.code_version}, {' '.join(sorted(checks))}")
    else:
        columns.append("")
    return re.sub(r"\b[0-9a-f]{10}\b", "DIGEST", " ".join(" | ".join(columns).split()))


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_the_specification_of_every_asset_of_a_study(tiny_study: Study) -> None:
    defs = build(Catalogue({"tiny": tiny_study}, {}))
    checks: dict[dg.AssetKey, list[str]] = {}
    for definition in defs.assets or []:
        assert isinstance(definition, dg.AssetsDefinition)
        for check in definition.check_specs:
            checks.setdefault(check.asset_key, []).append(check.name)
    expected = SPECS.strip().replace("FIGURES", " ".join(sorted(FIGURES)))
    lines = [spec_line(spec, checks.get(spec.key, [])) for spec in defs.resolve_all_asset_specs()]
    assert sorted(lines) == sorted(" ".join(line.split()) for line in expected.splitlines())


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_every_shipped_asset_says_what_it_is() -> None:
    for spec in build().resolve_all_asset_specs():
        assert spec.group_name != "default", spec.key
        assert spec.kinds, spec.key
        assert spec.description, spec.key
        assert (spec.code_version is not None) == (spec.partitions_def is not None), spec.key


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_partition_keys_are_arm_then_epoch() -> None:
    specs = {spec.key.to_user_string(): spec for spec in build().resolve_all_asset_specs()}
    partitions = specs["quickstart/checkpoints"].partitions_def
    assert partitions is not None
    keys = partitions.get_partition_keys()
    assert len(keys) == 7 * 7
    assert {"preact-resnet10.k001|0000", "preact-resnet10.k012|0120"} <= set(keys)
    paper = specs["double_descent/checkpoints"].partitions_def
    assert paper is not None
    assert {"resnet18-adam.k018|0500", "resnet18-adam.k032|4000"} <= set(paper.get_partition_keys())


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning")
def test_a_broken_study_file_is_shown_with_its_reason(lab: Lab) -> None:
    path = lab.write_study("bad", "description: [")
    defs = build(read_studies([lab.studies]))
    specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert "tiny/checkpoints" in specs
    broken = specs["broken_studies/bad_yaml"]
    assert broken.group_name == "broken_studies"
    assert str(broken.description).startswith(f"Not loaded. {path}: not valid YAML at line 1")


def test_the_command_lists_the_assets_of_all_shipped_studies(lab: Lab) -> None:
    lab.home.mkdir()
    listed = lab.shell("source ./env.sh && dagster asset list", DD_STUDIES=None).succeeded()
    kinds = ("checkpoints", "per_image_curvature", "hessian")
    expected = FIGURES | TABLES | EXPORTS | REPORTS | {f"{study}/{kind}" for study in SHIPPED for kind in kinds}
    expected |= {f"{study}/{kind}" for study in OF_GRAPHS for kind in kinds[:2]}  # no Hessian of graphs
    assert listed.output.split() == sorted(expected)


def test_the_workspace_is_valid_in_a_fresh_place(lab: Lab) -> None:
    """Neither the data root nor Dagster's home is there before."""
    validated = lab.shell("source ./env.sh && dagster definitions validate -w workspace.yaml", DAGSTER_HOME=None)
    assert "Validation successful for code location double_descent_lab" in validated.succeeded().output
    assert (lab.root / "dagster" / "dagster.yaml").is_file()


def test_dg_finds_the_same_module_as_the_workspace() -> None:
    """Where pyproject.toml has such a block, Dagster reads workspace.yaml only with -w; both must mean the same."""
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["dg"]
    (workspace,) = read_mapping(REPOSITORY / "workspace.yaml", "a workspace")["load_from"]
    module = workspace["python_module"]
    assert settings["directory_type"] == "project"
    assert settings["project"]["code_location_target_module"] == module["module_name"]
    assert settings["project"]["code_location_name"] == module["location_name"]
    assert importlib.util.find_spec(settings["project"]["root_module"]) is not None


@pytest.mark.skipif(shutil.which("dg") is None, reason="needs the package dagster-dg-cli")
@pytest.mark.parametrize("command", ["list defs", "check defs", "launch --assets group:figure"])
def test_dg_works_in_the_checkout(command: str, lab: Lab) -> None:
    result = lab.shell(f"source ./env.sh && dg {command}")
    if command.startswith("launch"):
        result.refused("nothing is selected by 'group:figure'; did you mean 'group:figures'?")
    else:
        assert "checkpoints" in result.succeeded().output or "check" in command
