"""The collector on this machine, with the rendered configuration, and a NativeLink that reports to it every second."""

import contextlib
import http.client
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import yaml
from ansible_collections.nativelink.gitops.plugins.plugin_utils import render

from testbed import build
from testbed.ports import free_port
from testbed.waiting import tails, until
from testkit import nativelink
from testkit.client import Client, Load
from testkit.trees import Object, values_of

_DEMAND = re.compile(
    r"^nativelink_(?:execution_active_count|scheduler)\S*?(queued|executing|queue_depth)\S* (\S+)", re.M
)


def demand(address: str) -> list[tuple[str, float]]:
    """Return the stage, or queue_depth for both, and value of each line that a collector serves now, if it answers."""
    with (
        contextlib.suppress(OSError, http.client.HTTPException),
        urlopen(f"http://{address}/metrics", timeout=2) as answer,
    ):
        return [(stage, float(number)) for stage, number in _DEMAND.findall(answer.read().decode())]
    return []


class Source:
    """A source of the demand: a collector, and a NativeLink in memory. ``reported`` is the address of other series."""

    def __init__(self, folder: Path, edit: Callable[[Object], None], sender: str) -> None:
        self.folder, self.port, otlp = folder, free_port(), free_port()
        self.environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{otlp}",
            "OTEL_METRIC_EXPORT_INTERVAL": "1000",
        }
        self.reported = f"127.0.0.1:{free_port()}"
        self.client = Client(*[f"grpc://127.0.0.1:{self.port}"] * 2)
        self.demand = f"127.0.0.1:{free_port()}"
        self.running: list[subprocess.Popen[bytes]] = []
        tree = render.tree(values_of(nativelink_metrics=["scheduler", sender], nativelink_prometheus="bundled"))
        name = "collector-workers" if sender == "worker" else "collector"
        config = yaml.safe_load(tree[f"monitoring/{name}.yaml"])
        config["receivers"][f"otlp/{sender}"]["protocols"]["grpc"]["endpoint"] = f"127.0.0.1:{otlp}"
        places = {"prometheus/demand": self.demand, "prometheus/reported": self.reported}
        for exporter, settings in config["exporters"].items():
            settings["endpoint"] = places[exporter]
        config["extensions"]["health_check"]["endpoint"] = f"127.0.0.1:{free_port()}"
        edit(config)
        (folder / "collector.yaml").write_text(yaml.safe_dump(config))

    def start_scheduler(self) -> subprocess.Popen[bytes]:
        """Start NativeLink, which has nothing of an earlier one, and return it."""
        instance = {"instance_name": "main"}
        services = {
            "cas": [{**instance, "cas_store": "A"}],
            "ac": [{**instance, "ac_store": "B"}],
            "bytestream": [{**instance, "cas_store": "A"}],
            "execution": [{**instance, "cas_store": "A", "scheduler": "MAIN"}],
            "capabilities": [{**instance, "remote_execution": {"scheduler": "MAIN"}}],
        }
        # A queued action counts until its client has been gone for this time. The default is a minute.
        simple = {"supported_platform_properties": {"pool": "exact"}, "client_action_timeout_s": 15}
        listener = {"http": {"socket_address": f"127.0.0.1:{self.port}"}}
        config = {
            "stores": [{"name": name, "memory": {}} for name in ("A", "B")],
            "schedulers": [{"name": "MAIN", "simple": simple}],
            "servers": [{"name": "all", "listener": listener, "services": services}],
        }
        started = nativelink.started(self.folder / "nativelink", config, **self.environment)
        self.running.append(started)
        return started

    def log(self) -> str:
        """Return the ends of the logs, for an error message."""
        return tails(sorted(self.folder.glob("*.log")))

    def stages(self) -> dict[str, list[float]]:
        """Return the values of each stage, and of both. A stage with several values has series of several processes."""
        found: dict[str, list[float]] = {}
        for stage, value in demand(self.demand):
            found.setdefault(stage, []).append(value)
        return found

    @contextlib.contextmanager
    def queued(self, actions: int) -> Iterator[None]:
        """Let actions wait."""
        with Load(self.client) as load:
            load.hold(actions)
            yield


@contextlib.contextmanager
def source(
    folder: Path, edit: Callable[[Object], None] = lambda config: None, sender: str = "scheduler"
) -> Iterator[Source]:
    """Start a collector, whose configuration ``edit`` changes. It takes the metrics of one kind of NativeLink."""
    made = Source(folder, edit, sender)
    try:
        with (folder / "collector.log").open("wb") as log:
            command = [build.program("otelcol"), f"--config={folder}/collector.yaml"]
            made.running.append(subprocess.Popen(command, stdout=log, stderr=log))
        url = f"http://{made.reported}/metrics"
        until("the collector to listen", lambda: urlopen(url, timeout=2).status == 200, 30, made.log)
        yield made
    finally:
        for process in made.running:
            process.kill()
            process.wait()
