"""The simulated API server answers, refuses and fails as the project's code relies on; nothing outlives it."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException
from kubernetes_simulator import Cluster
from kubernetes_simulator.lab import NEEDS_ISOLATION, Lab, make_job, make_pod, wait
from support import wait_until


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Cluster(images={"lab:*": Path(sys.executable).parent}) as cluster:
        yield Lab(cluster)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"containers": []}, 422, "spec.template.spec.containers: Required value"),
        ({"restartPolicy": "Sometimes"}, 422, 'Unsupported value: "Sometimes"'),
        ({"nodeSelektor": {"a": "b"}}, 400, "strict decoding error"),
        ({"container": {"resources": {"limits": {"memory": "12Gigs"}}}}, 400, "quantities must match"),
        ({"container": {"volumeMounts": [{"name": "x", "mountPath": "/x"}]}}, 422, 'Not found: "x"'),
    ],
)
def test_impossible_jobs_are_refused(lab: Lab, change: dict[str, Any], code: int, words: str) -> None:
    with pytest.raises(ApiException) as caught:
        lab.run(make_job("bad", "true", pod=change))
    assert caught.value.status == code
    assert words in json.loads(caught.value.body)["message"]


def test_service_account_may_do_what_its_role_says_and_can_ask_beforehand(lab: Lab) -> None:
    group = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    rules = [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}]
    subjects = [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}]
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}}
    lab.cluster.apply([
        account,
        {**group, "kind": "Role", "metadata": {"name": "reader"}, "rules": rules},
        {**group, "kind": "RoleBinding", "metadata": {"name": "reader"}, "subjects": subjects, "roleRef": role},
    ])  # fmt: skip
    reader = Lab(lab.cluster, "reader")
    reader.core.list_namespaced_pod("default")
    with pytest.raises(ApiException) as caught:
        reader.run(make_job("forbidden", "true"))
    message = (
        'jobs.batch is forbidden: User "system:serviceaccount:default:reader" cannot create resource "jobs" in API '
    )
    assert caught.value.status == 403
    assert json.loads(caught.value.body)["message"].startswith(message)
    review = client.AuthorizationV1Api(reader.api).create_self_subject_access_review
    for verb, resource, sub, allowed in (
        ("list", "pods", "", True),
        ("get", "pods", "log", True),
        ("watch", "pods", "", False),
    ):
        attributes = {"namespace": "default", "verb": verb, "resource": resource, "subresource": sub, "group": ""}
        assert review({"spec": {"resourceAttributes": attributes}}).status.allowed is allowed
    assert any(r.user.endswith(":reader") and r.status == 403 for r in lab.cluster.requests)


@NEEDS_ISOLATION
def test_pod_reaches_the_server_with_the_token_of_its_account(lab: Lab) -> None:
    script = """
    import json, os, pathlib, ssl, urllib.request
    account = pathlib.Path("/var/run/secrets/kubernetes.io/serviceaccount")
    url = "https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}/api/v1/namespaces/default/secrets"
    headers = {"Authorization": "Bearer " + (account / "token").read_text()}
    request = urllib.request.Request(url.format(**os.environ), headers=headers)
    try:
        urllib.request.urlopen(request, context=ssl.create_default_context(cafile=account / "ca.crt"))
    except urllib.error.HTTPError as error:
        print(json.load(error)["message"])
    """
    lab.cluster.apply([{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "humble"}}])
    command = {"command": ["python", "-c", textwrap.dedent(script)]}
    lab.run(make_pod("caller", "", container=command, serviceAccountName="humble"))
    wait(lambda: lab.phase("caller") == "Succeeded")
    expected = (
        'secrets is forbidden: User "system:serviceaccount:default:humble" cannot list resource "secrets" in API '
    )
    assert lab.cluster.log("caller") == expected + 'group "" in the namespace "default"\n'


def test_names_conflict_and_are_missed_as_in_the_real_server(lab: Lab) -> None:
    lab.run(make_job("twin", "true"))
    with pytest.raises(ApiException) as caught:
        lab.run(make_job("twin", "true"))
    assert caught.value.status == 409
    assert "AlreadyExists" in caught.value.body
    with pytest.raises(ApiException) as caught:
        lab.job("nobody")
    assert caught.value.status == 404
    assert 'jobs.batch \\"nobody\\" not found' in caught.value.body
    with pytest.raises(ApiException) as caught:
        lab.core.create_namespaced_pod("nowhere", make_pod("x", "true"))
    assert 'namespaces \\"nowhere\\" not found' in caught.value.body


def test_selectors_and_pages(lab: Lab) -> None:
    for i in range(5):
        labels = {"part": f"p{i}", "test": "pages"}
        lab.core.create_namespaced_config_map("default", {"metadata": {"name": f"page-{i}", "labels": labels}})
    find = lab.core.list_namespaced_config_map
    names = [c.metadata.name for c in find("default", label_selector="test=pages,part in (p1, p3),part!=p3").items]
    assert names == ["page-1"]
    assert len(find("default", label_selector="test=pages,!absent").items) == 5
    assert [c.metadata.name for c in find("default", field_selector="metadata.name=page-2").items] == ["page-2"]
    page = find("default", label_selector="test=pages", limit=3)
    rest = find("default", label_selector="test=pages", limit=3, _continue=page.metadata._continue)
    assert [c.metadata.name for c in [*page.items, *rest.items]] == [f"page-{i}" for i in range(5)]
    for selector in ({"label_selector": "a=b=c"}, {"field_selector": "status.mood=good"}):
        with pytest.raises(ApiException) as caught:
            find("default", **selector)
        assert caught.value.status == 400


def test_watch_goes_on_where_it_was_and_says_when_that_is_forgotten(lab: Lab) -> None:
    version = lab.core.list_namespaced_config_map("default").metadata.resource_version
    lab.core.create_namespaced_config_map("default", {"metadata": {"name": "watched"}})
    stream = watch.Watch().stream(
        lab.core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=5
    )
    assert next(stream)["object"].metadata.name == "watched"
    lab.cluster.forget_history()
    with pytest.raises(ApiException) as caught:
        list(
            watch.Watch().stream(
                lab.core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=2
            )
        )
    assert caught.value.status == 410
    assert "too old resource version" in caught.value.reason


def test_logs(lab: Lab) -> None:
    lab.run(make_pod("talker", "echo one; sleep 1.2; echo two; sleep 0.2; echo three"))
    wait(lambda: lab.phase("talker") == "Running")
    follow = lab.core.read_namespaced_pod_log
    lines = list(watch.Watch().stream(follow, "talker", "default", timestamps=True))
    assert [line.split(" ", 1)[1] for line in lines] == ["one", "two", "three"]
    assert len({len(line.split(" ")[0]) for line in lines}) == 1

    def read(**options: Any) -> str:
        return lab.core.read_namespaced_pod_log("talker", "default", _preload_content=False, **options).data.decode()

    assert read(tail_lines=1) == "three\n"
    assert read(since_seconds=1) == "two\nthree\n"
    for options in ({"container": "other"}, {"previous": True}):
        with pytest.raises(ApiException) as caught:
            read(**options)
        assert caught.value.status == 400


def test_container_that_restarts_keeps_its_previous_log(lab: Lab) -> None:
    command = "echo run; exit 1"
    lab.run(make_pod("stubborn", command, restartPolicy="OnFailure"))
    wait(
        lambda: (
            lab.pod("stubborn").status.container_statuses
            and lab.pod("stubborn").status.container_statuses[0].restart_count
        )
    )
    lab.waiting("stubborn", "CrashLoopBackOff")
    assert lab.phase("stubborn") == "Running"
    wait(lambda: len(lab.cluster.log("stubborn").split()) > 1)
    previous = lab.core.read_namespaced_pod_log("stubborn", "default", previous=True, _preload_content=False)
    assert previous.data == b"run\n"


def test_ordered_faults_hit_matching_requests_so_many_times(lab: Lab) -> None:
    def is_list(verb: str, path: str) -> bool:
        return verb == "list" and "configmaps" in path

    for status in (500, 410):
        lab.cluster.faults.fail(is_list, status=status, times=1)
        with pytest.raises(ApiException) as caught:
            lab.core.list_namespaced_config_map("default")
        assert caught.value.status == status
        lab.core.list_namespaced_config_map("default")
    lab.cluster.faults.fail(is_list, status=429, times=math.inf, retry_after=7)
    pool = urllib3.PoolManager(ca_certs=str(lab.cluster.ca), retries=False)
    answer = pool.request("GET", f"{lab.cluster.url}/api/v1/namespaces/default/configmaps")
    assert (answer.status, answer.headers["Retry-After"]) == (429, "7")
    lab.cluster.faults.clear()
    assert pool.request("GET", f"{lab.cluster.url}/api/v1/namespaces/default/configmaps").status == 401
    pool.clear()
    lab.cluster.faults.delay(is_list, seconds=0.3)
    began = time.monotonic()
    lab.core.list_namespaced_config_map("default")
    assert time.monotonic() - began > 0.3


def test_dropped_connection_leaves_nothing_done(lab: Lab) -> None:
    lab.cluster.faults.drop(lambda verb, path: verb == "create")
    with pytest.raises(urllib3.exceptions.HTTPError):
        lab.core.create_namespaced_config_map("default", {"metadata": {"name": "dropped"}})
    lab.core.create_namespaced_config_map("default", {"metadata": {"name": "dropped"}})


def test_closed_port_refuses_and_comes_back() -> None:
    with Cluster() as cluster:
        lab = Lab(cluster)
        lab.core.list_namespaced_pod("default")
        pool = urllib3.PoolManager(ca_certs=str(cluster.ca), retries=False)
        pool.request("GET", f"{cluster.url}/version")
        cluster.faults.refuse_connections(0.5)
        for _ in range(2):  # the connection that was open, and a new one
            with pytest.raises(urllib3.exceptions.HTTPError):
                pool.request("GET", f"{cluster.url}/version")
        pool.clear()
        time.sleep(0.7)
        assert lab.core.list_namespaced_pod("default").items == []


def test_followed_log_breaks_in_the_middle_of_a_line(lab: Lab) -> None:
    lab.run(make_pod("cut", "echo first; sleep 1; echo a-long-second-line; sleep 60"))
    wait(lambda: lab.phase("cut") == "Running" and lab.cluster.log("cut"))
    stream = lab.core.read_namespaced_pod_log("cut", "default", follow=True, _preload_content=False)
    assert stream.read1(100) == b"first\n" if hasattr(stream, "read1") else True
    lab.cluster.faults.break_log_streams()
    with pytest.raises(urllib3.exceptions.HTTPError):
        stream.read()


def test_kubectl_creates_waits_reads_and_deletes(lab: Lab, tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "kubectl"
    environment = {"KUBECONFIG": str(lab.cluster.kubeconfig()), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}

    def kubectl(*arguments: str) -> str:
        done = subprocess.run([program, *arguments], env=environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    manifest = tmp_path / "job.json"
    manifest.write_text(json.dumps(make_job("typed", "echo typed")))
    kubectl("apply", "--validate=false", "-f", str(manifest))
    kubectl("wait", "--for=condition=complete", "job/typed", "--timeout=10s")
    assert kubectl("logs", "-l", "job-name=typed").split() == ["typed", "typed"]
    kubectl("delete", "job", "typed")
    wait_until(lambda: "typed" not in kubectl("get", "pods", "-o", "name"), "the garbage collector to take the pods")


def processes_that_mention(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                text = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in text and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


@pytest.mark.parametrize("isolate", [pytest.param(True, marks=NEEDS_ISOLATION), False])
def test_nothing_outlives_the_cluster_or_its_creator(isolate: bool) -> None:
    command = "(setsid sleep 61.{mark} &) ; echo on; sleep 61.{mark}"
    mark = f"{os.getpid()}{int(isolate)}1"
    with Cluster(isolate=isolate) as cluster:
        lab = Lab(cluster)
        lab.run(make_pod("alive", command.format(mark=mark)))
        wait(lambda: lab.phase("alive") == "Running" and cluster.log("alive"))
        assert processes_that_mention(f"61.{mark}")
    wait(lambda: not processes_that_mention(f"61.{mark}"))

    mark = f"{os.getpid()}{int(isolate)}2"
    script = f"""
    import sys, time
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    from kubernetes_simulator import Cluster
    container = {{"name": "main", "image": "x", "command": ["sh", "-c", "{command.format(mark=mark)}"]}}
    pod = {{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "alive"}}, "spec": {{"containers": [container]}}}}
    with Cluster(isolate={isolate}) as cluster:
        cluster.apply([pod])
        while not cluster.log("alive"):
            time.sleep(0.02)
        print("on", flush=True)
        time.sleep(60)
    """
    creator = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert creator.stdout is not None and creator.stdout.readline() == b"on\n"
    creator.send_signal(signal.SIGKILL)
    creator.wait()
    creator.stdout.close()
    wait(lambda: not processes_that_mention(f"61.{mark}"))
    with Cluster():
        assert not list(Path("/dev/shm").glob(f"*simulator-{creator.pid}-*"))
