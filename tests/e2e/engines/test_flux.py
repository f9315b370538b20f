"""What only Flux does, or does in its own way. See tests/e2e/engines/test_engines.py for the rest."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from testbed import build, images
from testkit.engines import CAS, NAME, WORKERS, Flux
from testkit.farm import secret
from testkit.site import SMALL, pool
from tests.e2e.engines.conftest import configuration_of, workers

pytestmark = pytest.mark.parametrize("engine", ["flux"], indirect=True, scope="package")


def test_annotations_of_kubectl_are_removed_but_not_those_of_another_field_manager(engine: Flux) -> None:
    """Flux also removes annotations of `rollout restart` or of a pause. docs/scaling.md says how to keep them."""
    annotate = ("-n", CAS, "annotate", "service/nativelink-cas")
    engine.where.run(*annotate, "example.com/goes=1")
    engine.where.run(*annotate, "example.com/stays=1", "--field-manager=flux-client-side-apply")

    def annotations() -> dict[str, str]:
        return dict(engine.get("service/nativelink-cas")["metadata"].get("annotations", {}))

    engine.eventually("Flux to remove what kubectl has added", lambda: "example.com/goes" not in annotations())
    assert annotations()["example.com/stays"] == "1"
    engine.where.run(*annotate, "example.com/stays-")


def test_old_pods_lose_their_configuration_in_a_rollout_that_fails(engine: Flux) -> None:
    """Flux prunes an old ConfigMap with the commit that replaces it, even if that commit's pods do not start."""

    def restarts() -> list[int]:
        """Return how often the container of the old pod has restarted, or nothing if the pod is not ready."""
        ready = {"type": "Ready", "status": "True"}.items()
        status = workers(engine)[old]["status"]
        is_ready = any(ready <= found.items() for found in status["conditions"])
        return [each["restartCount"] for each in status["containerStatuses"] if is_ready]

    ((old, pod),) = workers(engine).items()
    name = configuration_of(pod)
    worker = engine.file("rendered/worker/kept/worker.json5")
    worker.write_text(worker.read_text() + "// changed\n")
    image = "image: docker.io/library/debian:bookworm-slim"
    engine.edit("rendered/worker/kept/deployment.yaml", image, image + "-not-there")
    engine.site.commit("A new configuration, and an image that is not there")

    # The old pod still works, and restarts its container without the ConfigMap.
    engine.eventually("the old ConfigMap to be pruned", lambda: engine.get(f"configmap/{name}", WORKERS) == {})
    assert restarts() == [0]
    engine.where.run("-n", WORKERS, "exec", old, "-c", "worker", "--", "sh", "-c", "kill -TERM 1")
    engine.eventually("the container's restart", lambda: restarts() == [1])

    # A pod that replaces the old one cannot start. docs/gitops.md describes this limit.
    engine.where.run("-n", WORKERS, "delete", "pod", old, "--wait=false")

    def stuck() -> bool:
        events = json.loads(engine.where.run("-n", WORKERS, "get", "events", "-o", "json"))["items"]
        missing = {each["involvedObject"]["name"] for each in events if f'"{name}" not found' in each["message"]}
        return bool(missing - {old})

    engine.eventually("a new pod that misses its ConfigMap", stuck)

    # Flux reports the failure when the timeout is over at the latest. Until then the next commit waits.
    engine.says("HealthCheckFailed", "nativelink-worker-kept", seconds=60)
    engine.applied(engine.site.revert(), 120)
    assert engine.get(f"configmap/{name}", WORKERS) != {}


def test_a_secret_that_sops_has_encrypted_reaches_the_cluster_only_with_its_key(engine: Flux, tmp_path: Path) -> None:
    """The commands are those of docs/secrets.md."""
    keygen, sops = build.program("age-keygen"), build.program("sops")
    keys = {name: tmp_path / f"{name}.agekey" for name in ("right", "wrong")}
    for path in keys.values():
        build.run(keygen, "-o", path)
    rule = {"path_regex": f"^clusters/{NAME}/", "encrypted_regex": "^(data|stringData)$"}
    rule["age"] = build.run(keygen, "-y", keys["right"]).strip()
    (engine.site.folder / ".sops.yaml").write_text(yaml.safe_dump({"creation_rules": [rule]}))
    literal = ("--from-literal=bob=n0t-in-Git-9c2e", "--dry-run=client", "-o", "yaml")
    plain = engine.where.run("-n", CAS, "create", "secret", "generic", "edge-readers", *literal)
    encrypt = [sops, "encrypt", f"--filename-override=clusters/{NAME}/edge-readers.yaml"]
    done = subprocess.run(encrypt, input=plain, capture_output=True, text=True, check=True, cwd=engine.site.folder)
    engine.add("edge-readers.yaml", yaml.safe_load(done.stdout))
    commit = engine.site.commit("An encrypted Secret")

    def give(key: str) -> None:
        engine.where.apply(secret("sops-age", "Opaque", {"age.agekey": keys[key].read_bytes()}, engine.namespace))

    def live() -> dict[str, str]:
        return dict(engine.get("secret/edge-readers").get("data", {}))

    engine.says("Secret/nativelink/edge-readers is SOPS encrypted, configuring decryption is required")
    engine.site.set(NAME, gitops_sops_secret="sops-age")
    wanted = "make the Secret flux-system/sops-age: the age keys that decrypt the Secrets in Git"
    assert wanted in engine.site.playbook("connect").summary[NAME]
    give("wrong")
    engine.says("cannot get sops data key")
    assert live() == {}
    give("right")
    engine.applied(commit)
    assert live() == {"bob": "bjB0LWluLUdpdC05YzJl"}
    history = engine.site.git("log", "--all", "--patch")
    assert "bob: ENC[AES256_GCM,data:" in history
    assert [text for text in ("n0t-in-Git-9c2e", "bjB0LWluLUdpdC05YzJl") if text in history] == []

    engine.applied(engine.site.revert())
    assert live() == {}
    engine.site.set(NAME, gitops_sops_secret="")
    engine.site.playbook("connect")
    assert "decryption" not in engine.get(engine.pointer, engine.namespace)["spec"]


def test_a_version_reaches_a_promoted_cluster_only_when_its_branch_moves(engine: Flux) -> None:
    """The cluster of the tests above follows main, and another cluster of the inventory follows the branch promoted.

    docs/upgrades.md describes the pattern. The other one has namespaces of its own on the same API server.
    """
    old, new = images.NATIVELINK_VERSIONS[-2:]
    spaces = {"nativelink_namespace": "promoted", "nativelink_workers_namespace": "promoted-workers"}
    follows = {name: value for name, value in engine.site.hosts[NAME].items() if name.startswith("gitops_")}
    entry = {**SMALL, **spaces, **follows, "nativelink_worker_pools": [pool("default")], "gitops_revision": "promoted"}

    def version(namespace: str) -> str:
        pod = engine.get("statefulset/nativelink-cas", namespace)["spec"]["template"]["spec"]
        return str(pod["containers"][0]["image"].rpartition(":")[2])

    def promote() -> None:
        engine.site.git("fetch", "--quiet", "origin")
        engine.site.git("push", "--quiet", "origin", "origin/main:refs/heads/promoted")
        engine.ask("promoted")

    def source() -> dict[str, Any]:
        return dict(engine.get("gitrepository/nativelink-promoted", engine.namespace)["status"])

    engine.site.add("promoted", engine.where, **entry)
    engine.site.playbook("bootstrap", "--limit", "promoted")
    first = engine.site.commit("Another cluster")
    promote()
    there = ("statefulset/nativelink-cas", "promoted")
    engine.eventually("the first tree of promoted", lambda: engine.get(*there) != {})

    for name in (NAME, "promoted"):
        engine.site.set(name, nativelink_version=old)
    engine.site.playbook("render")
    engine.site.commit(f"NativeLink {old}")
    engine.ask()
    engine.eventually(f"{old} on the cluster that follows main", lambda: version(CAS) == old, 60)
    asked = engine.ask("promoted")
    looked = "Flux to look at the branch again"
    engine.eventually(looked, lambda: source()["lastHandledReconcileAt"] == asked, 60)
    assert source()["artifact"]["revision"] == f"promoted@sha1:{first}"
    assert version("promoted") == new
    promote()
    engine.eventually(f"{old} on promoted", lambda: version("promoted") == old, 60)
