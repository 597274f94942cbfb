"""Mistakes of a user's: one sentence each, before anything is made where that can be known."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.conftest import ClusterLab, ends, notes
from dd_assets.compute.kubernetes.checks import PERMISSIONS
from dd_assets.compute.kubernetes.settings import KubernetesSettings, read_settings
from dd_core.errors import UserError

RBAC = "rbac.authorization.k8s.io/v1"


def kubeconfig_of_account(lab: ClusterLab, without: tuple[str, str] | None) -> str:
    """A kubeconfig of a service account that may do all that is needed, but for one thing."""
    rules = [
        {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
        for verb, resource, group in PERMISSIONS
        if (verb, resource) != without
    ]
    lab.cluster.apply(
        [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "someone"}},
            {"apiVersion": RBAC, "kind": "Role", "metadata": {"name": "some"}, "rules": rules},
            {
                "apiVersion": RBAC,
                "kind": "RoleBinding",
                "metadata": {"name": "some"},
                "subjects": [{"kind": "ServiceAccount", "name": "someone", "namespace": "default"}],
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "some"},
            },
        ]
    )
    return str(lab.cluster.kubeconfig("someone"))


def refused(lab: ClusterLab, sentence: str, **settings: Any) -> None:
    """The job is refused, and nothing was made on the cluster or below the data root."""
    with pytest.raises(UserError) as error:
        lab.run(lab.training_job(), **settings)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
    assert lab.cluster.objects("Job") == lab.cluster.objects("Pod") == lab.cluster.objects("Service") == []
    assert list(lab.root.iterdir()) == []


def test_the_command_says_one_sentence(lab: ClusterLab) -> None:
    lab.write_settings(kubeconfig="/nowhere/config")
    train = ("asset", "materialize", "--select", "tiny/checkpoints", "--partition", "plain.k001|0000")
    lab.forked_dagster(*train).refused("there is no kubeconfig /nowhere/config")


def test_a_context_that_the_kubeconfig_does_not_have(lab: ClusterLab) -> None:
    refused(lab, "has no context 'prod'; it has simulator", context="prod")


@pytest.mark.parametrize("text", ["}{", "a text", "clusters: 3", "contexts: [{name: simulator}]", "\t"])
def test_a_kubeconfig_that_is_none(lab: ClusterLab, text: str) -> None:
    path = lab.folder / "config"
    path.write_text(text, encoding="utf-8")
    refused(lab, f"kubeconfig {path}", kubeconfig=str(path))


def test_credentials_that_are_not_known(lab: ClusterLab) -> None:
    content = json.loads(lab.cluster.kubeconfig().read_text(encoding="utf-8"))
    content["users"][0]["user"]["token"] = "expired"
    path = lab.folder / "config"
    path.write_text(json.dumps(content), encoding="utf-8")
    refused(lab, "does not know who we are (401); renew the credentials", kubeconfig=str(path))


def test_a_certificate_of_another_authority(lab: ClusterLab) -> None:
    content = json.loads(lab.cluster.kubeconfig().read_text(encoding="utf-8"))
    del content["clusters"][0]["cluster"]["certificate-authority-data"]
    path = lab.folder / "config"
    path.write_text(json.dumps(content), encoding="utf-8")
    refused(lab, "is not of the authority that the kubeconfig names", kubeconfig=str(path))


def test_a_host_that_does_not_answer(lab: ClusterLab) -> None:
    content = json.loads(lab.cluster.kubeconfig().read_text(encoding="utf-8"))
    content["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    path = lab.folder / "config"
    path.write_text(json.dumps(content), encoding="utf-8")
    refused(lab, "https://127.0.0.1:1 does not answer", kubeconfig=str(path), api_patience_seconds=0.3)


@pytest.mark.parametrize("missing", [permission[:2] for permission in PERMISSIONS], ids=" ".join)
def test_each_permission_that_is_missing_is_named(lab: ClusterLab, missing: tuple[str, str]) -> None:
    kubeconfig = kubeconfig_of_account(lab, missing)
    refused(lab, f"no permission to {' '.join(missing)} in the namespace default", kubeconfig=kubeconfig)


def test_retries_after_a_while_need_one_more_permission(lab: ClusterLab) -> None:
    resources = {"pods": 1, "gpus_per_pod": 0, "retry_seconds": 60}
    kubeconfig = kubeconfig_of_account(lab, None)
    refused(lab, "no permission to patch pods in the namespace default", kubeconfig=kubeconfig, resources=resources)


def test_the_permissions_that_are_asked_for_are_enough(lab: ClusterLab) -> None:
    assert set(ends(lab.run(lab.training_job("k001"), kubeconfig=kubeconfig_of_account(lab, None))).values()) == {
        "finished"
    }


def test_a_namespace_that_does_not_exist(lab: ClusterLab) -> None:
    refused(lab, "has no namespace 'elsewhere'", namespace="elsewhere")


def test_a_claim_that_does_not_exist(lab: ClusterLab) -> None:
    refused(lab, "has no PersistentVolumeClaim 'datta'", data_volume={"claim": "datta"})


def test_a_folder_that_pods_cannot_reach(lab: ClusterLab) -> None:
    refused(lab, f"the data root {lab.root} is a folder, which pods can reach only on a volume", data_volume=None)


def test_gpus_that_no_node_has(lab: ClusterLab) -> None:
    resources = {"gpus_per_pod": 3, "cpus_per_pod": 1}
    refused(lab, "a pod wants 3 nvidia.com/gpu, but no node of https://", resources=resources)


def test_a_product_of_gpu_that_no_node_has(lab: ClusterLab) -> None:
    resources = {"gpus_per_pod": 1, "cpus_per_pod": 1, "gpu": "NVIDIA-A100-SXM4-40GB"}
    wanted = "has the GPU NVIDIA-A100-SXM4-40GB, the only one that will do (gpu under resources); "
    refused(lab, f"{wanted}no node has the label nvidia.com/gpu.product (gpu_label)", resources=resources)
    for node, product in (("node-a", "NVIDIA-H200"), ("node-b", "NVIDIA-A100-SXM4-80GB")):
        labels = {"nvidia.com/gpu.product": product}
        lab.cluster.apply([{"apiVersion": "v1", "kind": "Node", "metadata": {"name": node, "labels": labels}}])
    refused(lab, f"{wanted}there are NVIDIA-A100-SXM4-80GB, NVIDIA-H200", resources=resources)
    three = {**resources, "gpu": "NVIDIA-H200", "gpus_per_pod": 3}
    refused(lab, "a pod wants 3 nvidia.com/gpu, but no node of https://", resources=three)


def test_labels_that_no_node_has(lab: ClusterLab) -> None:
    refused(lab, "has the labels kind=large", node_selector={"kind": "large"})


def test_a_container_context_that_dagster_k8s_does_not_know(lab: ClusterLab) -> None:
    refused(lab, "is not one of dagster-k8s: ", container_context={"volums": []})
    refused(lab, "hostNetwok", container_context={"run_k8s_config": {"pod_spec_config": {"hostNetwok": True}}})


def test_a_volume_that_is_another_one_in_the_worker(lab: ClusterLab, tmp_path: Path) -> None:
    lab.cluster.volume("data", tmp_path / "another")
    events = lab.run(lab.training_job())
    assert set(ends(events).values()) == {"failed"}
    for event in events:
        if event.name == "failed":
            assert "does not see the data root" in event.error
            assert "is the volume mounted" in event.error
            assert event.is_user_error
    assert sorted(lab.pods_made()) == [0, 1], "it was tried again"


def test_a_job_of_the_same_name_that_is_somebody_elses(lab: ClusterLab) -> None:
    job = lab.training_job()
    container = {"name": "a", "image": "worker:1", "command": ["sleep", "60"]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container], "terminationGracePeriodSeconds": 0}}
    lab.cluster.apply(
        [{"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job.name}, "spec": {"template": template}}]
    )
    with pytest.raises(UserError, match=f"kubectl -n default delete job {job.name}"):
        lab.run(job)
    assert len(lab.cluster.objects("Job")) == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("imag: x", "imag: there is no such key; did you mean 'image'?"),
        ("poll_seconds: 0", "poll_seconds: Input should be greater than 0 (got 0"),
        ("resources: {pods: two}", "resources.pods: Input should be a valid integer"),
        ("backoff_limit_per_index: 3", "backoff_limit_per_index: is resources.retries now"),
        ("resources: {retry_seconds: 0}", "resources.retry_seconds: Input should be greater than 0"),
        ("resources: {gpus: 1}", "resources.gpus: there is no such key"),
        ("tolerations: [{operator: Is}]", "tolerations.0.operator: Input should be 'Exists' or 'Equal' (got 'Is')"),
        ("data_volume: {mount_path: data, claim: c}", "data_volume.mount_path: String should match pattern '^/'"),
        ("namespace: Mine", "namespace: String should match pattern"),
        ("image: 1.5", "image: Input should be a valid string"),
        ("- a", "is a mapping of keys to values"),
        ("env: {A: 2026-01-01}", "only numbers, text, lists and mappings belong in a settings file"),
        ("a: [", "not valid YAML at line"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_path_of_the_key(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "kubernetes.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_settings(path)
    assert str(error.value).startswith(f"{path}: ")
    assert sentence in str(error.value)


def test_settings_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.yaml: cannot be read \(No such file"):
        read_settings(tmp_path / "none.yaml")


def test_an_empty_file_is_the_defaults_and_every_setting_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "kubernetes.yaml"
    path.write_text("# nothing\n", encoding="utf-8")
    assert read_settings(path) == KubernetesSettings()
    assert [name for name, field in KubernetesSettings.model_fields.items() if not field.description] == []


def test_a_queue_keeps_the_job_suspended_and_says_so(lab: ClusterLab) -> None:
    events = lab.run(lab.training_job(), queue="team", pending_patience_seconds=0.5)
    assert "is suspended: it waits in the queue 'team' to be admitted" in notes(events)
    assert set(ends(events).values()) == {"failed"}
    assert lab.pods_made() == []
