"""Makes inventories for tests and benchmarks: their files, and generated clusters that say anything that is valid."""

from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import specs
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import VERSIONS
from hypothesis import strategies as st

from testbed import manifests

CONTEXT = "good"
"""The one context of a kubeconfig that `kubeconfig` writes."""
LOCAL_PATH = {"storage_classes_list": [{"name": "local-path", "preset": "local-path"}]}
"""The storage class of the embedded Kubernetes."""
ACCESS: dict[str, Any] = {
    "nativelink_edge_client_ca_secret": "clients-ca",
    "nativelink_edge_client_crl_secret": "revoked",
    "nativelink_edge_access": [
        {"role": "write", "certificate": "spiffe://example.com/ci"},
        {"role": "execute", "certificate": "build.example.com"},
        {"role": "execute", "issuer": "people", "claims": {"groups": ["a", "b"], "team": "c"}},
        {"role": "read", "keys": "readers"},
        {"role": "write", "keys": "ci-keys"},
    ],
    "nativelink_edge_token_issuers": [
        {
            "name": "people",
            "issuer": "https://a.example.com",
            "audiences": ["x", "y"],
            "jwks": "https://a.example.com/k",
        }
    ],
}
"""Identities of each kind at the edge."""
AZURE: dict[str, Any] = {
    "nativelink_cas_store": "object_store",
    "nativelink_object_store_provider": "azure",
    "nativelink_object_store_identity": "azure",
    "nativelink_object_store_principal": "0-1",
    "nativelink_object_store_bucket": "cache",
    "nativelink_object_store_account": "ours",
}
"""A container of Azure, and an identity for it."""
NO_ADD_ONS = {
    "keda_install": "none",
    "nativelink_scaling": "none",
    "ingress_provider": "none",
    "nativelink_edge": "none",
    "node_agent_guard": False,
}
"""A cluster without KEDA, the edge and the node agent."""


def write_inventory(folder: Path, hosts: dict[str, dict[str, Any]], **shared: Any) -> Path:
    """Write ``hosts.yml``, an inventory of clusters by name, with variables that all of them share; the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "hosts.yml"
    file.write_text(yaml.dump({"all": {"vars": shared, "hosts": hosts}}, Dumper=yaml.CSafeDumper))
    return file


def minimal(name: str, clusters_dir: Path) -> dict[str, Any]:
    """The fewest variables of a valid cluster; its kubeconfig does not exist."""
    return {
        "cluster_kubeconfig": f"/nowhere/{name}",
        "cluster_context": name,
        "nativelink_cas_storage_class": "gp3",
        "nativelink_edge_tls_secret": "edge-tls",
        "nativelink_edge_client_ca_secret": "clients-ca",
        "nativelink_clusters_dir": str(clusters_dir),
    }


def kubeconfig(file: Path, server: str) -> Path:
    """Write a kubeconfig for an API server, without a certificate authority; the file."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": CONTEXT, "cluster": {"server": server}}],
        "contexts": [{"name": CONTEXT, "context": {"cluster": CONTEXT, "user": CONTEXT}}],
        "users": [{"name": CONTEXT, "user": {"token": "t"}}],
    }
    file.write_text(yaml.safe_dump(config))
    return file


@cache
def offline() -> dict[str, Any]:
    """The variables of the embedded Kubernetes: where its release manifests are, which are made if need be."""
    return manifests.variables()


# Strategies of Hypothesis

Strategy = st.SearchStrategy[Any]

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,12}[a-z0-9])?", fullmatch=True)
# Also what looks like something else in YAML: 1e3, on, 0x1f.
LABELS = st.one_of(NAMES, st.sampled_from(["on", "no", "null", "true", "1e3", "0x1f", "12"]))
TEXTS = st.text(st.characters(exclude_categories=["C"]), max_size=12)
SIZES = st.sampled_from(["1Gi", "512Mi", "2G", "0.5Gi"])
VOLUMES = st.sampled_from(["10Gi", "200Gi", "1.5Ti", "100G", "64Gi"])
SHARES = st.sampled_from(["10%", "12.5%", "40%", "1Gi"])
DURATIONS = st.sampled_from([30, "45s", "20m", "1h30m", "2h"])
KEYS = st.from_regex(r"[A-Za-z]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
VARIABLES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,10}", fullmatch=True)
LABEL_VALUES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,10}[A-Za-z0-9])?", fullmatch=True)
RESOURCES = st.fixed_dictionaries(
    {"requests": st.fixed_dictionaries({"cpu": st.sampled_from(["100m", "1", 2, 0.5]), "memory": SIZES})},
    optional={"limits": st.just({"cpu": "16", "memory": "64Gi"})},
)
SELECTORS = st.dictionaries(KEYS, LABEL_VALUES, max_size=2)
ANNOTATIONS = st.dictionaries(KEYS, TEXTS, max_size=2)
TOLERATIONS = st.lists(
    st.fixed_dictionaries(
        {"key": KEYS, "operator": st.just("Equal"), "value": LABEL_VALUES, "effect": st.just("NoSchedule")}
    ),
    max_size=2,
)
EGRESS = st.lists(
    st.sampled_from(
        [
            {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}], "ports": [{"port": 443}]},
            {"to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"on": "yes"}}}]},
            {
                "to": [{"ipBlock": {"cidr": "fd00::/8", "except": ["fd00:ec2::/32"]}}],
                "ports": [{"protocol": "UDP", "port": 123, "endPort": 125}],
            },
        ]
    ),
    max_size=2,
)
PEER = st.sampled_from(
    [
        {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
        {"namespaceSelector": {"matchLabels": {"on": "yes"}}, "podSelector": {}},
        {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "1e3"]}]}},
    ]
)
# Amounts as numbers, a disk, what a device plugin offers, and no limits or no requests.
POOL_RESOURCES = st.sampled_from(
    [
        {"limits": {"cpu": "2", "memory": "4Gi", "ephemeral-storage": "2Ti"}},
        {"requests": {"memory": 2**34, "ephemeral-storage": "150Gi"}},
        {"requests": {"cpu": 1.5}, "limits": {"memory": "1500M", "nvidia.com/gpu": 1}},
    ]
)
SOON = [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 99}]
PROPERTY = st.one_of(TEXTS, st.integers(0, 64), st.booleans(), st.lists(TEXTS, min_size=1, max_size=3))


def _choices(options: Collection[specs.Option]) -> dict[str, Strategy]:
    """Strategies for the options that are true or false, or have choices: those of tomorrow, too."""
    found = {option.name: option.choices for option in options if option.choices and option.type == "str"}
    found |= {option.name: (False, True) for option in options if option.type == "bool"}
    return {name: st.sampled_from(choices) for name, choices in found.items()}


@st.composite
def pools(draw: st.DrawFn, properties: dict[str, str]) -> Any:
    """A list of pools whose properties are a part of the declared ones."""
    offers = {name: st.integers(0, 64) if kind == "minimum" else PROPERTY for name, kind in properties.items()}
    found = []
    for name in draw(st.lists(LABELS, min_size=1, max_size=3, unique=True)):
        least = draw(st.integers(1, 20))
        optional: dict[str, Strategy] = {
            **_choices(specs.options()["nativelink_worker_pools"].options.values()),
            "image": st.sampled_from(["docker.io/library/debian:13", "registry:5000/a/b@sha256:" + "0" * 64]),
            "platform_properties": st.fixed_dictionaries({}, optional=offers),
            "image_digest": st.just("sha256:" + "b" * 64),
            "resources": st.one_of(RESOURCES, POOL_RESOURCES),
            "headroom": st.integers(0, 3),
            "slots": st.integers(0, 500),
            "target": st.integers(0, 500),
            "longest_action": DURATIONS,
            "node_selector": SELECTORS,
            "tolerations": TOLERATIONS,
            "annotations": ANNOTATIONS,
            "scratch_size": VOLUMES,
            "fast_store_size": SHARES,
            "scratch_storage_class": st.sampled_from(["", "local-path"]),
            "env": st.dictionaries(VARIABLES, PROPERTY.filter(lambda value: not isinstance(value, list)), max_size=2),
            "polling_interval": st.integers(1, 300),
            "cooldown_period": st.integers(0, 600),
            "scale_down": st.just({"stabilizationWindowSeconds": 60}),
            "scale_up": st.just({"policies": [{"type": "Pods", "value": 5, "periodSeconds": 60}]}),
        }
        stated = draw(st.fixed_dictionaries({}, optional=optional))
        if stated.get("persistent_workers"):
            stated["isolation"] = "none"
        if "image_digest" in stated:
            stated.pop("image", None)
        found.append({"name": name, "min_replicas": least, "max_replicas": least + draw(st.integers(0, 500)), **stated})
    return found


# What is valid of these depends on others.
_DEPENDENT = ("nativelink_version", "nativelink_scheduler_backend", "nativelink_redis_provider")
_DEPENDENT += ("nativelink_edge", "nativelink_prometheus", "nativelink_cas_store")
_DEPENDENT += ("nativelink_object_store_provider", "nativelink_object_store_identity")


@st.composite
def gitops(draw: st.DrawFn) -> dict[str, Any]:
    """The variables of a GitOps engine, or of none."""
    engine = draw(st.sampled_from(["none", "argocd", "flux"]))
    ssh = ["ssh://git@h:22/a", *([] if engine == "flux" else ["git@git.example.com:a/b.git"])]
    repository = draw(st.sampled_from(["https://git.example.com/a/b.git", *ssh]))
    return {
        "gitops_provider": engine,
        "gitops_install": draw(st.sampled_from(["release", "existing"])),
        "gitops_namespace": {"argocd": "argocd", "flux": "flux-system", "none": ""}[engine],
        "gitops_repository": repository,
        "gitops_secret_name": "deploy-key" if engine == "flux" and repository.startswith("ssh:") else "",
        "gitops_interval": draw(st.sampled_from(["30s", "1m", "1h30m"])),
        "gitops_sync_timeout": draw(st.sampled_from(["30s", "30000ms", "10s0.5m", "1.5h"])),
    }


@st.composite
def buckets(draw: st.DrawFn) -> dict[str, Any]:
    """The variables of an object store."""
    provider, identity, principal = draw(
        st.sampled_from(
            [
                ("s3", "secret", ""),
                ("s3", "irsa", "arn:aws:iam::1:role/x"),
                ("s3", "eks_pod_identity", ""),
                ("gcs", "gke", ""),
                ("gcs", "gke", "cas@x.iam.gserviceaccount.com"),
                ("azure", "azure", "0-1"),
                ("azure", "secret", ""),
            ]
        )
    )
    endpoint = draw(st.sampled_from(["", "https://store.example.com"])) if provider != "gcs" else ""
    return {
        "nativelink_cas_store": "object_store",
        "nativelink_cas_max_replicas": draw(st.sampled_from([0, 500])),
        "nativelink_object_store_provider": provider,
        "nativelink_object_store_identity": identity,
        "nativelink_object_store_principal": principal,
        "nativelink_object_store_bucket": "cache",
        "nativelink_object_store_region": "auto" if provider == "s3" else "",
        "nativelink_object_store_account": "ours" if provider == "azure" else "",
        "nativelink_object_store_endpoint": endpoint,
        "nativelink_object_store_prefix": draw(st.sampled_from(["", "prod/"])),
        "nativelink_object_store_expiry_days": draw(st.integers(0, 400)),
        "nativelink_object_store_ca_config_map": draw(st.sampled_from(["our-ca", "nativelink-ca"])),
    }


@st.composite
def inventories(draw: st.DrawFn) -> dict[str, Any]:
    """The variables of one valid cluster."""
    # `minimum` and `priority` only of what every pool offers by itself: an action waits for what no pool offers.
    properties = draw(st.dictionaries(KEYS, st.sampled_from(["exact", "ignore"]), min_size=1, max_size=4))
    kinds = st.sampled_from(["minimum", "priority", "exact", "ignore"])
    properties |= draw(st.fixed_dictionaries({}, optional={"cpu_count": kinds, "memory_kb": kinds}))
    redis = draw(st.booleans())
    edge = draw(st.sampled_from(["gateway", "ingress", "none"]))
    free = [each for each in specs.options().values() if each.role == "nativelink" and each.name not in _DEPENDENT]
    stated = draw(
        st.fixed_dictionaries(
            {},
            optional={
                **_choices(free),
                "nativelink_cas_replicas": st.integers(1, 9),
                "nativelink_cas_volume_size": VOLUMES,
                "nativelink_cas_storage_class": st.sampled_from(["", "fast", "1e3"]),
                "nativelink_cas_resources": st.one_of(RESOURCES, st.just({"limits": {"memory": "512Mi"}})),
                "nativelink_cas_startup_timeout": st.sampled_from([5, 95, 3600]),
                "nativelink_cas_store_size": SHARES,
                "nativelink_cas_ac_store_size": st.sampled_from(["1%", "2.5%", "512Mi"]),
                "nativelink_cas_node_selector": SELECTORS,
                "nativelink_cas_tolerations": TOLERATIONS,
                "nativelink_scheduler_resources": RESOURCES,
                "nativelink_scheduler_node_selector": SELECTORS,
                "nativelink_scheduler_tolerations": st.one_of(TOLERATIONS, st.just(SOON)),
                "nativelink_scheduler_max_job_retries": st.integers(1, 10),
                "nativelink_log_level": st.sampled_from(["info", "warn,nativelink_store=debug"]),
                "nativelink_max_open_files": st.integers(1024, 10**6),
                "nativelink_instance_name": st.sampled_from(["main", "team-a"]),
                "nativelink_image_digest": st.sampled_from(["", "sha256:" + "a" * 64]),
                "nativelink_worker_image_digest": st.sampled_from(["", "sha256:" + "c" * 64]),
                "nativelink_image_pull_secrets": st.lists(LABELS, max_size=2),
                "nativelink_worker_egress": EGRESS,
                "nativelink_worker_upload_timeout": DURATIONS,
                "nativelink_metrics_interval": st.integers(1, 60),
                "nativelink_metrics": st.lists(st.sampled_from(["cas", "worker"]), max_size=2).map(
                    lambda more: ["scheduler", *more]
                ),
                "nativelink_traces_endpoint": st.sampled_from(
                    ["", "https://traces.example.com:4317", "http://[fd00::2]:1"]
                ),
                "nativelink_traces_percent": st.floats(0, 100),
                "nativelink_prometheus_labels": st.sampled_from([{"release": "p"}, {"app.kubernetes.io/part-of": "x"}]),
                "nativelink_runbook_url": st.just("https://x.example.com/a?b='c'&d//"),
                "nativelink_edge_annotations": ANNOTATIONS,
                "nativelink_client_peers": st.lists(PEER, max_size=2),
                "nativelink_writer_peers": st.lists(PEER, max_size=2),
                "nativelink_dns_peers": st.lists(PEER, min_size=1, max_size=2),
                "nativelink_redis_volume_size": VOLUMES,
                "nativelink_redis_resources": st.sampled_from([{"requests": {"cpu": 1}}, {"limits": {"memory": "3G"}}]),
                "ingress_class_name": st.just("edge"),
                "storage_classes_list": st.just([{"name": "gp3", "preset": "aws-ebs-gp3"}]),
            },
        )
    )
    prometheus = draw(st.sampled_from(["none", "bundled", "operator", "annotations"]))
    chunking = stated.get("nativelink_cas_chunking")
    known = [name for name, each in VERSIONS.items() if each.redis_backend or not redis]
    version = draw(st.sampled_from([name for name in known if VERSIONS[name].compression or not chunking]))
    variables = {
        **stated,
        "nativelink_version": version,
        "nativelink_prometheus": prometheus,
        "nativelink_scheduler_platform_properties": properties,
        "nativelink_worker_pools": draw(pools(properties)),
        "nativelink_edge": edge,
        "ingress_provider": draw(st.sampled_from(["existing"] if edge == "ingress" else ["envoy-gateway", "existing"])),
    }
    if draw(st.integers(0, 5)) == 0:  # of fixed pools only
        variables["nativelink_worker_pools"] = [
            {**pool, "scaling": "none"} for pool in variables["nativelink_worker_pools"]
        ]
    variables |= draw(gitops())
    if draw(st.integers(0, 3)) == 0:
        variables |= draw(buckets()) | {"nativelink_version": "v1.6.6"}
    ways = {pool.get("scaling") or stated.get("nativelink_scaling") for pool in variables["nativelink_worker_pools"]}
    if "hpa" in ways or prometheus in ("operator", "annotations") or draw(st.booleans()):
        variables["nativelink_metrics_namespaces"] = draw(st.lists(LABELS, min_size=1, max_size=2))
    if prometheus in ("bundled", "operator"):
        sources = ["keda", "cluster"] + ["gitops"] * (variables["gitops_provider"] != "none")
        sources += ["edge"] * (edge == "gateway" and variables["ingress_provider"] == "envoy-gateway")
        without = draw(st.sets(st.sampled_from(sources)))
        variables["nativelink_prometheus_scrapes"] = [source for source in sources if source not in without]
    for pool in variables["nativelink_worker_pools"]:
        way = pool.get("scaling") or stated.get("nativelink_scaling", "keda")
        if prometheus == "bundled" and way == "keda" and draw(st.booleans()):
            pool["query"] = 'sum(a{b="c"}) > 1'
        if way == "keda" and pool["min_replicas"] < pool["max_replicas"] and draw(st.booleans()):
            times = {"timezone": "Asia/Kolkata", "start": "0 7 * * 1-5", "end": "*/5 0,19 1 1-6/2 *"}
            pool["schedule"] = [{**times, "replicas": pool["max_replicas"]}]
    if draw(st.booleans()):
        variables |= {"nativelink_mutual_tls_secret": "mutual-tls", "nativelink_mutual_tls_expires": "2028-02-29"}
        variables["nativelink_mutual_tls_issuer"] = draw(st.sampled_from(["", "our-ca"]))
    variables |= {"nativelink_edge_tls_secret": "", "nativelink_edge_client_ca_secret": ""}
    if edge == "ingress" or draw(st.booleans()):
        variables |= {"nativelink_hostname": "build.example.com", "nativelink_edge_tls_secret": "edge-tls"}
        if edge == "gateway" and variables["ingress_provider"] == "envoy-gateway":
            variables |= draw(st.sampled_from([{}, {"nativelink_edge_client_ca_secret": "clients-ca"}, ACCESS]))
    if edge != "none" and not variables["nativelink_edge_client_ca_secret"]:
        variables["nativelink_edge_open"] = "the network has no other users"
    if redis:
        variables |= {"nativelink_scheduler_backend": "redis", "nativelink_scheduler_replicas": draw(st.integers(1, 3))}
        if draw(st.booleans()):
            address = draw(st.sampled_from(["10.0.0.1:6379", "redis.example.com:6380", "[fd00::1]:6379"]))
            variables |= {"nativelink_redis_provider": "existing", "nativelink_redis_address": address}
            variables |= draw(st.sampled_from([{}, {"nativelink_redis_secret_name": ""}]))
    return variables
