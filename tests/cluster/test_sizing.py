"""``k8s/sizing.py``: what is counted there equals what others have published, and the documentation quotes it."""

import re
import runpy
from typing import Any

import pytest

from tests.support import REPOSITORY

# Parameters of ResNet18k as the authors of the paper count them.
PUBLISHED_PARAMETERS = {1: 2_947, 4: 44_446, 10: 274_540, 16: 700_762, 64: 11_171_146}


@pytest.fixture(scope="module")
def sizing() -> dict[str, Any]:
    return runpy.run_path(str(REPOSITORY / "k8s" / "sizing.py"))


@pytest.mark.parametrize("k", PUBLISHED_PARAMETERS)
def test_weights_are_the_published_parameters_and_the_statistics_of_batch_norm(sizing: dict[str, Any], k: int) -> None:
    # Normalised before each convolution: four times k channels, then at each stage once the last one's, thrice its own.
    channels = 4 * k + sum(last + 3 * 2 * last for last in (k, 2 * k, 4 * k))
    assert sizing["bytes_of_weights"](k, 10) == 4 * (PUBLISHED_PARAMETERS[k] + 2 * channels)


def test_seed_002_scores_the_classes_seen_so_far(sizing: dict[str, Any]) -> None:
    seen = [min(5 + 5 * (epoch // 200), 100) for epoch in range(0, 4001, 200)]
    assert len(seen) == 21
    assert sizing["IMAGES_002"] == sum(500 * classes for classes in seen)


def test_the_documentation_quotes_what_is_printed(sizing: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    sizing["figure_1"]([8])
    sizing["seed_002"]()
    printed = capsys.readouterr().out
    documented = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
    for number in re.findall(r"\d[\d,.]*", "320 networks, 575,000 images, 4.9 GB, 112 GB, 50 TFLOP, 504 to 882"):
        assert number in printed, number
    for text in ("320 networks", "575,000 images", "4.9 GB", "112 GB", "50 TFLOP/s", "504 to 882 GPU-hours"):
        assert text in documented, text
