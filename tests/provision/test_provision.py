"""The roles that write to a cluster, on a real API server, in this order: the first test wants a fresh cluster."""

import base64
import json
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils.api import Api, ApiError

from testbed import manifests, pins
from testbed.cluster import Cluster
from testbed.waiting import until
from testkit.inventories import CONTEXT, kubeconfig
from testkit.repository import git
from testkit.servers import answering, server

from .conftest import Live, Object, Play, Run, step

PROVISION = ["nativelink/provision", "storage_classes", "keda", "ingress"]
EVERYTHING = [*PROVISION, "nativelink/handover", "gitops", "nativelink/monitoring"]
REFERENCE = {
    "nativelink_scheduler_backend": "redis",
    "nativelink_priority_classes": True,
    "nativelink_prometheus": "bundled",
    "nativelink_prometheus_scrapes": ["edge", "keda", "gitops", "cluster"],
    "gitops_provider": "argocd",
    "gitops_repository": "https://git.example.com/builds.git",
    "storage_classes_list": [{"name": "fast", "preset": "aws-ebs-gp3", "default": True}],
}

PREVIOUS, CURRENT = (pins.versions()[component] for component in ("keda-previous", "keda"))

# A play that has only the role gitops needs the cluster's namespaces.
SPACES = {"nativelink_namespace": "nativelink", "nativelink_workers_namespace": "nativelink-workers"}


def previous_keda() -> dict[str, str]:
    return {"keda_version": PREVIOUS, "keda_manifest": str(manifests.path("keda", PREVIOUS))}


# Everything, from a fresh cluster


@pytest.fixture(scope="module")
def announced(play: Play, live: Live) -> Run:
    """Run everything in check mode on the fresh cluster, where it makes nothing."""
    before = {each["metadata"]["name"] for each in live("namespace")["items"]}
    assert "keda" not in before  # otherwise the cluster is not fresh, and this shows nothing
    run = play(EVERYTHING, "--check", "--diff", **REFERENCE)
    assert {each["metadata"]["name"] for each in live("namespace")["items"]} == before
    assert live("storageclass", "fast") == {}
    assert not any("keda" in each["metadata"]["name"] for each in live("crd")["items"])
    return run


@pytest.fixture(scope="module")
def provisioned(play: Play, announced: Run) -> Run:
    """Provision the cluster with everything, with an older version of KEDA, and return that run."""
    return play(EVERYTHING, **REFERENCE, **previous_keda())


@pytest.fixture(scope="module")
def second(play: Play, provisioned: Run) -> list[Run]:
    """Return the second run, and one in check mode after it."""
    given = REFERENCE | previous_keda()
    return play.steps(step(*EVERYTHING), step("keda", check_mode=True), arguments=("-vvv",), **given)


def test_check_mode_announces_what_the_first_run_does(announced: Run, provisioned: Run) -> None:
    for line in (
        f"keda {CURRENT}: would be installed",
        "envoy-gateway 1.9.1: would be installed",
        "argocd 3.6.1: would be installed",
    ):
        assert line in announced.summary["provisioned"]
    assert announced.changed == provisioned.changed
    assert f"keda {PREVIOUS}: installed" in provisioned.summary["provisioned"]


def test_the_second_run_changes_nothing(second: list[Run]) -> None:
    assert [(run.message, run.changed) for run in second] == [("", [])] * 2
    assert f"keda {PREVIOUS}: unchanged" in second[0].summary["provisioned"]


@pytest.mark.usefixtures("provisioned")
def test_the_bundled_prometheus_may_find_what_it_scrapes_and_read_nothing_else(dev: Cluster) -> None:
    def may(verb: str, what: str, namespace: str = "", subresource: str = "") -> bool:
        account = "--as=system:serviceaccount:nativelink:nativelink-prometheus"
        where = ["-n", namespace] if namespace else ["--all-namespaces"]
        asked = ("auth", "can-i", verb, what, account, *where, f"--subresource={subresource}")
        done = subprocess.run(dev.command(*asked), capture_output=True, check=False)
        return done.returncode == 0

    scraped = ("envoy-gateway-system", "keda", "argocd", "kube-system")
    assert [may("list", "pods", namespace) for namespace in scraped] == [True] * 4
    assert may("list", "nodes")
    assert may("get", "nodes", subresource="metrics")
    assert not may("list", "pods", "nativelink-workers")
    assert [may("get", "secrets", namespace) for namespace in scraped] == [False] * 4
    assert not may("get", "nodes", subresource="proxy")


@pytest.mark.usefixtures("provisioned")
def test_a_pool_with_headroom_or_pre_pull_gets_its_priority_class(play: Play, live: Live) -> None:
    def pools(**option: object) -> Object:
        other = {"name": "other", "headroom": 0, "prepull": False}
        return REFERENCE | {"nativelink_worker_pools": [{"name": "plain"}, other | option]}

    checked = play.cases(
        ["nativelink/provision"], "--check", plain=pools(), headroom=pools(headroom=1), prepull=pools(prepull=True)
    )
    expected = {"plain": False, "headroom": True, "prepull": True}
    line = "PriorityClass nativelink-headroom"
    assert {name: line in run.summary.get("provisioned", []) for name, run in checked.items()} == expected
    play(["nativelink/provision"], **pools())
    assert live("priorityclass", "nativelink-headroom") == {}
    assert line in play(["nativelink/provision"], **pools(headroom=1)).summary["provisioned"]
    assert live("priorityclass", "nativelink-headroom")


@pytest.mark.usefixtures("provisioned")
def test_pods_in_front_of_a_bucket_get_certificate_authorities(play: Play, live: Live, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\n")
    bucket = REFERENCE | {
        "nativelink_cas_store": "object_store",
        "nativelink_object_store_ca_file": str(tmp_path / "ca.crt"),
    }
    play(["nativelink/provision"], **bucket, nativelink_object_store_ca_config_map="")
    assert live("configmap", "nativelink-ca", "nativelink") == {}
    play(["nativelink/provision"], **bucket)
    made = live("configmap", "nativelink-ca", "nativelink")
    assert made["data"] == {"ca-certificates.crt": "-----BEGIN CERTIFICATE-----"}


@pytest.mark.usefixtures("provisioned")
def test_gateway_api_is_the_standard_channel_of_its_own_release(live: Live) -> None:
    found = {each["metadata"]["name"]: each["metadata"].get("annotations", {}) for each in live("crd")["items"]}
    assert "envoyproxies.gateway.envoyproxy.io" in found
    assert not [name for name in found if name.endswith(".gateway.networking.x-k8s.io")]
    releases = [
        tuple(each[f"gateway.networking.k8s.io/{key}"] for key in ("channel", "bundle-version"))
        for name, each in found.items()
        if name.endswith(".gateway.networking.k8s.io")
    ]
    assert set(releases) == {("standard", pins.versions()["gateway-api"])}


@pytest.mark.usefixtures("provisioned")
def test_flux_waits_for_its_credentials_and_may_change_only_what_the_tree_holds(play: Play, dev: Cluster) -> None:
    flux = REFERENCE | {"gitops_provider": "flux", "gitops_secret_name": "repository"}
    run = play(["gitops"], **flux, **SPACES)
    assert run.message == ""
    missing = "make the Secret flux-system/repository: the credentials of https://git.example.com/builds.git"
    assert missing in run.summary["next"]

    def rights(namespace: str) -> dict[str, str]:
        """Return verbs by resource."""
        account = "--as=system:serviceaccount:flux-system:nativelink-dev"
        table = dev.run("auth", "can-i", "--list", f"--namespace={namespace}", account)
        return {line.split()[0]: line.rpartition("[")[2].rstrip("]") for line in table.splitlines()[1:]}

    for namespace in SPACES.values():
        found = rights(namespace)
        for kind in ("statefulsets.apps", "scaledobjects.keda.sh", "networkpolicies.networking.k8s.io"):
            assert found[kind] == "get list watch create update patch delete"
        assert found["pods"] == "get list watch"
        # Certificates only with nativelink_mutual_tls_issuer.
        others = ("secrets", "namespaces", "roles.rbac.authorization.k8s.io", "certificates.cert-manager.io", "*.*")
        assert found.keys() & set(others) == set()
    assert "configmaps" not in rights("default")


@pytest.mark.usefixtures("provisioned")
def test_changes_that_are_not_pushed_are_reported(play: Play, tmp_path: Path) -> None:
    found = REFERENCE | SPACES | {"gitops_install": "existing"}
    hosts: dict[str, Object] = {}  # by its name, which is also that of its repository
    for name in ("changed", "pushed", "committed"):
        git(tmp_path, "init", "-q", "--bare", "-b", "main", f"{name}.git")
        git(tmp_path, "clone", "-q", f"{name}.git", name)
        file = tmp_path / name / "clusters" / name / "kustomization.yaml"
        file.parent.mkdir(parents=True)
        file.write_text("resources: []\n")
        hosts[name] = found | {"nativelink_clusters_dir": str(file.parents[1])}
        if name != "changed":
            git(tmp_path / name, "add", ".")
            git(tmp_path / name, "commit", "-qm", "tree")
            git(tmp_path / name, "push", "-q", "-u", "origin", "HEAD:main")
    file.write_text("resources: [rendered]\n")
    git(tmp_path / "committed", "commit", "-qam", "tree")

    runs = play.cases(["gitops"], **hosts)
    assert [run.message for run in runs.values()] == [""] * 3
    push = "push clusters/{} to main of https://git.example.com/builds.git: argocd applies it from there"
    assert {name: run.summary.get("next") for name, run in runs.items()} == {
        "changed": [f"commit (1 changes) and {push.format('changed')}"],
        "pushed": None,
        "committed": [push.format("committed")],
    }


# Versions


@pytest.mark.usefixtures("provisioned")
def test_an_upgrade_works_and_a_downgrade_only_when_asked_for(play: Play, live: Live) -> None:
    back = step("keda", **previous_keda(), keda_allow_downgrade=True)
    upgraded, refused, downgraded = play.steps(step("keda"), step("keda", **previous_keda()), back)
    assert upgraded.summary["provisioned"] == [f"keda {CURRENT}: upgraded from {PREVIOUS}"], upgraded.message
    assert refused.message == (
        f"dev: keda_version: keda {CURRENT} is installed, {PREVIOUS} is older; set keda_version to {CURRENT} or newer, "
        "or set keda_allow_downgrade if upstream says that going back is safe"
    )
    assert downgraded.message == ""
    image = live("deployment", "keda-operator", "keda")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image.endswith(f":{PREVIOUS}")
    assert live("configmap", "keda-release", "keda")["data"]["version"] == PREVIOUS


# Classes that have to exist already


@pytest.mark.usefixtures("provisioned")
def test_a_class_that_does_not_exist_is_named(play: Play) -> None:
    existing = {"ingress_provider": "existing", "nativelink_edge": "gateway"}
    names = {"wrong": "theirs", "right": "nativelink"}
    runs = play.cases(["ingress"], **{host: existing | {"ingress_class_name": name} for host, name in names.items()})
    assert runs["wrong"].message == (
        "wrong: ingress_class_name: the cluster has no GatewayClass theirs (it has: nativelink); "
        "correct the name, or install its controller first"
    )
    assert runs["right"].summary["provisioned"] == ["GatewayClass nativelink: exists already"]


# StorageClasses


@pytest.mark.usefixtures("provisioned")
def test_another_default_class_is_reported_and_not_changed(play: Play, live: Live, dev: Cluster) -> None:
    key = "storageclass.kubernetes.io/is-default-class"
    kind = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "example.com/theirs"}
    for name, notes in (("theirs", {key: "true"}), ("former", {key: "false"}), ("plain", {})):
        dev.apply({**kind, "metadata": {"name": name, "annotations": notes}})
    before = live("storageclass", "theirs")
    listed = {
        "made": REFERENCE["storage_classes_list"],
        "existing": [{"name": "fast", "preset": "existing"}],
        "none": [{"name": "theirs", "preset": "existing"}],  # a class that leaves the list stays
    }
    runs = play.cases(["storage_classes"], **{name: {"storage_classes_list": each} for name, each in listed.items()})
    left = "StorageClass theirs is a default class that storage_classes_list does not have; it was not changed"
    newer = (
        "Kubernetes uses the newer of two default classes; to unset this one: "
        f"kubectl annotate storageclass theirs {key}=false --overwrite"
    )
    assert [(run.message, run.changed) for run in runs.values()] == [("", [])] * 3
    assert [runs[name].summary["next"] for name in ("made", "existing")] == [[f"{left}. {newer}"], [left]]
    assert live("storageclass", "theirs") == before
    assert live("storageclass", "fast")


@pytest.mark.usefixtures("provisioned")
def test_parameters_of_a_class_change_only_when_allowed(play: Play, live: Live) -> None:
    wanted = [{"name": "fast", "preset": "aws-ebs-gp3", "default": True, "parameters": {"iops": "6000"}}]
    before = live("storageclass", "fast")
    assert before["parameters"] == {"type": "gp3", "encrypted": "true"}
    role = "storage_classes"
    allowed = step(role, storage_classes_allow_recreate=["fast"])
    *refused, changed, again = play.steps(
        step(role), step(role, check_mode=True), allowed, step(role), storage_classes_list=wanted
    )
    assert {(run.message, *run.changed) for run in refused} == {
        (
            "dev: storage_classes_list: StorageClass fast differs in parameters, which Kubernetes cannot change; "
            "give it a new name, or name it in storage_classes_allow_recreate to have it deleted and made again",
        )
    }
    assert (changed.message, again.message, again.changed) == ("", "", [])
    assert live("storageclass", "fast")["parameters"] == before["parameters"] | {"iops": "6000"}


# Secrets


def test_the_password_of_redis_is_made_once_and_stays(second: list[Run], live: Live) -> None:
    encoded = live("secret", "nativelink-redis", "nativelink")["data"]["password"]
    password = base64.b64decode(encoded).decode()
    assert len(password) == 43
    assert all(each.isalnum() or each in "-_" for each in password)
    assert "nativelink : Make the password of Redis" in dict(second[0].tasks)  # it has looked at the Secret
    assert password not in second[0].output
    assert encoded not in second[0].output


@pytest.mark.usefixtures("provisioned")
def test_credentials_that_move_leave_no_secret_behind(play: Play, live: Live, dev: Cluster) -> None:
    name, namespace = "nativelink-dev-repository", "argocd"
    gone = "gitops : Remove the credentials that the engine no longer uses"

    def gitops(check_mode: bool = False, **variables: object) -> Object:
        return step("gitops", check_mode=check_mode, **REFERENCE, **SPACES, gitops_install="existing", **variables)

    password = gitops(gitops_username="deployer", gitops_password="hunter2")
    moved = {"gitops_secret_name": "token-of-ours"}
    # The second run uses the same Secret by its name.
    runs = play.steps(password, gitops(gitops_secret_name=name), gitops(check_mode=True, **moved))
    assert [gone in run.changed for run in runs] == [False, False, True]
    assert live("secret", name, namespace)["data"]["password"] == "aHVudGVyMg=="

    first, again, _, without = play.steps(gitops(**moved), gitops(**moved), password, gitops())
    assert (gone in first.changed, again.changed, gone in without.changed) == (True, [], True)
    assert live("secret", name, namespace) == {}

    dev.run("-n", namespace, "create", "secret", "generic", name, "--from-literal=password=theirs")
    (theirs,) = play.steps(gitops())
    assert (theirs.message, theirs.changed) == ("", [])
    assert live("secret", name, namespace)["data"] == {"password": "dGhlaXJz"}
    dev.run("-n", namespace, "delete", "secret", name)


def test_a_secret_that_another_run_has_made_is_kept(dev: Cluster, live: Live) -> None:
    def secret(value: str) -> Object:
        metadata = {"name": "raced", "namespace": "default"}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": {"password": value}}

    api = Api(str(dev.kubeconfig), dev.context)
    assert api.create(secret("Zmlyc3Q="), "one")
    assert not api.create(secret("c2Vjb25k"), "two")
    assert live("secret", "raced", "default")["data"] == {"password": "Zmlyc3Q="}


# Secrets that the tree names

SECRETS = {
    "nativelink_edge_tls_secret": "edge-tls",
    "nativelink_edge_client_ca_secret": "clients-ca",
    "nativelink_scheduler_backend": "redis",
    "nativelink_redis_provider": "existing",
    "nativelink_redis_secret_name": "queue",
    "nativelink_edge_client_crl_secret": "revoked",
    "nativelink_edge_access": [{"role": "read", "certificate": "ann"}, {"role": "write", "keys": "edge-ci"}],
    "nativelink_image_pull_secrets": ["mirror"],
}


@pytest.mark.usefixtures("provisioned")
def test_users_are_asked_only_for_secrets_that_are_missing_and_used(play: Play, dev: Cluster, tmp_path: Path) -> None:
    queue = ("secret", "generic", "hush", "--namespace=nativelink")
    dev.run("create", *queue, "--from-literal=password=hush-hush")
    file = dev.kubeconfig_of(dev.run("create", "token", "default").strip(), tmp_path / "kubeconfig")
    runs = play.cases(
        ["nativelink/secrets"],
        "-vvv",
        missing=SECRETS,
        found=SECRETS | {"nativelink_redis_secret_name": "hush"},
        edge={"nativelink_edge_tls_secret": "edge-tls", "nativelink_edge": "none"},
        memory={"nativelink_redis_secret_name": "queue", "nativelink_scheduler_backend": "memory"},
        # Provisioning makes this one.
        redis={"nativelink_redis_secret_name": "queue", "nativelink_scheduler_backend": "redis"},
        viewer=SECRETS | {"cluster_kubeconfig": str(file)},
    )
    others = [
        "make the Secret nativelink/edge-tls: the certificate of the edge",
        "make the Secret nativelink/clients-ca: the CA of the clients",
        "make the Secret nativelink/revoked: the list of revoked certificates",
        "make the Secret nativelink/edge-ci: the API keys of clients with the role write",
        "make the Secret nativelink/mirror: the credentials for pulling images",
        "make the Secret nativelink-workers/mirror: the credentials for pulling images",
    ]
    assert runs["found"].changed == []
    assert runs["found"].summary["next"] == others
    assert "hush-hush" not in runs["found"].output
    assert base64.b64encode(b"hush-hush").decode() not in runs["found"].output
    assert sorted(runs["missing"].summary["next"]) == sorted(
        [*others, "make the Secret nativelink/queue: the password of Redis"]
    )
    assert [runs[name].summary["next"] for name in ("edge", "memory", "redis")] == [[]] * 3
    assert runs["viewer"].message == (
        "viewer: cluster_context: Look for the Secrets that the tree names: "
        'GET /api/v1/namespaces/nativelink/secrets/edge-tls: 403 secrets "edge-tls" is forbidden: '
        'User "system:serviceaccount:default:default" cannot get resource "secrets" in API group "" '
        'in the namespace "nativelink"; correct the credentials of this context, or let its user do that'
    )
    dev.run("delete", *queue[:1], "hush", "--namespace=nativelink")


# Keys of a kubeconfig


def test_keys_are_not_written_to_files(dev: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, path = tmp_path / "temporary", tmp_path / "kubeconfig"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    # A second client does not depend on files of the first.
    assert [(Api(str(dev.kubeconfig), dev.context).get("/version") or {})["major"] for _ in range(2)] == ["1", "1"]
    config = yaml.safe_load(dev.kubeconfig.read_text())
    del config["clusters"][0]["cluster"]["certificate-authority-data"]
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ApiError, match="certificate verify failed"):
        Api(str(path), dev.context).get("/version")
    config["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
    path.write_text(yaml.safe_dump(config))
    assert Api(str(path), dev.context).get("/version")
    assert list(temporary.iterdir()) == []


# The tree goes to another engine

FLUX = ("GitRepository", "Kustomization", "ServiceAccount")
RIGHTS = {f"{kind} {space}/nativelink-gitops" for kind in ("Role", "RoleBinding") for space in SPACES.values()}
MADE = {
    "flux": RIGHTS
    | {f"{kind} flux-system/nativelink-dev" for kind in FLUX}
    | {"Secret flux-system/nativelink-dev-repository"},
    "argocd": {f"{kind} argocd/nativelink-dev" for kind in ("Application", "AppProject")}
    | {"Secret argocd/nativelink-dev-repository"},
}
ACTS = {"flux": "Kustomization flux-system/nativelink-dev", "argocd": "Application argocd/nativelink-dev"}


def made(dev: Cluster) -> set[str]:
    """Return the objects of both engines' `MADE` that exist."""
    kinds = "gitrepositories,kustomizations,applications,appprojects,serviceaccounts,secrets,roles,rolebindings"
    line = r'{range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}'
    found = dev.run(
        "get", kinds, "-A", "-l", "app.kubernetes.io/managed-by=nativelink-gitops", "-o", f"jsonpath={line}"
    )
    return set(found.splitlines()) & (MADE["flux"] | MADE["argocd"])


@pytest.fixture(scope="module")
def both(play: Play, provisioned: Run) -> Object:
    """Install both engines, and return the variables with which a run gives the tree to either. Flux has it."""
    given = REFERENCE | SPACES | {"gitops_username": "deployer", "gitops_password": "hunter2"}
    play(["gitops"], **given | {"gitops_provider": "flux"})
    return given | {"gitops_install": "existing"}


CAUTIOUS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cautious}
rules:
  - {apiGroups: ["*"], resources: ["*"], verbs: [get, list, watch, create, update, patch]}
  - {apiGroups: [kustomize.toolkit.fluxcd.io, argoproj.io], resources: ["*"], verbs: [delete]}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: cautious, namespace: default}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cautious}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cautious}
subjects: [{kind: ServiceAccount, name: cautious, namespace: default}]
"""


def test_an_interrupted_switch_is_finished_by_the_next_run(
    play: Play, dev: Cluster, both: Object, tmp_path: Path
) -> None:
    """What interrupts it is a user who may not delete an engine's RoleBindings and its Secret."""
    dev.apply(*yaml.safe_load_all(CAUTIOUS))
    file = dev.kubeconfig_of(dev.run("create", "token", "cautious").strip(), tmp_path / "kubeconfig")
    for former, successor in (("flux", "argocd"), ("argocd", "flux")):
        assert made(dev) == MADE[former]
        switched = both | {"gitops_provider": successor}
        (interrupted,) = play.steps(step("gitops"), **switched | {"cluster_kubeconfig": str(file)})
        assert 'User "system:serviceaccount:default:cautious" cannot delete resource' in interrupted.message
        assert ACTS[former] not in made(dev)  # it goes first, because it cannot act without its rights
        run = play(["gitops"], **switched)
        assert made(dev) == MADE[successor]
        assert f"took the tree from {former}, whose installation stays" in run.summary["connected"]


LATE = """
apiVersion: v1
kind: ConfigMap
metadata: {name: late, namespace: nativelink, labels: {app.kubernetes.io/managed-by: nativelink-gitops}}
"""


def applied_by_flux(dev: Cluster) -> None:
    options = ("--server-side", "--force-conflicts", "--field-manager=kustomize-controller")
    dev.run("apply", *options, "-f", "-", stdin=LATE)


def noted(dev: Cluster, number: int) -> Object:
    """Have another client change the ConfigMap, and return it."""
    where = ("-n", "nativelink", "configmap", "late")
    dev.run("annotate", *where, f"number={number}", "--overwrite")
    return json.loads(dev.run("get", *where, "-o", "json", "--show-managed-fields"))


def owner(live: Object) -> list[str]:
    """Return the managers that have applied an object."""
    return [each["manager"] for each in live["metadata"]["managedFields"] if each["operation"] == "Apply"]


def test_an_object_that_comes_while_the_old_engine_goes_is_handed_over(play: Play, dev: Cluster, both: Object) -> None:
    where = ("-n", "flux-system", "kustomization.kustomize.toolkit.fluxcd.io", "nativelink-dev")

    def finalizers(names: list[str]) -> None:
        dev.run("patch", *where, "--type=merge", "-p", json.dumps({"metadata": {"finalizers": names}}))

    finalizers(["finalizers.fluxcd.io"])  # Flux's controller, which does not run here, sets this
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(play, ["gitops"], **both)
        asked = ("get", *where, "-o", "jsonpath={.metadata.deletionTimestamp}")
        try:
            until("the Kustomization to be deleted", lambda: dev.run(*asked) != "", 60)
            applied_by_flux(dev)
            assert owner(noted(dev, 0)) == ["kustomize-controller"]
        finally:
            finalizers([])
        run.result()
    assert owner(noted(dev, 1)) == ["argocd-controller"]
    dev.run("delete", "-n", "nativelink", "configmap", "late")


@pytest.mark.usefixtures("provisioned")
def test_an_object_that_changes_during_the_handover_is_read_again(
    dev: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ansible.errors import AnsibleActionFail

    from plugins.action import take_over

    action = take_over.ActionModule(*[None] * 6)
    action._api, action._args, action._cluster = Api(str(dev.kubeconfig), dev.context), {"engine": "argocd"}, "dev"
    applied_by_flux(dev)
    stale = noted(dev, 1)
    assert owner(noted(dev, 2)) == ["kustomize-controller"]
    handed = (stale, {"kustomize-controller"}, "argocd-controller")
    with monkeypatch.context() as patch:
        patch.setattr(take_over, "_SECONDS", 0)
        with pytest.raises(AnsibleActionFail) as refused:
            action._hand_over(*handed)
    assert refused.value.message == (
        "dev: gitops_provider: waited 0 s to hand ConfigMap nativelink/late over "
        "to argocd: another client changed it each time; find out which client writes it so often, then run again"
    )
    assert owner(noted(dev, 3)) == ["kustomize-controller"]
    action._hand_over(*handed)
    after = json.loads(dev.run("get", "-n", "nativelink", "configmap", "late", "-o", "json", "--show-managed-fields"))
    assert owner(after) == ["argocd-controller"]
    assert after["metadata"]["annotations"] == {"number": "3"}
    dev.run("delete", "-n", "nativelink", "configmap", "late")


# A pool that changes from fixed to autoscaled


POOL = "nativelink-gitops/pool"


def pool(namespace: str, replicas: int | None, component: str = "worker", kind: str = "Deployment") -> str:
    labels = f"{{app.kubernetes.io/name: nativelink, app.kubernetes.io/component: {component}, {POOL}: big}}"
    return f"""
apiVersion: apps/v1
kind: {kind}
metadata: {{name: nativelink-{component}-big, namespace: {namespace}, labels: {labels}}}
spec:
  {"" if replicas is None else f"replicas: {replicas}"}
  selector: {{matchLabels: {labels}}}
  template:
    metadata: {{labels: {labels}}}
    spec: {{containers: [{{name: worker, image: worker}}]}}
"""


SERVER_SIDE = ("--server-side", "--field-manager=kustomize-controller")
CLIENT_SIDE = ()
SCALINGS = {
    "to-keda": (SERVER_SIDE, "keda", "", 7),
    "to-hpa": (SERVER_SIDE, "hpa", "", 7),
    "alone-to-keda": (SERVER_SIDE, "none", "keda", 7),
    # The counter-runs: without a handover, the API server resets the replicas.
    "to-none": (SERVER_SIDE, "none", "", 1),
    "alone-to-none": (SERVER_SIDE, "keda", "none", 1),
    # kubectl's client-side apply resets them in any case, which is why the docs use --server-side.
    "client-side": (CLIENT_SIDE, "keda", "", 1),
}


def test_an_autoscaled_pool_keeps_its_running_replicas(play: Play, live: Live, dev: Cluster) -> None:
    hosts: dict[str, Object] = {}  # by its name, which is also that of its namespace
    for name, (how, scaling, own, _) in SCALINGS.items():
        pools = [{"name": "big", "scaling": own}]
        hosts[name] = {"nativelink_workers_namespace": name, "nativelink_worker_pools": pools}
        hosts[name]["nativelink_scaling"] = scaling
        dev.run("create", "namespace", name)
        # The number of placeholders is fixed, and stays with the engine.
        dev.run("apply", *how, "-f", "-", stdin=f"{pool(name, 7)}---\n{pool(name, 3, 'headroom')}")
    role = "nativelink/handover"
    runs = play.plays([step(role, check_mode=True), step(role), step(role)], hosts)
    for name, (how, *_, left) in SCALINGS.items():
        said = ["nativelink-worker-big keeps its 7 replicas until its autoscaler takes over"] if left == 7 else []
        checked, first, again = runs[name]
        assert [run.message for run in runs[name]] == [""] * 3
        assert checked.summary["connected"] == first.summary["connected"] == said
        assert again.changed == []
        dev.run("apply", *how, "-f", "-", stdin=pool(name, None))
        assert live("deployment", "nativelink-worker-big", name)["spec"]["replicas"] == left, name


def test_an_autoscaled_cas_keeps_its_running_replicas(play: Play, live: Live, dev: Cluster) -> None:
    for most, left in ((9, 5), (0, 1)):
        namespace = f"cas-{most}"
        dev.run("create", "namespace", namespace)
        dev.run("apply", *SERVER_SIDE, "-f", "-", stdin=pool(namespace, 5, "cas", "StatefulSet"))
        play(["nativelink/handover"], nativelink_namespace=namespace, nativelink_cas_max_replicas=most)
        dev.run("apply", *SERVER_SIDE, "-f", "-", stdin=pool(namespace, None, "cas", "StatefulSet"))
        assert live("statefulset", "nativelink-cas-big", namespace)["spec"]["replicas"] == left


# Servers that are not Kubernetes API servers

ASKING = (
    *("apply_objects", "await_nodes", "check_secrets", "generated_secret", "keep_replicas", "release_manifest"),
    *("repository_secret", "take_over"),
)
"""The actions that ask an API server. check_cluster says more about one (tests/preflight/test_live.py)."""


def example(action: str) -> Object:
    """Return the documented example of an action, which waits for a second at most."""
    (task,) = yaml.safe_load(import_module(f"plugins.modules.{action}").EXAMPLES)
    arguments = task[f"nativelink.gitops.{action}"] or {}
    arguments |= {"timeout": 1} if "timeout" in arguments else {}
    return {"name": action, f"nativelink.gitops.{action}": arguments, "ignore_errors": True}


def test_every_action_says_that_a_login_page_is_not_kubernetes(play: Play, tmp_path: Path) -> None:
    with server(answering("200 OK", "<html><title>Sign in</title></html>")) as port:
        address = f"http://127.0.0.1:{port}"
        file = kubeconfig(tmp_path / "kubeconfig", address)
        stated = {"keda_version": "2.21.0", "gitops_username": "deployer", "gitops_password": "hunter2"}
        where = {"cluster_kubeconfig": str(file), "cluster_context": CONTEXT}
        run = play([example(name) for name in ASKING], **stated, **where)
    assert tuple(name for name, _ in run.tasks) == ASKING
    for name, result in run.tasks:
        problem, _, remedy = result["msg"].removeprefix("Task failed: ").partition("; ")
        assert problem.startswith(f"dev: cluster_context: {name}: {address} answers GET /api")
        assert problem.endswith(' with 200 and the HTML page "Sign in", which is not a Kubernetes API server\'s answer')
        assert remedy == (
            "correct the server of this context in its kubeconfig, "
            "or sign in to the network or proxy that answers instead"
        )


# Messages about applying


def test_warnings_of_the_api_server_are_shown_once_and_errors_for_each_object(play: Play, dev: Cluster) -> None:
    dev.run("create", "namespace", "warned")
    dev.run("label", "namespace", "warned", "pod-security.kubernetes.io/warn=restricted")

    def pod(name: str, command: str = "true") -> Object:
        spec = {"containers": [{"name": "app", "image": "app", "command": [command]}]}
        metadata = {"name": name, "namespace": "warned"}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}

    def apply(*objects: Object) -> Object:
        given = {"objects": list(objects), "variable": "nativelink_namespace", "remedy": "do not do that"}
        return step({"nativelink.gitops.apply_objects": given})

    pods = apply(pod("one"), pod("two"))
    run, again, refused = play.steps(
        pods, pods, apply(pod("one", "false"), pod("three"), pod("Four")), arguments=("--diff",)
    )
    ((_, result),) = run.tasks
    (warning,) = result["warnings"]
    assert warning.startswith('would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false')
    assert [each["after_header"] for each in result["diff"]] == ["Pod warned/one", "Pod warned/two"]
    assert (result["diff"][0]["before"], result["diff"][0]["after"]["spec"]["containers"][0]["image"]) == ({}, "app")
    assert (again.message, again.changed) == ("", [])
    one, four = (
        refused.message.removeprefix("dev: nativelink_namespace: ").removesuffix("; do not do that").split(" | ")
    )
    assert one.startswith('Pod warned/one: Pod "one" is invalid: spec: Forbidden: pod updates may not change fields')
    assert four.startswith('Pod warned/Four: Pod "Four" is invalid: metadata.name: Invalid value: "Four"')
    assert dev.run("-n", "warned", "get", "pod", "three", "-o", "name") == "pod/three\n"
