"""Variables of the roles for the embedded Kubernetes: the paths of its release manifests.

``python .ci/offline.py FILE`` makes all manifests and writes a file of Ansible variables that name them.
``python .ci/offline.py FILE -i INVENTORY …`` makes only those that ``ansible-playbook -i INVENTORY …`` would install.

Only this file knows both where the embedded Kubernetes keeps release manifests and the names of the roles' variables.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from ansible import context
from ansible.cli.playbook import PlaybookCLI
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from testbed import build, manifests

ROOT = Path(__file__).resolve().parents[1]
# By variable: the component of the manifest, and the condition under which the role installs it.
MANIFESTS = {
    "keda_manifest": ("keda", "keda_install == 'release'"),
    "ingress_gateway_api_manifest": (
        "gateway-api",
        "ingress_provider == 'envoy-gateway' and ingress_gateway_api_install == 'release'",
    ),
    "ingress_envoy_gateway_manifest": ("envoy-gateway", "ingress_provider == 'envoy-gateway'"),
    "gitops_argocd_manifest": ("argocd", "gitops_provider == 'argocd' and gitops_install == 'release'"),
    "gitops_flux_manifest": ("flux", "gitops_provider == 'flux' and gitops_install == 'release'"),
}
ROLES = ("keda", "ingress", "gitops")


def wanted(arguments: list[str]) -> list[str]:
    """Return the variables whose manifests the clusters of ``ansible-playbook ARGUMENTS`` install.

    Without arguments it returns all of them. The variables of a cluster are those that the command reads, over the
    roles' defaults. A cluster whose variables cannot be read needs no manifest here, because the playbook then reports
    the error.
    """
    if not arguments:
        return list(MANIFESTS)
    defaults = {}
    for role in ROLES:
        path = str(ROOT / "roles" / role / "defaults" / "main.yml")
        defaults |= DataLoader().load_from_file(path, trusted_as_template=True)
    command = PlaybookCLI(["ansible-playbook", *arguments, "playbooks/bootstrap.yml"])
    command.parse()
    found = set()
    try:
        loader, inventory, variables = command._play_prereqs()
        for host in command.get_host_list(inventory, context.CLIARGS["subset"]):
            templar = Templar(loader, defaults | variables.get_vars(host=host))
            for variable, (_, condition) in MANIFESTS.items():
                if templar.template(trust_as_template(f"{{{{ {condition} }}}}")):
                    found.add(variable)
    except AnsibleError:
        pass
    return [variable for variable in MANIFESTS if variable in found]


def main(target: Path, arguments: list[str]) -> None:
    """Make the manifests that do not exist yet, and write the file and its folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    chosen = wanted(arguments)
    variables: dict[str, str | bool] = {
        variable: str(manifests.path(MANIFESTS[variable][0], label=f"[{number}/{len(chosen)}]"))
        for number, variable in enumerate(chosen, 1)
    }
    # The pods are fake, so KEDA's metrics API never answers.
    variables["keda_wait_for_metrics_api"] = False
    target.write_text(yaml.safe_dump(variables, explicit_start=True))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except build.BuildError as error:
        sys.exit(f"testbed: {error}")
