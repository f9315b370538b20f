"""A Git server for clusters with a real node: a bare repository over HTTPS with basic auth, or HTTP, and over SSH.

Both protocols are read-only, as for a deploy key. Pods reach the machine's address of their cluster's network.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import os
import shlex
import ssl
import subprocess
import threading
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import asyncssh
from cryptography import x509

from testbed import node
from testbed.cluster import Cluster
from testkit.authority import Authority

NAME = "repository.git"
BRANCH = "main"
_CHUNK = 65536
# Without this Git could refuse a repository that belongs to another user.
_GIT = ("git", "-c", "safe.directory=*")


def address_for(where: Cluster) -> str:
    """Return the address at which the pods of a cluster with a real node reach this machine."""
    network = node.network(where.home)
    assert network, f"cluster {where.name} has no real node"
    return network.machine


def certificate(folder: Path, address: str) -> tuple[Path, Path]:
    """Make a CA and a server certificate for an IP address. Return the files of the CA, and of chain and key."""
    authority = Authority("Git of the tests")
    (folder / "ca.crt").write_bytes(authority.pem)
    (folder / "server.pem").write_bytes(b"".join(authority.issue("git", x509.IPAddress(ipaddress.ip_address(address)))))
    return folder / "ca.crt", folder / "server.pem"


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that refuses our certificate disconnects; the test reads the reason in the client's status


def _http_server(address: str, root: Path, credentials: str = "", chain: Path | None = None) -> WSGIServer:
    """Return a server that passes each request to ``git http-backend``."""

    def answer(environ: dict[str, Any], start_response: Callable[..., object]) -> list[bytes]:
        if credentials and not hmac.compare_digest(environ.get("HTTP_AUTHORIZATION", ""), credentials):
            start_response("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="git"')])
            return [b"who are you?"]
        variables = {name: value for name, value in environ.items() if isinstance(value, str)}  # WSGI has those of CGI
        variables |= {"GIT_PROJECT_ROOT": str(root), "GIT_HTTP_EXPORT_ALL": "1"}
        variables |= {"GIT_PROTOCOL": environ.get("HTTP_GIT_PROTOCOL", "")}
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        command = [*_GIT, "http-backend"]
        said = subprocess.run(command, input=body, stdout=subprocess.PIPE, check=True, env=variables).stdout
        head, _, content = said.partition(b"\r\n\r\n")
        headers = message_from_bytes(head)
        status = headers.get("Status", "200 OK")
        del headers["Status"]
        start_response(status, headers.items())
        return [content]

    server = make_server(address, 0, answer, _Server, _Quiet)
    if chain:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        # The handshake runs in the connection's thread, so that a client that disconnects does not delay others.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


class GitServer:
    """A bare repository, served while the context is open.

    `url` asks for the credentials, over TLS with a certificate of `ca`; without a password it does neither. `ssh_url`
    is for the private key in `identity`. Pushes go to the folder `bare`, which needs no network.
    """

    def __init__(self, folder: Path, address: str, username: str = "", password: str = "") -> None:
        """Create `folder` for all files."""
        self.address = address
        folder.mkdir(parents=True)
        root = folder / "served"
        self.bare = root / NAME
        subprocess.run(["git", "init", "--quiet", "--bare", f"--initial-branch={BRANCH}", self.bare], check=True)
        self.ca, chain = certificate(folder, address)
        basic = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._http = _http_server(address, root, f"Basic {basic}", chain) if password else _http_server(address, root)
        self.url = f"{'https' if password else 'http'}://{address}:{self._http.server_port}/{NAME}"
        self._client_key = asyncssh.generate_private_key("ssh-ed25519")
        self._host_key = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
        self.identity = folder / "identity"
        self._client_key.write_private_key(str(self.identity))
        self.identity.chmod(0o600)
        self.known_hosts = folder / "known_hosts"
        self.ssh_url = ""
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> GitServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._ssh = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        port = self._ssh.get_port()
        self.ssh_url = f"ssh://git@{self.address}:{port}/{NAME}"
        self.known_hosts.write_text(self.known_hosts_line(self._host_key, port))
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)

    def known_hosts_line(self, key: asyncssh.SSHKey, port: int) -> str:
        """Return a line of known_hosts that gives this server the key `key`."""
        return f"[{self.address}]:{port} {key.export_public_key().decode()}"

    def wrong_known_hosts(self) -> str:
        """Return a known_hosts in which this server has another key, as in a man-in-the-middle attack."""
        return self.known_hosts_line(asyncssh.generate_private_key("ecdsa-sha2-nistp256"), self._ssh.get_port())

    async def _listen(self) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            self.address,
            0,
            server_host_keys=[self._host_key],
            authorized_client_keys=asyncssh.import_authorized_keys(self._client_key.export_public_key().decode()),
            process_factory=self._upload,
            encoding=None,
        )

    async def _close(self) -> None:
        self._ssh.close()
        await self._ssh.wait_closed()

    async def _upload(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Run git-upload-pack on this repository for any path, and refuse other commands."""
        words = shlex.split(process.command or "")
        if len(words) != 2 or words[0] != "git-upload-pack" or words[1].strip("/") != NAME:
            process.stderr.write(b"only git-upload-pack of this repository\n")
            process.exit(1)
            return
        pipe = asyncio.subprocess.PIPE
        variables = {**os.environ, "GIT_PROTOCOL": process.env.get("GIT_PROTOCOL", "")}
        git = await asyncio.create_subprocess_exec(
            *_GIT, "upload-pack", self.bare, stdin=pipe, stdout=pipe, env=variables
        )

        async def pass_on() -> None:
            while said := await process.stdin.read(_CHUNK):
                git.stdin.write(said)
                await git.stdin.drain()
            git.stdin.close()

        listening = asyncio.create_task(pass_on())
        with contextlib.suppress(asyncssh.Error, OSError):  # a client may disconnect early
            while answer := await git.stdout.read(_CHUNK):
                process.stdout.write(answer)
                await process.stdout.drain()
            process.exit(await git.wait())
        listening.cancel()
