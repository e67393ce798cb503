"""Pictures of the load benchmarks, in the style of the figures of ``stepfuse.analysis``; they alone need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from load import Load, Outcome
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from stepfuse.analysis.figures.labels import Label, legend_row, place_labels
from stepfuse.analysis.figures.style import INK, new_figure, plain_log_axis, styled

#: One a system, distinguishable with red-green colour blindness (Okabe & Ito, 2008).
SYSTEM_COLOURS = {
    "auto": "#cc79a7",
    "ours": "#d55e00",
    "fifo": "#e69f00",
    "static": "#0072b2",
    "static-16": "#56b4e9",
    "one": "#6b7280",
    "diffusers": "#009e73",
}
PERCENTILES = {"p50_s": ("o", "median"), "p95_s": ("D", "95th percentile"), "p99_s": ("|", "99th percentile")}
#: One a request; neighbours differ.
REQUEST_COLOURS = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#b07aa1",
    "#76b7b2",
    "#edc948",
    "#9c755f",
    "#ff9da7",
    "#2f4b7c",
    "#86bc86",
    "#a05195",
    "#5f6b7a",
    "#c46a1a",
)


@styled
def draw_load(fraction: float, results: Sequence[Mapping[str, Any]]) -> Figure:
    """Percentiles of latency at one load, and beside them, if a system has several, how the 95th grows with the load.

    Args:
        fraction: The load of the left panel.
        results: Of all systems and loads: ``system``, ``name``, ``load``, ``demand`` and ``measured``.
    """
    several = len({result["load"] for result in results}) > 1
    figure = new_figure(10.0 if several else 6.0, 3.9)
    left, *others = figure.subplots(1, 1 + several, squeeze=False, width_ratios=(6, 5)[: 1 + several])[0]
    _draw_percentiles(left, [result for result in results if result["load"] == fraction])
    left.set_title(f"Latency at {fraction:.0%} of capacity")
    legend_row(left)
    for right in others:
        labels = _draw_growth(right, results)
        right.set_title("95th percentile of latency")
        legend_row(right)
        place_labels(right, labels, to_the_right=True)
    return figure


def _draw_percentiles(axes: Axes, results: Sequence[Mapping[str, Any]]) -> None:
    """A row a system: its median, 95th and 99th percentile, the fastest above."""
    ordered = sorted(results, key=lambda result: result["measured"]["p50_s"], reverse=True)
    for row, result in enumerate(ordered):
        colour = _system_colour(result["system"])
        values = [result["measured"][name] for name in PERCENTILES]
        axes.plot([values[0], values[-1]], [row, row], "-", color=colour, linewidth=2.4 if _is_ours(result) else 1.4)
        for value, (marker, _) in zip(values, PERCENTILES.values(), strict=True):
            axes.plot([value], [row], marker, color=colour, markersize=9 if marker == "|" else 6, markeredgewidth=2)
    for marker, name in PERCENTILES.values():
        axes.plot([], [], marker, color=INK, markersize=9 if marker == "|" else 6, markeredgewidth=2, label=name)
    axes.set_yticks(range(len(ordered)), [result["name"] for result in ordered])
    axes.set_ylim(-0.6, len(ordered) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    axes.set_xlabel("latency, seconds")
    plain_log_axis(axes.xaxis)
    axes.grid(visible=True, axis="x")


def _draw_growth(axes: Axes, results: Sequence[Mapping[str, Any]]) -> list[Label]:
    """A line for each system that was measured at several loads; its label."""
    labels = []
    for system in dict.fromkeys(result["system"] for result in results):
        own = sorted((one for one in results if one["system"] == system), key=lambda one: one["load"])
        if len(own) < 2:
            continue
        colour = _system_colour(system)
        points = [(result["load"], result["measured"]["p95_s"]) for result in own]
        axes.plot(*zip(*points, strict=True), "-", color=colour, linewidth=2.4 if _is_ours(own[0]) else 1.4)
        for result, point in zip(own, points, strict=True):
            face = "white" if result["demand"] >= 1 else colour
            axes.plot(*point, "o", color=colour, markerfacecolor=face, markersize=6)
        labels.append(Label(own[0]["name"], points[::-1], colour))
    if any(result["demand"] >= 1 for result in results):
        beyond = "beyond the system's own capacity"
        axes.plot([], [], "o", color=INK, markerfacecolor="white", markersize=6, label=beyond)
    axes.set_yscale("log")
    loads = sorted({result["load"] for result in results})
    axes.set_xlim(loads[0] - 0.05, loads[-1] + 0.35)  # the right is room for the names
    axes.set_xticks(loads)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlabel("load, of this engine's capacity")
    axes.set_ylabel("seconds")
    plain_log_axis(axes.yaxis)
    axes.grid(visible=True)
    return labels


def _is_ours(result: Mapping[str, Any]) -> bool:
    return bool(result["system"] == "ours")


def _system_colour(system: str) -> str:
    return SYSTEM_COLOURS.get(system) or SYSTEM_COLOURS[system.partition("-")[0]]


@styled
def draw_trace(panels: Mapping[str, tuple[Load, Outcome]], forward: str) -> Figure:
    """Which request has which row of each forward, a panel a system, on one time axis.

    Args:
        panels: By title: the load, the same for all, and a traced outcome. A mark above shows each arrival.
        forward: What a forward takes, for the axis.
    """
    rows = 1 + max(entry[5] for _, outcome in panels.values() for entry in outcome.trace)
    last = max(float(outcome.finished.max()) for _, outcome in panels.values())
    figure = new_figure(10.5, 3.3 * len(panels))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for panel, (title, (load, outcome)) in zip(axes, panels.items(), strict=True):
        _draw_rows(panel, outcome)
        _draw_arrivals(panel, load)
        latency = outcome.finished - load.at
        panel.set_title(f"{title}\nlatency: mean {latency.mean():.1f} s, median {np.median(latency):.1f} s", pad=24)
        panel.set(xlim=(0, last * 1.01), ylim=(rows + 0.2, -0.2), ylabel="row of the forward")
        panel.set_yticks(np.arange(0, rows, 4) + 0.5, [str(row) for row in range(0, rows, 4)])
        panel.tick_params(axis="y", length=0)
    axes[-1].set_xlabel(f"seconds; {forward}")
    return figure


def _draw_rows(panel: Axes, outcome: Outcome) -> None:
    """A box a request and forward: the lines between boxes are the ends of forwards."""
    boxes: dict[tuple[int, int], tuple[int, int, float, float]] = {}  # by request and iteration
    for iteration, began, ended, request, _, row in outcome.trace:
        top, bottom = boxes.get((request, iteration), (row, row + 1, began, ended))[:2]
        boxes[request, iteration] = (min(top, row), max(bottom, row + 1), began, ended)
    for (request, iteration), (top, bottom, began, ended) in boxes.items():
        gap = 0.02
        corner, width, height = (began + gap / 2, top + 0.07), ended - began - gap, bottom - top - 0.14
        panel.add_patch(Rectangle(corner, width, height, facecolor=_colour(request), linewidth=0))
        if (request, iteration - 1) not in boxes:  # it joins, or goes on after a pause
            letter = {
                "color": _ink_on(_colour(request)),
                "va": "center",
                "ha": "center",
                "fontsize": 8.5,
                "fontweight": "bold",
            }
            panel.text((began + ended) / 2, (top + bottom) / 2, _letter(request), **letter)
        if (request, iteration + 1) not in boxes and ended < (answered := float(outcome.finished[request])) - gap:
            done = not any(later > iteration for owner, later in boxes if owner == request)
            if done:
                rest = Rectangle((ended, top + 0.07), answered - ended - gap / 2, height, linewidth=0, alpha=0.16)
                rest.set_facecolor(_colour(request))
                panel.add_patch(rest)


def _draw_arrivals(panel: Axes, load: Load) -> None:
    above = panel.get_xaxis_transform()
    for request, at in enumerate(load.at):
        style = {"color": _colour(request), "transform": above}
        panel.plot([at], [1.025], "v", clip_on=False, markersize=6, **style)
        panel.text(at, 1.07, _letter(request), fontsize=8.5, fontweight="bold", ha="center", **style)


def _colour(request: int) -> str:
    return REQUEST_COLOURS[request % len(REQUEST_COLOURS)]


def _ink_on(colour: str) -> str:
    """White or dark, whichever has the greater contrast (WCAG 2, relative luminance)."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(colour)]
    return "white" if np.dot(linear, (0.2126, 0.7152, 0.0722)) < 0.179 else INK


def _letter(request: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[request % 26]
