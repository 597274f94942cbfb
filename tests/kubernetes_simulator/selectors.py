"""Label selectors, field selectors and quantities: read as the API server reads them, refused as it refuses them."""

import re
from collections.abc import Mapping
from typing import Any

from .errors import ApiError

_LABEL = r"(?:[A-Za-z0-9][-A-Za-z0-9_./]*)?[A-Za-z0-9]"
_REQUIREMENT = re.compile(
    rf"\s*(?:(?P<absent>!)?\s*(?P<key>{_LABEL})\s*"
    rf"(?:(?P<operator>==|=|!=)\s*(?P<value>(?:{_LABEL})?)|\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*"
)
_FIELDS = {
    "pods": {"status.phase", "spec.nodeName", "spec.restartPolicy", "status.podIP", "spec.serviceAccountName"},
    "events": {"involvedObject.name", "involvedObject.kind", "involvedObject.uid", "involvedObject.namespace"}
    | {"reason", "type"},
    "jobs": {"status.successful"},
}
_QUANTITY = re.compile(r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(m|[kMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?")
_SUFFIXES = {"m": 1e-3, "k": 1e3} | {s: 10.0 ** (3 * i) for i, s in enumerate("MGTPE", 2)}
_SUFFIXES |= {f"{s}i": 2.0 ** (10 * i) for i, s in enumerate("KMGTPE", 1)}


def matches_labels(selector: str | None, labels: Mapping[str, str] | None) -> bool:
    """Whether every requirement of the selector holds; a malformed one is a 400, as in the real server."""
    labels = labels or {}
    for part in re.split(r",(?![^(]*\))", selector) if selector else []:
        requirement = _REQUIREMENT.fullmatch(part)
        if requirement is None or (requirement["absent"] and (requirement["operator"] or requirement["set"])):
            raise ApiError(400, "BadRequest", f'unable to parse requirement: found "{part}"')
        value = labels.get(requirement["key"])
        if requirement["operator"]:
            holds = (value == requirement["value"]) != (requirement["operator"] == "!=")
        elif requirement["set"]:
            among = value in [v.strip() for v in requirement["values"].split(",")]
            holds = among == (requirement["set"] == "in")
        else:
            holds = (value is None) == bool(requirement["absent"])
        if not holds:
            return False
    return True


def matches_fields(selector: str | None, obj: Any, plural: str) -> bool:
    for part in selector.split(",") if selector else []:
        if not (term := re.fullmatch(r"([^=!]+)(!=|==?)(.*)", part)):
            raise ApiError(400, "BadRequest", f"invalid selector: '{selector}'; can't understand '{part}'")
        field, operator, value = term.groups()
        if field not in {"metadata.name", "metadata.namespace"} | _FIELDS.get(plural, set()):
            raise ApiError(400, "BadRequest", f"field label not supported: {field}")
        found = obj
        for step in field.split("."):
            found = (found or {}).get(step)
        if ((found or "") == value) == (operator == "!="):
            return False
    return True


def selects(selector: Mapping[str, str] | None, labels: Mapping[str, str] | None) -> bool:
    """A Service's selector: all of these labels; an empty one selects nothing."""
    return bool(selector) and all((labels or {}).get(k) == v for k, v in (selector or {}).items())


def quantity(text: Any) -> float:
    """``500m``, ``4``, ``12Gi`` as a number (cores, bytes, devices); a 400 for what is none."""
    if not (parts := _QUANTITY.fullmatch(str(text))):
        pattern = "^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$"
        raise ApiError(400, "BadRequest", f"quantities must match the regular expression '{pattern}'")
    number, suffix = parts[1], parts[2] or ""
    if suffix in _SUFFIXES or not suffix:
        return float(number) * _SUFFIXES.get(suffix, 1.0)
    return float(number + suffix)  # 12e6
