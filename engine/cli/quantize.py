"""The command ``stepfuse quantize``: a bundle that computes in int8."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stepfuse.cli.completion import words
from stepfuse.cli.console import Report
from stepfuse.cli.options import MACHINE, Force, Model, NewBundle, Threads
from stepfuse.cli.target import require_new_bundle


def quantize(
    model: Model,
    *,
    method: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="static, dynamic, or auto, which tries both.",
            autocompletion=words("auto", "static", "dynamic"),
        ),
    ] = "auto",
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Try it in onnxruntime or openvino alone; left out: in those that are installed.",
            autocompletion=words("onnxruntime", "openvino"),
            rich_help_panel=MACHINE,
        ),
    ] = None,
    even_if_slower: Annotated[
        bool, typer.Option("--even-if-slower", help="Write it even where it is not faster.")
    ] = False,
    output: NewBundle,
    force: Force = False,
    threads: Threads = 0,
    report: Report,
) -> None:
    """Write a bundle that computes in int8, if that is faster on this machine."""
    folder = require_new_bundle(output, force=force)
    from stepfuse.export import quantize as run  # takes seconds

    report.note(f"quantizing {model}, and measuring it in float32 and int8")
    backends = None if backend is None else [backend]
    bundle = run(
        model, folder, method=method, threads=threads, backends=backends, force=even_if_slower, overwrite=force
    )
    found: dict[str, Any] = bundle.export["quantization"]
    for rows, times in found["milliseconds"].items():
        before, after = times["float32"], times["int8"]
        report.say(
            f"{rows} rows: {before:.2f} ms in float32, {after:.2f} ms in int8, {before / after:.2f} times as fast"
        )
    report.say(f"the fastest that is near enough: {found['method']}, drawn with {_options(found)}")
    if "as_fast_without" in found:
        report.say(f"without int8 {found['as_fast_without']} is as fast, and needs no other bundle")
    report.say(f"images differ by {found['image_error']:.1%} of the data range, root mean square; written to {output}")
    report.finish(bundle=output, quantization=found)


def _options(found: dict[str, Any]) -> str:
    """How it was fastest, as options of the commands that draw."""
    precision = "" if found["precision"] == "float32" else f" --precision {found['precision']}"
    return f"--backend {found['backend']}{precision}"
