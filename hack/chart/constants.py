"""What is the same in each cluster and the chart's helpers need: `files/constants.yaml`."""

import dataclasses
from typing import Any

from ansible_collections.nativelink.gitops.plugins.plugin_utils import (
    context,
    derived,
    monitoring,
    providers,
    render,
    specs,
)
from ansible_collections.nativelink.gitops.plugins.plugin_utils.validation import kubernetes, rules
from ansible_collections.nativelink.gitops.plugins.plugin_utils.versions import NEWEST, VERSIONS

from .values import POOLS

# The names of the helpers are those of context and derived in lower case.
_NAMES = (
    *("ACTION_MARGIN", "BESIDE_LEAST", "BESIDE_PERCENT", "BUCKET_RETRY", "BYTES_AN_INODE", "BYTES_A_BLOCK"),
    *("CHUNKS_FILES_PERCENT", "CHUNKS_PERCENT", "COPIES"),
    *("EVICTION_PATIENCE", "EVICT_BYTES", "INDEX_PERCENT", "INODE_PERCENT", "LOST"),
    *("MEMORY_A_FILE", "PORTS", "PRINCIPALS", "REDIS_FILLS", "ROLE_PATHS", "SCALE_DOWN", "SCALE_UP", "STARTUP_PERIOD"),
)


def constants() -> dict[str, Any]:
    """The content of the file."""
    pool = specs.options()[POOLS].options
    return {
        **{name.lower(): (vars(derived) | vars(context))[name] for name in _NAMES},
        "components": list(context.COMPONENTS),
        "config_maps": {
            component: {"needs": feature, "files": {path: render.FILES[path] for path in paths}}
            for component, (feature, paths) in context.CONFIG_MAPS.items()
        },
        "gitops": {name: {"namespace": each.namespace} for name, each in providers.engines().items()},
        "ingress": {
            name: {"serves": list(each.serves), "namespace": each.namespace, "class_name": each.class_name}
            for name, each in providers.controllers().items()
        },
        "metadata": kubernetes.METADATA,
        "credentials": context.METADATA,
        "newest": NEWEST,
        "only_pod_tolerations": context.FIXED["only_pod_tolerations"],
        "pool": {name: key.default for name, key in pool.items() if key.default is not specs.MISSING},
        "senders": monitoring.SENDERS,
        "spot": {
            kind: dict(zip(("node_selector", "tolerations"), derived.spot(kind), strict=True)) for kind in derived.SPOT
        },
        "store_needs": rules.STORE_NEEDS,
        "versions": {name: dataclasses.asdict(row) for name, row in VERSIONS.items()},
    }
