"""What runs a network fastest on this CPU, bare and through our loop, and what bf16 costs in distance and accuracy.

The larger network is exported once, into ``build/``: a minute.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import export_memory
import numpy as np
import openvino as ov
from harness import Contender, arguments, in_turn
from quantized import quality
from report import Report

import stepfuse as sf
from stepfuse.analysis import Judge
from stepfuse.backends.host.config import Cpu
from stepfuse.backends.host.interface import input_rows
from stepfuse.backends.host.network import open_network
from stepfuse.backends.host.openvino.library import EmulatedPrecisionWarning, precisions

PEER = "ONNX Runtime float32, bare"
UNET = "CIFAR-10 DDPM UNet"
ROWS, QUICK_ROWS = (1, 4, 16), (1, 4)
BARE, LOOP = ", bare", ", loop"
CLAIMED_ROWS, MOST = (1, 16), 1.02  # of the loop's time over as many bare forwards of the fastest library

UNFAIR = (
    "A bare forward of OpenVINO is compiled for its number of rows, which a server that mixes requests does not know.",
    "The larger network has random weights: they change nothing in its speed, but its error in bf16 says nothing.",
    "Where the processor has no bf16, OpenVINO emulates it: its error is measured here, its time is not.",
)

Forward = Callable[[], object]


def bare_onnxruntime(bundle: sf.Bundle, rows: int) -> Forward:
    """A session with its inputs and output bound once."""
    backend = open_network(bundle, Cpu()).backend(bundle.info, rows, deterministic=False)
    backend.buffers.sample[...] = sf.normal(0, backend.buffers.sample.shape)
    return partial(backend.forward, rows)


def bare_openvino(bundle: sf.Bundle, rows: int, precision: str) -> Forward:
    """OpenVINO as one would use it by hand: compiled for these rows, its tensors set once."""
    core = ov.Core()
    model = core.read_model(bundle.denoiser)
    shapes = {name: (rows, *row.shape) for name, row in input_rows(bundle.info).items()}
    model.reshape({name: list(shape) for name, shape in shapes.items()})
    hints = {"INFERENCE_PRECISION_HINT": {"float32": "f32"}.get(precision, precision), "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", hints).create_infer_request()
    dtypes = {name: row.dtype for name, row in input_rows(bundle.info).items()}
    for name, shape in shapes.items():
        values = sf.normal(0, shape) if name == "sample" else np.zeros(shape)
        request.set_tensor(name, ov.Tensor(np.ascontiguousarray(values, dtypes[name])))
    return partial(request.infer, share_outputs=True)


def repeated(forward: Forward, times: int) -> None:
    """As many forwards as a run has steps."""
    for _ in range(times):
        forward()


def contenders(stack: ExitStack, bundle: sf.Bundle, rows: int, steps: int, found: list[str]) -> dict[str, Contender]:
    """Each library in each precision that the processor computes in, bare and through our loop."""
    made = {PEER: Contender(partial(repeated, bare_onnxruntime(bundle, rows), steps))}
    kinds: dict[str, dict[str, Any]] = {"ONNX Runtime float32": {}}
    for precision in found:
        kinds[f"OpenVINO {precision}"] = {"backend": "openvino", "precision": precision}
        bare = bare_openvino(bundle, rows, precision)
        made[f"OpenVINO {precision}{BARE}"] = Contender(partial(repeated, bare, steps))
    for name, how in kinds.items():
        engine = stack.enter_context(sf.Engine.load(bundle, max_rows=rows, **how))
        drawn = partial(engine.sample, rows, sampler="ddim", steps=steps, guidance_scale=1.0, seed=0)
        made[f"{name}{LOOP}"] = Contender(drawn)
    return made


def hold_to_bare(
    report: Report, case: str, made: dict[str, Contender], samples: dict[str, list[float]], rounds: int
) -> None:
    """The fastest library bare and through our loop, one after the other: of what else runs neither finds more."""
    bare = min((name for name in made if name.endswith(BARE)), key=lambda name: float(np.median(samples[name])))
    loop = bare.removesuffix(BARE) + LOOP
    ratios = report.add(f"{case}, in pairs", in_turn({bare: made[bare], loop: made[loop]}, rounds=rounds), bare)
    report.at_most(f"{loop} over the same forwards bare, {case}", "x", MOST, 1 / ratios[loop])


def large_bundle() -> sf.Bundle:
    """The larger network, exported once."""
    folder = Path(__file__).parent.parent / "build" / "cifar-unet"
    if not folder.exists():
        import diffusers
        import torch

        torch.manual_seed(0)
        case = export_memory.CASES[UNET]
        module = getattr(diffusers, case["class"])(**case["config"]).eval()
        export_memory.export(module, case, export_memory.CLAIMED, "float32", folder)
    return sf.Bundle.load(folder)


@contextmanager
def emulation_allowed() -> Iterator[None]:
    """Leaves out the warning that an emulated precision is slow."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EmulatedPrecisionWarning)
        yield


def judge_bf16(report: Report, number: int, steps: int) -> None:
    """Images of ``fashion`` in bf16 against float32's: their distance to real ones, and how many the judge names."""
    judge, expected = Judge.load("fashion"), None
    seconds: dict[str, list[float]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for precision in ("float32", "bf16"):
        with emulation_allowed(), sf.Engine.load("fashion", backend="openvino", precision=precision) as engine:
            engine.warmup([1, 2, 4, 8, 16])
            began = time.perf_counter()
            found = quality(engine, judge, expected, number, steps)
            seconds[precision] = [time.perf_counter() - began]
        images = found.pop("images")
        expected = images if expected is None else expected
        figures[precision] = found
    report.add(f"{number} guided and {number} unguided images", seconds, "float32", extra=figures)


def main() -> None:
    """Times all in turn, and judges images."""
    options = arguments(__doc__)
    quick = options.quick
    rounds, number, steps = (1, 66, 2) if quick else (9, 500, 20)  # a distance needs more images than features
    found = precisions(ov.Core())
    configuration = {"processor computes in": found, "judged images": number, "sampler": "ddim"}
    report = Report("backends", quick, configuration, UNFAIR)
    fashion = sf.Bundle.load("fashion")
    networks = {"fashion": (fashion, 2 if quick else fashion.info.defaults["steps"])}
    if not quick:
        networks[UNET] = (large_bundle(), 2)
    for name, (bundle, forwards) in networks.items():
        for rows in QUICK_ROWS if quick else ROWS:
            with ExitStack() as stack:
                made = contenders(stack, bundle, rows, forwards, found)
                samples = in_turn(made, rounds=rounds if name == "fashion" else min(rounds, 5))
                case = f"{name}, {forwards} forwards of {rows}"
                report.add(case, samples, PEER)
                if not quick and rows in CLAIMED_ROWS:
                    hold_to_bare(report, case, made, samples, 60 if name == "fashion" else 15)
    judge_bf16(report, number, steps)
    report.publish()


if __name__ == "__main__":
    main()
