"""The controllers of the edge and the GitOps engines: facts of the files in defaults/main/ of their roles."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from . import specs


@dataclass(frozen=True)
class Controller:
    """A controller of the edge, by the value of `ingress_provider`. `serves` has values of `nativelink_edge`."""

    serves: tuple[str, ...]
    namespace: str
    class_name: str
    client_certificates: bool


@dataclass(frozen=True)
class Engine:
    """A GitOps engine, by the value of `gitops_provider`. `settings` has its own ConfigMaps, by variable."""

    title: str
    namespace: str
    takes_scp_addresses: bool
    needs_ssh_key: bool
    decrypts: bool
    settings: Mapping[str, str]
    secret: Mapping[str, Mapping[str, str]]


_Provider = TypeVar("_Provider", Controller, Engine)


def controllers() -> dict[str, Controller]:
    """The controllers, by name."""
    return _read("ingress", Controller, *specs.options()["ingress_provider"].choices)


def engines() -> dict[str, Engine]:
    """The engines, by name: all but `none`."""
    return _read("gitops", Engine, *(name for name in specs.options()["gitops_provider"].choices if name != "none"))


def behind_envoy_gateway(known: Mapping[str, Any]) -> bool:
    """Whether a cluster's edge is a Gateway that Envoy Gateway serves."""
    return bool(known["nativelink_edge"] == "gateway" and known["ingress_provider"] == "envoy-gateway")


def _read(role: str, kind: type[_Provider], *names: str) -> dict[str, _Provider]:
    found: dict[str, _Provider] = {}
    for name in sorted(names):
        facts: Mapping[str, Any] = specs.written()[f"__{role}_provider_{name.replace('-', '_')}"]
        found[name] = kind(**{each.name: facts[each.name] for each in fields(kind)})
    return found
