"""Settings of the Hessian: defaults that work, refusals that name the key."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from dd_core.study.hessian import QUANTITIES, HessianSettings


def test_the_settings_import_without_torch() -> None:
    code = "import sys, dd_core.study.hessian; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_defaults_survive_json_and_ask_for_everything() -> None:
    settings = HessianSettings()
    assert HessianSettings.model_validate_json(settings.model_dump_json()) == settings
    assert settings.quantities == QUANTITIES
    assert settings.epochs is None
    assert hash(settings) == hash(HessianSettings())


def test_every_field_says_what_it_is() -> None:
    for name, field in HessianSettings.model_fields.items():
        assert field.description, name


@pytest.mark.parametrize(
    ("content", "key", "reason"),
    [
        ({"num_image": 5}, "num_image", "Extra inputs"),
        ({"num_images": 0}, "num_images", "greater than or equal to 1"),
        ({"num_images": "5"}, "num_images", "valid integer"),
        ({"num_eigenvalues": 0}, "num_eigenvalues", "greater than"),
        ({"batch_size": 0}, "batch_size", "greater than"),
        ({"precision": "float16"}, "precision", "'float32' or 'float64'"),
        ({"quantities": ()}, "quantities", "at least 1 item"),
        ({"quantities": ("trace",)}, "quantities", "'exact_trace'"),
        ({"quantities": ("density", "density")}, "quantities", "listed twice: density"),
        ({"layers": ("conv(",)}, "layers", r"'conv\(' is not a regular expression"),
        ({"layers": ("",)}, "layers", "at least 1 character"),
        ({"epochs": ()}, "epochs", "at least 1 item"),
        ({"epochs": (3, 3)}, "epochs", "listed twice: 3"),
        ({"epochs": (-1,)}, "epochs", "greater than or equal to 0"),
        ({"lanczos_tolerance": 0.0}, "lanczos_tolerance", "greater than 0"),
        ({"density_width": float("nan")}, "density_width", "finite number"),
        ({"num_eigenvalues": 20, "lanczos_steps": 10}, "", "10 steps cannot give 20 eigenvalues"),
        ({"hutch_plus_plus_products": 5}, "hutch_plus_plus_products", "greater than or equal to 6"),
    ],
)
def test_impossible_settings_are_refused_by_key(content: dict[str, Any], key: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as caught:
        HessianSettings.model_validate(content)
    assert caught.value.errors()[0]["loc"][:1] == ((key,) if key else ())
