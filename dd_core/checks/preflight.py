"""What the authors of the graph networks check before they train: balance of labels, cycle weight, learning rate.

The limits are theirs (research-developer/nsm, nsm/evaluation/preflight_checks.py), found on networks that had
collapsed: a warning beyond the one, an error beyond the other. They are rules of thumb for the published data and no
law: labels that follow from the graph are learned at higher rates, for which a variant may say
``nsm: {preflight: warn}``.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from dd_core.study.study import Study

# The smallest share of the rarer label, and the largest weight and rate, without a warning and without an error.
LEAST_SHARE = (0.45, 0.40)
MOST_CYCLE_WEIGHT = (0.05, 0.1)
MOST_LEARNING_RATE = (5e-4, 1e-3)


@dataclass(frozen=True)
class Finding:
    """Something outside a limit.

    Attributes:
        variant: whose it is.
        sentence: about it, with the path of the key.
        is_error: it is outside the wider limit.
        may_train: the study says that it shall be trained nevertheless.
    """

    variant: str
    sentence: str
    is_error: bool
    may_train: bool


def preflight(study: Study, variants: Collection[str] | None = None) -> list[Finding]:
    """What is outside the limits in a study of graphs, or in some of its variants; nothing in other studies."""
    found = []
    for name, variant in study.variants.items():
        if variant.nsm is None or (variants is not None and name not in variants):
            continue
        may_train = variant.nsm.preflight == "warn"
        path = f"{study.name}: variants.{name}"
        limits = (
            ("nsm.cycle_weight", variant.nsm.cycle_weight, MOST_CYCLE_WEIGHT, "the cycle loss outweighs the task"),
            ("optimizer.learning_rate", variant.optimizer.learning_rate, MOST_LEARNING_RATE, "training is unstable"),
        )
        for key, value, (warning, error), why in limits:
            if value > warning:
                limit = error if value > error else warning
                sentence = f"{path}.{key}: {value:g} is above {limit:g}, beyond which {why}, as its authors say"
                found.append(Finding(name, sentence, value > error, may_train))
        if (finding := _balance(study, name, path, may_train)) is not None:
            found.append(finding)
    return found


def refused_and_warned(study: Study, variants: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """The variants that are not to be trained, with the reason, and warnings about the others.

    Something of theirs is outside the wider limits, and the study does not say that this is meant.
    """
    found = preflight(study, variants)
    why: dict[str, list[str]] = {}
    for finding in found:
        if finding.is_error and not finding.may_train:
            why.setdefault(finding.variant, []).append(finding.sentence)
    meant = "if it is meant, say nsm: {preflight: warn} in the variant"
    refused = {variant: f"{'; '.join(sentences)}; {meant}" for variant, sentences in why.items()}
    return refused, [finding.sentence for finding in found if finding.variant not in refused]


def _balance(study: Study, name: str, path: str, may_train: bool) -> Finding | None:
    """How even the training labels of all trials are together; where a trial has one label alone, that."""
    from dd_core.data.trials import trial_data

    ones = [float(trial_data(study, name, trial).train_labels.mean()) for trial in study.trial_numbers]
    lonely = next((trial for trial, share in enumerate(ones) if share in (0.0, 1.0)), None)
    if lonely is not None:
        sentence = f"{path}: all training graphs of trial {lonely} have label {ones[lonely]:.0f}, with nothing to tell"
        return Finding(name, sentence, True, may_train)
    rarer = min(float(np.mean(ones)), 1 - float(np.mean(ones)))
    warning, error = LEAST_SHARE
    if rarer >= warning:
        return None
    label, limit = int(np.mean(ones) < 0.5), error if rarer < error else warning
    sentence = (
        f"{path}: {100 * rarer:.1f} % of the training graphs have label {label}, fewer than {100 * limit:.0f} %, below "
        "which networks collapse to the other label, as its authors say"
    )
    return Finding(name, sentence, rarer < error, may_train)
