"""``--control NAME=FILE``: pictures that the ControlNets of a bundle follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from stepfuse.cli.named_files import named_files
from stepfuse.cli.options import PICTURE

Control = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FILE",
        help="A picture that a ControlNet of the bundle follows, with a scale behind a colon: canny=edges.png:0.8;"
        " repeat it.",
        rich_help_panel=PICTURE,
    ),
]
ControlRange = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[NAME=]BEGIN,END",
        help="Share of the steps, 0 to 1, that --control acts at, of all or of the one that is named; repeat it.",
        rich_help_panel=PICTURE,
    ),
]


def controls_of(control: Sequence[str] | None, control_range: Sequence[str] | None) -> dict[str, Any]:
    """Arguments of ``TextToImage.__call__``, with paths for pictures.

    Args:
        control: ``--control``.
        control_range: ``--control-range``.

    Raises:
        ValueError: If one of them is not as its option says, comes twice, or a range has no picture.
    """
    files = named_files("--control", control)
    found: dict[str, Any] = {"control": {name: one.path for name, one in files.items()}} if files else {}
    if scales := {name: one.scale for name, one in files.items() if one.scale is not None}:
        found["control_scale"] = scales
    if ranges := _ranges(control_range):
        if not files:
            raise ValueError("--control-range needs --control NAME=FILE, got none")
        of_all = dict.fromkeys(files, ranges.pop("")) if "" in ranges else {}
        found["control_range"] = {**of_all, **ranges}
    return found


def _ranges(texts: Sequence[str] | None) -> dict[str, tuple[float, float]]:
    """By name; that of all has none."""
    found: dict[str, tuple[float, float]] = {}
    for text in texts or ():
        name, _, ends = text.rpartition("=")
        if name in found:
            raise ValueError(f"--control-range must be given once for each, got {text!r} too")
        try:
            begin, end = (float(one) for one in ends.split(","))
        except ValueError as error:
            raise ValueError(f"--control-range must be BEGIN,END or NAME=BEGIN,END, got {text!r}") from error
        found[name] = begin, end
    return found
