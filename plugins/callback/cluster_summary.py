"""Callback `cluster_summary`: prints the closing summary, cluster by cluster."""

DOCUMENTATION = """
name: cluster_summary
type: aggregate
short_description: Print what was done to each cluster, what failed and what to do next
description:
  - Collects C(cluster_summary), C(faults) and C(notices) from task results and prints them at the end of the run,
    also when every cluster failed.
  - Prints the lines of C(report), too, which has all clusters.
  - It prints nothing if no task returns one of them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from ansible import constants as C
from ansible import context
from ansible.executor.stats import AggregateStats
from ansible.executor.task_result import CallbackTaskResult
from ansible.plugins.callback import CallbackBase

SECTIONS = ("pinned", "provisioned", "rendered", "rollout", "connected", "verified", "failed", "notice", "next")


class CallbackModule(CallbackBase):
    """Prints after the recap, so that what to do next is the last thing on the screen."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "nativelink.gitops.cluster_summary"

    def __init__(self) -> None:
        """Start with an empty summary."""
        super().__init__()
        self._ours = False
        self._lines: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self._faults: list[str] = []
        self._report: list[str] = []

    def v2_runner_on_ok(self, result: CallbackTaskResult) -> None:
        """Collect what the task reports."""
        self._collect(result)

    def v2_runner_on_failed(self, result: CallbackTaskResult, ignore_errors: bool = False) -> None:
        """Collect what the task reports, and why it failed."""
        self._collect(result)
        self._faults.extend(map(str, result.result.get("faults", ())))
        # A role with no_log reports its failure once more, without the secrets.
        if not ignore_errors and "censored" not in result.result:
            self._add(result.host.name, "failed", [_failure(result)])

    def v2_runner_on_unreachable(self, result: CallbackTaskResult) -> None:
        """Remember why the cluster could not be reached."""
        self._add(result.host.name, "failed", [_failure(result)])

    def v2_playbook_on_stats(self, stats: AggregateStats) -> None:
        """Print the summary, or the report of a task that asked all clusters at once."""
        for line in self._report:
            self._display.display(line)
        if not self._ours:
            return
        self._display.banner("CLUSTERS")
        if self._faults:
            self._display.display("The inventory has faults; nothing was written or applied:", color=C.COLOR_ERROR)
            for fault in self._faults:
                self._display.display(f"  {fault}", color=C.COLOR_ERROR)
            return
        for host in sorted(stats.processed):
            # Only the statistics know which failures were rescued.
            failed = bool(stats.failures.get(host) or stats.dark.get(host))
            self._cluster(host, failed, stats.changed.get(host, 0))

    def _collect(self, result: CallbackTaskResult) -> None:
        parts = [part for part in (result.result, *result.result.get("results", ())) if isinstance(part, Mapping)]
        self._ours |= any(key in part for part in parts for key in ("cluster_summary", "faults", "notices"))
        for part in parts:  # of a loop: one an item
            self._report += part.get("report", ())
            for section, lines in part.get("cluster_summary", {}).items():
                self._add(result.host.name, section, lines)
            for host, lines in part.get("notices", {}).items():
                self._add(host, "notice", lines)

    def _add(self, host: str, section: str, lines: Iterable[str]) -> None:
        known = self._lines[host][section]
        known.extend(line for line in map(str, lines) if line not in known)

    def _cluster(self, host: str, failed: bool, changed: int) -> None:
        if failed:
            state, color = "failed", C.COLOR_ERROR
        elif changed:
            verb = "would change" if context.CLIARGS.get("check") else "changed"
            state, color = f"{verb} ({changed} {'task' if changed == 1 else 'tasks'})", C.COLOR_CHANGED
        else:
            state, color = "nothing changed", C.COLOR_OK
        self._display.display(f"{host}: {state}", color=color)
        for section in SECTIONS:
            lines = self._lines[host][section] if failed or section != "failed" else []
            for number, line in enumerate(lines):
                label = "" if number else section
                text = line.strip().replace("\n", f"\n{'':15}")
                self._display.display(f"  {label:12} {text}", color=C.COLOR_ERROR if section == "failed" else None)


def _failure(result: CallbackTaskResult) -> str:
    """The reason why a task failed, or the reasons of a loop's items. Our messages begin with the cluster's name."""
    items = [item for item in result.result.get("results", ()) if isinstance(item, Mapping) and item.get("failed")]
    reasons = (str(part.get("msg", "no message")) for part in (items or [result.result]))
    message = "\n".join(reason.removeprefix("Task failed: ").removeprefix("Action failed: ") for reason in reasons)
    cluster = f"{result.host.name}: "
    return message.removeprefix(cluster) if message.startswith(cluster) else f"{result.task.get_name()}: {message}"
