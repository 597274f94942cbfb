"""A simulator of a Kubernetes cluster, for tests only: it proves this project's code, not Kubernetes.

A real HTTPS server on 127.0.0.1 answers the API calls that the project's code, dagster-k8s and kubectl make (tokens,
RBAC, selectors, watches, logs), controllers bring Jobs forward, and "kubelets" run the containers' commands as real
processes of this machine. What it leaves out stands at the top of each module; the larger part: Deployments and
CronJobs are stored but not run, networks are not separated, images are folders on PATH, security contexts are ignored,
disruption budgets do not hold evictions back. Current controllers' details, the device plugin, image pulls, CNI and
DNS, NCCL, access modes of volumes and admission can only be seen on a real cluster.

Where this machine cannot isolate (no root), containers are plain processes: then a volume's mountPath must be the very
folder it is bound to, pods have no host names, and service-account tokens, ConfigMaps and Secrets cannot be mounted.
"""

from .api import Request
from .cluster import Cluster
from .faults import Faults

__all__ = ["Cluster", "Faults", "Request"]
