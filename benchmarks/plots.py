"""Pictures of the load benchmarks; they alone need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from load import Load, Outcome

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

INK, FAINT = "#1f2430", "#8a90a0"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e4e6ec",
    "figure.facecolor": "white",
    "savefig.dpi": 160,
}
#: One a system; they differ for readers who do not see red and green apart.
SYSTEM_COLOURS = {
    "ours": "#d1495b",
    "fifo": "#edae49",
    "static": "#30638e",
    "one": "#7d8597",
    "diffusers": "#2a9d8f",
}
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

Floats = npt.NDArray[np.float64]


def draw_load(
    path: Path, fraction: float, latencies: Mapping[str, Floats], results: Sequence[Mapping[str, Any]]
) -> None:
    """Latencies of one load as a distribution, and how their 95th percentile grows with the load.

    Args:
        path: Of the picture.
        fraction: The load of ``latencies``.
        latencies: Seconds by system.
        results: Of all systems and loads: ``system``, ``name``, ``load`` and ``measured``.
    """
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), gridspec_kw={"width_ratios": (3, 2)})
        names = {result["system"]: result["name"] for result in results}
        for system, name in names.items():
            style = _style(system)
            if system in latencies:
                seconds = np.sort(latencies[system])
                left.plot(seconds, np.arange(1, len(seconds) + 1) / len(seconds), label=name, **style)
            points = sorted((r["load"], r["measured"]["p95_s"], r["demand"]) for r in results if r["system"] == system)
            at, p95, demand = (np.array(column) for column in zip(*points, strict=True))
            right.plot(at, p95, **style)
            for beyond, face in ((demand < 1, style["color"]), (demand >= 1, "white")):
                right.plot(at[beyond], p95[beyond], "o", color=style["color"], markerfacecolor=face, markersize=6)
        left.set(xscale="log", ylim=(0, 1), xlabel="latency, seconds", ylabel="share of requests answered by then")
        left.set_title(f"Latency at {fraction:.0%} of capacity")
        left.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0))
        right.set(yscale="log", xlabel="load (open: beyond the system's own capacity)", ylabel="seconds")
        right.set_title("95th percentile of latency")
        right.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1.0, decimals=0))
        right.set_xticks(sorted({result["load"] for result in results}))
        for panel, axis in ((left, left.xaxis), (right, right.yaxis)):
            axis.set_major_locator(mpl.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(mpl.ticker.NullLocator())
            panel.grid(True)
            panel.set_axisbelow(True)
        figure.legend(*left.get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
        figure.tight_layout(rect=(0, 0.12, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


def _style(system: str) -> dict[str, Any]:
    base, _, variant = system.partition("-")
    width = 2.6 if system == "ours" else 1.6
    return {
        "color": SYSTEM_COLOURS[base],
        "linewidth": width,
        "linestyle": "--" if variant else "-",
        "zorder": 5 if system == "ours" else 3,
    }


def draw_trace(path: Path, panels: Mapping[str, tuple[Load, Outcome]], forward: str) -> None:
    """Which request has which row of each forward, a panel a system, on one time axis.

    Args:
        path: Of the picture.
        panels: By title: the load, the same for all, and a traced outcome. A mark above shows each arrival.
        forward: What a forward takes, for the axis.
    """
    rows = 1 + max(entry[5] for _, outcome in panels.values() for entry in outcome.trace)
    last = max(float(outcome.finished.max()) for _, outcome in panels.values())
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(len(panels), 1, figsize=(12, 3.5 * len(panels)), sharex=True)
        for panel, (title, (load, outcome)) in zip(axes, panels.items(), strict=True):
            _draw_rows(panel, outcome)
            _draw_arrivals(panel, load)
            panel.set_title(title, pad=22)
            latency = outcome.finished - load.at
            text = f"latency: mean {latency.mean():.1f} s, median {np.median(latency):.1f} s"
            panel.text(1, 1.105, text, transform=panel.transAxes, ha="right")
            panel.set(xlim=(0, last * 1.01), ylim=(rows + 0.2, -0.2), ylabel="row of the forward")
            panel.set_yticks(np.arange(0, rows, 4) + 0.5, [str(row) for row in range(0, rows, 4)])
            panel.tick_params(axis="y", length=0)
        axes[-1].set_xlabel(f"seconds; {forward}")
        figure.tight_layout(h_pad=1.6)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        plt.close(figure)


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
            letter = {"color": "white", "va": "center", "ha": "center", "fontsize": 8.5, "fontweight": "bold"}
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
        panel.text(at, 1.055, _letter(request), fontsize=8.5, fontweight="bold", ha="center", **style)


def _colour(request: int) -> str:
    return REQUEST_COLOURS[request % len(REQUEST_COLOURS)]


def _letter(request: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[request % 26]
