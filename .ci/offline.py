"""What the roles have to be told on the embedded Kubernetes: ``python .ci/offline.py FILE`` writes Ansible variables.

The only place that knows both sides: where the embedded Kubernetes keeps release manifests, and the roles' variables.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from testbed import manifests

MANIFESTS = {
    "keda_manifest": "keda",
    "ingress_gateway_api_manifest": "gateway-api",
    "ingress_envoy_gateway_manifest": "envoy-gateway",
    "gitops_argocd_manifest": "argocd",
    "gitops_flux_manifest": "flux",
}


def main(target: Path) -> None:
    """Make what is not made yet, and write the file (and its folder)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    variables: dict[str, str | bool] = {
        variable: str(manifests.path(component)) for variable, component in MANIFESTS.items()
    }
    # Its pods are fake: KEDA's metrics API never answers.
    variables["keda_wait_for_metrics_api"] = False
    target.write_text(yaml.safe_dump(variables, explicit_start=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
