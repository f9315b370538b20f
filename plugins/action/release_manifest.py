"""Action `release_manifest`: installs an upstream release from its manifest."""

import contextlib
import copy
import http.client
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.module_utils.urls import open_url

from ..plugin_utils import release, specs
from ..plugin_utils.api import ApiError, Object
from ..plugin_utils.apply import ApplyAction

_DOWNLOAD_SECONDS = 60
_POLL_SECONDS = 1


class ActionModule(ApplyAction):
    """Installs or upgrades one release and waits until it works. A second run only checks it."""

    def _act_on_cluster(self) -> dict[str, Any]:
        args, name, version = self._args, self._args["name"], self._args["version"]
        content = self._read(args["source"])
        self._check_digest(content)
        wanted = self._objects(content)
        found = self._api.read("v1", "ConfigMap", f"{name}-release", args["namespace"])
        installed = (found or {}).get("data", {})
        self._check_version(installed.get("version"), release.stated_versions(wanted, name))
        if not installed:
            self._check_foreign(wanted)

        ours = json.dumps(self._args["replace"], sort_keys=True).encode() if self._args["replace"] else b""
        sha256 = release.digest(content + ours)
        record = release.record(name, args["namespace"], version, sha256, wanted)
        unchanged = installed == record["data"]
        if unchanged:  # install Jobs have done their work and may have expired since
            wanted = [each for each in wanted if each["kind"] != "Job"]
        # Reading an object takes a tenth of the time that applying it again does, and most objects are unchanged.
        todo = [each for each in wanted if not unchanged or not release.holds(self._api.live(each), each)]
        first, rest = release.stages(todo)
        before, now = (set(each.get("objects", "").splitlines()) for each in (installed, record["data"]))
        begun = copy.deepcopy(record)
        # Until the release is complete the record also has the older objects, so that the next run can name them.
        begun["data"] |= {"complete": "false", "objects": "\n".join(sorted(before | now))}
        self._apply(first if unchanged else [*first, begun])
        self._wait([each for each in first if each["kind"] == "CustomResourceDefinition"])
        self._remove_jobs(rest)
        self._apply(rest)
        self._wait([each for each in wanted if each["kind"] in (*release.WORKLOADS, "APIService")])
        if not unchanged:
            self._apply([record])

        older = installed.get("version")
        what = "unchanged" if not self._changed else "repaired" if unchanged else "installed"
        if older and older != version:
            what = f"{'changed' if args['allow_downgrade'] else 'upgraded'} from {older}"
        gone = sorted(before - now)
        if self._task.check_mode and what != "unchanged":
            what = f"would be {what}"
        summary = {"provisioned": [f"{name} {version}: {what}"]}
        if gone:
            summary["next"] = [f"{name} {version}: removed upstream, left in the cluster: {', '.join(gone)}"]
        return {"msg": summary["provisioned"][0], "cluster_summary": summary}

    def _variable(self, name: str) -> str:
        """A variable that all parts of a role share."""
        return f"{self._args['prefix'].partition('_')[0]}_{name}"

    def _read(self, source: str) -> bytes:
        variable = f"{self._args['prefix']}_manifest"
        fix = f"check {self._args['prefix']}_version, or name a mirror or a local file in {variable}"
        try:
            if "://" in source:
                with open_url(source, timeout=_DOWNLOAD_SECONDS, http_agent="nativelink-gitops") as answer:
                    return answer.read()
            return Path(self._find_needle("files", str(Path(source).expanduser()))).read_bytes()
        # open_url raises OSError and ValueError; an answer that ends too early raises HTTPException.
        except (AnsibleError, OSError, ValueError, http.client.HTTPException) as error:
            self.refuse(variable, f"{source} cannot be read: {' '.join(str(error).split())}", fix)

    def _check_digest(self, content: bytes) -> None:
        prefix, version = self._args["prefix"], self._args["version"]
        wanted, found = self._args["sha256"].lower(), release.digest(content)
        known = specs.written()
        if wanted == known[f"{prefix}_manifest_sha256"] and version != known[f"{prefix}_version"]:
            return  # it is that of the default version
        if wanted and wanted != found:
            self.refuse(
                f"{prefix}_manifest_sha256",
                f"the manifest of version {version} has {found}, not {wanted}",
                "nothing was applied: find out why it differs, or write the checksum of the copy that you have changed",
            )

    def _objects(self, content: bytes) -> list[Object]:
        prefix, namespace = self._args["prefix"], self._args["namespace"]
        try:
            wanted = release.without(release.objects(content), self._args["exclude"])
        except ValueError as error:
            self.refuse(f"{prefix}_manifest", str(error), "name a release's manifest, as a URL or a local file")
        ours = {(each["kind"], each["metadata"]["name"]): each for each in self._args["replace"]}
        wanted = [ours.get((each["kind"], each["metadata"]["name"]), each) for each in wanted]
        coming = release.defined_kinds(wanted)
        for each in wanted:
            key = (each["apiVersion"], each["kind"])
            namespaced = coming[key] if key in coming else (self._api.kind(*key) or ("", False))[1]
            if namespaced:
                each["metadata"].setdefault("namespace", namespace)
        if not any(each["kind"] == "Namespace" and each["metadata"]["name"] == namespace for each in wanted):
            wanted.insert(0, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        return wanted

    def _check_version(self, installed: str | None, stated: set[str]) -> None:
        """Refuse a manifest that states only other versions, and an older version than the installed one."""
        prefix, version = self._args["prefix"], self._args["version"]
        variable = f"{prefix}_version"
        try:
            wanted = release.version_key(version)
            downgrade = installed is not None and release.version_key(installed) > wanted
        except ValueError as error:
            self.refuse(variable, str(error), "give the release's version")
        # Numbers only: whoever builds images anew may give them tags such as 1.2.3-hardened.
        if stated and wanted[0] not in {release.version_key(each)[0] for each in stated}:
            found = ", ".join(sorted(stated))
            self.refuse(
                f"{prefix}_manifest",
                f"{self._args['source']} is the manifest of version {found}, but {variable} is {version}",
                f"set {variable} to {found}, or name the manifest of version {version} in {prefix}_manifest",
            )
        if downgrade and not self._args["allow_downgrade"]:
            allow = self._variable("allow_downgrade")
            self.refuse(
                variable,
                f"{self._args['name']} {installed} is installed, {version} is older",
                f"set {variable} to {installed} or newer, or set {allow} if upstream says that going back is safe",
            )

    def _check_foreign(self, wanted: Sequence[Object]) -> None:
        """Refuse to take over what another manager installed: both would go on to change it."""
        foreign = []
        for each in wanted:
            if each["kind"] in (*release.WORKLOADS, "CustomResourceDefinition"):
                live = self._api.live(each)
                if live is not None and release.FIELD_MANAGER not in release.managers(live):
                    foreign.append((each, release.managers(live)))
        if foreign:
            each, others = foreign[0]
            more = f" (and {len(foreign) - 1} more objects)" if len(foreign) > 1 else ""
            self.refuse(
                self._args["existing"].partition(":")[0],
                f"{release.identity(each)}{more} was installed by another manager: {', '.join(others) or 'unknown'}",
                f"nothing was applied: set {self._args['existing']} to use that installation, or remove it first",
            )

    def _apply(self, wanted: Sequence[Object]) -> None:
        remedy = f"undo the other manager's change, or set {self._args['existing']} and leave it to that manager"
        self.apply(wanted, self._args["existing"].partition(":")[0], remedy)

    def _remove_jobs(self, rest: list[Object]) -> None:
        """Delete the Job of an earlier run, whose template cannot be changed; in check mode leave such Jobs out."""
        jobs = [each for each in rest if each["kind"] == "Job"]
        if self._task.check_mode:
            rest[:] = [each for each in rest if each["kind"] != "Job" or not self._api.live(each)]
            return
        for each in jobs:
            self._api.delete(each)
        self._until(jobs, lambda each: None if self._api.live(each) is None else "it still exists", "be removed")

    def _state(self, wanted: Object) -> str | None:
        live = self._api.live(wanted)
        if live and wanted["kind"] == "APIService" and self._args["wait_apiservices"] == "registered":
            return None
        if (why := release.not_ready(live)) or wanted["kind"] != "CustomResourceDefinition":
            return why
        unserved = [" ".join(key) for key in release.defined_kinds([wanted]) if self._api.kind(*key) is None]
        return f"the API server does not serve {unserved[0]} yet" if unserved else None

    def _wait(self, wanted: Sequence[Object]) -> None:
        if not self._task.check_mode:
            self._until(wanted, self._state)

    def _until(self, wanted: Sequence[Object], state: Callable[[Object], str | None], what: str = "") -> None:
        """Poll until `state` gives None for each object; at the deadline fail with what it gives for one that is left.

        An API server that is away for a while, because it restarts, is waited for as well.
        """
        begin, timeout, left = time.monotonic(), self._args["timeout"], [(each, "") for each in wanted]
        while True:
            away = None
            try:
                left = [(each, why) for each, _unused in left if (why := state(each)) is not None]
            except ApiError as error:
                away = error
            if not left:
                return
            if time.monotonic() - begin > timeout:
                break
            time.sleep(_POLL_SECONDS)
        each, why = left[0] if away else next(filter(None, (self._trouble(each) for each, _unused in left)), left[0])
        others = [release.identity(other) for other, _unused in left if other is not each]
        also = f" (also: {', '.join(others)})" if others else ""
        waited = f"waited {timeout} s for {release.identity(each)} to {what or release.awaited(each['kind'])}{also}"
        if away:
            raise ApiError(f"{waited}: {away}", away.remedy)
        prefix = self._args["prefix"]
        self.refuse(
            f"{prefix}_version",
            f"{waited}: {' '.join(why.split()).rstrip('.')}",
            f"fix that, or correct {prefix}_version or {prefix}_manifest, and run again; "
            f"raise {self._variable('wait_timeout')} if it only needs more time",
        )

    def _trouble(self, wanted: Object) -> tuple[Object, str] | None:
        """A workload and the reason that one of its pods gives; None if no pod gives one or they cannot be read."""
        with contextlib.suppress(ApiError):
            if wanted["kind"] in release.WORKLOADS and (why := release.pod_trouble(self._api.pods_of(wanted))):
                return wanted, why
        return None
