"""What to compute of a model's Hessian in parameter space, and how carefully: typed, validated, without torch."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from dd_core.study.yaml_files import Strict

Quantity = Literal[
    "eigenvalues", "density", "exact_trace", "hutchinson", "hutch_plus_plus", "gradient", "gradient_variance"
]
QUANTITIES: tuple[Quantity, ...] = (
    "eigenvalues",
    "density",
    "exact_trace",
    "hutchinson",
    "hutch_plus_plus",
    "gradient",
    "gradient_variance",
)


def _is_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression ({error})") from error
    return pattern


def _each_once(values: tuple[str | int, ...]) -> tuple[str | int, ...]:
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"listed twice: {', '.join(repeated)}")
    return values


Pattern = Annotated[str, Field(min_length=1), AfterValidator(_is_pattern)]
Patterns = Annotated[tuple[Pattern, ...], AfterValidator(_each_once)]
Quantities = Annotated[tuple[Quantity, ...], Field(min_length=1), AfterValidator(_each_once)]
Epochs = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_each_once)]


class HessianSettings(Strict):
    """Settings of ``analyse_hessian``. A product is one multiplication of the Hessian with a vector over all images.

    The defaults take about 250 products: half a minute on one core for a ResNet10k of k = 8 and 1000 digits.
    """

    epochs: Epochs | None = Field(
        default=None, description="checkpoint epochs to analyse; null: the study's last checkpoint epoch"
    )
    num_images: int | None = Field(
        default=1000, ge=1, description="training images the loss is averaged over; null: the whole training set"
    )
    quantities: Quantities = Field(
        default=QUANTITIES,
        description="what to compute. exact_trace needs a piecewise linear network, gradient_variance layers that "
        "BackPACK knows; gradient gives its share in the top subspace only together with eigenvalues",
    )
    layers: Patterns = Field(
        default=(),
        description="restrict the Hessian to the parameters of these layers: names ('blocks.0.conv1', or 'blocks.0' "
        "for all in it) or regular expressions that match a whole name ('blocks.*conv1'); empty: all layers",
    )
    num_eigenvalues: int = Field(
        default=10, ge=1, le=500, description="largest eigenvalues, and the dimension of the top subspace"
    )
    lanczos_steps: int = Field(
        default=100, ge=2, le=2000, description="most Lanczos steps for the eigenvalues; one product and vector each"
    )
    lanczos_tolerance: float = Field(
        default=1e-3,
        gt=0,
        lt=1,
        description="Lanczos stops early once every wanted residual ||Hv - lambda v|| is below this share of the "
        "largest eigenvalue",
    )
    density_probes: int = Field(
        default=4, ge=1, le=1000, description="random starting vectors of stochastic Lanczos quadrature"
    )
    density_steps: int = Field(default=30, ge=2, le=2000, description="Lanczos steps of each of them")
    density_points: int = Field(default=512, ge=16, le=100_000, description="points of the density's grid")
    density_width: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="standard deviation of the Gaussians that smooth the density, as a share of the spectrum's range",
    )
    hutchinson_probes: int = Field(default=10, ge=2, le=100_000, description="products for Hutchinson's trace estimate")
    hutch_plus_plus_products: int = Field(
        default=30, ge=6, le=100_000, description="products for the Hutch++ trace estimate; a third each for its parts"
    )
    block_size: int = Field(
        default=8,
        ge=1,
        le=1000,
        description="vectors multiplied in one pass over the images. More share the work of one pass, and cost memory: "
        "block_size x density_steps vectors as long as all parameters are kept",
    )
    batch_size: int = Field(
        default=250, ge=1, description="images per pass; it sets the memory, the result does not depend on it"
    )
    precision: Literal["float32", "float64"] = Field(default="float32", description="of weights, images and vectors")
    ranks: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="processes that share the images of one checkpoint, each with a GPU or core of its own; more than "
        "one run under torchrun, wherever the job runs. The result differs by rounding",
    )

    @model_validator(mode="after")
    def _enough_steps(self) -> "HessianSettings":
        if self.lanczos_steps < self.num_eigenvalues:
            raise ValueError(
                f"lanczos_steps: {self.lanczos_steps} steps cannot give {self.num_eigenvalues} eigenvalues; "
                "take at least twice as many steps as eigenvalues"
            )
        return self
