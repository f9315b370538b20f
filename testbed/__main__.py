"""The command line of the testbed: ``python -m testbed --help`` describes it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from testbed import bpf, build, cluster, components, images, isolation, manifests


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
    command("kubeconfig", "print the path of a cluster's kubeconfig")
    built = command("build", "only build the binaries", named=False)
    built.add_argument("--images", action="store_true", help="also make all images for a real node, and pint")
    added = command("tool", "print the path of a tool that checks or packages the chart", named=False)
    added.add_argument("tool", choices=[tool for names in build.CHART_SETS.values() for tool in names])
    added = command("manifests", "make the release manifests, by default all, and print their paths", named=False)
    added.add_argument("--variables", type=Path, metavar="FILE", help="write the roles' variables that name them")
    chosen = [*manifests.VARIABLES, []]  # Python 3.11 looks up the empty list, too
    added.add_argument("component", nargs="*", choices=chosen, metavar="COMPONENT", help=", ".join(manifests.VARIABLES))
    command("bpf", "compile the eBPF programs of role node_agent into the role's object files", named=False)
    command("isolation", "build the program of isolated workers into role nativelink", named=False)
    added = command("load", "give a cluster with a real node the images of components")
    added.add_argument("component", nargs="+", choices=components.COMPONENTS)
    added = command("never-ready", "keep new pods of a namespace Pending")
    added.add_argument("--namespace", required=True)
    added.add_argument("--off", action="store_true", help="let the pods get ready again")
    added = command("offer-volumes", "offer PersistentVolumes for claims to bind")
    added.add_argument("--storage-class", default="local-path", help="(default: %(default)s)")
    added.add_argument("--size", default="200Gi", help="size of each volume (default: %(default)s)")
    added.add_argument("--count", type=int, default=cluster.NODES, help="number of volumes (default: %(default)s)")
    return parser


def _up(name: str, nodes: int, *, real: bool) -> None:
    started = time.monotonic()
    running = cluster.up(name, nodes, real=real)
    seconds = time.monotonic() - started
    print(f"cluster     {running.name} (Kubernetes {running.version()}), ready after {seconds:.1f} s")
    print(f"endpoint    {running.endpoint}")
    print(f"kubeconfig  {running.kubeconfig}")
    print(f"context     {running.context}")
    print(f"kubectl     {running.kubectl}")


def _status() -> None:
    row = "{:<16} {:<10} {:<26} {:<10} {}".format
    print(row("NAME", "VERSION", "ENDPOINT", "STATE", "NODES"))
    for found in cluster.clusters():
        ready = found.ready()
        nodes = found.run("get", "nodes", "-o", "name").split() if ready else []
        endpoint = found.endpoint if found.kubeconfig.exists() else "-"
        print(row(found.name, found.version() or "-", endpoint, "ready" if ready else "not ready", len(nodes) or "-"))


def _images() -> Iterator[images.Image]:
    yield from images.catalogue()
    for component in components.COMPONENTS:
        yield from components.images_of(component)


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
            case "kubeconfig":
                print(cluster.cluster(given.name).kubeconfig)
            case "build":
                wanted = build.CLUSTER_SETS | (build.PINT_SET if given.images else {})
                for name, path in build.binaries(wanted).items():
                    print(f"{name:<24} {path}")
                for image in _images() if given.images else ():
                    print(f"{image.reference:<64} {images.layout(image)}")
            case "tool":
                sets = {name: tools for name, tools in build.CHART_SETS.items() if given.tool in tools}
                print(build.binaries(sets)[given.tool])
            case "manifests":
                if given.variables:
                    text = yaml.safe_dump(manifests.variables(given.component), explicit_start=True)
                    given.variables.parent.mkdir(parents=True, exist_ok=True)
                    given.variables.write_text(text)
                else:
                    for label, path in manifests.build_all(given.component).items():
                        print(f"{label:<24} {path}")
            case "bpf":
                bpf.write()
            case "isolation":
                for architecture in isolation.TARGETS:
                    (isolation.FOLDER / architecture).write_bytes(isolation.compiled(architecture))
            case "load":
                for component in given.component:
                    offered = components.images_of(component)
                    cluster.cluster(given.name).load(*offered)
                    for image in offered:
                        print(f"{image.reference:<52} {image.stands_in and f'stand-in: {image.stands_in}'}".rstrip())
            case "never-ready":
                cluster.cluster(given.name).never_ready(given.namespace, on=not given.off)
            case "offer-volumes":
                cluster.cluster(given.name).offer_volumes(given.storage_class, given.size, given.count)
    except (build.BuildError, cluster.ClusterError, ValueError) as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
