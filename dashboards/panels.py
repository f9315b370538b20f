"""Helpers of all dashboards: variables, selectors, panels and links."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard, gauge, prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    DynamicConfigValue,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "nativelink"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")

# The series of NativeLink, the edge, KEDA and the GitOps engine have the label cluster. Those of kube-state-metrics and
# the kubelets may have none if another installation scrapes them.
OURS = 'cluster="$cluster"'
SHARED = 'cluster=~"$cluster|"'
CAS_PODS = f'{SHARED},namespace="$namespace",pod=~"nativelink-cas-[0-9]+"'
CAS_CLAIMS = f'{SHARED},namespace="$namespace",persistentvolumeclaim=~".+-nativelink-cas-[0-9]+"'
# A pool's name may begin with that of another, so the two parts that Kubernetes adds to a pod's name are spelled out.
WORKER_PODS = f'{SHARED},namespace="$workers_namespace",pod=~"nativelink-worker-($pool)-[a-z0-9]+-[a-z0-9]+"'
WORKERS = f'{SHARED},namespace="$workers_namespace",deployment=~"nativelink-worker-($pool)"'
# KEDA makes the first, and a pool with `scaling: hpa` has the second.
AUTOSCALERS = (
    f'{SHARED},namespace="$workers_namespace",horizontalpodautoscaler=~"(keda-hpa-)?nativelink-worker-($pool)"'
)
ROUTES = f'{OURS},envoy_cluster_name=~"grpcroute/$namespace/.+"'
LISTENERS = f'{OURS},envoy_http_conn_manager_prefix=~"https?-.+"'

# What a dashboard `needs`: the variables by which its queries find a farm, or the pools of one.
FARM = ("cluster", "namespace")
POOLS = ("cluster", "workers_namespace", "pool")
# A series of each farm, whatever its version and its backend.
_REPORTS = '__name__=~"nativelink_execution_active_count|redis_script_values"'
_VARIABLES = {
    "cluster": f"label_values({{{_REPORTS}}}, cluster)",
    "namespace": f"label_values({{{_REPORTS},{OURS}}}, namespace)",
    "workers_namespace": (
        f'label_values(kube_deployment_spec_replicas{{{SHARED},deployment=~"nativelink-worker-.+"}}, namespace)'
    ),
    "pool": (
        f'label_values(kube_deployment_spec_replicas{{{SHARED},namespace="$workers_namespace",'
        'deployment=~"nativelink-worker-.+"}, deployment)'
    ),
}
_LABELS = {
    "cluster": "Cluster",
    "namespace": "Namespace",
    "workers_namespace": "Namespace of the workers",
    "pool": "Pool",
}


def by_pool(series: str, label: str) -> str:
    """Return a query that gives series the label `pool`, from the name of a pod or of what belongs to a Deployment."""
    ending = "-[a-z0-9]+-[a-z0-9]+" if label == "pod" else ""
    return f'label_replace({series}, "pool", "$1", "{label}", "(?:keda-hpa-)?nativelink-worker-(.+){ending}")'


def quantile(share: float, histogram: str, selector: str, *labels: str) -> str:
    """Return a query of a quantile of a histogram, by labels."""
    kept = ", ".join(("le", *labels))
    return f"histogram_quantile({share:g}, sum by ({kept}) (rate({histogram}_bucket{{{selector}}}[$__rate_interval])))"


def mean(histogram: str, selector: str, *labels: str) -> str:
    """Return a query of the mean of a histogram, by labels."""
    by = f"sum by ({', '.join(labels)})" if labels else "sum"
    parts = (f"{by} (rate({histogram}_{part}{{{selector}}}[$__rate_interval]))" for part in ("sum", "count"))
    return " / ".join(parts)


def per_second(counter: str, selector: str, *labels: str) -> str:
    """Return a query of a counter's growth each second, by labels."""
    by = f"sum by ({', '.join(labels)})" if labels else "sum"
    return f"{by} (rate({counter}{{{selector}}}[$__rate_interval]))"


def or_zero(query: str) -> str:
    """Return a query whose answer is 0 while nothing has been counted: such a series begins with its first event."""
    return f"{query} or on() vector(0)"


# What the scheduler has, by execution_stage (queued or executing): from the memory backend, or from Redis.
DEMAND = (
    f'sum by (execution_stage) (nativelink_execution_active_count{{{OURS},execution_stage=~"queued|executing"}}'
    f' or label_replace(redis_script_values{{{OURS}}}, "execution_stage", "$1", "key", ".+:([a-z]+)"))'
)
# The recording rule of the same has no label cluster on Redis.
DEMAND_BY_POOL = (
    f'sum by (pool) (label_replace(redis_script_values{{{OURS}}}, "pool", "$1", "key", "(.+):[a-z]+"))'
    f" or on() sum(nativelink_scheduler_queue_depth{{{OURS}}})"
)
EXECUTING = (
    f'sum(nativelink_execution_active_count{{{OURS},execution_stage="executing"}}'
    f' or redis_script_values{{{OURS},key=~".+:executing"}})'
)
RUNNING = "sum by (pool) (" + by_pool(f'kube_pod_status_phase{{{WORKER_PODS},phase="Running"}}', "pod") + ")"
READY = "sum by (pool) (" + by_pool(f"kube_deployment_status_replicas_ready{{{WORKERS}}}", "deployment") + ")"
# What an autoscaler wants of each worker is its number of slots, unless the pool sets `target`.
SLOTS = (
    "max by (pool) ("
    + by_pool(
        f'kube_horizontalpodautoscaler_spec_target_metric{{{AUTOSCALERS},metric_target_type="average"}}',
        "horizontalpodautoscaler",
    )
    + ")"
)
# A worker that drains still executes, and is still paid for.
UTILISATION = f"{EXECUTING} / sum({RUNNING} * {SLOTS})"
# Results that a client, or the scheduler before it queues an action, found in the action cache.
_LOOKUPS = f'{OURS},cache_type=~"ac|ac_lookup",cache_operation_name="read"'
HITS = f'nativelink_cache_operations_total{{{_LOOKUPS},cache_operation_result="hit"}}'


def hit_rate(cache_type: str, window: str = "$__rate_interval") -> str:
    """Return a query of the part of reads that found something, from 0 to 1."""
    reads = f'{OURS},cache_type="{cache_type}",cache_operation_name="read"'
    found, all_ = (
        f"sum(rate(nativelink_cache_operations_total{{{selector}}}[{window}]))"
        for selector in (f'{reads},cache_operation_result="hit"', reads)
    )
    return f"({found} or on() vector(0)) / {all_}"


# The number of panels that stand side by side.
_IN_A_LINE: dict[type, int] = {stat.Panel: 6, gauge.Panel: 6, table.Panel: 1, timeseries.Panel: 3}
Target = tuple[str, str]  # a query and the legend of its series


def graph(
    title: str, unit: str, description: str, *targets: Target, stacked: bool = False, top: float | None = None
) -> timeseries.Panel:
    """Return a panel of series over time. `top` is the end of its axis."""
    panel = (
        timeseries.Panel()
        .legend(VizLegendOptions().display_mode(common.LegendDisplayMode.LIST).placement(common.LegendPlacement.BOTTOM))
        .tooltip(VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING))
        .fill_opacity(30 if stacked else 8)
        .line_width(1)
        .min(0)
        .height(7)
    )
    if stacked:
        panel.stacking(StackingConfig().mode(common.StackingMode.NORMAL))
    if top is not None:
        panel.max(top)
    return _made(panel, title, unit, description, targets)


def number(
    title: str, unit: str, description: str, *targets: Target, warn: float | None = None, fail: float | None = None
) -> stat.Panel:
    """Return a panel of one number for each series: green, yellow from `warn` and red from `fail` (below, if less)."""
    panel = stat.Panel().height(4).color_mode(common.BigValueColorMode.VALUE)
    panel.reduce_options(_last()).graph_mode(common.BigValueGraphMode.NONE)
    return _made(panel.thresholds(_thresholds(warn, fail)), title, unit, description, targets, instant=True)


def share(
    title: str, description: str, *targets: Target, warn: float | None = None, fail: float | None = None
) -> gauge.Panel:
    """Return a panel of a part, from 0 to 1, on a scale."""
    panel = gauge.Panel().height(4).min(0).max(1).reduce_options(_last())
    return _made(panel.thresholds(_thresholds(warn, fail)), title, "percentunit", description, targets, instant=True)


def listing(title: str, unit: str, description: str, *targets: Target, links: dict[str, str] | None = None) -> Any:
    """Return a table of the labels and values of what a query finds now.

    Several queries make one row of what has the same labels. `links` are URLs by the name of their column.
    """
    panel = table.Panel().height(4).no_value("none")
    names = {f"Value #{reference}": legend for reference, (_, legend) in zip("ABCDEFGH", targets, strict=False)}
    if len(targets) == 1:
        names = {"Value": targets[0][1]}
    panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    panel.with_transformation(
        DataTransformerConfig(id_val="organize", options={"excludeByName": {"Time": True}, "renameByName": names})
    )
    for column, url in (links or {}).items():
        shown = [{"title": "Runbook", "url": url, "targetBlank": True}]
        panel.override_by_name(column, [DynamicConfigValue(id_val="links", value=shown)])
    return _made(panel, title, unit, description, targets, instant=True, as_table=True)


def row(title: str) -> dashboard.Row:
    """Return a heading."""
    return dashboard.Row(title)


def board(
    name: str, title: str, description: str, *parts: Any, needs: Sequence[str], variables: Sequence[Any] = ()
) -> dashboard.Dashboard:
    """Return a dashboard of rows and panels. It has the variables that it `needs` of the common ones, and more."""
    made = (
        dashboard.Dashboard(f"NativeLink / {title}")
        .uid(f"nativelink-{name}")
        .description(description)
        .tags([TAG])
        .time("now-3h", "now")
        .refresh("1m")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("NativeLink")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for variable, query in _VARIABLES.items():
        if variable in needs:
            made.with_variable(_query_variable(variable, query))
    for variable in (
        *variables,
        text_variable("runbooks", "Runbooks", "docs/alerts", "URL of the folder of the runbooks."),
    ):
        made.with_variable(variable)
    _widen(parts)
    for number_, part in enumerate(parts, 1):
        part.id(number_)
        if isinstance(part, dashboard.Row):
            made.with_row(part)
        else:
            made.with_panel(part)
    return made


def _widen(parts: Sequence[Any]) -> None:
    """Give panels of one kind that follow one another widths that fill the lines of the grid, which has 24 columns."""
    for most, group in itertools.groupby(parts, lambda part: _IN_A_LINE.get(type(part))):
        alike = list(group)
        if not most:
            continue
        lines = -(-len(alike) // most)
        for line in range(lines):
            panels = alike[line * len(alike) // lines : (line + 1) * len(alike) // lines]
            for position, panel in enumerate(panels):
                panel.span(24 * (position + 1) // len(panels) - 24 * position // len(panels))


def text_variable(name: str, label: str, value: str, description: str) -> dashboard.TextBoxVariable:
    """Return a variable that the reader types."""
    made = dashboard.TextBoxVariable(name).label(label).description(description).default_value(value)
    return made.current(VariableOption(selected=True, text=value, value=value))


def _query_variable(name: str, query: str) -> dashboard.QueryVariable:
    made = (
        dashboard.QueryVariable(name)
        .label(_LABELS[name])
        .datasource(SOURCE)
        .query({"query": query, "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
    )
    if name == "pool":
        made.regex("nativelink-worker-(.+)").multi(True).include_all(True).all_value(".+")
        made.current(VariableOption(selected=True, text=["All"], value=["$__all"]))
    return made


def _made(
    panel: Any,
    title: str,
    unit: str,
    description: str,
    targets: Sequence[Target],
    *,
    instant: bool = False,
    as_table: bool = False,
) -> Any:
    """Fill in what all panels have, with a link to each runbook that the description names.

    `instant` asks for the values at the end of the range only.
    """
    panel.title(title).unit(unit).description(description).datasource(SOURCE)
    runbooks = dict.fromkeys(re.findall(r"NativeLink[A-Z]\w+", description))
    panel.links([dashboard.DashboardLink(name).url(f"${{runbooks}}/{name}.md").target_blank(True) for name in runbooks])
    for reference, (query, legend) in zip("ABCDEFGH", targets, strict=False):
        target = prometheus.Dataquery().expr(query).legend_format(legend or "__auto").ref_id(reference)
        if instant:
            target.instant()
        if as_table:
            target.format(PromQueryFormat.TABLE)
        panel.with_target(target.datasource(SOURCE))
    return panel


def _last() -> ReduceDataOptions:
    return ReduceDataOptions().calcs(["lastNotNull"])


def _thresholds(warn: float | None, fail: float | None) -> dashboard.ThresholdsConfig:
    steps = [Threshold(value=None, color="green")]
    if warn is not None and fail is not None and fail < warn:
        steps = [
            Threshold(value=None, color="red"),
            Threshold(value=fail, color="yellow"),
            Threshold(value=warn, color="green"),
        ]
    else:
        steps += [Threshold(value=at, color=color) for at, color in ((warn, "yellow"), (fail, "red")) if at is not None]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
