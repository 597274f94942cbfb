"""The HTTP side: paths to verbs, who may, and the answers of each verb.

Left out: server-side apply, JSON patch (415), protobuf, tables (kubectl then prints what it can), OpenAPI beyond what
kubectl needs to send objects, and strategic merging (treated as a JSON merge patch: lists are replaced whole, but for
what is deleted by name).
"""

import base64
import copy
import json
import secrets
import time
from typing import Any, NamedTuple

from aiohttp import web

from .access import Access, Users
from .admission import admit
from .deletion import Deletion
from .discovery import discover
from .errors import ApiError, expired, invalid, not_found, qualified, unknown_path
from .faults import Dropped, Faults
from .kubelet import Kubelet
from .selectors import matches_fields, matches_labels
from .store import RESOURCES, Key, Object, Store, key_of, set_condition
from .streams import is_true, pod_log, watch

_SUBRESOURCES = {"status": "*", "log": "pods", "eviction": "pods"}
_IMMUTABLE_OF_JOBS = ("template", "selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex")


class Request(NamedTuple):
    """One request that was answered; user is empty where it never got so far, status 0 where the client went away."""

    time: float
    verb: str
    path: str
    user: str
    status: int


class _Target(NamedTuple):
    verb: str
    group_version: str
    plural: str
    namespace: str | None
    name: str | None
    subresource: str | None

    def access(self) -> Access:
        resource = f"{self.plural}/{self.subresource}" if self.subresource else self.plural
        group = self.group_version.split("/")[0] if "/" in self.group_version else ""
        namespace = self.name if self.plural == "namespaces" else self.namespace  # a Role may let read its own
        return Access(self.verb, group, resource, namespace, self.name)

    @property
    def key(self) -> Key:
        return Key(self.group_version, self.plural, self.namespace, self.name or "")


class Api:
    """Answers requests and keeps a list of them."""

    def __init__(self, store: Store, users: Users, deletion: Deletion, kubelet: Kubelet, faults: Faults):
        """The kubelet has the logs; the rest is in the store."""
        self._store, self._users, self._deletion = store, users, deletion
        self._kubelet, self._faults = kubelet, faults
        self.requests: list[Request] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Faults first, then who asks, then the answer."""
        began, user, status, verb = time.time(), "", 0, request.method.lower()
        try:
            parts = [part for part in request.path.split("/") if part]
            target = _target(request, parts)
            verb = target.verb if target else verb
            await self._faults.meet(verb, request.path_qs)
            user = self._users.who(request.headers.get("Authorization", ""))
            response = await self._answer(request, target, user) if target else discover(parts)
            status = response.status
        except Dropped:
            if request.transport is not None:
                request.transport.abort()
            response = web.Response()  # that nobody gets
        except ApiError as error:
            status = error.code
            response = error.response()
        finally:
            self.requests.append(Request(began, verb, request.path_qs, user, status))
        return response

    async def _answer(self, request: web.Request, target: _Target, user: str) -> web.StreamResponse:
        if target.plural == "selfsubjectaccessreviews":
            return web.json_response(self._review(user, await _body(request)), status=201)
        self._users.require(user, target.access())
        if target.name and (target.verb != "create" or target.subresource) and target.key not in self._store.objects:
            raise not_found(target.plural, target.group_version, target.name)
        if target.verb == "watch":
            return await watch(request, self._store, self._faults, (target.key[0], target.key[1], target.key[2]))
        if target.subresource == "log":
            pod = self._store.objects[target.key]
            return await pod_log(request, self._faults, pod, self._kubelet.logs(pod["metadata"]["uid"]))
        if target.verb == "list":
            return web.json_response(self._list(target, request.query))
        if target.verb == "get":
            return web.json_response(self._store.objects[target.key])
        body = await _body(request)
        if target.subresource == "eviction":
            grace = (body.get("deleteOptions") or {}).get("gracePeriodSeconds")
            self.evict(target.key, grace)
            return web.json_response({"kind": "Status", "apiVersion": "v1", "status": "Success"}, status=201)
        if target.verb == "create":
            is_dry = "dryRun" in request.query
            created = self.create(target.group_version, target.plural, target.namespace, body, is_dry)
            return web.json_response(created, status=201)
        if target.verb in ("update", "patch"):
            return web.json_response(self._change(target, body, request.content_type))
        return web.json_response(self._delete(target, body, request.query))

    def evict(self, key: Key, grace: int | None = None) -> None:
        """What the eviction API does."""
        self.disrupt(key, "EvictionByEvictionAPI", "Eviction API: evicting", grace)

    def disrupt(self, key: Key, reason: str, message: str, grace: int | None = None) -> None:
        """Mark a pod as hit by a disruption, then delete it gracefully: eviction, preemption, a lost node."""
        self._store.update(key, lambda o: set_condition(o, "DisruptionTarget", reason=reason, message=message))
        self._deletion.delete(key, grace=grace)

    def create(
        self, group_version: str, plural: str, namespace: str | None, body: Object, is_dry: bool = False
    ) -> Object:
        """Put a new object into the store, or refuse it as the real server does."""
        kind, is_namespaced = RESOURCES[group_version][plural]
        body = {name: copy.deepcopy(value) for name, value in body.items() if name != "status"}
        metadata = body.setdefault("metadata", {})
        if is_namespaced and ("v1", "namespaces", None, namespace) not in self._store.objects:
            raise not_found("namespaces", "v1", str(namespace))
        if is_namespaced and metadata.get("namespace", namespace) != namespace:
            message = "the namespace of the provided object does not match the namespace sent on the request"
            raise ApiError(400, "BadRequest", message)
        if not metadata.get("name"):
            if not metadata.get("generateName"):
                raise invalid(
                    kind, group_version, "", "metadata.name", "Required value: name or generateName is required"
                )
            metadata["name"] = metadata["generateName"] + secrets.token_hex(3)[:5]
        admit(group_version, plural, body)
        key = Key(group_version, plural, namespace if is_namespaced else None, metadata["name"])
        if key in self._store.objects:
            message = f'{qualified(plural, group_version)} "{key.name}" already exists'
            raise ApiError(409, "AlreadyExists", message, name=key.name, kind=plural)
        if plural == "pods":
            self._require_account(namespace, key.name, body["spec"]["serviceAccountName"])
        return body if is_dry else self._store.put(key, body)

    def _require_account(self, namespace: str | None, pod: str, account: str) -> None:
        if ("v1", "serviceaccounts", namespace, account) not in self._store.objects:
            problem = f'error looking up service account {namespace}/{account}: serviceaccount "{account}" not found'
            raise ApiError(403, "Forbidden", f'pods "{pod}" is forbidden: {problem}', name=pod, kind="pods")

    def _change(self, target: _Target, body: Any, content_type: str) -> Object:
        current, key = self._store.objects[target.key], target.key
        if target.verb == "patch":
            if content_type not in ("application/merge-patch+json", "application/strategic-merge-patch+json"):
                raise ApiError(415, "UnsupportedMediaType", f"the simulator does not know {content_type}")
            new = merge(current, body)
        else:
            new = body
        version = new.get("metadata", {}).get("resourceVersion")
        if version not in (None, "", current["metadata"]["resourceVersion"]):
            what = f'Operation cannot be fulfilled on {qualified(key.plural, key.group_version)} "{key.name}"'
            problem = "the object has been modified; please apply your changes to the latest version and try again"
            raise ApiError(409, "Conflict", f"{what}: {problem}", name=key.name, kind=key.plural)
        if target.subresource == "status":
            new = {**current, "status": new.get("status", {})}
        elif "status" in current:
            new = {**new, "status": current["status"]}
        if key.plural == "jobs" and not target.subresource:
            for field in _IMMUTABLE_OF_JOBS:
                editable = field == "template" and current["spec"].get("suspend")
                if current["spec"].get(field) != new["spec"].get(field) and not editable:
                    raise invalid("Job", key.group_version, key.name, f"spec.{field}", "field is immutable")
        return self._store.put(key, new)

    def _delete(self, target: _Target, body: Any, query: Any) -> Object:
        asked = {**body, **query}
        policy, grace = asked.get("propagationPolicy"), asked.get("gracePeriodSeconds")
        seconds = None if grace is None else int(grace)
        if target.verb == "delete":
            return self._deletion.delete(target.key, policy, seconds)
        items = self._list(target, query)["items"]
        for item in items:
            self._deletion.delete(key_of(item), policy, seconds)
        return {"kind": "List", "apiVersion": "v1", "metadata": {}, "items": items}

    def _list(self, target: _Target, query: Any) -> Object:
        labels, fields = query.get("labelSelector"), query.get("fieldSelector")
        matches_labels(labels, {})  # a malformed one is refused even where there is nothing to list
        objects = [
            obj
            for obj in self._store.select(target.group_version, target.plural, target.namespace)
            if matches_labels(labels, obj["metadata"].get("labels")) and matches_fields(fields, obj, target.plural)
        ]
        objects.sort(key=lambda obj: (obj["metadata"].get("namespace", ""), obj["metadata"]["name"]))
        metadata: Object = {"resourceVersion": str(self._store.version)}
        start, limit = 0, int(query.get("limit") or 0)
        if token := query.get("continue"):
            version, start = json.loads(base64.urlsafe_b64decode(token))
            metadata["resourceVersion"] = str(version)
            if version < self._store.forgotten:
                raise expired(version, self._store.forgotten)
        if limit and start + limit < len(objects):
            position = json.dumps([int(metadata["resourceVersion"]), start + limit]).encode()
            metadata |= {"continue": base64.urlsafe_b64encode(position).decode()}
            metadata |= {"remainingItemCount": len(objects) - start - limit}
        kind = RESOURCES[target.group_version][target.plural][0]
        items = objects[start : start + limit] if limit else objects[start:]
        return {"kind": f"{kind}List", "apiVersion": target.group_version, "metadata": metadata, "items": items}

    def _review(self, user: str, body: Any) -> Object:
        asked = (body.get("spec") or {}).get("resourceAttributes") or {}
        resource = asked.get("resource", "") + (f"/{asked['subresource']}" if asked.get("subresource") else "")
        access = Access(
            asked.get("verb", ""), asked.get("group", ""), resource, asked.get("namespace"), asked.get("name") or None
        )
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "metadata": {}}
        return review | {"spec": body["spec"], "status": {"allowed": self._users.allowed(user, access)}}


def _target(request: web.Request, parts: list[str]) -> _Target | None:
    """What a path is about; None for discovery."""
    if not parts or parts[0] not in ("api", "apis"):
        return None
    group_version, rest = (parts[1:2], parts[2:]) if parts[0] == "api" else (parts[1:3], parts[3:])
    if not rest:
        return None
    namespace = None
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    plural, name, subresource, *_ = [*rest, None, None]
    known = RESOURCES.get("/".join(group_version), {})
    if plural not in known or (subresource and _SUBRESOURCES.get(subresource) not in ("*", plural)):
        raise unknown_path()
    watched = is_true(request.query.get("watch"))
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete" if name else "deletecollection"}
    verbs["GET"] = "get" if name else "watch" if watched else "list"
    if request.method not in verbs:
        raise ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    return _Target(verbs[request.method], "/".join(group_version), str(plural), namespace, name, subresource)


async def _body(request: web.Request) -> Any:
    if "protobuf" in request.content_type:
        raise ApiError(415, "UnsupportedMediaType", "the simulator reads JSON only")
    text = await request.text()
    try:
        body = json.loads(text) if text else {}
    except ValueError as error:
        raise ApiError(400, "BadRequest", f"couldn't read the body as JSON: {error}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "BadRequest", "the body is not an object")
    return body


def merge(target: Any, patch: Any) -> Any:
    """JSON merge patch (RFC 7386), and lists whose entries are deleted by name."""
    if isinstance(patch, list) and patch and all(entry.get("$patch") == "delete" for entry in patch):
        gone = {entry["name"] for entry in patch}
        return [copy.deepcopy(entry) for entry in target or [] if entry["name"] not in gone]
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge(merged.get(name), value)
    return merged
