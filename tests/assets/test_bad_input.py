"""Whatever is typed wrongly, or is missing: one sentence that says what and what to do, no stack trace, exit code 1."""

from pathlib import Path

import pytest
from support import TINY, Lab

from .conftest import narrowed

TRAIN = ("tiny/checkpoints", "--partition")
ONE = (*TRAIN, "plain.k001|0008")
SPAN = ("tiny/checkpoints", "--partition-range")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """Nothing is ever trained in it."""
    return Lab(tmp_path_factory.mktemp("bad_input") / "lab")


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_computed(lab: Lab) -> object:
    yield
    assert list(lab.root.glob("checkpoints/**/*")) + list(lab.root.glob("tables/**/*")) == []


# Selection and further arguments, and the sentence. These are refused by dagster itself, before a run begins, ...
AT_ONCE = {
    "unknown_arm": (
        (*TRAIN, "plain.k009|0008"),
        "Error: study tiny has no checkpoint 'plain.k009|0008'; did you mean 'plain.k002|0008'? arms are plain.k001, "
        "plain.k002, epochs 0000, 0008, 0016, 0024",
    ),
    "unknown_epoch": ((*TRAIN, "plain.k001|0009"), "Error: study tiny has no checkpoint 'plain.k001|0009'; arms are"),
    "arm_without_epoch": (
        (*TRAIN, "plain.k001"),
        "Error: study tiny has no checkpoint 'plain.k001'; did you mean 'plain.k001|0000'?",
    ),
    "no_partition": (
        ("tiny/checkpoints",),
        "Error: tiny/checkpoints is partitioned by arm and epoch: add --partition 'plain.k001|0000' or a "
        "--partition-range 'FIRST...LAST'",
    ),
    "range_with_unknown_end": ((*SPAN, "plain.k001|0000...plain.k002|0025"), "has no checkpoint 'plain.k002|0025'"),
    "range_without_end": (
        (*SPAN, "plain.k001|0000"),
        "Error: --partition-range goes from one partition to another, with three dots between: "
        "'plain.k001|0000...plain.k001|0000', not 'plain.k001|0000'",
    ),
    "range_with_two_dots": ((*SPAN, "plain.k001|0000..plain.k002|0024"), "with three dots between"),
    "partition_of_an_unpartitioned_asset": (
        ("curvature", "--partition", "plain.k001|0000"),
        "Error: curvature has no partitions; leave --partition out",
    ),
    "unknown_asset": (("curvatur",), "Error: there is no asset curvatur; did you mean 'curvature'?"),
    "unknown_asset_of_a_study": (
        ("tiny/checkpoint", "--partition", "plain.k001|0000"),
        "no asset tiny/checkpoint; did you mean 'tiny/checkpoints'?",
    ),
    "unreadable_selection": (("tiny/checkpoints and",), "Error: Invalid selection string: tiny/checkpoints and"),
    "text_for_a_list": (
        ("curvature", *narrowed(studies="tiny")),
        "Error: --config-json: ops.curvature.config.studies: must be a list, not 'tiny'",
    ),
    "text_for_a_number": (
        ("curvature", *narrowed(epochs=["last"])),
        "Error: --config-json: ops.curvature.config.epochs.0: must be a whole number, not 'last'",
    ),
    "list_for_config": (
        ("curvature", "--config-json", "[1]"),
        "Error: --config-json must be a JSON object, such as '{",
    ),
    "unknown_config": (
        ("curvature", *narrowed(width=2)),
        "Error: --config-json: ops.curvature.config.width: there is no such setting; settings are arms, epochs, ",
    ),
    "no_json": (("curvature", "--config-json", "{bad"), "Error: --config-json is not JSON (Expecting property name"),
    "settings_of_nothing": (
        ("curvature", "--config-json", '{"ops": {"nope": {}}}'),
        "Error: --config-json has settings for 'nope', which is not selected; here they may be for curvature",
    ),
    "settings_of_what_is_not_selected": (
        ("runs", *narrowed(epochs=[0])),
        "Error: --config-json has settings for 'curvature', which is not selected; here they may be for",
    ),
    "settings_of_what_is_not_selected_in_a_file": (
        ("runs", "--config", "{file}"),
        "Error: --config {file} has settings for 'curvature', which is not selected; here they may be for",
    ),
    "unknown_config_in_a_file": (
        ("curvature", "-c", "{file}"),
        "Error: --config {file}: ops.curvature.config.width: there is no such setting; settings are arms, epochs, ",
    ),
    "no_yaml": (("curvature", "--config={broken}"), "Error: {broken}: not valid YAML at line 2 ("),
    "settings_without_ops": (
        ("curvature", "--config-json", '{"curvature": {}}'),
        "Error: --config-json has the unknown key 'curvature'; settings of an asset go like",
    ),
    "settings_without_config": (
        ("curvature", "--config-json", '{"ops": {"curvature": {"epochs": [0]}}}'),
        "Error: --config-json: ops maps each asset to its config, like",
    ),
    "misspelt_group": (
        ("group:figure",),
        "Error: nothing is selected by 'group:figure'; did you mean 'group:figures'?",
    ),
    "misspelt_group_of_several": (("runs,group:zzz",), "Error: nothing is selected by 'group:zzz'; groups are"),
    "nothing_of_a_kind": (
        ("kind:spreadsheet",),
        "nothing is selected by 'kind:spreadsheet'; `dagster asset list`",
    ),
    "two_studies": (
        ("tiny/checkpoints,quickstart/checkpoints", "--partition", "plain.k001|0000"),
        "Error: each study has partitions of its own, so name one in a command, not quickstart, tiny",
    ),
    "range_with_a_table": (
        ("tiny/checkpoints,runs", *SPAN[1:], "plain.k001|0000...plain.k001|0008"),
        "Error: runs has no partitions and needs a command of its own, without --partition-range",
    ),
    "partition_and_range": (
        (*ONE, "--partition-range", "plain.k001|0000...plain.k001|0008"),
        "Error: give either --partition or --partition-range, not both",
    ),
}
# ... these by the asset, in the run.
IN_THE_RUN = {
    "range_backwards": (
        (*SPAN, "plain.k002|0024...plain.k001|0000"),
        "the partition range selects no checkpoint: in FIRST...LAST neither the arm nor the epoch of LAST may come "
        "before that of FIRST",
    ),
    "range_of_epochs_backwards": ((*SPAN, "plain.k001|0024...plain.k002|0000"), "the partition range selects no"),
    "unknown_study": (
        ("curvature", *narrowed(studies=["tinny"])),
        "there is no study 'tinny'; did you mean 'tiny'?",
    ),
    "unknown_arm_in_config": (("curvature", *narrowed(arms=["k9"])), "no study asked for has the arm k9; there are "),
    "unknown_epoch_in_config": (
        ("curvature", *narrowed(studies=["tiny"], epochs=[9])),
        "no study asked for has a checkpoint at epoch 9",
    ),
    "nothing_trained_for_curvature": (
        ("curvature",),
        "first run: dagster asset materialize --select 'tiny/checkpoints' --partition-range "
        "'plain.k001|0000...plain.k002|0024'",
    ),
    "unknown_kind_beside_training": (
        (*ONE, "--config-json", '{"ops": {"tiny__checkpoints": {"config": {"beside": ["curvature"]}}}}'),
        "beside: there is no kind of result 'curvature'; did you mean 'per_image_curvature'?",
    ),
    "nothing_trained_for_tables": (("runs",), "so there is nothing to tabulate"),
    "nothing_trained_for_a_figure": (("training_curves",), "training_curves: no study has the data yet"),
    "curvature_of_an_untrained_checkpoint": (
        ("tiny/per_image_curvature", "--partition", "plain.k001|0008"),
        "checkpoint plain.k001|0008 of tiny has not been trained; run: dagster asset materialize --select "
        "'tiny/checkpoints' --partition 'plain.k001|0008'",
    ),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_wrong_arguments_are_explained(case: str, lab: Lab) -> None:
    arguments, sentence = AT_ONCE[case]
    for name, content in (("file", "ops:\n  curvature: {config: {width: 2}}\n"), ("broken", "{ops: [\n")):
        (lab.folder / name).write_text(content, encoding="utf-8")
        *arguments, sentence = (text.replace(f"{{{name}}}", str(lab.folder / name)) for text in (*arguments, sentence))
    lab.forked_dagster("asset", "materialize", "--select", *arguments).refused(sentence)


@pytest.mark.parametrize("case", IN_THE_RUN)
def test_impossible_requests_are_explained(case: str, lab: Lab) -> None:
    arguments, sentence = IN_THE_RUN[case]
    result = lab.forked_dagster("asset", "materialize", "--select", *arguments)
    result.refused(sentence)
    assert " ".join(result.output.split()).count(sentence) == 1, "it is said once"
    assert "ASSET_JOB" not in result.output


@pytest.mark.parametrize("case", ["unknown_arm", "unknown_asset", "text_for_a_list", "unknown_study"])
def test_the_same_is_said_to_who_types_it(case: str, lab: Lab) -> None:
    """One of each kind through bash and env.sh; the others ran in forked processes to save their start."""
    arguments, sentence = (AT_ONCE | IN_THE_RUN)[case]
    result = lab.materialize(*arguments)
    result.refused(sentence)
    assert result.code == 1


ENVIRONMENT = {
    "workers_not_a_number": ({"DD_WORKERS": "abc"}, ONE, "DD_WORKERS must be a positive number, not 'abc'"),
    "no_workers": ({"DD_WORKERS": "0"}, ONE, "DD_WORKERS must be a positive number, not '0'"),
    "no_price": (
        {"DD_PRICE_PER_GPU_HOUR": "two"},
        ONE,
        "DD_PRICE_PER_GPU_HOUR must be a price, such as 2.5, not 'two'",
    ),
    "unknown_place_to_compute": (
        {"DD_COMPUTE": "mars"},
        ONE,
        "DD_COMPUTE is 'mars', but jobs run only in one of these places: local, kubernetes, slurm",
    ),
    "data_root_on_a_read_only_file_system": ({"DD_ROOT": "/proc/lab"}, ONE, "cannot write /proc/lab"),
    "data_root_in_a_bucket_without_keys": (
        {"DD_ROOT": "s3://bucket/lab", "AWS_EC2_METADATA_DISABLED": "true"},
        ONE,
        "there are no credentials for s3://bucket/lab",
    ),
}


@pytest.mark.parametrize("case", ENVIRONMENT)
def test_wrong_settings_are_explained(case: str, lab: Lab) -> None:
    changes, arguments, sentence = ENVIRONMENT[case]
    lab.forked_dagster("asset", "materialize", "--select", *arguments, **changes).refused(sentence)


@pytest.mark.parametrize("select", [ONE, ("curvature",), ("runs",), ("training_curves",)], ids=lambda s: s[0])
def test_a_data_root_that_is_a_file_is_explained(select: tuple[str, ...], lab: Lab) -> None:
    file = lab.folder / "a_file"
    file.touch()
    result = lab.forked_dagster("asset", "materialize", "--select", *select, DD_ROOT=file)
    result.refused(f"the data root {file} is a file, not a folder; set DD_ROOT to a folder")


def test_a_dagster_home_that_cannot_be_made_is_explained(lab: Lab) -> None:
    file = lab.folder / "a_file"
    file.touch()
    command = "source ./env.sh; dagster asset materialize --select curvature"
    result = lab.shell(command, DD_ROOT=file, DAGSTER_HOME=None)
    result.refused(f"the folder DAGSTER_HOME={file}/dagster cannot be made; check the data root, DD_ROOT={file}")


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_absent_data_is_explained_before_any_work(dataset: str, lab: Lab, tmp_path: Path) -> None:
    text = TINY.replace("digits", dataset).replace("description: a hundred digits", "description: a hundred images")
    lab.write_study("coloured", text)
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[dataset]
    result = lab.forked_dagster(
        "asset", "materialize", "--select", "coloured/checkpoints", "--partition", "plain.k001|0000",
        DD_DATASETS=tmp_path,
    )  # fmt: skip
    (lab.studies / "coloured.yaml").unlink()
    result.refused(f"{dataset} is not there: looked for the folder {folder} in {tmp_path}; unpack the official Python")
    assert "or set DD_DOWNLOAD=1" in result.output


@pytest.fixture(scope="module")
def half_broken(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A folder with the study tiny and a file with a mistake."""
    lab = Lab(tmp_path_factory.mktemp("half_broken") / "lab")
    lab.write_study("bad", TINY.replace("epochs: 24", "epochs: 20"))
    return lab


REASON = "bad.yaml: checkpoints: epoch 24 is beyond the last epoch, 20"


def test_a_broken_study_file_does_not_hide_the_good_ones(half_broken: Lab) -> None:
    listed = half_broken.forked_dagster("asset", "list").succeeded().output
    assert {"tiny/checkpoints", "quickstart/checkpoints", "broken_studies/bad_yaml"} <= set(listed.split())
    assert "bad/checkpoints" not in listed.split()
    assert REASON in listed, "whoever types a command is told"
    half_broken.shell("source ./env.sh && dagster definitions validate -w workspace.yaml").succeeded()


def test_a_broken_study_file_says_why_when_its_asset_is_asked_for(half_broken: Lab) -> None:
    materialize = ("asset", "materialize", "--select")
    half_broken.forked_dagster(*materialize, "broken_studies/bad_yaml").refused(f"{half_broken.studies}/{REASON}")
    asked = half_broken.forked_dagster(*materialize, "bad/checkpoints", "--partition", "plain.k001|0000")
    asked.refused("there is no asset bad/checkpoints: the study file of bad is not loaded, as said above")
    assert asked.output.count(REASON) == 1


def test_a_missing_folder_of_studies_is_explained(lab: Lab) -> None:
    missing = lab.folder / "nowhere"
    sentence = f"{missing}: the folder of study files does not exist"
    listed = lab.forked_dagster("asset", "list", DD_STUDIES=missing).succeeded().output
    assert sentence in listed
    assert "quickstart/checkpoints" in listed
    asked = lab.forked_dagster("asset", "materialize", "--select", *ONE, DD_STUDIES=missing)
    asked.refused("there is no asset tiny/checkpoints; look for it in what is not loaded, as said above")
    assert asked.output.count(sentence) == 1
