"""The command line of the testbed: ``python -m testbed --help`` describes it."""

import argparse
import sys
import time
from pathlib import Path

import yaml

from testbed import build, clang, cluster, components, images, manifests, pins


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m testbed", description="An embedded Kubernetes for tests.")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str, *, named: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        if named:
            added.add_argument("--name", default=cluster.DEFAULT_NAME, help="cluster (default: %(default)s)")
        return added

    added = command("up", "start a cluster, or reuse it if it runs")
    added.add_argument("--nodes", type=int, default=cluster.NODES, help="number of fake nodes (default: %(default)s)")
    added.add_argument(
        "--node", choices=("fake", "real"), default="fake", help="real: add a node that runs pods; needs root"
    )
    command("down", "stop a cluster and remove its state")
    command("status", "list the clusters", named=False)
    built = command("build", "only build the binaries", named=False)
    built.add_argument("--images", action="store_true", help="also all programs and images for a real node")
    added = command("tool", "print the path of a program (programs.yml), built if needed", named=False)
    added.add_argument("name", metavar="NAME", choices=build.PROGRAMS)
    text = "make the release manifests, by default all, and print the roles' variables that name them"
    added = command("manifests", text, named=False)
    added.add_argument("--variables", type=Path, metavar="FILE", help="write the variables to a file instead")
    chosen = [*manifests.VARIABLES, []]  # Python 3.11 looks up the empty list, too
    added.add_argument("component", nargs="*", choices=chosen, metavar="COMPONENT", help=", ".join(manifests.VARIABLES))
    command("bpf", "compile the eBPF programs of role node_agent into the role's object files", named=False)
    command("isolation", "build the program of isolated workers into role nativelink", named=False)
    added = command("load", "give a cluster with a real node the images of components")
    added.add_argument("component", nargs="+", choices=components.COMPONENTS)
    return parser


def _up(name: str, nodes: int, *, real: bool) -> None:
    started = time.monotonic()
    running = cluster.up(name, nodes, real=real)
    seconds = time.monotonic() - started
    print(f"cluster     {running.name} (Kubernetes {pins.versions()['kubernetes']}), ready after {seconds:.1f} s")
    print(f"endpoint    {running.endpoint}")
    print(f"kubeconfig  {running.kubeconfig}")
    print(f"context     {running.context}")
    print(f"kubectl     {running.kubectl}")


def _status() -> None:
    row = "{:<16} {:<26} {:<10} {}".format
    print(row("NAME", "ENDPOINT", "STATE", "NODES"))
    for found in cluster.clusters():
        ready = found.ready()
        nodes = found.run("get", "nodes", "-o", "name").split() if ready else []
        endpoint = found.endpoint if found.kubeconfig.exists() else "-"
        print(row(found.name, endpoint, "ready" if ready else "not ready", len(nodes) or "-"))


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Return 0, or 1 with the reason on stderr."""
    given = _parser().parse_args(arguments)
    try:
        match given.command:
            case "up":
                _up(given.name, given.nodes, real=given.node == "real")
            case "down":
                cluster.down(given.name)
            case "status":
                _status()
            case "build":
                for group in ("cluster", "node", "images") if given.images else ("cluster",):
                    for name, path in build.programs(group).items():
                        print(f"{name:<24} {path}")
                for component in (components.NODE, *components.COMPONENTS) if given.images else ():
                    for image in components.images_of(component):
                        print(f"{image.reference:<64} {images.layout(image)}")
            case "tool":
                print(build.program(given.name))
            case "manifests":
                text = yaml.safe_dump(manifests.variables(given.component), explicit_start=True)
                if given.variables:
                    given.variables.parent.mkdir(parents=True, exist_ok=True)
                    given.variables.write_text(text)
                else:
                    print(text, end="")
            case "bpf":
                for source in clang.BPF:
                    source.with_suffix(".o").write_bytes(clang.bpf(source))
            case "isolation":
                for architecture in clang.TARGETS:
                    (clang.ISOLATION / architecture).write_bytes(clang.isolation(architecture))
            case "load":
                for component in given.component:
                    offered = components.images_of(component)
                    cluster.cluster(given.name).load(*offered)
                    for image in offered:
                        print(f"{image.reference:<52} {image.stands_in and f'stand-in: {image.stands_in}'}".rstrip())
    except (build.BuildError, cluster.ClusterError, ValueError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
