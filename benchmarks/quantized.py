"""The embedded model in int8: latency, error, distance to real images and the judge's accuracy against float32."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from harness import Contender, arguments, in_turn
from report import Report

import stepfuse as sf
from stepfuse.analysis import Judge
from stepfuse.backends.host.available import precisions_of
from stepfuse.export import quantize

FLOAT = "float32"
KINDS: Mapping[str, Mapping[str, Any]] = {
    "static": {"method": "static"},
    "static, minmax": {"method": "static", "calibration": "minmax"},
    "static, 7 bits": {"method": "static", "reduce_range": True},
    "dynamic": {"method": "dynamic"},
    "dynamic, Conv": {"method": "dynamic", "operators": ["Conv", "Gemm", "MatMul"]},
}
#: Beside ONNX Runtime: the bundle, and what OpenVINO computes in that is not in int8.
OPENVINO: Mapping[str, tuple[str, str]] = {
    "float32, OpenVINO": (FLOAT, "float32"),
    "bf16": (FLOAT, "bf16"),
    "static, OpenVINO": ("static", "float32"),
    "static and bf16": ("static", "bf16"),
}
GUIDANCE = 3.0
CASES = (1, 16)
QUICK_KINDS, QUICK_IMAGES, QUICK_STEPS = ("static", "dynamic"), 66, 2  # a distance needs more images than features
SETTLE_SECONDS = 0.02

UNFAIR = (
    "One small network, most of whose work is convolutions of 28 x 28 pixels: a transformer's figures differ.",
    "Static scales were found on runs of the same sampler and classes that are then sampled.",
    "Guidance moves images away from the real ones, so that an error may bring them nearer: see the distance without.",
    "How much int8 gains depends on the CPU's dot products: without VNNI it may lose.",
    "Where nothing else is named the network runs in ONNX Runtime. bf16 is there where the processor computes in it.",
)

Images = npt.NDArray[np.float32]


def sample(engine: sf.Engine, number: int, steps: int, *, guidance: float = GUIDANCE, seed: int = 0) -> Images:
    """Images of all classes in turn."""
    classes = [index % 10 for index in range(number)]
    return engine.sample(number, cond=classes, sampler="ddim", steps=steps, guidance_scale=guidance, seed=seed)


def quality(engine: sf.Engine, judge: Judge, expected: Images | None, number: int, steps: int) -> dict[str, Any]:
    """What the images of one network are worth, and how far from float32's they are."""
    images = sample(engine, number, steps, seed=1_000_000)
    unguided = sample(engine, number, steps, guidance=1.0, seed=1_000_000)
    difference = 0.0 if expected is None else float(np.sqrt(np.mean((images - expected) ** 2)) / 2)
    return {
        "images": images,
        "image_error": difference,
        "distance": judge.distance(images),
        "distance_unguided": judge.distance(unguided),
        "accuracy": judge.accuracy(images, np.arange(number) % 10),
        "accuracy_unguided": judge.accuracy(unguided, np.arange(number) % 10),
    }


def main() -> None:
    """Quantises in every way, times all, and judges their images."""
    options = arguments(__doc__)
    quick = options.quick
    rounds, number, steps = (1, QUICK_IMAGES, QUICK_STEPS) if quick else (15, 500, 20)
    kinds = {name: kind for name, kind in KINDS.items() if not quick or name in QUICK_KINDS}
    threads = 1 if quick else 0
    common: dict[str, Any] = {"rounds": 1, "force": True, "threads": threads, "backends": ["onnxruntime"]}
    if quick:
        common |= {"samples": 2, "steps": steps, "rows": (2,)}
    judge = Judge.load("fashion")
    configuration = {
        "model": "fashion",
        "sampler": f"ddim, {steps} steps",
        "guidance_scale": GUIDANCE,
        "judged_images": number,
        "real_accuracy": judge.real_accuracy,
        "threads": threads or "one a core",
        "rounds": rounds,
    }
    report = Report("quantized", quick, configuration, UNFAIR)
    with tempfile.TemporaryDirectory() as folder:
        bundles = {FLOAT: sf.Bundle.load("fashion")}
        for index, (name, kind) in enumerate(kinds.items()):
            bundles[name] = quantize("fashion", Path(folder) / str(index), **common, **kind)
        engines = {name: sf.Engine.load(bundle, threads=threads, spinning=False) for name, bundle in bundles.items()}
        for name, (bundle, precision) in OPENVINO.items():
            if precision in precisions_of("openvino"):
                bundles[name] = bundles[bundle]
                backend = sf.OpenVino(cache=folder)
                engines[name] = sf.Engine.load(bundles[name], threads=threads, backend=backend, precision=precision)
        extra: dict[str, dict[str, Any]] = {}
        expected = None
        for name, engine in engines.items():
            found = quality(engine, judge, expected, number, steps)
            images = found.pop("images")
            expected = images if expected is None else expected
            noted = bundles[name].export.get("quantization", {})
            extra[name] = {
                **found,
                "megabytes": bundles[name].files["denoiser.onnx"]["size"] / 1e6,
                **({"prediction_error": float(np.median(noted["prediction_error"]))} if noted else {}),
            }
        settle = partial(time.sleep, SETTLE_SECONDS)
        for count in CASES:
            contenders = {name: Contender(partial(sample, one, count, steps), settle) for name, one in engines.items()}
            report.add(f"{count} guided", in_turn(contenders, rounds=rounds), FLOAT, extra=extra)
        for engine in engines.values():
            engine.close()
    report.publish()


if __name__ == "__main__":
    main()
