"""What a Kubernetes API server refuses, or would silently take for something else, and schemas do not know.

``check(manifest)`` is for every manifest that the code builds or the repository ships: the schemas of the oldest and
the newest supported Kubernetes, strict, and the rules below (enums, quantities, names, and what must fit together).
"""

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

import kubernetes_validate

# Oldest and newest supported. From 1.31 on podFailurePolicy is stable, and backoffLimitPerIndex is on by default.
SUPPORTED = ("1.31", "1.37")

Manifest = dict[str, Any]

_ENUMS = {
    "completionMode": {"Indexed", "NonIndexed"},
    "podReplacementPolicy": {"Failed", "TerminatingOrFailed"},
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "imagePullPolicy": {"Always", "IfNotPresent", "Never"},
    "podFailurePolicy.rules.*.action": {"FailJob", "FailIndex", "Ignore", "Count"},
    "podFailurePolicy.rules.*.onExitCodes.operator": {"In", "NotIn"},
    "onPodConditions.*.status": {"True", "False", "Unknown"},
    "seccompProfile.type": {"RuntimeDefault", "Unconfined", "Localhost"},
    "tolerations.*.operator": {"Exists", "Equal"},
    "tolerations.*.effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "whenUnsatisfiable": {"DoNotSchedule", "ScheduleAnyway"},
    "matchExpressions.*.operator": {"In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"},
    "accessModes.*": {"ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"},
    "volumeMode": {"Filesystem", "Block"},
    "medium": {"", "Memory"},
    "ports.*.protocol": {"TCP", "UDP", "SCTP"},
    "policyTypes.*": {"Ingress", "Egress"},
    "preemptionPolicy": {"Never", "PreemptLowerPriority"},
    "concurrencyPolicy": {"Allow", "Forbid", "Replace"},
    "dnsPolicy": {"ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"},
    "subjects.*.kind": {"ServiceAccount", "User", "Group"},
    "roleRef.kind": {"Role", "ClusterRole"},
    "rules.*.verbs.*": {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "*"},
}
_QUANTITIES = ("limits.*", "requests.*", "hard.*", "sizeLimit", "capacity.storage", "nominalQuota")
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)([EPTGMk]i?|Ki|m|[eE][+-]?\d+)?")
_LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
_DNS_LABEL = re.compile(_LABEL)
_DNS_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(rf"({_LABEL}(\.{_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_.-][A-Za-z0-9_.-]*")


def check(manifest: Manifest) -> None:
    """The manifest is accepted by every supported version and breaks no rule; fails with all that is wrong."""
    problems = violations(manifest)
    for version in SUPPORTED:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            problems.append(f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message[:300]}")
        except kubernetes_validate.SchemaNotFoundError:
            pass  # a resource of an extension, Kueue's for example
    assert not problems, f"{manifest.get('kind')} {manifest.get('metadata', {}).get('name')}: " + "; ".join(problems)


def violations(manifest: Manifest) -> list[str]:
    """Every rule that is broken, each with the path of the key."""
    found = [*_names(manifest), *_values(manifest)]
    for path, spec in _pod_specs(manifest):
        found += _pod(path, spec)
    for kind, rules in _BY_KIND.items():
        if manifest["kind"] == kind:
            found += rules(manifest)
    return found


def quantity(text: Any) -> Decimal:
    """A quantity as a number: ``500m`` is 0.5, ``2Gi`` 2147483648.

    Raises:
        ValueError: it is none.
    """
    match = _QUANTITY.fullmatch(str(text))
    if not match:
        raise ValueError(f"{text!r} is not a quantity")
    suffix = match[2] or ""
    if suffix[:1] in ("e", "E") and len(suffix) > 1 and suffix != "Ei":
        return Decimal(match[1] + suffix)
    scales = {"": Decimal(1), "m": Decimal("0.001"), "k": Decimal(1000)}
    scales |= {letter: Decimal(1000) ** power for power, letter in enumerate("MGTPE", 2)}
    scales |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)}
    return Decimal(match[1]) * scales[suffix]


def _walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a manifest with its dotted path; members of lists are numbered."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in pairs:
        # Dots within a key (nvidia.com/gpu) would look like steps of the path.
        here = f"{path}.{str(key).replace('.', '_')}"
        yield here, child
        yield from _walk(child, here)


def _ends(path: str, patterns: Any) -> Iterator[str]:
    """The patterns that the end of a path fits, each star being one step."""
    steps = path.split(".")
    for pattern in patterns:
        wanted = pattern.split(".")
        tail = steps[-len(wanted) :]
        if len(tail) == len(wanted) and all(fnmatchcase(have, want) for have, want in zip(tail, wanted, strict=True)):
            yield pattern


def _values(manifest: Manifest) -> Iterator[str]:
    """Enums, quantities, labels."""
    for path, value in _walk(manifest):
        if ".data." in path or ".annotations." in path:
            continue
        for pattern in _ends(path, _ENUMS):
            if isinstance(value, str) and value not in _ENUMS[pattern]:
                yield f"{path[1:]}: {value!r} is not one of {', '.join(sorted(_ENUMS[pattern]))}"
        if any(_ends(path, _QUANTITIES)) and not isinstance(value, dict | list):
            try:
                quantity(value)
            except ValueError as error:
                yield f"{path[1:]}: {error}"
        if path.rsplit(".", 1)[-1] in ("labels", "matchLabels", "nodeSelector") and isinstance(value, dict):
            for key, text in value.items():
                if not _LABEL_KEY.fullmatch(key):
                    yield f"{path[1:]}: {key!r} is no key of a label"
                if not isinstance(text, str) or not _LABEL_VALUE.fullmatch(text):
                    yield f"{path[1:]}.{key}: {text!r} is no value of a label"


def _names(manifest: Manifest) -> Iterator[str]:
    kind, metadata = manifest["kind"], manifest.get("metadata", {})
    name = metadata.get("name") or (metadata.get("generateName") or "") + "x"
    pattern = {"Service": _SERVICE_NAME, "Namespace": _DNS_LABEL, "Job": _DNS_LABEL}.get(kind, _DNS_NAME)
    is_rbac = manifest["apiVersion"].startswith("rbac.")
    if not is_rbac and not pattern.fullmatch(name):
        yield f"metadata.name: {name!r} is no name of a {kind}"
    if "namespace" in metadata and not _DNS_LABEL.fullmatch(metadata["namespace"]):
        yield f"metadata.namespace: {metadata['namespace']!r} is no name of a namespace"


def _pod_specs(manifest: Manifest) -> Iterator[tuple[str, Manifest]]:
    if manifest["kind"] == "Pod":
        yield "spec", manifest["spec"]
    elif manifest["kind"] == "CronJob":
        yield "spec.jobTemplate.spec.template.spec", manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    elif manifest["kind"] in ("Job", "Deployment", "StatefulSet", "DaemonSet"):
        yield "spec.template.spec", manifest["spec"]["template"]["spec"]


def _pod(path: str, spec: Manifest) -> Iterator[str]:
    """What must fit together within a pod."""
    volumes = [volume["name"] for volume in spec.get("volumes") or []]
    containers = [*(spec.get("initContainers") or []), *spec.get("containers", [])]
    if not spec.get("containers"):
        yield f"{path}.containers: there is none"
    for what, names in (("containers", [c["name"] for c in containers]), ("volumes", volumes)):
        yield from (f"{path}.{what}: {name!r} is there twice" for name in _twice(names))
        yield from (f"{path}.{what}: {name!r} is no name" for name in names if not _DNS_LABEL.fullmatch(name))
    for volume in spec.get("volumes") or []:
        if len(volume) != 2:
            yield f"{path}.volumes.{volume['name']}: needs exactly one source"
    for key in ("hostname", "subdomain"):
        if key in spec and not _DNS_LABEL.fullmatch(spec[key]):
            yield f"{path}.{key}: {spec[key]!r} is no name"
    for container in containers:
        yield from _container(f"{path}.{container['name']}", container, volumes)
    for toleration in spec.get("tolerations") or []:
        if toleration.get("operator") == "Exists" and "value" in toleration:
            yield f"{path}.tolerations: Exists takes no value"


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _container(path: str, container: Manifest, volumes: list[str]) -> Iterator[str]:
    mounts = container.get("volumeMounts") or []
    if not container.get("image"):
        yield f"{path}.image: is missing"
    for mount in mounts:
        if mount["name"] not in volumes:
            yield f"{path}.volumeMounts: there is no volume {mount['name']!r}"
        if not mount["mountPath"].startswith("/"):
            yield f"{path}.volumeMounts: {mount['mountPath']!r} is no absolute path"
    paths = [mount["mountPath"].rstrip("/") for mount in mounts]
    if len(set(paths)) < len(paths):
        yield f"{path}.volumeMounts: two at one path"
    names = [variable["name"] for variable in container.get("env") or []]
    yield from (f"{path}.env: {name!r} is there twice" for name in _twice(names))
    yield from (f"{path}.env: {name!r} is no name of a variable" for name in names if not _ENV_NAME.fullmatch(name))
    security = container.get("securityContext") or {}
    if security.get("privileged") and security.get("allowPrivilegeEscalation") is False:
        yield f"{path}.securityContext: privileged, but without escalation"
    yield from _resources(path, container.get("resources") or {})


def _resources(path: str, resources: Manifest) -> Iterator[str]:
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    if not all(_QUANTITY.fullmatch(str(text)) for text in (*requests.values(), *limits.values())):
        return  # which is said elsewhere
    for name in requests | limits:
        request, limit = requests.get(name), limits.get(name)
        if "/" in name and limit is None:
            yield f"{path}.resources: {name} needs a limit"
        elif "/" in name and (quantity(limit) % 1 or (request is not None and quantity(request) != quantity(limit))):
            yield f"{path}.resources: {name} is whole, and its request is its limit"
        elif request is not None and limit is not None and quantity(request) > quantity(limit):
            yield f"{path}.resources: more {name} requested than its limit"


def _job(manifest: Manifest) -> Iterator[str]:
    """What the API server's validation of Jobs says (pkg/apis/batch/validation), as far as it is used here."""
    spec = manifest["spec"]
    pod, name = spec["template"]["spec"], manifest["metadata"].get("name", "")
    indexed = spec.get("completionMode") == "Indexed"
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        yield "spec.template.spec.restartPolicy: a Job's is Never or OnFailure"
    for key in ("parallelism", "completions", "backoffLimit", "backoffLimitPerIndex", "ttlSecondsAfterFinished"):
        if spec.get(key) is not None and spec[key] < 0:
            yield f"spec.{key}: is negative"
    if spec.get("activeDeadlineSeconds") is not None and spec["activeDeadlineSeconds"] < 1:
        yield "spec.activeDeadlineSeconds: is not positive"
    if indexed and spec.get("completions") is None:
        yield "spec.completions: Indexed needs it"
    if indexed and len(f"{name}-{max(0, (spec.get('completions') or 1) - 1)}") > 63:
        yield "metadata.name: with the index it is too long for the name of a host"
    if not indexed and (spec.get("backoffLimitPerIndex") is not None or spec.get("maxFailedIndexes") is not None):
        yield "spec.backoffLimitPerIndex: needs Indexed"
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        yield "spec.maxFailedIndexes: needs backoffLimitPerIndex"
    if spec.get("backoffLimitPerIndex") is not None and pod.get("restartPolicy") != "Never":
        yield "spec.backoffLimitPerIndex: needs restartPolicy Never"
    if spec.get("backoffLimitPerIndex") and spec.get("backoffLimit") == 0:
        yield "spec.backoffLimit: 0 ends the Job at the first failure, so backoffLimitPerIndex has no effect"
    if spec.get("selector") and not spec.get("manualSelector"):
        yield "spec.selector: is made by the Job controller"
    if spec.get("podFailurePolicy"):
        yield from _pod_failure_policy(spec)


def _pod_failure_policy(spec: Manifest) -> Iterator[str]:
    where = "spec.podFailurePolicy"
    if spec["template"]["spec"].get("restartPolicy") != "Never":
        yield f"{where}: needs restartPolicy Never"
    if spec.get("podReplacementPolicy", "Failed") != "Failed":
        yield f"{where}: needs podReplacementPolicy Failed"
    names = {c["name"] for c in spec["template"]["spec"].get("containers", [])}
    for number, rule in enumerate(spec["podFailurePolicy"]["rules"]):
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if bool(codes) == bool(conditions):
            yield f"{where}.rules.{number}: needs either onExitCodes or onPodConditions"
        if codes:
            values = codes.get("values") or []
            if values != sorted(set(values)) or not values:
                yield f"{where}.rules.{number}.values: must ascend without repetition"
            if codes["operator"] == "In" and 0 in values:
                yield f"{where}.rules.{number}.values: 0 is no failure"
            if codes.get("containerName") not in {None, *names}:
                yield f"{where}.rules.{number}: there is no container {codes['containerName']!r}"
        if rule["action"] == "FailIndex" and spec.get("backoffLimitPerIndex") is None:
            yield f"{where}.rules.{number}: FailIndex needs backoffLimitPerIndex"


def _workload(manifest: Manifest) -> Iterator[str]:
    spec = manifest["spec"]
    labels = spec["template"].get("metadata", {}).get("labels", {})
    if not (spec["selector"].get("matchLabels", {}).items() <= labels.items()):
        yield "spec.selector: does not select the pods of the template"
    if spec["template"]["spec"].get("restartPolicy", "Always") != "Always":
        yield f"spec.template.spec.restartPolicy: a {manifest['kind']}'s is Always"


def _service(manifest: Manifest) -> Iterator[str]:
    spec = manifest["spec"]
    if not spec.get("ports") and spec.get("clusterIP") != "None":
        yield "spec.ports: needs one unless it is headless"
    if len(spec.get("ports") or []) > 1 and not all(port.get("name") for port in spec["ports"]):
        yield "spec.ports: several need names"
    if spec.get("type", "ClusterIP") not in ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"):
        yield f"spec.type: {spec['type']!r} is none"


def _role(manifest: Manifest) -> Iterator[str]:
    for number, rule in enumerate(manifest.get("rules") or []):
        if not rule.get("verbs") or not (rule.get("resources") or rule.get("nonResourceURLs")):
            yield f"rules.{number}: needs verbs and resources"
        if rule.get("resources") and not rule.get("apiGroups"):
            yield f"rules.{number}.apiGroups: is empty, so nothing is allowed"
        if "create" in rule.get("verbs", []) and rule.get("resourceNames"):
            yield f"rules.{number}: create cannot be limited to names"


def _binding(manifest: Manifest) -> Iterator[str]:
    for number, subject in enumerate(manifest.get("subjects") or []):
        if subject["kind"] == "ServiceAccount" and not subject.get("namespace"):
            yield f"subjects.{number}.namespace: is missing"
        if subject["kind"] == "ServiceAccount" and subject.get("apiGroup"):
            yield f"subjects.{number}.apiGroup: is empty for a ServiceAccount"


def _claim(manifest: Manifest) -> Iterator[str]:
    spec = manifest["spec"]
    if not spec.get("accessModes"):
        yield "spec.accessModes: is missing"
    if not (spec.get("resources", {}).get("requests") or {}).get("storage"):
        yield "spec.resources.requests.storage: is missing"


def _disruption_budget(manifest: Manifest) -> Iterator[str]:
    if ("minAvailable" in manifest["spec"]) == ("maxUnavailable" in manifest["spec"]):
        yield "spec: needs either minAvailable or maxUnavailable"


def _priority_class(manifest: Manifest) -> Iterator[str]:
    if not -(2**31) <= manifest["value"] <= 1_000_000_000:
        yield "value: above 1000000000 is for the system"


_BY_KIND: dict[str, Callable[[Manifest], Iterator[str]]] = {
    "Job": _job,
    "Deployment": _workload,
    "StatefulSet": _workload,
    "DaemonSet": _workload,
    "Service": _service,
    "Role": _role,
    "ClusterRole": _role,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "PersistentVolumeClaim": _claim,
    "PodDisruptionBudget": _disruption_budget,
    "PriorityClass": _priority_class,
}
