"""Rules for what users write in Kubernetes' own terms: tolerations, labels, peers, ports, resources, HPA behavior.

The OpenAPI schemas (schemas.py) say which keys there are and of which type. These rules add what the API server checks
beyond that. tests/render/test_kubernetes.py shows for each that a real API server refuses the same.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from .. import specs
from ..findings import Findings
from ..specs import Values, Yaml
from .formats import nearest, one_of, shown
from .rules import overcommitted, pools_of
from .schemas import definition_findings

NAME = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)")
PREFIX = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:(?P<unit>[numkMGTPE]|[KMGTPE]i)|[eE](?P<power>[+-]?[0-9]{1,2}))?"
)
_UNITS = {unit: Fraction(1000) ** power for power, unit in enumerate("num", start=-3)}
_UNITS |= {unit: Fraction(1000) ** power for power, unit in enumerate("kMGTPE", start=1)}
_UNITS |= {f"{unit}i": Fraction(1024) ** power for power, unit in enumerate("KMGTPE", start=1)}
PORT = re.compile(r"[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")
_LETTER = re.compile(r"[a-z]")
# Where clouds hand out the credentials of a node, and the range to leave out.
METADATA = {"169.254.169.254": "169.254.0.0/16", "fd00:ec2::254": "fd00:ec2::/32"}


# Labels ---------------------------------------------------------------------------------------------------------


def _label_key(path: str, key: str, checked: str | None = None) -> Findings:
    """A qualified name: an optional DNS prefix and a slash, then up to 63 characters. `checked` stands for `key`."""
    prefix, slash, name = str(key if checked is None else checked).rpartition("/")
    if not NAME.fullmatch(name) or (slash and not (PREFIX.fullmatch(prefix) and len(prefix) <= 253)):
        remedy = (
            "write a name such as disk or example.com/disk: at most 63 letters, digits, hyphens, dots and underscores"
        )
        yield path, f"{shown(key)} is not a valid key", remedy


def _label_value(path: str, value: str) -> Findings:
    if value and not NAME.fullmatch(str(value)):
        remedy = "use at most 63 letters, digits, hyphens, dots and underscores, the first and last a letter or digit"
        yield path, f"{shown(value)} is not a valid label value", remedy


def _labels(path: str, labels: Values) -> Findings:
    for key, value in labels.items():
        yield from _label_key(path, key)
        if value is not None:
            yield from _label_value(f"{path}.{key}", value)


def _annotations(path: str, stated: Values) -> Findings:
    """The prefix of a key may have upper-case letters, unlike that of a label."""
    for key in stated:
        yield from _label_key(path, key, str(key).lower())


def _selector(path: str, selector: Values) -> Findings:
    """A label selector."""
    yield from _labels(f"{path}.matchLabels", selector.get("matchLabels") or {})
    for index, expression in enumerate(selector.get("matchExpressions") or ()):
        where = f"{path}.matchExpressions[{index}]"
        operator, texts = expression["operator"], expression.get("values") or []
        yield from _label_key(f"{where}.key", expression["key"])
        yield from _choice(f"{where}.operator", operator, ("In", "NotIn", "Exists", "DoesNotExist"))
        if operator in ("In", "NotIn") and not texts:
            yield f"{where}.values", f"is empty, and the operator {operator} needs values", "list one or more values"
        if operator in ("Exists", "DoesNotExist") and texts:
            yield f"{where}.values", f"is set, and the operator {operator} takes no values", "remove it, or write In"
        for number, text in enumerate(texts):
            yield from _label_value(f"{where}.values[{number}]", text or "")


# Tolerations ----------------------------------------------------------------------------------------------------


def _toleration(path: str, toleration: Values) -> Findings:
    key, operator = toleration.get("key"), toleration.get("operator") or "Equal"
    value, effect = toleration.get("value") or "", toleration.get("effect")
    yield from _choice(f"{path}.operator", operator, ("Exists", "Equal"))
    if key:
        yield from _label_key(f"{path}.key", key)
    elif operator == "Equal":
        problem = "is not set, and the operator Equal needs one"
        yield f"{path}.key", problem, "set it, or write operator: Exists for all taints"
    if operator == "Exists" and value:
        problem = f"is {shown(value)}, and the operator Exists takes no value"
        yield f"{path}.value", problem, "remove it, or write operator: Equal"
    if operator == "Equal":
        yield from _label_value(f"{path}.value", value)
    if effect:
        yield from _choice(f"{path}.effect", effect, ("NoSchedule", "PreferNoSchedule", "NoExecute"))
    if toleration.get("tolerationSeconds") is not None and effect != "NoExecute":
        problem = f"is set, and the effect is {effect or 'not set'}: only pods on a NoExecute taint are evicted"
        yield f"{path}.tolerationSeconds", problem, "remove it, or write effect: NoExecute"


# NetworkPolicies ------------------------------------------------------------------------------------------------


def _egress(path: str, rule: Values) -> Findings:
    if not rule.get("to"):
        problem = "is not set, so the rule allows every address, also 169.254.169.254, where a node's credentials are"
        yield f"{path}.to", problem, "write to: [{ipBlock: {cidr: 0.0.0.0/0, except: [169.254.0.0/16]}}]"
    for index, peer in enumerate(rule.get("to") or ()):
        yield from _peer(f"{path}.to[{index}]", peer)
        yield from _metadata(f"{path}.to[{index}].ipBlock", peer.get("ipBlock") or {})
    for index, port in enumerate(rule.get("ports") or ()):
        yield from _policy_port(f"{path}.ports[{index}]", port)


def _peer(path: str, peer: Values) -> Findings:
    stated = [key for key, value in peer.items() if value is not None]
    if not stated:
        yield path, "is empty", one_of(None, ("namespaceSelector", "podSelector", "ipBlock"))
    elif "ipBlock" in stated and len(stated) > 1:
        yield path, "has ipBlock and a selector, which Kubernetes does not combine", "write two peers"
    for key in stated:
        where = f"{path}.{key}"
        yield from _ip_block(where, peer[key]) if key == "ipBlock" else _selector(where, peer[key])


def _metadata(path: str, block: Values) -> Findings:
    """An action that reaches the metadata service of a cloud can take the credentials of its node."""
    for address, link in METADATA.items():
        left_out = any(in_range(address, part) for part in block.get("except") or ())
        if in_range(address, block.get("cidr") or "") and not left_out:
            problem = f"contains {address}, where a node's credentials are"
            yield path, problem, f"add except: [{link}], or write a range without the address"


def in_range(address: str, cidr: str) -> bool:
    """Whether a CIDR range contains an address; False where it is not valid."""
    _unused, network = _network("", cidr)
    return network is not None and ipaddress.ip_address(address) in network


def _ip_block(path: str, block: Values) -> Findings:
    faults, network = _network(f"{path}.cidr", block["cidr"])
    yield from faults
    for index, text in enumerate(block.get("except") or ()):
        where = f"{path}.except[{index}]"
        faults, part = _network(where, text)
        yield from faults
        inside = network and part and part.version == network.version and part != network
        if network and part and not (inside and part.subnet_of(network)):  # type: ignore[arg-type]
            yield where, f"is {text}, which is not a part of {network}", "write a smaller range inside of cidr"


def _network(
    path: str, text: str
) -> tuple[list[tuple[str, str, str]], ipaddress.IPv4Network | ipaddress.IPv6Network | None]:
    """Findings, and the network where it can be told."""
    remedy = "write an address and a prefix length, such as 10.0.0.0/8 or 2001:db8::/64"
    problem = f"{shown(text)} is not a valid CIDR range"
    address, slash, length = str(text).partition("/")
    if not slash or "%" in address or not re.fullmatch(r"0|[1-9][0-9]{0,2}", length):
        return [(path, problem, remedy)], None
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return [(path, problem, remedy)], None
    if isinstance(network, ipaddress.IPv6Network) and ipaddress.IPv6Address(address).ipv4_mapped:
        return [(path, f"{shown(text)} is an IPv4 range written as IPv6", "write the IPv4 range")], None
    if network.network_address != ipaddress.ip_address(address):
        return [(path, f"{shown(text)} is an address inside of a range", f"write {network}")], network
    return [], network


def _policy_port(path: str, item: Values) -> Findings:
    port, end, protocol = item.get("port"), item.get("endPort"), item.get("protocol")
    if isinstance(port, str) and (not PORT.fullmatch(port) or not _LETTER.search(port) or "--" in port):
        remedy = (
            "write the number without quotes"
            if port.isdigit()
            else "use at most 15 lower-case letters, digits and hyphens"
        )
        yield f"{path}.port", f"{shown(port)} is not a valid port name", remedy
    numbers = {"port": None if isinstance(port, str) else port, "endPort": end}
    for key, number in numbers.items():
        if number is not None and not 0 < number < 65536:
            yield f"{path}.{key}", f"is {number}, not a port number", "write a number from 1 to 65535"
    if end is not None and numbers["port"] is None:
        yield f"{path}.endPort", "is set, and port is not a number", "write the first port of the range in port"
    elif end is not None and end < port:
        yield f"{path}.endPort", f"is {end}, less than port, {port}", "write port or a greater number"
    if protocol is not None:
        yield from _choice(f"{path}.protocol", protocol, ("TCP", "UDP", "SCTP"))


# HorizontalPodAutoscalers ---------------------------------------------------------------------------------------


def _scaling_rules(path: str, stated: Values) -> Findings:
    if (window := stated.get("stabilizationWindowSeconds")) is not None:
        yield from _range(f"{path}.stabilizationWindowSeconds", window, 0, 3600)
    if (choice := stated.get("selectPolicy")) is not None:
        yield from _choice(f"{path}.selectPolicy", choice, ("Max", "Min", "Disabled"))
    if stated.get("policies") == []:
        yield f"{path}.policies", "is an empty list", "list one or more policies, or remove the line for the default"
    for index, policy in enumerate(stated.get("policies") or ()):
        where = f"{path}.policies[{index}]"
        yield from _choice(f"{where}.type", policy["type"], ("Pods", "Percent"))
        yield from _range(f"{where}.value", policy["value"], 1, None)
        yield from _range(f"{where}.periodSeconds", policy["periodSeconds"], 1, 1800)
    if (tolerance := stated.get("tolerance")) is not None:
        amount = _quantity(tolerance)
        if amount is None or amount < 0:
            yield f"{path}.tolerance", f"{shown(tolerance)} is not a fraction such as 0.1", "write 0 or more"


# Resources ------------------------------------------------------------------------------------------------------


def _resources(path: str, stated: Values) -> Findings:
    requests, limits = ({**(stated.get(kind) or {})} for kind in ("requests", "limits"))
    for kind, amounts in (("requests", requests), ("limits", limits)):
        for name, amount in amounts.items():
            if overcommitted(name):
                continue
            yield from _resource(f"{path}.{kind}", name, amount)
    names = dict.fromkeys(name for name in (*requests, *limits) if not overcommitted(name) and not _native(name))
    for name in names:
        request, limit = _quantity(requests.get(name)), _quantity(limits.get(name))
        if name not in limits:
            problem = f"is not set, and a request of {name} needs an equal limit"
            yield f"{path}.limits.{name}", problem, f"write {requests[name]}"
        elif request is not None and limit is not None and request != limit:
            problem = f"is {requests[name]}, and the limit is {limits[name]}: Kubernetes does not overcommit {name}"
            yield f"{path}.requests.{name}", problem, "write the same amount in both"
    huge = [name for name in names if name.startswith("hugepages-")]
    if huge and not any(name in requests or name in limits for name in ("cpu", "memory")):
        yield path, f"asks for {huge[0]} without cpu and memory", "add a request of cpu or memory"


def _native(name: str) -> bool:
    return "kubernetes.io/" in name


def _resource(path: str, name: str, amount: Yaml) -> Findings:
    where, number = f"{path}.{name}", _quantity(amount)
    if faults := list(_label_key(path, name)):
        yield from faults
    elif (
        "/" in name
        and not _native(name)
        and (name.startswith("requests.") or len(name.partition("/")[0]) > 253 - len("requests."))
    ):
        yield path, f"{name} is not a valid resource", "write the name that the device plugin states"
    elif number is None or number < 0:
        yield where, f"{shown(amount)} is not a valid amount", "write a whole number"
    elif name.startswith("hugepages-"):
        page = _quantity(name.removeprefix("hugepages-"))
        if not page or number % page:
            yield where, f"{shown(amount)} is not a multiple of the page size of {name}", "write 0 or a multiple of it"
    elif not _native(name) and number % 1:
        yield where, f"is {amount}, and Kubernetes hands out {name} in whole numbers", "write a whole number"


def _quantity(value: Yaml) -> Fraction | None:
    """The number that a quantity of Kubernetes is; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if not (found := _QUANTITY.fullmatch(str(value))):
        return None
    factor = _UNITS[found["unit"]] if found["unit"] else Fraction(10) ** int(found["power"] or 0)
    return Fraction(found["number"]) * factor


# Words of messages ----------------------------------------------------------------------------------------------


def _choice(path: str, value: Yaml, choices: tuple[str, ...]) -> Findings:
    if value not in choices:
        yield path, f"is {shown(value)}", one_of(nearest(str(value), choices, 0.6), choices)


def _range(path: str, value: int, low: int, high: int | None) -> Findings:
    if value < low:
        yield path, f"is {value}, less than {low}", f"write {low} or more"
    elif high is not None and value > high:
        yield path, f"is {value}, more than {high}", f"write {high} or less"


# The rules ------------------------------------------------------------------------------------------------------

# What users write in Kubernetes' terms, by the end of its name: its definition in the API's schema, if it has one, and
# the check of what the API server asks for beyond that, which can rely on keys and types.
CHECKS: dict[str, tuple[str, Callable[[str, Values], Findings]]] = {
    "tolerations": ("io.k8s.api.core.v1.Toleration", _toleration),
    "peers": ("io.k8s.api.networking.v1.NetworkPolicyPeer", _peer),
    "egress": ("io.k8s.api.networking.v1.NetworkPolicyEgressRule", _egress),
    "scale_up": ("io.k8s.api.autoscaling.v2.HPAScalingRules", _scaling_rules),
    "scale_down": ("io.k8s.api.autoscaling.v2.HPAScalingRules", _scaling_rules),
    "node_selector": ("", _labels),
    "prometheus_labels": ("", _labels),
    "annotations": ("", _annotations),
    "resources": ("", _resources),
}


def _rule(name: str) -> Callable[[Any], Findings]:
    definition, check = CHECKS[name]

    def rule(values: Values) -> Findings:
        minimum = values.get("preflight_minimum_kubernetes")
        for path, stated in _stated(values, name):
            found = list(definition_findings(definition, path, stated, minimum)) if definition else []
            yield from found or check(path, stated)

    rule.__name__ = name
    return rule


def _stated(values: Values, name: str) -> Iterator[tuple[str, Yaml]]:
    """The variables of this name with a prefix, and the pools' keys. Of a list it is each item."""

    def items(path: str, stated: Yaml) -> Iterator[tuple[str, Yaml]]:
        if not isinstance(stated, list):
            yield path, stated
        else:
            yield from ((f"{path}[{index}]", item) for index, item in enumerate(stated))

    for variable, value in specs.known(values).items():
        if variable.endswith(f"_{name}"):
            yield from items(variable, value)
    for path, pool in pools_of(values):
        if name in pool:
            yield from items(f"{path}.{name}", pool[name])


RULES = tuple(map(_rule, CHECKS))
