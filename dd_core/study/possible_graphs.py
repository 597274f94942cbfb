"""Which studies of graphs are refused, and which others say something of graphs; as in ``dd_core.study.possible``."""

from typing import TYPE_CHECKING

from dd_core.study.architectures import architecture_called
from dd_core.study.graph_sizes import USED_RELATIONS
from dd_core.study.hessian import HessianSettings

if TYPE_CHECKING:
    from dd_core.study.study import Study

# Of all splits together; they are made one by one, and kept in memory.
_MOST_GRAPHS = 1_000_000


def check_graphs(study: "Study") -> None:
    """Refuse graphs without what makes them, settings of graphs without any, and networks that take something else."""
    record, graphs = study.data.record, study.data.graphs
    if record.has_images == (graphs is not None):
        raise ValueError(
            f"data.graphs: {record.name} has images, not graphs; leave it out"
            if graphs
            else f"data.graphs: {record.name} is made of graphs; say how, as {{labels: grounded, num_test: 400}}"
        )
    for name, variant in study.variants.items():
        network = architecture_called(variant.architecture)
        if network.examples != record.examples:
            raise ValueError(
                f"variants.{name}.architecture: {variant.architecture} takes {network.examples}, but {record.name} has "
                f"{record.examples}"
            )
        if (variant.nsm is None) != (graphs is None):
            raise ValueError(
                f"variants.{name}.nsm: belongs to the architecture nsm alone; leave it out"
                if variant.nsm
                else f"variants.{name}.nsm: say which domain it learns, for example {{domain: causal}}"
            )
        if variant.nsm and variant.nsm.relations < (used := USED_RELATIONS[variant.nsm.domain]):
            raise ValueError(
                f"variants.{name}.nsm.num_relations: {variant.nsm.relations} are fewer than the {used} kinds of edges "
                f"of {variant.nsm.domain}; raise it, or leave it out"
            )
        if graphs is not None and (odd := next((k for k in study.widths_of(name) if k % 2), None)):
            raise ValueError(f"widths: k = {odd} is odd, but a coupling halves the width; take even widths")
    if graphs is None:
        return
    if study.data.num_train is None:
        raise ValueError("data.num_train: graphs are made as they are needed; say how many to train on")
    num_graphs = study.data.num_train + study.data.num_validation + graphs.num_test
    if num_graphs > _MOST_GRAPHS:
        raise ValueError(f"data: {num_graphs:,} graphs of each trial are more than the {_MOST_GRAPHS:,} there may be")
    if graphs.num_features % 2:
        raise ValueError(f"data.graphs.num_features: {graphs.num_features} is odd, but a coupling halves them")
    _check_what_is_for_images(study)


def _check_what_is_for_images(study: "Study") -> None:
    """Refuse, of a study of graphs, what only images can be or be done to."""
    name_of_data = study.data.record.name
    for key in ("classes", "subset", "duplicates", "standardisation"):
        if getattr(study.data, key) is not None:
            raise ValueError(f"data.{key}: is for images, and {name_of_data} has graphs; leave it out")
    if study.evaluation.image_values:
        raise ValueError("evaluation.image_values: is for images; of graphs all values are kept anyway")
    if study.monitors.plasticity is not None:
        raise ValueError("monitors.plasticity: looks at units image by image, and a graph has many nodes; leave it out")
    if reason := study.curvature.objection_to_graphs:
        raise ValueError(f"curvature.{reason}")
    if study.hessian != HessianSettings():
        raise ValueError("hessian: is for networks of images; of graphs the monitor hessian looks at the weights")
    for key in ("grand", "out_of_fold"):
        if getattr(study.memorization, key):
            raise ValueError(f"memorization.{key}: looks at images once more, and the data are graphs; leave it out")
    for name, variant in study.variants.items():
        if variant.label_noise_kind != "symmetric":
            raise ValueError(
                f"variants.{name}.label_noise_kind: graphs have two labels, of which a wrong one is the other; leave "
                "it out"
            )
        if variant.augmentation != type(variant.augmentation)():
            raise ValueError(f"variants.{name}.augmentation: shifts, crops and flips are for images; leave it out")
        if variant.compile is not None:
            raise ValueError(
                f"variants.{name}.compile: graphs differ in size from batch to batch, and each would be compiled anew; "
                "leave it out"
            )
