"""Published numbers that ours stand beside.

Ravikumar et al. 2025, "Towards memorization estimation: fast, formal and free" (ICML 2025), table 1 and those of wrong
labels and duplicates. ResNet18, 200 epochs, symmetric noise, seeds 1 to 3; the agreement with memorisation is that of
an Inception network on CIFAR-100 with the estimates of Feldman & Zhang 2020.
"""

from dataclasses import dataclass

SOURCE = "Ravikumar et al., ICML 2025"
NOISE = (0.01, 0.02, 0.05, 0.10)
# What their methods are called here, and by them where there is no such score here.
_SCORES = {
    "Thr. LT": "learning_time_code",
    "InConf": "confidence",
    "CL": "confident_learning",
    "SSFT": "ssft",
    "Curv": "finite_difference_sum",
    "CSL": "csl",
}
_WRONG_LABEL = {
    "CIFAR-10": {
        "Thr. LT": (0.4951, 0.4954, 0.4911, 0.4948),
        "InConf": (0.8781, 0.8072, 0.7254, 0.6528),
        "CL": (0.8651, 0.8905, 0.8874, 0.8551),
        "SSFT": (0.9626, 0.9551, 0.9498, 0.9360),
        "Curv": (0.9715, 0.9776, 0.9800, 0.9819),
        "CSL": (0.9845, 0.9864, 0.9870, 0.9869),
    },
    "CIFAR-100": {
        "Thr. LT": (0.5256, 0.5227, 0.5161, 0.5203),
        "InConf": (0.7258, 0.7236, 0.7069, 0.6884),
        "CL": (0.8723, 0.8838, 0.8733, 0.8536),
        "SSFT": (0.8915, 0.8893, 0.8784, 0.8664),
        "Curv": (0.9856, 0.9865, 0.9876, 0.9892),
        "CSL": (0.9891, 0.9895, 0.9895, 0.9897),
    },
}
_DUPLICATE = {
    "Thr. LT": (0.7029, 0.7419),
    "InConf": (0.9237, 0.8623),
    "CL": (0.5533, 0.5873),
    "SSFT": (0.8490, 0.7938),
    "Curv": (0.9536, 0.9639),
    "CSL": (0.9821, 0.9886),
}
# Cosine similarity and Pearson's correlation, of the top 5,000 and of all.
_AGREEMENT = {
    "final_loss": ((0.33, 0.06), (0.24, 0.17)),
    "finite_difference_sum": ((0.87, 0.16), (0.69, 0.49)),
    "loss_sensitivity": ((0.97, 0.39), (0.81, 0.76)),
    "forgetting_events": ((0.96, 0.29), (0.76, 0.59)),
    "csl": ((0.93, 0.40), (0.87, 0.79)),
}


@dataclass(frozen=True)
class PublishedDetection:
    """AUROC of a method: of wrong labels at a share of noise, or of 250 duplicates (no noise is named)."""

    dataset: str
    target: str
    label_noise: float | None
    method: str
    score: str
    auroc: float


@dataclass(frozen=True)
class PublishedAgreement:
    """Agreement of a score with memorisation; ``images``: top or all."""

    score: str
    images: str
    cosine: float
    pearson: float


def detections() -> list[PublishedDetection]:
    """All published areas."""
    found = [
        PublishedDetection(dataset, "wrong label", noise, method, _SCORES[method], auroc)
        for dataset, methods in _WRONG_LABEL.items()
        for method, areas in methods.items()
        for noise, auroc in zip(NOISE, areas, strict=True)
    ]
    return found + [
        PublishedDetection(dataset, "duplicate", None, method, _SCORES[method], auroc)
        for method, areas in _DUPLICATE.items()
        for dataset, auroc in zip(_WRONG_LABEL, areas, strict=True)
    ]


def agreements() -> list[PublishedAgreement]:
    """Table 1, CIFAR-100."""
    return [
        PublishedAgreement(score, images, *values)
        for score, both in _AGREEMENT.items()
        for images, values in zip(("top", "all"), both, strict=True)
    ]
