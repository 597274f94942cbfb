"""The asset resource_probe, and training that goes by it, through the commands a user types."""

import contextlib
import json
import re
from typing import Any

import pytest
from support import Lab, Result

from dd_core.tables.warehouse import connect

from .conftest import materializations

ASSET = ("asset", "materialize", "--select", "resource_probe")


def configured(**config: Any) -> tuple[str, str]:
    return ("--config-json", json.dumps({"ops": {"resource_probe": {"config": config}}}))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("probe") / "lab")


@pytest.fixture(scope="module")
def probed(lab: Lab) -> Result:
    """Without CIFAR, and with one core, on which there is one number of workers to try."""
    return lab.forked_dagster(*ASSET, *configured(studies=["tiny", "double_descent"], widths=[1], seconds=0.1))


def test_what_is_measured_and_recommended_is_told_and_kept(probed: Result, lab: Lab) -> None:
    output = " ".join(probed.succeeded().output.split())
    assert "left out: double_descent: cifar10 is not there" in output
    assert "probing 1 arm on the one core of this CPU, workers side by side: 1, about 0.1 s each" in output
    assert "tiny/plain.k001, examples by number of workers 1: " in output
    assert re.search(r"/s ± \d+ %; 1 recommended", output)
    with contextlib.closing(connect(lab.store)) as connection:
        rows = connection.sql(
            "SELECT arm, recipe, device, num_workers, threads, status, recommended, samples_per_second > 0, "
            "peak_memory_bytes > 0, num_steps > 0 FROM resource_probe"
        ).fetchall()
    recipe = lab.study.recipe_hash(lab.study.arms["plain.k001"])
    assert rows == [("plain.k001", recipe, "cpu", 1, 1, "ok", True, True, True, True)]
    with lab.instance() as instance:
        (event,), _ = materializations(instance, "resource_probe")
    assert event.metadata["dagster/row_count"].value == 1
    assert event.metadata["recommended_workers"].value == {"tiny/plain.k001": 1}


def test_training_goes_by_it_and_tells_how_far_off_it_was(probed: Result, lab: Lab) -> None:
    arguments = ("asset", "materialize", "--select", "tiny/checkpoints", "--partition-range")
    result = lab.forked_dagster(*arguments, "plain.k001|0008...plain.k002|0008").succeeded()
    output = " ".join(result.output.split())
    assert (
        "training on the one core of this CPU with up to 1 worker, longest first by predicted cost (FLOPs x epochs), "
        "beginning with plain.k002"
    ) in output
    # One width was probed, and the other is scaled from it.
    sources = "from the resource probe of other arms, by FLOPs (1 arm) and the resource probe (1 arm)"
    assert re.search(rf"predicted to take \d+ s {re.escape(sources)}", output), output
    assert re.search(rf"training took \d+ s, predicted \d+ s {re.escape(sources)}: ", output), output
    with contextlib.closing(connect(lab.store)) as connection:
        predicted = connection.sql("SELECT DISTINCT arm, predicted_seconds FROM runs ORDER BY ALL").fetchall()
    with lab.instance() as instance:
        events, _ = materializations(instance, "tiny/checkpoints")
    assert {event.partition: event.metadata["predicted_seconds"].value for event in events} == {
        f"{arm}|0008": pytest.approx(seconds, rel=1e-3) for arm, seconds in predicted
    }
    assert [seconds > 0 for _, seconds in predicted] == [True, True]
    assert not any("predicted_cost" in event.metadata for event in events), "no GPU, no cost"


REFUSED = {
    "unknown_study": ({"studies": ["tinny"]}, "there is no study 'tinny'; did you mean 'tiny'?"),
    "unknown_variant": ({"studies": ["tiny"], "variants": ["fancy"]}, "no study asked for has the variant fancy"),
    "unknown_width": ({"studies": ["tiny"], "widths": [3, 1]}, "no study asked for has the width 3"),
    "nothing_of_both": (
        {"studies": ["tiny", "quickstart"], "variants": ["plain"], "widths": [12]},
        "no arm of tiny, quickstart is of the variants and widths asked for",
    ),
    "absent_data": ({"studies": ["double_descent"]}, "double_descent: cifar10 is not there: looked for the folder"),
    "no_workers": ({"num_workers": [0, 1]}, "run config: num_workers must be from 1 to 16 each, not 0"),
    "no_time": ({"seconds": 0.0}, "run config: seconds must be above 0 and at most 600, not 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_narrowing_that_leaves_nothing_is_explained(case: str, lab: Lab) -> None:
    config, sentence = REFUSED[case]
    lab.forked_dagster(*ASSET, *configured(**config)).refused(sentence)
