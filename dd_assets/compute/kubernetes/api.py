"""The few requests that are made of a Kubernetes API server, and what its refusals mean, each in one sentence.

Answers are the API's JSON as it comes: the client's models refuse answers that lack what they think required.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tenacity
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.config import incluster_config, kube_config
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from dd_assets.compute.kubernetes.manifests import GATE
from dd_assets.compute.kubernetes.settings import KubernetesSettings
from dd_core.errors import UserError

Object = dict[str, Any]
Note = Callable[[str], None]
Result = TypeVar("Result")
_DEFAULT_NAMESPACE = "double-descent"
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# The server is busy, restarting, being replaced, or has compacted its memory; it will answer if asked again.
_PASSING = frozenset({0, 408, 410, 429, 500, 502, 503, 504})


class ApiUnavailableError(UserError):
    """No answer now; asking again may help.

    Attributes:
        retry_after: seconds, if the server said so.
    """

    def __init__(self, message: str, retry_after: float | None = None):
        """With one sentence."""
        super().__init__(message)
        self.retry_after = retry_after


class NotThereError(UserError):
    """What was asked for does not exist."""


class AlreadyThereError(UserError):
    """What should be made exists."""


class NotAllowedError(UserError):
    """The API server knows us and does not let us."""


def is_inside_cluster() -> bool:
    """Whether this process runs in a pod with a service account."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (_SERVICE_ACCOUNT / "token").is_file()


class Cluster:
    """One namespace of a cluster, as the settings name it. Threads need one each: see ``another``."""

    def __init__(self, settings: KubernetesSettings, note: Note):
        """Read the credentials; nothing is sent yet.

        Args:
            settings: where, and for how long to go on asking.
            note: is told when the API server does not answer, and when it does again.

        Raises:
            UserError: there is no usable kubeconfig, or it does not have the context.
        """
        self.settings, self._note = settings, note
        configuration = client.Configuration()
        namespace = _credentials(settings, configuration)
        configuration.retries = False  # by us, so that people learn of it
        configuration.no_proxy = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
        self.namespace = settings.namespace or namespace or _DEFAULT_NAMESPACE
        self.host = configuration.host
        self._configuration = configuration
        api = client.ApiClient(configuration)
        self._batch, self._core = client.BatchV1Api(api), client.CoreV1Api(api)
        self._authorization = client.AuthorizationV1Api(api)
        self._timeout = (min(10.0, settings.request_timeout_seconds), settings.request_timeout_seconds)

    def another(self) -> client.CoreV1Api:
        """A client of one's own for a thread, the caller closes its ``api_client``."""
        return client.CoreV1Api(client.ApiClient(self._configuration))

    # Jobs, pods and what belongs to them

    def create_job(self, manifest: Object) -> Object:
        """Make a Job.

        Raises:
            AlreadyThereError: one of that name exists.
        """
        return self._ask(self._batch.create_namespaced_job, self.namespace, manifest)

    def job(self, name: str) -> Object | None:
        """The Job of that name, or None."""
        return self._if_there(self._batch.read_namespaced_job, name, self.namespace)

    def delete_job(self, name: str) -> None:
        """Remove a Job; its pods and its Service go with it (without a policy they would be left behind)."""
        self._if_there(self._batch.delete_namespaced_job, name, self.namespace, propagation_policy="Background")

    def pods(self, job: Object) -> list[Object]:
        """The pods of this very Job, not of an earlier one of its name."""
        selector = f"batch.kubernetes.io/job-name={job['metadata']['name']}"
        answer = self._ask(self._core.list_namespaced_pod, self.namespace, label_selector=selector)
        uid = job["metadata"]["uid"]
        return [pod for pod in answer["items"] if any(o["uid"] == uid for o in _owners(pod))]

    def let_begin(self, pod: str) -> None:
        """Take our gate away, which keeps a pod from being scheduled, nobody else's; a pod that is gone needs none."""
        body: Object = {"spec": {"schedulingGates": [{"$patch": "delete", "name": GATE}]}}
        merge = "application/strategic-merge-patch+json"
        self._if_there(self._core.patch_namespaced_pod, pod, self.namespace, body, _content_type=merge)

    def events(self, name: str) -> list[Object]:
        """What the cluster has to say about the object of that name, the latest last; nothing where we may not ask."""
        selector = f"involvedObject.name={name}"
        try:
            answer = self._ask(self._core.list_namespaced_event, self.namespace, field_selector=selector)
        except NotAllowedError:
            return []
        return sorted(answer["items"], key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")

    def log_tail(self, pod: str, container: str, lines: int) -> list[str]:
        """The last lines of a container's log; none where there is no log (any more)."""
        try:
            response = self._raw(
                self._core.read_namespaced_pod_log, pod, self.namespace, container=container, tail_lines=lines
            )
        except ApiUnavailableError:
            raise
        except UserError:
            return []
        return response.decode("utf-8", errors="replace").splitlines()

    def create_service(self, manifest: Object) -> None:
        """Make a Service, unless there is one already."""
        try:
            self._ask(self._core.create_namespaced_service, self.namespace, manifest)
        except AlreadyThereError:
            return

    # What must be there

    def claim(self, name: str) -> Object | None:
        """The PersistentVolumeClaim of that name, or None."""
        return self._if_there(self._core.read_namespaced_persistent_volume_claim, name, self.namespace)

    def has_namespace(self) -> bool:
        """Whether the namespace exists; taken to be so where we may not ask."""
        try:
            return self._if_there(self._core.read_namespace, self.namespace) is not None
        except NotAllowedError:
            return True

    def nodes(self) -> list[Object] | None:
        """All nodes, or None where we may not ask."""
        try:
            nodes: list[Object] = self._ask(self._core.list_node)["items"]
            return nodes
        except NotAllowedError:
            return None

    def may(self, verb: str, resource: str, group: str = "") -> bool:
        """Whether we may do this in the namespace; ``resource`` may have a subresource, ``pods/log``."""
        name, _, subresource = resource.partition("/")
        attributes = {
            **{"namespace": self.namespace, "verb": verb, "group": group, "resource": name},
            **({"subresource": subresource} if subresource else {}),
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        try:
            answer = self._ask(self._authorization.create_self_subject_access_review, body)
        except (NotAllowedError, NotThereError):
            return True  # we may not even ask; what is refused later will say so itself
        return bool(answer.get("status", {}).get("allowed"))

    # How it is asked

    def patiently(self, request: Callable[[], Result], patience: float | None = None) -> Result:
        """Make a request that has to be made now, asking again for as long as the settings say.

        Raises:
            ApiUnavailableError: in vain.
        """
        seconds = self.settings.api_patience_seconds if patience is None else patience
        troubled = False

        def before_sleep(state: tenacity.RetryCallState) -> None:
            nonlocal troubled
            if not troubled:
                self._note(
                    f"{state.outcome.exception() if state.outcome else 'no answer'}; asking again for {seconds:g} s"
                )
            troubled = True

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(ApiUnavailableError),
            stop=tenacity.stop_after_delay(seconds),
            wait=self._pause,
            before_sleep=before_sleep,
            sleep=time.sleep,
            reraise=True,
        )
        result = retrying(request)
        if troubled:
            self._note("the Kubernetes API answers again")
        return result

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return self.pause(state.attempt_number, error)

    def pause(self, attempt: int, error: BaseException | None) -> float:
        """Seconds to wait after so many attempts in vain: as the server says, or twice as long each time, to 30 s."""
        if isinstance(error, ApiUnavailableError) and error.retry_after is not None:
            return min(60.0, error.retry_after)
        return min(30.0, self.settings.poll_seconds * 2.0 ** min(attempt, 10))

    def _if_there(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Object | None:
        try:
            return self._ask(request, *arguments, **options)
        except NotThereError:
            return None

    def _ask(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> Object:
        try:
            answer: Object = json.loads(self._raw(request, *arguments, **options))
        except ValueError as error:
            raise ApiUnavailableError(f"the Kubernetes API at {self.host} gave half an answer") from error
        return answer

    def _raw(self, request: Callable[..., Any], *arguments: Any, **options: Any) -> bytes:
        try:
            response = request(*arguments, **options, _preload_content=False, _request_timeout=self._timeout)
            body: bytes = response.data
            return body
        except ApiException as error:
            raise self._meaning(error) from error
        except AttributeError as error:
            # The client trips over the body that its own error for broken TLS does not have.
            if not isinstance(error.__context__, ApiException):
                raise
            raise self._meaning(error.__context__) from error
        except (HTTPError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ApiUnavailableError(
                f"the Kubernetes API at {self.host} does not answer ({_short(reason)})"
            ) from error

    def _meaning(self, error: ApiException) -> UserError:
        """What a refusal means."""
        status, message = error.status or 0, _message(error)
        if status == 0 and "CERTIFICATE_VERIFY_FAILED" in (error.reason or ""):
            return UserError(f"the certificate of {self.host} is not of the authority that the kubeconfig names")
        if status in _PASSING:
            after = (error.headers or {}).get("Retry-After", "")
            text = f"the Kubernetes API at {self.host} answers {status} ({_short(message)})"
            return ApiUnavailableError(text, float(after) if after.isdigit() else None)
        if status == 401:
            return UserError(f"{self.host} does not know who we are (401); renew the credentials in the kubeconfig")
        if status == 403:
            return NotAllowedError(f"the cluster refuses: {_short(message)}; ask for that permission (see k8s/)")
        if status == 404:
            return NotThereError(f"the cluster says: {_short(message)}")
        if status == 409:
            return AlreadyThereError(f"the cluster says: {_short(message)}")
        return UserError(f"the cluster does not accept what was sent ({status}): {_short(message)}")


def _credentials(settings: KubernetesSettings, configuration: client.Configuration) -> str | None:
    """Fill the client's configuration; returns the namespace that goes with it, if one does."""
    if is_inside_cluster() and settings.kubeconfig is None and settings.context is None:
        incluster_config.load_incluster_config(client_configuration=configuration)
        return (_SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip() or None
    # Asked now: the client itself reads KUBECONFIG when it is imported.
    named = settings.kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    files = [path for path in map(_expanded, named.split(os.pathsep)) if Path(path).is_file()]
    if not files:
        raise UserError(
            f"there is no kubeconfig {named}; set kubeconfig in the settings file (DD_KUBERNETES) or KUBECONFIG"
        )
    where = os.pathsep.join(files)
    try:
        contexts, current = kube_config.list_kube_config_contexts(where)
        known = {entry["name"]: entry.get("context") or {} for entry in contexts}
        wanted = settings.context or (current or {}).get("name")
        if wanted not in known:
            raise UserError(
                f"the kubeconfig {where} has no context {wanted!r}; it has {', '.join(sorted(known)) or 'none'}"
            )
        kube_config.load_kube_config(where, wanted, client_configuration=configuration, persist_config=False)
    except (ConfigException, OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"the kubeconfig {where} cannot be used: {_short(str(error))}") from error
    namespace: str | None = known[wanted].get("namespace")
    return namespace


def _expanded(path: str) -> str:
    return str(Path(path).expanduser())


def _owners(thing: Object) -> list[Object]:
    owners: list[Object] = thing["metadata"].get("ownerReferences") or []
    return owners


def _message(error: ApiException) -> str:
    """What the server says: the message of its Status, or the first words of whatever came."""
    body = error.body.decode("utf-8", errors="replace") if isinstance(error.body, bytes) else error.body or ""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.strip() or str(error.reason)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 400 else f"{line[:400]}..."
