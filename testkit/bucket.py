"""A bucket of SeaweedFS, with the interface of S3 and TLS, as a process of this machine."""

import hashlib
import ipaddress
import json
import re
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cryptography.x509 import IPAddress

from testbed import build
from testbed.ports import free_ports
from testbed.waiting import until
from testkit.authority import Authority

NAME = "cache"
KEYS = {"AWS_ACCESS_KEY_ID": "nativelink", "AWS_SECRET_ACCESS_KEY": "conformance"}
"""The keys of the bucket, as a Secret has them."""
_SERVERS = ("master", "volume", "filer", "s3")
_REQUESTS = re.compile(r'^SeaweedFS_s3_request_total\{.*?type="(\w+)"\} (\d+)$', re.M)


class Bucket:
    """The bucket ``NAME``, whose content is in `folder`. It can be stopped, and started again with all objects.

    `host` is an address of this machine, at which clients reach it. Its certificate is of `authority`.
    """

    def __init__(self, folder: Path, authority: Authority, host: str = "127.0.0.1") -> None:
        self.folder, self.host = folder, host
        self._trusted = ssl.create_default_context(cadata=authority.pem.decode())
        self._metrics, *numbers = free_ports(1 + 2 * len(_SERVERS))
        self._ports = dict(zip(_SERVERS, numbers, strict=False))
        self._grpc = dict(zip(_SERVERS, numbers[len(_SERVERS) :], strict=True))
        keys = dict(zip(("accessKey", "secretKey"), KEYS.values(), strict=True))
        actions = ["Admin", "Read", "Write", "List"]  # an administrator's first upload makes the bucket
        identities = [{"name": "nativelink", "credentials": [keys], "actions": actions}]
        (folder / "data").mkdir(parents=True)
        (folder / "s3.json").write_text(json.dumps({"identities": identities}))
        certificate, key = authority.issue("bucket", IPAddress(ipaddress.ip_address(host)))
        (folder / "tls.crt").write_bytes(certificate)
        (folder / "tls.key").write_bytes(key)
        self.start()

    @property
    def endpoint(self) -> str:
        """The URL of the object store. Clients put the bucket into the path, because the host is an address."""
        return f"https://{self.host}:{self._ports['s3']}"

    @property
    def variables(self) -> dict[str, object]:
        """The variables of a cluster whose CAS is in the bucket."""
        return {
            "nativelink_cas_store": "object_store",
            "nativelink_object_store_bucket": NAME,
            "nativelink_object_store_region": "us-east-1",
            "nativelink_object_store_endpoint": self.endpoint,
            "nativelink_object_store_egress": [
                {
                    "to": [{"ipBlock": {"cidr": f"{self.host}/32"}}],
                    "ports": [{"protocol": "TCP", "port": self._ports["s3"]}],
                }
            ],
        }

    def start(self) -> None:
        options = [f"-{name}.port={port}" for name, port in self._ports.items()]
        options += [f"-{name}.port.grpc={port}" for name, port in self._grpc.items()]
        options += [f"-ip={self.host}", "-dir=data", "-volume.max=0"]
        options += ["-master.volumeSizeLimitMB=64", "-master.electionTimeout=1s", "-master.telemetry=false"]
        options += ["-filer", "-s3", "-s3.config=s3.json", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        options += [f"-metricsPort={self._metrics}", f"-metricsIp={self.host}"]
        options += ["-s3.cert.file=tls.crt", "-s3.key.file=tls.key"]
        with (self.folder / "log").open("ab") as log:
            command = [build.wheels("seaweedfs") / "bin" / "weed", "server", *options]
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        until("SeaweedFS to take an object", self._takes, 60, self._said)

    def _takes(self) -> bool:
        assert self.process.poll() is None, self._said()
        request = urllib.request.Request(f"{self._files}/probe", data=b"taken", method="PUT")
        try:
            urllib.request.urlopen(request, timeout=5).close()
            urllib.request.urlopen(self.endpoint, timeout=5, context=self._trusted).close()
        except urllib.error.HTTPError as error:  # it asks who calls
            return error.code == 403
        except OSError:
            return False
        return True

    def _said(self) -> str:
        return "\n" + (self.folder / "log").read_text(errors="replace")[-2000:]

    def stop(self) -> None:
        """Break all connections, and refuse new ones. The kernel has what was written."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Take connections and requests, and answer none of them until ``thaw``."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def requests(self) -> Counter[str]:
        """Return the number of requests since the start, by SeaweedFS' names of them."""
        with urllib.request.urlopen(f"http://{self.host}:{self._metrics}/metrics", timeout=30) as answer:
            found = _REQUESTS.findall(answer.read().decode())
        return sum((Counter({kind: int(number)}) for kind, number in found), Counter())

    @property
    def _files(self) -> str:
        return f"http://{self.host}:{self._ports['filer']}"

    def objects(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the content of each object below a prefix: ``cas/``."""
        folder, last = f"{self._files}/buckets/{NAME}/{prefix}", ""
        while True:
            query = f"?limit=1000&lastFileName={last}"
            request = urllib.request.Request(folder + query, headers={"Accept": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                names = [entry["FullPath"].rpartition("/")[2] for entry in json.load(answer)["Entries"] or ()]
            if not names:
                return
            for name in names:
                with urllib.request.urlopen(folder + name, timeout=30) as answer:
                    yield name, answer.read()
            last = names[-1]

    def put(self, name: str, content: bytes) -> None:
        self._change(name, "PUT", content)

    def remove(self, name: str) -> None:
        self._change(name, "DELETE")

    def _change(self, name: str, method: str, content: bytes | None = None) -> None:
        request = urllib.request.Request(f"{self._files}/buckets/{NAME}/{name}", content, method=method)
        urllib.request.urlopen(request, timeout=30).close()

    def wrong(self) -> list[str]:
        """Return the names of the objects of the CAS whose content is not what the name, HASH-SIZE, says."""
        return [
            name
            for name, content in self.objects("cas/")
            if name != f"{hashlib.sha256(content).hexdigest()}-{len(content)}"
        ]
