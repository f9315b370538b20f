"""Draw the dashboards from the series of a Prometheus: `python -m dashboards.pictures --prometheus URL --cluster NAME`.

The pictures in docs/images are made by this. They stand in for Grafana, which the documentation's build does not have.
"""

from __future__ import annotations

import argparse
import io
import math
import re
import textwrap
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Wedge
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from matplotlib.transforms import Affine2D
from PIL import Image

from dashboards import ROOT, models, substituted
from dashboards.prometheus import matrix, vector

COLUMNS, WIDTH, ROW = 24, 13.0, 0.33  # of Grafana's grid; inches of a picture, and of one row of the grid
POINTS, TICKS, COLORS = 180, 5, 96
_PAGE, _PANEL, _TEXT, _FAINT = "#111217", "#181b1f", "#ccccdc", "#8e8e99"
_COLORS = ["#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#8ab8ff", "#ffb357"]
_NAMED = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c"}
_SCALED = {"short": "", "ops": " ops/s", "reqps": " req/s", "bytes": "B", "Bps": "B/s"}


def main() -> None:
    """Draw docs/images/dashboard-<name>.png, or into another folder."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.pictures", description=__doc__)
    parser.add_argument("--prometheus", metavar="URL", default="http://127.0.0.1:9090")
    parser.add_argument("--cluster", metavar="NAME", required=True, help="value of the label cluster")
    parser.add_argument("--namespace", default="nativelink")
    parser.add_argument("--workers-namespace", default="nativelink-workers")
    parser.add_argument("--minutes", type=float, default=60, help="length of the range (default: %(default)s)")
    parser.add_argument("--end", type=float, default=time.time(), help="Unix time of its end (default: now)")
    parser.add_argument("--interval", type=int, default=15, help="seconds between scrapes (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ROOT / "docs/images")
    given = parser.parse_args()
    values = variables(given.cluster, given.namespace, given.workers_namespace, given.minutes, given.interval)
    for name, model in models().items():
        picture = given.folder / f"dashboard-{name}.png"
        figure = draw(model, given.prometheus, values, given.end - 60 * given.minutes, given.end)
        # Few colors make a small file.
        pixels = io.BytesIO()
        figure.savefig(pixels)
        Image.open(pixels).convert("RGB").quantize(COLORS).save(picture, optimize=True)
        print(f"{picture}: {picture.stat().st_size // 1024} KiB")


def variables(
    cluster: str, namespace: str, workers_namespace: str, minutes: float, interval: int = 15
) -> dict[str, str]:
    """Return the values that Grafana would give its variables. `interval` is that of the scrapes, in seconds."""
    return {
        "cluster": cluster,
        "namespace": namespace,
        "workers_namespace": workers_namespace,
        "pool": ".+",
        "price": "0.4",
        "__rate_interval": f"{4 * interval}s",
        "__range": f"{60 * minutes:.0f}s",
    }


def draw(model: Mapping[str, Any], prometheus: str, values: Mapping[str, str], start: float, end: float) -> Figure:
    """Return the picture of a dashboard over a range of Unix times. Raises prometheus.QueryError."""
    mpl.rcParams["font.size"] = 7
    FigureCanvasAgg(figure := Figure(dpi=100, facecolor=_PAGE))
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in model["panels"])
    height = rows * ROW + 0.45
    figure.set_size_inches(WIDTH, height)
    figure.text(0.008, 1 - 0.25 / height, model["title"], color=_TEXT, size=12, weight="bold", va="center")
    for panel in model["panels"]:
        place = panel["gridPos"]
        left, width = place["x"] / COLUMNS, place["w"] / COLUMNS
        top, tall = 1 - (place["y"] * ROW + 0.45) / height, place["h"] * ROW / height
        if panel["type"] == "row":
            figure.text(0.008, top - tall / 2, panel["title"], color=_TEXT, size=10, weight="bold", va="center")
            continue
        box = figure.add_axes((left + 0.003, top - tall + 0.05 / height, width - 0.006, tall - 0.1 / height))
        box.set(facecolor=_PANEL, xticks=[], yticks=[])
        box.spines[:].set_visible(False)
        figure.text(left + 0.008, top - 0.2 / height, panel["title"], color=_TEXT, size=8, weight="bold", va="center")
        queries = [(substituted(each["expr"], values), each["legendFormat"]) for each in panel["targets"]]
        if panel["type"] == "timeseries":
            bottom = top - tall + 0.62 / height
            axes = figure.add_axes((left + 0.05, bottom, width - 0.062, top - 0.42 / height - bottom))
            _series(axes, panel, prometheus, queries, start, end)
            continue
        found = [(each, legend) for query, legend in queries for each in vector(prometheus, query, end)]
        if panel["type"] == "table":
            _table(box, panel, queries, [vector(prometheus, query, end) for query, _ in queries])
        else:
            _numbers(box, panel, [(float(each["value"][1]), _legend(each["metric"], text)) for each, text in found])
    return figure


def _series(
    axes: Axes, panel: Mapping[str, Any], prometheus: str, queries: list[tuple[str, str]], start: float, end: float
) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    step = max(5.0, (end - start) / POINTS)
    lines = []
    for query, legend in queries:
        for each in matrix(prometheus, query, start, end, step):
            lines.append((_legend(each["metric"], legend), {round(float(at)): float(v) for at, v in each["values"]}))
    axes.set_facecolor(_PANEL)
    times = [round(start + number * step) for number in range(int((end - start) / step) + 1)]
    moments = [datetime.fromtimestamp(at, UTC) for at in times]
    stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    base = [0.0] * len(times)
    for number, (_, values) in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        heights = [_near(values, at) for at in times]
        if stacked:
            above = [under + (0 if math.isnan(own) else own) for under, own in zip(base, heights, strict=True)]
            axes.fill_between(moments, base, above, color=color, alpha=0.35, linewidth=0)
            axes.plot(moments, above, color=color, linewidth=0.9)
            base = above
        else:
            axes.plot(moments, heights, color=color, linewidth=1.1)
    axes.set_ylim(bottom=0, top=defaults.get("max"))
    if "max" not in defaults and not any(value for _, values in lines for value in values.values()):
        axes.set_ylim(top=1)
    axes.set_xlim(moments[0], moments[-1])
    if defaults["unit"] in ("bytes", "Bps"):
        axes.yaxis.set_major_locator(MultipleLocator(2 ** math.ceil(math.log2(axes.get_ylim()[1] / TICKS))))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(TICKS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, defaults["unit"])))
    axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=3, maxticks=7))
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))
    axes.tick_params(colors=_FAINT, labelsize=6.5, length=0)
    axes.grid(color="#2c3235", linewidth=0.5)
    axes.spines[:].set_visible(False)
    if not lines:
        axes.text(0.5, 0.5, "No data", color=_FAINT, ha="center", va="center", transform=axes.transAxes, size=9)
    # The legend: a text of its color for each series, as far as they fit.
    position = 0.0
    for number, (text, _) in enumerate(lines[:8]):
        entry = axes.annotate(
            f"― {textwrap.shorten(text, 34, placeholder='…')}",
            (position, -0.24),
            xycoords="axes fraction",
            color=_COLORS[number % len(_COLORS)],
            size=6.5,
        )
        width = entry.get_window_extent().width
        position += (width + 8) / axes.get_window_extent().width
        if position > 1:
            entry.remove()
            break


def _near(values: Mapping[int, float], at: int) -> float:
    return next((values[time_] for time_ in (at, at - 1, at + 1) if time_ in values), math.nan)


def _numbers(axes: Axes, panel: Mapping[str, Any], found: list[tuple[float, str]]) -> None:
    """Draw the numbers of a stat, or the scale of a gauge."""
    defaults = panel["fieldConfig"]["defaults"]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    if not found:
        axes.text(0.5, 0.42, "No data", color=_FAINT, ha="center", va="center", size=10)
    for number, (value, name) in enumerate(found):
        color = _color(value, defaults["thresholds"]["steps"])
        x, text = (number + 0.5) / len(found), shown(value, defaults["unit"])
        if panel["type"] == "gauge":
            ratio = axes.bbox.height / axes.bbox.width
            for part, tint in ((1.0, "#2c3235"), (min(1.0, max(0.0, value if value == value else 0)), color)):
                wedge = Wedge((0, 0), 0.62, 180 - 180 * part, 180, width=0.14, color=tint, linewidth=0)
                wedge.set_transform(Affine2D().scale(ratio, 1).translate(x, 0.14) + axes.transData)
                axes.add_patch(wedge)
            axes.text(x, 0.22, text, color=color, ha="center", va="center", size=13)
        else:
            axes.text(x, 0.42, text, color=color, ha="center", va="center", size=20 if len(found) < 3 else 15)
            if len(found) > 1:
                axes.text(x, 0.13, name, color=_FAINT, ha="center", va="center", size=7.5)


def _color(value: float, steps: list[dict[str, Any]]) -> str:
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return _NAMED[reached[-1]]


def _table(
    axes: Axes, panel: Mapping[str, Any], queries: list[tuple[str, str]], answers: list[list[dict[str, Any]]]
) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    rows: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for (_, legend), answer in zip(queries, answers, strict=True):
        for each in answer:
            row = rows.setdefault(tuple(sorted(each["metric"].items())), {})
            row[legend] = shown(float(each["value"][1]), unit)
    labels = list(dict.fromkeys(name for key in rows for name, _ in key))
    columns = [*labels, *(legend for _, legend in queries)]
    if not rows:
        said = panel["fieldConfig"]["defaults"]["noValue"]
        axes.text(0.5, 0.4, said, color=_FAINT, ha="center", va="center", transform=axes.transAxes, size=10)
        return
    cells = [[{**dict(key), **row}.get(column, "") for column in columns] for key, row in sorted(rows.items())]
    for line, texts in enumerate([columns, *cells]):
        for column, text in enumerate(texts):
            axes.text(
                0.008 + column / len(columns),
                0.62 - line * 0.2,
                text,
                color=_FAINT if line == 0 else _TEXT,
                transform=axes.transAxes,
                size=8,
            )


def _legend(metric: Mapping[str, str], legend: str) -> str:
    """Fill in the labels of a legend as Grafana does."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: metric.get(found[1], ""), legend).strip() or "value"


def _digits(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shown(value: float, unit: str) -> str:
    """Return a value in a unit of Grafana as a short text."""
    if math.isnan(value):
        return "NaN"
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit in ("s", "ms"):
        seconds = value / 1000 if unit == "ms" else value
        steps = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs"))
        factor, name = next(((f, n) for f, n in steps if abs(seconds) >= f), (1, "s"))
        return f"{seconds / factor:.3g} {name}"
    base, prefixes = (1024, "KMGTP") if unit in ("bytes", "Bps") else (1000, "kMGTP")
    power = 0
    while abs(value) >= base and power < len(prefixes):
        value, power = value / base, power + 1
    if unit in ("bytes", "Bps"):
        return f"{_digits(value)} {prefixes[power - 1] + 'i' if power else ''}{_SCALED[unit]}"
    return f"{_digits(value)}{prefixes[power - 1] if power else ''}{_SCALED[unit]}"


if __name__ == "__main__":
    main()
