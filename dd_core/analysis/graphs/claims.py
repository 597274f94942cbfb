"""What was claimed of the published networks, domain by domain, and what their authors measured later.

Everything here is of the repository research-developer/nsm; a file named without one is in its ``experiments``. Numbers
are of validation graphs. Epochs count as here, completed ones: the repository's "epoch 0" is the first, 1 here.
"""

from dataclasses import dataclass
from typing import Literal

Quantity = Literal[
    "accuracy", "gain", "learning", "balance", "cycle_loss", "best_epoch", "seconds", "dollars", "nothing here"
]

_REPORT = "MODAL_OPTIMIZATION_REPORT.md"
_SUMMARY = "VALIDATION_RESULTS_SUMMARY.md"
_NOTES = "notes/NSM_PHASE1.5_SUMMARY.md"
_DUAL = "notes/DUAL_PASS_VALIDATION_RESULTS.md"
# Accuracies of the networks of two levels before these, NSM-31-TRAINING-FIXES.md. The report compares causal's with
# planning's.
EARLIER_ACCURACY = {"planning": 0.435, "causal": 0.529, "knowledge_graph": 0.460}
PRICE_PER_HOUR = 1.10


@dataclass(frozen=True)
class Claim:
    """One claim about one domain.

    Attributes:
        key: of the claim.
        sentence: the claim in words.
        source: file in which it stands.
        claimed: the number, in ``unit``.
        claimed_is: reached: an accuracy that is reached; value: it is about this; at least, at most: beyond this.
        unit: fraction, loss, epochs, seconds or dollars.
        quantity: what measures it here.
        epochs: of the training that it is about; 0: however long it was.
        later: what the repository says later or elsewhere, in ``unit``; None: nothing.
        later_source: where, and of what.
        later_decides: it was measured on the same kind of GPU with more data, so that it tells what no CPU can.
    """

    key: str
    sentence: str
    source: str
    claimed: float
    claimed_is: Literal["reached", "value", "at least", "at most"]
    unit: Literal["fraction", "loss", "epochs", "seconds", "dollars"]
    quantity: Quantity
    epochs: int = 0
    later: float | None = None
    later_source: str | None = None
    later_decides: bool = False


@dataclass(frozen=True)
class _Domain:
    """What differs between domains in claims that are made of all.

    Attributes:
        accuracy: after 10 epochs, and where it is claimed.
        expected: accuracy that 100 epochs must reach, and what they did.
        balance: difference of the labels' accuracies after 100 epochs.
        cycle_loss: after 100 epochs.
        minutes: of 10 epochs, and of 100.
        dollars: of 100 epochs.
        learning: in which words it is said to learn, and where.
    """

    accuracy: tuple[float, str]
    expected: tuple[float, float]
    balance: float
    cycle_loss: float
    minutes: tuple[int, int]
    dollars: float
    learning: tuple[str, str]


_DOMAINS = {
    "planning": _Domain(
        (0.57, _SUMMARY), (0.60, 0.433), 0.953, 0.794, (8, 80), 1.43, ("converges steadily, now working", _REPORT)
    ),
    "causal": _Domain(
        (0.5902, _REPORT), (0.65, 0.570), 1.0, 0.857, (6, 60), 1.10, ("strong performance, best domain", _REPORT)
    ),
    "knowledge_graph": _Domain(
        (0.54, _REPORT), (0.55, 0.528), 0.504, 0.821, (7, 70), 1.32, ("learning is happening but slow", _SUMMARY)
    ),
}
# Where they are said to be best within ten epochs, and what is said elsewhere.
_BEST_EPOCHS = {
    "planning": ("the best checkpoint is that after epoch 3", 3.0, "value", 3.0, f"{_SUMMARY}, its epoch 2"),
    "causal": (
        "it improves steadily, so that the last of ten epochs is the best",
        10.0,
        "at least",
        1.0,
        f"{_SUMMARY}: its best epoch is 0, the first",
    ),
    "knowledge_graph": (
        "the best checkpoint is that after epoch 4",
        4.0,
        "value",
        1.0,
        f"{_REPORT}, section 6: no improvement after its epoch 0, the first",
    ),
}


def claims_of(domain: str) -> list[Claim]:
    """What was claimed of the network of a domain."""
    of, hundred = _DOMAINS[domain], f"{_NOTES}, after 100 epochs"
    is_planning = domain == "planning"
    ten_later = (0.435, f"{_DUAL}: 174 of 400 graphs after 10 epochs") if is_planning else (None, None)
    claims = [
        Claim(
            "accuracy_10_epochs", f"{100 * of.accuracy[0]:.4g} % of validation graphs are right after 10 epochs",
            of.accuracy[1], of.accuracy[0], "reached", "fraction", "accuracy", 10, *ten_later,
        ),
        Claim(
            "accuracy_100_epochs", f"more than {100 * of.expected[0]:.0f} % must be right after 100 epochs",
            _SUMMARY, of.expected[0], "at least", "fraction", "accuracy", 100, of.expected[1], hundred,
        ),
        Claim(
            "learns", f"{of.learning[0]}: it is better than always saying the more frequent label",
            of.learning[1], 0.0, "at least", "fraction", "learning", 10,
        ),
        Claim(
            "no_collapse", "there is no class collapse: both labels are equally well predicted, to 10 points",
            _REPORT, 0.10, "at most", "fraction", "balance", 10, of.balance, hundred,
        ),
        Claim(
            "cycle_loss", "the cycle loss comes below 0.2", _SUMMARY,
            0.2, "at most", "loss", "cycle_loss", 0, of.cycle_loss, hundred,
        ),
        *_best_epochs(domain),
        *_prices(of, is_planning),
        Claim(
            "amp_speedup", "mixed precision saves about 30 % on an A100", _REPORT,
            0.30, "value", "fraction", "nothing here",
        ),
        Claim("tf32_speedup", "TF32 makes matrix products about 20 % faster", _REPORT,
              0.20, "value", "fraction", "nothing here"),
    ]  # fmt: skip
    if domain == "causal":
        gain = Claim(
            "gain_over_earlier", "59.02 % is a gain of 15.5 points over the earlier baseline of 43.5 %", _REPORT,
            0.155, "at least", "fraction", "gain", 10, 0.5902 - EARLIER_ACCURACY["causal"],
            "NSM-31-TRAINING-FIXES.md: 43.5 % is planning's earlier accuracy, causal's is 52.9 %",
        )  # fmt: skip
        claims.insert(1, gain)
    return claims


def _best_epochs(domain: str) -> list[Claim]:
    sentence, epoch, is_at, later, where = _BEST_EPOCHS[domain]
    assert is_at in ("value", "at least")
    kind: Literal["value", "at least"] = "value" if is_at == "value" else "at least"
    claims = [Claim("best_epoch", sentence, _REPORT, epoch, kind, "epochs", "best_epoch", 10, later, where)]
    if domain == "knowledge_graph":
        claims.append(
            Claim(
                "no_improvement", "nothing improves after the first epoch", _REPORT,
                1.0, "at most", "epochs", "best_epoch", 10, 4.0, f"{_REPORT}, section 8: best at its epoch 3",
            )
        )  # fmt: skip
    return claims


def _prices(of: _Domain, is_planning: bool) -> list[Claim]:
    ten, hundred = of.minutes
    later = 33.966574
    where = f"{_DUAL}: 10 epochs of 2,000 graphs on an A100-40GB took {later:.2f} s"
    first = (later, where, True) if is_planning else (None, None, False)
    long = (10 * later, f"{where}, times ten", True) if is_planning else (None, None, False)
    dollars = 10 * later / 3600 * PRICE_PER_HOUR
    price = (dollars, f"{where}, times ten at $1.10 an hour", True) if is_planning else (None, None, False)
    return [
        Claim("seconds_10_epochs", f"10 epochs take about {ten} minutes on an A100-40GB", _REPORT,
              60.0 * ten, "value", "seconds", "seconds", 10, *first),
        Claim("seconds_100_epochs", f"100 epochs take about {hundred} minutes", _REPORT,
              60.0 * hundred, "value", "seconds", "seconds", 100, *long),
        Claim("dollars_100_epochs", f"100 epochs cost ${of.dollars:.2f} at ${PRICE_PER_HOUR:.2f} an hour", _REPORT,
              of.dollars, "value", "dollars", "dollars", 100, *price),
    ]  # fmt: skip
