"""Who asks (bearer tokens) and what they may do (RBAC: Roles and ClusterRoles with their bindings)."""

import secrets
from typing import Any, NamedTuple

from .errors import ApiError, qualified
from .store import Key, Object, Store

_RBAC = "rbac.authorization.k8s.io/v1"


class Access(NamedTuple):
    """One thing somebody wants to do."""

    verb: str
    group: str
    resource: str  # with its subresource: pods/log
    namespace: str | None
    name: str | None


class Users:
    """Tokens and permissions. The administrator's token may do everything."""

    def __init__(self, store: Store):
        """Roles and bindings are read from the store at every request."""
        self._store = store
        self.admin_token = secrets.token_hex(16)
        self._tokens = {self.admin_token: "kubernetes-admin"}

    def token(self, namespace: str, service_account: str) -> str:
        """A new bearer token of a service account."""
        token = secrets.token_hex(16)
        self._tokens[token] = f"system:serviceaccount:{namespace}:{service_account}"
        return token

    def who(self, authorization: str) -> str:
        """The user behind an Authorization header; a 401 for none."""
        user = self._tokens.get(authorization.partition(" ")[2].strip())
        if user is None or not authorization.lower().startswith("bearer "):
            raise ApiError(401, "Unauthorized", "Unauthorized")
        return user

    def require(self, user: str, access: Access) -> None:
        """A 403 with the real server's sentence where something is not allowed."""
        if self.allowed(user, access):
            return
        what = qualified(access.resource.split("/")[0], f"{access.group}/" if access.group else "")
        where = f'in the namespace "{access.namespace}"' if access.namespace else "at the cluster scope"
        subject = f'{what} "{access.name}"' if access.name else what
        message = f'{subject} is forbidden: User "{user}" cannot {access.verb} resource "{access.resource}" '
        message += f'in API group "{access.group}" {where}'
        raise ApiError(403, "Forbidden", message, name=access.name or "", group=access.group, kind=access.resource)

    def allowed(self, user: str, access: Access) -> bool:
        """Whether some binding of the user leads to a rule that permits this."""
        if user == "kubernetes-admin":
            return True
        bindings = self._store.select(_RBAC, "clusterrolebindings")
        if access.namespace:
            bindings = bindings + self._store.select(_RBAC, "rolebindings", access.namespace)
        return any(
            _permits(rule, access)
            for binding in bindings
            if any(_is_subject(subject, user, binding) for subject in binding.get("subjects") or [])
            for rule in self._rules(binding)
        )

    def _rules(self, binding: Object) -> list[Any]:
        role = binding["roleRef"]
        namespace = binding["metadata"].get("namespace") if role["kind"] == "Role" else None
        key = Key(_RBAC, f"{role['kind'].lower()}s", namespace, role["name"])
        return self._store.objects.get(key, {}).get("rules") or []


def _is_subject(subject: Any, user: str, binding: Object) -> bool:
    if subject["kind"] == "ServiceAccount":
        namespace = subject.get("namespace") or binding["metadata"].get("namespace")
        return user == f"system:serviceaccount:{namespace}:{subject['name']}"
    groups = ["system:authenticated"]
    if user.startswith("system:serviceaccount:"):
        groups += ["system:serviceaccounts", f"system:serviceaccounts:{user.split(':')[2]}"]
    return subject["name"] in (groups if subject["kind"] == "Group" else [user])


def _permits(rule: Any, access: Access) -> bool:
    resources = {access.resource, "*", f"*/{access.resource.partition('/')[2]}"}
    return bool(
        {access.group, "*"} & set(rule.get("apiGroups") or [])
        and resources & set(rule.get("resources") or [])
        and {access.verb, "*"} & set(rule.get("verbs") or [])
        and (not rule.get("resourceNames") or access.name in rule["resourceNames"])
    )
