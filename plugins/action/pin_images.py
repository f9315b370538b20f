"""Action `pin_images`: writes the digests of a cluster's images into a file of its inventory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ansible.errors import AnsibleActionFail

from ..plugin_utils import digests, registry, render
from ..plugin_utils.action import Action
from ..plugin_utils.findings import Finding, relative
from ..plugin_utils.validation.files import beside


class ActionModule(Action):
    """Reads the cluster's variables. Supports check mode and --diff."""

    def _act(self) -> dict[str, Any]:
        """Look up the digests, and replace a file that differs."""
        values, check = self.host_values(), self._task.check_mode
        self._cluster = values["cluster"]
        file, digest_of = self._file(), self._source()
        try:
            images = digests.used(values)
        except render.RenderError as error:
            raise AnsibleActionFail(str(error)) from None
        lines, faults = {}, []
        for variable, image in images.items():
            try:
                lines[variable] = f"{digest_of(image)} # {image}"
            except registry.UnknownDigestError as error:
                problem, remedy = error.args
                faults.append((variable, f"{image}: {problem}", remedy))
        if faults:
            self._refuse(*faults)

        shown, text = relative(file), digests.text_of(lines)
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        changed = text != before
        if changed and not check:
            self._write(file, text)
        state = "unchanged" if not changed else "would be written" if check else "written"
        return {
            "changed": changed,
            "diff": {"before": before, "after": text, "before_header": shown, "after_header": shown},
            "cluster_summary": {
                "pinned": [f"{shown}: {len(lines)} images, {state}"],
                "next": [
                    *(f"set image_digest of pool {name}: {image}" for name, image in digests.of_pools(values).items()),
                    *([f"render, review and commit {shown} with the tree"] if changed and not check else []),
                ],
            },
        }

    def _refuse(self, *faults: tuple[str, str, str]) -> NoReturn:
        """Fail with faults: variable, problem and remedy."""
        raise AnsibleActionFail("\n".join(str(Finding(self._cluster, *fault)) for fault in faults))

    def _file(self) -> Path:
        file = digests.file_of(self._cluster, self._task_vars)
        if file is None:
            self._refuse(("inventory", "it is in no folder", "name a folder or a file with -i"))
        remedy = f"move it to {relative(file.parent / 'main.yml')}"
        if found := [(relative(other), f"Ansible does not read it next to {relative(file)}") for other in beside(file)]:
            self._refuse(*((*fault, remedy) for fault in found))
        return file

    def _source(self) -> Callable[[str], str]:
        """What tells the digest of an image: its registry, or a file that lists them."""
        listing = self._args["file"]
        if not listing:
            return registry.digest_of
        try:
            listed = digests.listed(Path(listing).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            self._refuse(("digests_file", f"{listing}: {error}", "name a file with a line for each image"))

        def digest_of(image: str) -> str:
            if image not in listed:
                raise registry.UnknownDigestError(f"it is not in {listing}", f"add a line {image}@sha256:…")
            return listed[image]

        return digest_of

    def _write(self, file: Path, text: str) -> None:
        """Write the file as a whole: whoever reads it meanwhile sees the old or the new one."""
        draft = file.with_name(f".{file.name}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(text, encoding="utf-8")
            draft.replace(file)
        except OSError as error:
            self._refuse((relative(file), f"it cannot be written ({error.strerror})", "let your user write there"))
