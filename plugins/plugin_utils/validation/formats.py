"""Checks the formats of values, such as names, sizes and durations.

A format is a function that yields (problem, remedy). FORMATS maps variables to their formats.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit
from zoneinfo import available_timezones

from ..quantities import DURATION, QuantityError, bytes_of, midnight_of, part_of, seconds_of
from ..specs import Values, Yaml
from ..versions import NEWEST

Format = Iterator[tuple[str, str]]
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
# Docker's grammar of image names, without the detailed rules for registries; tag and digest are optional.
IMAGE_NAME = re.compile(r"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
VERSION = re.compile(r"v[0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4}(-[0-9A-Za-z.-]{1,99})?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
IMAGE = re.compile(rf"{IMAGE_NAME.pattern}(?P<tag>:{TAG.pattern})?(?P<digest>@{DIGEST.pattern})?")
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]")
STORE_PREFIX = re.compile(r"([A-Za-z0-9_.-]+/)+")
INSTANCE_NAME = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
SUBJECT_NAME = re.compile(r"[A-Za-z0-9:/._@-]{1,253}")
JWKS = re.compile(r"https://[^\s?#]+|http://[^\s?#/]+\.svc(\.[a-z0-9.-]+)?(:[0-9]{1,5})?/[^\s?#]*")
ENVIRONMENT_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Flux accepts fractions and milliseconds, but no days and no number without a unit.
FLUX_DURATION = re.compile(r"([0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h))+")
# Git's short form of an SSH address, git@host:path.
SCP = re.compile(r"(?P<host>[\w.-]+@[\w.-]+):(?P<path>[^/].*)")
# The library that KEDA reads cron with also knows names of months and days.
_CRON_FIELDS = ("[0-5]?[0-9]", "[01]?[0-9]|2[0-3]", "0?[1-9]|[12][0-9]|3[01]", "0?[1-9]|1[0-2]", "[0-6]")
_CRON_ITEMS = [rf"(\*|({number})(-({number}))?)(/[1-9][0-9]?)?" for number in _CRON_FIELDS]
CRON = re.compile(" ".join(f"{item}(,{item})*" for item in _CRON_ITEMS))
TIME_ZONE = re.compile("[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")


def _text(pattern: str | re.Pattern[str], noun: str, remedy: str) -> Callable[[str], Format]:
    def check(value: str) -> Format:
        if not re.fullmatch(pattern, value):
            yield f"{value!r} is not {noun}", remedy

    return check


# Texts that a pattern describes. A label of DNS is the name of a namespace, for example.
dns_label = _text(
    LABEL, "a valid DNS label", "use at most 63 lower-case letters, digits and hyphens, with no hyphen at an end"
)
digest = _text(DIGEST, "a valid digest", "write sha256: and 64 hexadecimal digits")
image = _text(IMAGE, "a valid image name", "write a name such as ghcr.io/tracemachina/nativelink")
bucket = _text(BUCKET, "a valid name of a bucket", "use letters, digits, dots, hyphens and underscores")
store_prefix = _text(STORE_PREFIX, "a valid prefix of objects", "write one that ends with a slash, such as prod/")
instance_name = _text(INSTANCE_NAME, "a valid instance name", "use letters, digits, dots, hyphens and underscores")
nativelink_version = _text(VERSION, "a version of NativeLink", f"write a version such as {NEWEST}")
subject_name = _text(SUBJECT_NAME, "a subject alternative name", "write one such as spiffe://example.com/ci")
jwks = _text(
    JWKS,
    "an address whose answers cannot be forged",
    "write one with https, or of a Service of the cluster, such as http://keys.identity.svc/jwks",
)
_git_revision = _text(r"(?!-)[^\s:^]+", "a Git revision", "write a branch, a tag or a commit, such as origin/main")
_sha256 = _text("([0-9a-f]{64})?", "a valid SHA-256 checksum", "write 64 hexadecimal digits")
_kubernetes_version = _text(
    r"v?[0-9]{1,9}\.[0-9]{1,9}(\.[0-9]+)?", "a version of Kubernetes", 'write a version such as "1.31"'
)


def dns_name(value: str) -> Format:
    """A name of DNS, in parts separated by dots."""
    if len(value) > 253 or not all(LABEL.fullmatch(label) for label in value.split(".")):
        problem = f"{value!r} is not a valid DNS name"
        yield problem, "use lower-case letters, digits and hyphens, in parts separated by dots"


def secret_name(value: str) -> Format:
    """The name of a Secret. Empty means none; the rules check where one is required."""
    if value:
        yield from dns_name(value)


def pool_name(value: str) -> Format:
    """The name of a pool, from which longer names are made."""
    # The longest name made from it is that of KEDA's HPA, keda-hpa-nativelink-worker-<pool>, which is also a label.
    yield from dns_label(value) if len(value) <= 63 else ()
    if len(value) > 36:
        yield f"has {len(value)} characters, which is too long for the names made from it", "use at most 36"


SMALLEST_SIZE = 1024**2
"""Bytes below which a size most likely lacks its unit."""


def too_small(size: int, value: Yaml) -> str:
    """The problem of a size that most likely lacks its unit, "" for any other size."""
    return f"{value!r} is only {size} bytes, less than the minimum of 1Mi" if size < SMALLEST_SIZE else ""


def _amount(read: Callable[[Yaml], int], smallest: Callable[[int, Yaml], str], remedy: str) -> Callable[[Yaml], Format]:
    def check(value: Yaml) -> Format:
        try:
            amount = read(value)
        except QuantityError as error:
            yield str(error), remedy
            return
        if problem := smallest(amount, value) if amount > 0 else f"must be greater than 0, not {value!r}":
            yield problem, remedy

    return check


# A size of something that takes up space, a percentage or such a size, and a duration. None of them is 0.
size = _amount(bytes_of, too_small, "write a size with its unit, such as 200Gi")
share = _amount(
    lambda value: part_of(value, 10**15),
    lambda amount, value: "" if "%" in str(value) else too_small(amount, value),
    "write a percentage such as 80%, or a size such as 160Gi",
)
duration = _amount(seconds_of, lambda amount, value: "", "write 30m, 1h30m or a number of seconds")


def day(value: str) -> Format:
    """A day. Empty means none."""
    if value and midnight_of(value) <= 0:
        yield f"{value!r} is not a valid day", "write a day such as 2027-01-31"


def cron(value: str) -> Format:
    """A time of cron in numbers, whose ranges do not run backwards."""
    ranges = re.findall("([0-9]+)-([0-9]+)", value)
    if not CRON.fullmatch(value) or any(int(first) > int(last) for first, last in ranges):
        problem = f"{value!r} is not a time of cron"
        yield problem, "write minute, hour, day, month and day of the week in numbers, such as 0 7 * * 1-5"


_time_zones = cache(lambda: tuple(sorted(available_timezones())))


def time_zone(value: str) -> Format:
    """An IANA time zone. A machine without their data takes any."""
    if not TIME_ZONE.fullmatch(value) or (_time_zones() and value not in _time_zones()):
        near = nearest(value, _time_zones(), 0.6)
        remedy = f"did you mean {near}?" if near else "write one such as Europe/Berlin"
        yield f"{value!r} is not an IANA time zone", remedy


def flux_interval(value: str) -> Format:
    """A duration that is not 0, as Flux writes it, in whole seconds, because an alert counts them."""
    yield from (malformed := list(_flux_duration(value)))
    if not malformed and not DURATION.fullmatch(value):
        yield f"is {value}, but needs whole hours, minutes and seconds", "write a duration such as 30s, 1m or 1h30m"


def _flux_duration(value: str) -> Format:
    if not FLUX_DURATION.fullmatch(value) or not re.search("[1-9]", value):
        yield f"{value!r} is not a valid duration for Flux", "write a duration such as 30s, 1m or 1h30m"


_FLUX_SECONDS = {"ms": Fraction(1, 1000), "s": 1, "m": 60, "h": 3600}


def _flux_timeout(value: str) -> Format:
    parts = re.findall(r"([\d.]+)(ms|s|m|h)", value)
    if malformed := list(_flux_duration(value)):
        yield from malformed
    elif sum(Fraction(number) * _FLUX_SECONDS[unit] for number, unit in parts) < 30:
        # Flux accepts less, but waits for 30s.
        yield f"is {value}, but Flux waits for at least 30s", "write 30s or more"


def host_and_port(value: str) -> Format:
    """An address with its port."""
    host, _unused, port = value.rpartition(":")
    is_host = not any(dns_name(host)) or re.fullmatch(r"\[[0-9a-f:.]+\]", host)
    if not is_host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        yield f"{value!r} is not a valid address", "write host:port, such as redis.example.com:6379"


def _server(value: str) -> SplitResult | None:
    """The parts of the URL of a server, which has no path; None if it is not one."""
    try:
        url = urlsplit(value)
        valid = url.scheme in ("http", "https") and url.hostname and url.port != 0 and url.path in ("", "/")
    except ValueError:  # the port is not a number
        return None
    return url if valid else None


def store_endpoint(value: str) -> Format:
    """The URL of an object store."""
    url = _server(value)
    if not url or url.username:
        yield f"{value!r} is not the address of an object store", "write one such as https://s3.example.com"


def _repository(value: str) -> Format:
    if SCP.fullmatch(value):
        return
    try:
        url = urlsplit(value)
        valid = url.scheme in ("https", "http", "ssh") and url.hostname and url.path.strip("/") and " " not in value
        valid = valid and url.port != 0  # reading the port raises ValueError if it is not a number
    except ValueError:
        valid = False
    if not valid and (mixed := re.fullmatch(r"ssh://([\w.-]+@[\w.-]+):(?!\d+/)([^/].*)", value)):
        yield f"{value!r} mixes two forms of an SSH address", f"write ssh://{mixed[1]}/{mixed[2]}"
    elif not valid:
        yield f"{value!r} is not the URL of a Git repository", "write https://host/path.git or ssh://git@host/path.git"
    elif url.password or (url.username and url.scheme != "ssh"):
        bare = f"{url.scheme}://{url.hostname}{url.path}"
        yield "contains credentials", f"write {bare}, and set gitops_username and gitops_password"


def _inside_repository(value: str) -> Format:
    if value.startswith("/") or ".." in value.split("/"):
        yield f"{value!r} is outside of the repository", "write a path from its root, such as clusters/prod"
    elif re.search(r"[\s\\\x00-\x1f]", value):
        yield f"{value!r} has a blank or a backslash", "write a path with slashes, such as clusters/prod"


def _branch(value: str) -> Format:
    # The rules of git-check-ref-format.
    parts = value.split("/")
    if (
        re.search(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{", value)
        or value.startswith("-")
        or value in ("", "@")
        or any(not part or part.startswith(".") or part.endswith((".", ".lock")) for part in parts)
    ):
        yield f"{value!r} is not a valid name of a branch", "write the name of a branch, such as main"


def otlp_receiver(value: str) -> Format:
    """The URL of a receiver of traces."""
    url = _server(value)
    if not url or not url.port:
        problem = f"{value!r} is not a valid address of an OTLP receiver"
        yield problem, "write http:// or https:// with host and port, such as http://tempo.monitoring.svc:4317"


def percent(value: float) -> Format:
    """A number from 0 to 100."""
    if not 0 <= value <= 100:
        yield f"must be from 0 to 100, not {value:g}", "write a percentage"


def _release_version(value: str) -> Format:
    if value.startswith("v"):
        yield f"is {value}, but this variable has no v", f"write {value[1:]}"
    elif not re.fullmatch(r"([0-9]{1,9}\.){2}[0-9]{1,9}([-+.][0-9A-Za-z.+-]+)?", value):
        yield f"{value!r} is not a valid version", "write a version such as 1.2.3"


def _manifest(value: str | list[str]) -> Format:
    for source in [value] if isinstance(value, str) else value:
        if source.startswith("/") and not Path(source).is_file():
            yield f"the file {source} does not exist", "write the path or URL of a release manifest"


def some(value: list[Any]) -> Format:
    """A list with at least one item."""
    if not value:
        yield "is an empty list", "add an item, or remove the line to use the default"


@dataclass(frozen=True)
class Within:
    """A whole number from `low` to `high`. The API server, which holds most of them, takes 32 bits."""

    low: int
    high: int = 2**31 - 1
    why: str = ""

    def __call__(self, value: int) -> Format:
        """Check a value."""
        if value < self.low:
            yield f"must be at least {self.low}, not {value}", f"write {self.low} or more"
        elif value > self.high and self.why:
            yield f"must be at most {self.high}, not {value}, {self.why}", f"write {self.high} or less"
        elif value > self.high:
            yield f"is {shown(value)}, which does not fit into 32 bits", "write a smaller number"


def tag(value: str) -> Format:
    """The tag of an image. The API server takes any, but no node can pull a malformed one."""
    if not TAG.fullmatch(value):
        remedy = "use at most 128 letters, digits, dots, hyphens and underscores, the first no dot or hyphen"
        yield f"{shown(value)} is not a valid image tag", remedy


def text_values(value: Values) -> Format:
    """A mapping whose values are texts."""
    for key, item in value.items():
        if not isinstance(item, str):
            yield f"the value of {key} is {shown(item)}, but must be text", f"write {_quoted(key, item)}"


def _quoted(key: str, item: Yaml) -> str:
    return f'{key}: "{str(item).lower() if isinstance(item, bool) else item}"'


def environment(value: Values) -> Format:
    """Environment variables."""
    for name, item in value.items():
        if item is None or isinstance(item, list | dict):
            yield f"the value of {name} is {shown(item)}, but must be text", "write a text or a number"
        if not ENVIRONMENT_VARIABLE.fullmatch(str(name)):
            yield f"{name!r} is not a valid name of an environment variable", "use letters, digits and underscores"


# Globs of paths, in which a dot stands for `[]`: nativelink_worker_pools..scratch_size.
_GLOBS: tuple[tuple[Callable[[Yaml], Format], str], ...] = (
    (
        dns_label,
        "cluster *_namespace worker_certificates_ca worker_certificates_trusted. nativelink_metrics_namespaces.",
    ),
    (
        dns_name,
        "*storage_class *_class_name *_priority_class *_secret nativelink_mutual_tls_issuer "
        "nativelink_image_pull_secrets. storage_classes_list..name nativelink_hostname",
    ),
    (secret_name, "*secret_name nativelink_edge_access..keys *_config_map"),
    (bucket, "nativelink_object_store_bucket"),
    (store_endpoint, "nativelink_object_store_endpoint"),
    (store_prefix, "nativelink_object_store_prefix"),
    (Within(0, 36500), "nativelink_object_store_expiry_days"),
    (Within(1, 100), "nativelink_cas_cpu_target"),
    (subject_name, "nativelink_edge_access..certificate"),
    (dns_label, "nativelink_edge_token_issuers..name"),
    (jwks, "nativelink_edge_token_issuers..jwks"),
    (some, "nativelink_edge_token_issuers..audiences"),
    (day, "nativelink_mutual_tls_expires"),
    (
        some,
        "nativelink_worker_pools nativelink_dns_peers nativelink_object_store_egress "
        "nativelink_prometheus_api_server_ports",
    ),
    (Within(1, 65535, "the highest port"), "nativelink_prometheus_api_server_ports."),
    (cron, "*.schedule..start *.schedule..end"),
    (time_zone, "*.schedule..timezone"),
    (pool_name, "nativelink_worker_pools..name"),
    (instance_name, "nativelink_instance_name"),
    (host_and_port, "nativelink_redis_address"),
    (image, "*image"),
    (digest, "*digest"),
    (_sha256, "*_sha256"),
    (_manifest, "*_manifest"),
    (size, "*_volume_size *.scratch_size nativelink_copier_rate"),
    (share, "*_store_size"),
    (duration, "preflight_api_timeout nativelink_worker_upload_timeout *.longest_action"),
    (
        Within(1),
        "nativelink_cas_startup_timeout nativelink_scheduler_worker_timeout nativelink_scheduler_max_job_retries "
        "*_wait_timeout gitops_argocd_sync_timeout nativelink_metrics_interval *.polling_interval "
        "nativelink_scheduler_replicas ingress_envoy_replicas ingress_envoy_max_replicas ingress_envoy_drain_timeout "
        "*.max_replicas",
    ),
    (Within(1), "nativelink_edge_connections nativelink_edge_calls_per_second nativelink_edge_actions_per_minute"),
    (Within(60, 86400, "because Envoy Gateway takes five digits"), "nativelink_edge_connection_age"),
    (Within(1024), "nativelink_max_open_files"),
    (flux_interval, "gitops_interval"),
    (_flux_timeout, "gitops_sync_timeout"),
    (otlp_receiver, "nativelink_traces_endpoint"),
    (percent, "nativelink_traces_percent"),
    (Within(0), "nativelink_cas_max_replicas *.cooldown_period *.min_replicas *.headroom *.slots *.target"),
    # A cas.json5 of 500 shards has 767 kB, and a ConfigMap holds 1 MiB.
    (Within(1, 500, "because the list of shards has to fit into a ConfigMap"), "nativelink_cas_replicas"),
    (Within(0), "nativelink_cas_layout_from nativelink_cas_shards*"),
    (text_values, "*node_selector *annotations *_labels"),
    (environment, "*.env"),
    (_kubernetes_version, "preflight_minimum_kubernetes"),
    (_repository, "gitops_repository"),
    (_inside_repository, "gitops_path"),
    (_branch, "gitops_revision"),
    (_git_revision, "nativelink_base_revision"),
    (nativelink_version, "nativelink_version"),
    (tag, "nativelink_*_version node_agent_image_version ingress_envoy_gateway_version"),
    (_release_version, "keda_version gitops_*_version ingress_*_version"),
)
FORMATS = tuple((glob, check) for check, globs in _GLOBS for glob in globs.split())


@cache
def checks(pattern: str) -> tuple[Callable[[Yaml], Format], ...]:
    """The formats that apply to a path."""
    return tuple(check for glob, check in FORMATS if fnmatchcase(pattern.replace("[]", "."), glob))


# Parts of messages ----------------------------------------------------------------------------------------------


@cache
def nearest(name: str, names: tuple[str, ...], cutoff: float) -> str | None:
    """The one of `names` that is most similar to `name`. `cutoff` is the least similarity, from 0 to 1 (equal)."""
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), None)


def shown(value: Yaml) -> str:
    """`value` as messages show it, cut to 60 characters."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."


def one_of(near: str | None, choices: Iterable[str]) -> str:
    """The remedy for a wrong word: the most similar choice, or else all choices."""
    return f"did you mean {near}?" if near else f"write one of {', '.join(choices)}"
