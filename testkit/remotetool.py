"""remotetool of Bazel's SDKs for the Remote Execution API, a real client of the edge."""

from pathlib import Path

from testbed import build
from testkit.edge import HOST, Edge

POOL = 'platform {properties {name: "pool" value: "default"}}'


def action(folder: Path, script: str) -> Path:
    """Write an action that runs a script, whose output is ``out.txt``, into a folder, and return the folder."""
    command = f'arguments: ["/bin/sh", "-c", "{script}"] output_paths: "out.txt" {POOL}'
    (folder / "input").mkdir(parents=True)
    (folder / "cmd.textproto").write_text(command)
    (folder / "ac.textproto").write_text(POOL)
    return folder


def run(edge: Edge, certificate: str, operation: str, **options: str | Path) -> tuple[int, str]:
    """Run an operation with a certificate (of `SANS`). Return the exit code and what remotetool said."""
    file = edge.certificates / f"{certificate}.pem"
    options |= {f"tls_client_auth_{what}": file for what in ("cert", "key")}
    options |= {"service": f"{HOST}:443", "instance": "main", "tls_ca_cert": edge.certificates / "servers.crt"}
    flags = (f"--{name}={value}" for name, value in options.items())
    tool = build.program("remotetool")
    return edge.tool(tool, "--service_no_auth", f"--operation={operation}", *flags, cwd=edge.certificates)
