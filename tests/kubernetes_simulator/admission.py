"""What may enter the store, and the defaults it gets.

Stricter than the real server in one way: every object is checked strictly (a field nobody knows is refused) whatever
``fieldValidation`` the client asked for, so that a misspelt field fails a test instead of being dropped.
"""

import re
from typing import Any

import kubernetes_validate

from .errors import ApiError, invalid
from .selectors import quantity
from .store import RESOURCES, Object

VERSION = "1.33"
UNLIMITED = 2147483647
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LABEL = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_NAME_LENGTHS = {"jobs": 63, "services": 63, "namespaces": 63}


def admit(group_version: str, plural: str, obj: Object) -> None:
    """Refuse what the real server refuses (400, 422); fill in the defaults of pods and Jobs in place."""
    kind = RESOURCES[group_version][plural][0]
    if obj.get("kind", kind) != kind or obj.get("apiVersion", group_version) != group_version:
        given = f"{obj.get('apiVersion')}/{obj.get('kind')}"
        raise ApiError(400, "BadRequest", f"the object is a {given}, expected {group_version}/{kind}")
    checks = _Checks(kind, group_version, obj["metadata"]["name"])
    checks.metadata(obj["metadata"], _NAME_LENGTHS.get(plural, 253))
    if plural == "pods":
        checks.pod("spec", obj.get("spec") or {})
    if plural == "jobs":
        template = (obj.get("spec") or {}).get("template") or {}
        checks.pod("spec.template.spec", template.get("spec") or {})
    _check_schema({**obj, "apiVersion": group_version, "kind": kind})
    if plural == "jobs":
        checks.job(obj["spec"])
        _default_job(obj["spec"])
        obj["status"] = {}
    if plural == "pods":
        obj["spec"].setdefault("restartPolicy", "Always")
        obj["spec"].setdefault("serviceAccountName", "default")
        obj["status"] = {"phase": "Pending"}


def _check_schema(obj: Object) -> None:
    try:
        kubernetes_validate.validate(obj, VERSION, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        return
    except kubernetes_validate.ValidationError as error:
        where = ".".join(map(str, error.path))
        version = obj["apiVersion"].split("/")[-1]
        message = f'{obj["kind"]} in version "{version}" cannot be handled as a {obj["kind"]}: strict decoding error: '
        raise ApiError(400, "BadRequest", f"{message}{where}: {error.message[:300]}") from error


def _default_job(spec: Any) -> None:
    spec.setdefault("parallelism", 1)
    spec.setdefault("completionMode", "NonIndexed")
    if spec["completionMode"] == "NonIndexed" and spec["parallelism"] == 1:
        spec.setdefault("completions", 1)
    spec.setdefault("backoffLimit", UNLIMITED if spec.get("backoffLimitPerIndex") is not None else 6)
    spec.setdefault("suspend", False)
    spec.setdefault("podReplacementPolicy", "Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed")


class _Checks:
    """The cross-field rules that no schema knows."""

    def __init__(self, kind: str, group_version: str, name: str):
        self._object = kind, group_version, name
        self._name = name

    def refuse(self, field: str, problem: str) -> None:
        raise invalid(*self._object, field, problem)

    def one_of(self, field: str, value: Any, *allowed: str) -> None:
        if value not in (None, *allowed):
            supported = ", ".join(f'"{a}"' for a in allowed)
            self.refuse(field, f'Unsupported value: "{value}": supported values: {supported}')

    def metadata(self, metadata: Any, max_length: int) -> None:
        if not _NAME.fullmatch(self._name) or len(self._name) > max_length:
            self.refuse("metadata.name", f'Invalid value: "{self._name}"')
        for label, value in (metadata.get("labels") or {}).items():
            if not _LABEL.fullmatch(str(value)) or len(str(value)) > 63:
                self.refuse("metadata.labels", f'Invalid value: "{value}" of {label}')

    def pod(self, field: str, spec: Any) -> None:
        if not spec.get("containers"):
            self.refuse(f"{field}.containers", "Required value")
        self.one_of(f"{field}.restartPolicy", spec.get("restartPolicy"), "Always", "OnFailure", "Never")
        volumes = {volume["name"] for volume in spec.get("volumes") or []}
        for i, container in enumerate([*spec["containers"], *(spec.get("initContainers") or [])]):
            where = f"{field}.containers[{i}]"
            pulls = ("Always", "IfNotPresent", "Never")
            self.one_of(f"{where}.imagePullPolicy", container.get("imagePullPolicy"), *pulls)
            for j, mount in enumerate(container.get("volumeMounts") or []):
                if mount["name"] not in volumes:
                    self.refuse(f"{where}.volumeMounts[{j}].name", f'Not found: "{mount["name"]}"')
            self._resources(f"{where}.resources", container.get("resources") or {})

    def _resources(self, field: str, resources: Any) -> None:
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        amounts = {name: quantity(value) for name, value in limits.items()}
        for name, value in requests.items():
            if quantity(value) > amounts.get(name, float("inf")):
                self.refuse(
                    f"{field}.requests", f'Invalid value: "{value}": must be less than or equal to {name} limit'
                )
            if "/" in name and name not in limits:
                self.refuse(f"{field}.limits", "Required value: Limit must be set for non overcommitable resources")

    def job(self, spec: Any) -> None:
        pod = spec["template"]["spec"]
        if pod.get("restartPolicy") not in ("Never", "OnFailure"):
            problem = 'Required value: valid values: "OnFailure", "Never"'
            self.refuse("spec.template.spec.restartPolicy", problem)
        self.one_of("spec.completionMode", spec.get("completionMode"), "Indexed", "NonIndexed")
        self.one_of("spec.podReplacementPolicy", spec.get("podReplacementPolicy"), "Failed", "TerminatingOrFailed")
        indexed, per_index = spec.get("completionMode") == "Indexed", spec.get("backoffLimitPerIndex") is not None
        if indexed and spec.get("completions") is None:
            self.refuse("spec.completions", "Required value: when completion mode is Indexed")
        if indexed and len(f"{self._name}-{spec['completions'] - 1}") > 63:
            self.refuse("metadata.name", "Invalid value: will not able to create pod with invalid DNS label")
        if per_index and not indexed:
            self.refuse("spec.backoffLimitPerIndex", "Invalid value: requires indexed completion mode")
        if spec.get("maxFailedIndexes") is not None and not per_index:
            self.refuse("spec.backoffLimitPerIndex", "Required value: when maxFailedIndexes is specified")
        if spec.get("podFailurePolicy"):
            self._failure_policy(spec, pod, per_index)

    def _failure_policy(self, spec: Any, pod: Any, per_index: bool) -> None:
        if pod["restartPolicy"] != "Never":
            problem = 'Invalid value: only "Never" is supported when podFailurePolicy is specified'
            self.refuse("spec.template.spec.restartPolicy", problem)
        if spec.get("podReplacementPolicy") == "TerminatingOrFailed":
            self.one_of("spec.podReplacementPolicy", "TerminatingOrFailed", "Failed")
        names = [c["name"] for c in [*pod["containers"], *(pod.get("initContainers") or [])]]
        for i, rule in enumerate(spec["podFailurePolicy"]["rules"]):
            field = f"spec.podFailurePolicy.rules[{i}]"
            self.one_of(f"{field}.action", rule["action"], "Count", "FailIndex", "FailJob", "Ignore")
            codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
            if bool(codes) == bool(conditions):
                self.refuse(field, "Invalid value: specifying one of OnExitCodes and OnPodConditions is required")
            if rule["action"] == "FailIndex" and not per_index:
                self.refuse(f"{field}.action", 'Invalid value: "FailIndex": requires the backoffLimitPerIndex')
            if codes:
                self.one_of(f"{field}.onExitCodes.operator", codes["operator"], "In", "NotIn")
                self.one_of(f"{field}.onExitCodes.containerName", codes.get("containerName"), *names)
                if codes["operator"] == "In" and 0 in codes["values"]:
                    self.refuse(f"{field}.onExitCodes.values", "Invalid value: 0: must not be 0 for the In operator")
            for pattern in conditions or []:
                self.one_of(f"{field}.onPodConditions.status", pattern.get("status"), "True", "False", "Unknown")
