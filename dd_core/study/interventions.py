"""What is done to weights beside the optimiser's steps, to keep a network able to learn; part of the recipe."""

from typing import Literal

from pydantic import Field, model_validator

from dd_core.study.yaml_files import Strict


class ShrinkAndPerturb(Strict):
    """Weights times ``shrink`` plus Gaussian noise (Ash & Adams 2020; Dohare et al. 2024 shrink by weight decay)."""

    shrink: float = Field(default=1.0, gt=0, le=1, description="what every parameter is multiplied by")
    noise: float = Field(default=1e-5, ge=0, description="standard deviation of what is added to every parameter")
    at: Literal["steps", "tasks"] = Field(
        default="steps", description="after every optimiser step, or before the first step of every further task"
    )

    @model_validator(mode="after")
    def _does_something(self) -> "ShrinkAndPerturb":
        if self.shrink == 1 and self.noise == 0:
            raise ValueError("shrink 1 and noise 0 change nothing; leave it out, or set one of them")
        return self


class ContinualBackprop(Strict):
    """Hidden units of low utility begin anew, a few at every step (Dohare et al. 2024, algorithm 1)."""

    replacement_rate: float = Field(default=1e-5, gt=0, lt=1, description="share of the mature units, per step")
    maturity: int = Field(default=1000, ge=1, description="steps before a new unit may be replaced")
    decay: float = Field(default=0.99, ge=0, lt=1, description="of the running average of a unit's utility")
    shared_units: bool = Field(
        default=False,
        description="also the channels that residual sums share, as published code does; the sums carry new ones on at "
        "once. false: only units that a single layer reads",
    )


class Interventions(Strict):
    """What is done to the weights of a network that learns one task after the other, besides its optimiser's steps."""

    best_weights: bool = Field(
        default=False, description="at the end of a task go back to the weights of its best validation accuracy"
    )
    shrink_and_perturb: ShrinkAndPerturb | None = None
    continual_backprop: ContinualBackprop | None = None
    head_reset: bool = Field(default=False, description="the output layer begins anew with every further task")
    new_network: bool = Field(
        default=False,
        json_schema_extra={"left_out_of_recipe_at_default": True},
        description="with every further task a network of new random weights, as initialised; the optimiser forgets: "
        "the control against which loss of plasticity is measured",
    )
    l2_init: float = Field(
        default=0.0, ge=0, description="strength of a penalty on the distance from the initial weights (Kumar 2023)"
    )

    @property
    def needing_tasks(self) -> tuple[str, ...]:
        """Keys of those that act where one task ends and another begins, and never in a training of one task."""
        at_tasks = self.shrink_and_perturb is not None and self.shrink_and_perturb.at == "tasks"
        keys = {
            "best_weights": self.best_weights,
            "new_network": self.new_network,
            "head_reset": self.head_reset,
            "shrink_and_perturb.at": at_tasks,
        }
        return tuple(key for key, is_wanted in keys.items() if is_wanted)
