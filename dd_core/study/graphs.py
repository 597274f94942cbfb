"""What a study says of graphs: how their labels come about, which domain a variant learns, and its NSM network.

Needs nothing but pydantic. The generators are in ``dd_core.data.graphs``, the networks in ``dd_core.models.nsm``.
"""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from dd_core.study.graph_sizes import NUM_BASES
from dd_core.study.yaml_files import Strict

Domain = Literal["planning", "causal", "knowledge_graph"]
DOMAINS: dict[str, str] = {"planning": "planning", "causal": "causal inference", "knowledge_graph": "knowledge graph"}
# Kinds of edges that the published networks know, the last of which they give to loops of their own.
NUM_RELATIONS: dict[str, int] = {"planning": 16, "causal": 20, "knowledge_graph": 66}
# What is kept of every evaluation of a graph beside loss and correctness, columns of image_progress.
GRAPH_VALUES = ("probability", "cycle_loss_1", "cycle_loss_2", "kept_share", "pooling_entropy")
# Raise it when a generator makes other graphs or labels: it is part of the recipe.
GENERATOR_VERSION = "1"


class Graphs(Strict):
    """Problems of the three domains, made from (seed, domain, index): as many as all splits need."""

    labels: Literal["as_published", "grounded"] = Field(
        description="as_published: as the published generators make them, mostly without a signal; grounded: they "
        "follow from the graph"
    )
    num_test: int = Field(ge=0, description="graphs of each trial that are tested on")
    features: Literal["fixed", "fresh"] = Field(
        default="fixed",
        description="of nodes: a row of a table for each kind of node; fresh: as published, noise anew "
        "for every graph and epoch",
    )
    num_features: int = Field(default=64, ge=2, le=4096, description="of a node")


class NSM(Strict):
    """The hierarchical network of a variant, and its loss ``CE + cycle_weight * cycle loss``."""

    domain: Domain = Field(description="which problems it learns")
    cycle_weight: float = Field(default=0.01, ge=0, description="lambda; the two levels count .7 and .3")
    pool_ratio: float = Field(default=0.5, gt=0, le=1, description="share of the nodes of a graph that a level keeps")
    num_relations: int | None = Field(
        default=None,
        ge=1,
        validate_default=True,
        description="kinds of edges the network knows, not fewer than the domain has; null: the published number",
    )
    num_bases: int | None = Field(
        default=None,
        ge=1,
        validate_default=True,
        description="of the relations' weights, at most as many as there are relations; null: the published number of "
        "the domain",
    )
    loops: Literal["own", "last"] = Field(
        default="own",
        description="relation of the message of every node to itself: one of its own; last: as published, the last of "
        "the domain's, which some edges have too",
    )
    above: Literal["always", "with_edges"] = Field(
        default="always",
        description="whether graphs that a pooling leaves no edge are convolved above it; with_edges: as published, "
        "their nodes stay as the pooling left them",
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of the features that are left out of a step")
    largest_log_scale: float | None = Field(
        default=2.0,
        gt=0,
        description="bound of a coupling's log-scales, by tanh as in RealNVP; null: none, as published, with which "
        "large learning rates end in infinities",
    )
    fusion: Literal["none", "equal", "learned"] = Field(
        default="none", description="dual pass: logits from the way up and the way down, fused"
    )

    preflight: Literal["error", "warn"] = Field(
        default="error",
        json_schema_extra={"left_out_of_recipe": True},
        description="what is outside the limits that the published networks are trained within (classes out of "
        "balance, cycle_weight, learning rate) is refused before training, or only warned of",
    )

    @field_validator("num_relations", "num_bases")
    @classmethod
    def _is_a_number(cls, value: int | None, info: ValidationInfo) -> int | None:
        """Filled in, so that recipes have the number itself, and the same one whoever says it."""
        domain, known = info.data.get("domain"), info.data.get("num_relations")
        if domain is None:
            return value  # which is refused
        if info.field_name == "num_relations":
            return value or NUM_RELATIONS[domain]
        return min(value or NUM_BASES[domain], known or NUM_RELATIONS[domain])

    @property
    def relations(self) -> int:
        """Kinds of edges the network knows."""
        return self.num_relations or NUM_RELATIONS[self.domain]

    @property
    def bases(self) -> int:
        """Matrices that the relations' weights are made of, not more than there are relations."""
        return min(self.num_bases or NUM_BASES[self.domain], self.relations)
