"""What of a figure lies on what else, in pixels: the measure that the tests of all figures share.

Written apart from ``stepfuse.analysis.figures.labels``, whose oracle it is.
"""

import itertools

import numpy as np

BACKGROUND = 0  # zorder of grids and bands, on which a label may lie
TOUCHING = 1.0  # pixels by which two boxes may meet


def overlaps(figure):
    """Sentences, one for each pair that overlaps: texts, legends, markers, lines; empty if none does."""
    figure.draw_without_rendering()  # a legend outside of axes moves when the layout no longer holds it
    texts = [(text.get_text(), box(text)) for text in shown_texts(figure)]
    legends = [("the legend", box(legend)) for legend in legends_of(figure)]
    found = [f"{a!r} on {b!r}" for (a, one), (b, other) in itertools.combinations(texts, 2) if meet(one, other)]
    entries = {text for legend in legends_of(figure) for text in legend.get_texts()}
    words = [(text.get_text(), box(text)) for text in shown_texts(figure) if text not in entries]
    found += [f"{a!r} on {b}" for a, one in words for b, other in legends if meet(one, other)]
    for axes in figure.axes:
        for line in axes.get_lines():
            name = f"{line.get_label()!r} of {axes.get_title(loc='left')!r}"
            if line.get_zorder() <= BACKGROUND or not line.get_visible():
                continue
            markers, segments = boxes_of_markers(line), boxes_of_segments(line)
            for a, one in [*words, *legends]:
                found += [f"{a!r} on a marker of {name}"] * meet(one, markers)
                found += [f"{a!r} on the line {name}"] * meet(one, segments)
        for bar in (patch for patch in axes.patches if patch.get_fill() and patch.get_alpha() is None):
            found += [f"{a!r} on a bar" for a, one in legends if meet(one, bar.get_window_extent().extents)]
    return found


def lonely_ticks(figure):
    """Axes of numbers with a single tick label: it gives no scale."""
    found = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [text for text in tick_labels(axis) if text.get_text()]
            lines = [line for line in axes.get_lines() if line.get_zorder() > BACKGROUND]
            values = {value for line in lines for value in line.get_xydata()[:, int(axis is axes.yaxis)]}
            if len(labels) == 1 and len(values) > 1:
                found.append(f"{axes.get_title(loc='left')!r}: {labels[0].get_text()}")
    return found


def empty_entries(figure):
    """Legend entries that nothing in the figure is drawn like: by colour, or by marker and whether that is filled."""
    lines = [
        line
        for axes in figure.axes
        for line in axes.get_lines()
        if len(line.get_xydata()) and np.isfinite(line.get_xydata()).any()
    ]
    colours = {line.get_color() for line in lines}
    markers = {(line.get_marker(), is_filled(line)) for line in lines}
    return [
        text.get_text()
        for legend in legends_of(figure)
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True)
        if handle.get_color() not in colours and (handle.get_marker(), is_filled(handle)) not in markers
    ]


def is_filled(line):
    return str(line.get_markerfacecolor()) not in ("white", "none", "(1, 1, 1)", "(1.0, 1.0, 1.0)")


def shown_texts(figure):
    """All texts that are drawn and not empty, tick labels beyond the ends of their axis left out."""
    from matplotlib.text import Text

    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            every = {tick.label1 for tick in axis.get_major_ticks() + axis.get_minor_ticks()}
            every |= {tick.label2 for tick in axis.get_major_ticks() + axis.get_minor_ticks()}
            hidden |= every - set(tick_labels(axis))
    return [
        text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip() and text not in hidden
    ]


def tick_labels(axis):
    """The labels of the ticks between the ends of an axis."""
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    every = axis.get_major_ticks() + axis.get_minor_ticks()
    ticks = [tick for tick in every if low - slack <= tick.get_loc() <= high + slack]
    return [text for tick in ticks for text in (tick.label1, tick.label2) if text.get_visible()]


def legends_of(figure):
    return [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]


def box(artist):
    """Left, bottom, right and top in pixels; of an annotation without the line to its point."""
    from matplotlib.text import Text

    found = artist.get_window_extent()
    return (Text.get_window_extent(artist) if isinstance(artist, Text) else found).extents


def boxes_of_markers(line):
    if line.get_marker() in ("None", "", None):
        return np.empty((0, 4))
    half = line.get_markersize() / 2 * line.figure.dpi / 72
    at = line.get_transform().transform(line.get_xydata())
    return np.hstack([at - half, at + half])


def boxes_of_segments(line):
    """Points along a line, close together, as boxes of its width."""
    at = line.get_transform().transform(line.get_xydata())
    if line.get_linestyle() in ("None", "", None) or len(at) < 2:
        return np.empty((0, 4))
    lengths = np.hypot(*np.diff(at, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    positions = np.arange(0.0, along[-1] + 3, 3).clip(max=along[-1])
    points = np.stack([np.interp(positions, along, column) for column in at.T], axis=1)
    half = max(1.0, line.get_linewidth() / 2 * line.figure.dpi / 72)
    return np.hstack([points - half, points + half])


def meet(one, others):
    """Whether a box has more than a pixel, either way, in common with another, or with any of several."""
    others = np.atleast_2d(others)
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    return bool((sides > TOUCHING).all(1).any())
