"""What a step costs above the bare network: ``Engine.sample`` minus the network's own time, timed in alternation."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from diffusers import DDIMScheduler
from harness import Contender, arguments, in_turn
from onnx import TensorProto, helper
from report import Report

import stepfuse as sf

SHAPE = (1, 28, 28)
NULL = 10
STEPS, GUIDANCE = 50, 3.0
#: Name, samples, guidance scale, rows of one forward.
CASES = (("1 unguided", 1, 1.0, 1), ("1 guided", 1, GUIDANCE, 2), ("16 guided", 16, GUIDANCE, 32))
SCHEDULE = sf.NoiseSchedule.linear()
COND = {"class_labels": sf.CondInput(null=NULL)}
PEER, BARE = "diffusers", "bare session"

UNFAIR = (
    "The network is one that does almost nothing, so that its noise does not hide the loop's time; beside a real one"
    " the same time is a small share, and caches are colder.",
    "The time is that of whole calls of Engine.sample, arguments and tables included, shared out over the steps;"
    " diffusers' loop is written out here without a pipeline's checks, progress bar and callbacks.",
    "diffusers' loop runs with one torch thread: at these sizes more are slower.",
)

Samples = dict[str, list[float]]


def identity(sample: Any, timestep: Any, cond: Any) -> Any:
    """The network: what it predicts is what it is given."""
    return sample


class DiffusersLoop:
    """The loop of a guided diffusers pipeline around ``identity``."""

    def __init__(self, n: int, guidance: float) -> None:
        self.scheduler = DDIMScheduler(clip_sample=False)
        self.noise = torch.randn((n, *SHAPE))
        self.guidance = guidance
        labels = torch.zeros(n, dtype=torch.int64)
        self.labels = torch.cat([labels + NULL, labels]) if guidance != 1 else labels

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """Returns the samples."""
        self.scheduler.set_timesteps(STEPS)
        latents = self.noise
        for t in self.scheduler.timesteps:
            model_input = torch.cat([latents] * 2) if self.guidance != 1 else latents
            model_input = self.scheduler.scale_model_input(model_input, t)
            noise_pred = identity(model_input, t, self.labels)
            if self.guidance != 1:
                uncond, cond = noise_pred.chunk(2)
                noise_pred = uncond + self.guidance * (cond - uncond)
            latents = self.scheduler.step(noise_pred, t, latents, return_dict=False)[0]
        return latents


def sampling(engine: sf.Engine, n: int, guidance: float) -> Contender:
    """A whole call of ``Engine.sample``."""
    noise = np.random.default_rng(0).standard_normal((n, *SHAPE), dtype=np.float32)
    return Contender(lambda: engine.sample(n, cond=0, steps=STEPS, guidance_scale=guidance, noise=noise))


def repeated(network: Callable[[], object]) -> Contender:
    """The network alone, as often as a call of ``Engine.sample`` runs it."""

    def run() -> None:
        for _ in range(STEPS):
            network()

    return Contender(run)


def above(samples: Samples, total: str, network: str) -> list[float]:
    """Seconds a step of ``total`` that are not ``network``'s, round by round."""
    return [(a - b) / STEPS for a, b in zip(samples[total], samples[network], strict=True)]


def python_case(report: Report, case: tuple[str, int, float, int], rounds: int) -> None:
    """Through a network that is a Python function, against diffusers' loop."""
    name, n, guidance, rows = case
    sample, timestep = np.zeros((rows, *SHAPE), dtype=np.float32), np.zeros(rows, dtype=np.float32)
    cond = {"class_labels": np.zeros(rows, dtype=np.int64)}
    with sf.Engine.from_callable(identity, shape=SHAPE, schedule=SCHEDULE, cond=COND) as engine:
        contenders = {
            "stepfuse": sampling(engine, n, guidance),
            PEER: Contender(DiffusersLoop(n, guidance)),
            "network": repeated(lambda: identity(sample, timestep, cond)),
        }
        samples = in_turn(contenders, rounds=rounds, batch_seconds=0.02)
    overhead = {name: above(samples, name, "network") for name in ("stepfuse", PEER)}
    report.add(f"Python function, {name}", overhead, PEER)
    report.at_most(f"a step above a Python function, {name}", "us", 50, 1e6 * float(np.median(overhead["stepfuse"])))


def onnx_case(report: Report, folder: Path, case: tuple[str, int, float, int], rounds: int) -> None:
    """Through ONNX Runtime, against a bare session with its inputs and output bound once."""
    name, n, guidance, rows = case
    arrays = (
        ("sample", np.zeros((rows, *SHAPE), dtype=np.float32)),
        ("timestep", np.zeros(rows, dtype=np.float32)),
        ("class_labels", np.zeros(rows, dtype=np.int64)),
    )
    session = ort.InferenceSession(str(folder / "denoiser.onnx"), providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for input_name, array in arrays:
        binding.bind_input(input_name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    prediction = np.empty((rows, *SHAPE), dtype=np.float32)
    binding.bind_output("prediction", "cpu", 0, np.float32, prediction.shape, prediction.ctypes.data)
    with sf.Engine.load(folder) as engine:
        contenders = {
            "stepfuse": sampling(engine, n, guidance),
            "network": repeated(lambda: session.run_with_iobinding(binding)),
        }
        samples = in_turn(contenders, rounds=rounds, batch_seconds=0.02)
    a_step = {"stepfuse": samples["stepfuse"], BARE: samples["network"]}
    a_step = {contender: [seconds / STEPS for seconds in values] for contender, values in a_step.items()}
    report.add(f"ONNX Runtime, {name}", a_step, BARE)
    overhead = float(np.median(above(samples, "stepfuse", "network")))
    report.at_most(f"a step above a bare ONNX Runtime session, {name}", "us", 50, 1e6 * overhead)


def write_identity_bundle(folder: Path) -> Path:
    """A bundle whose network is one operator."""
    inputs = [
        helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["rows", *SHAPE]),
        helper.make_tensor_value_info("timestep", TensorProto.FLOAT, ["rows"]),
        helper.make_tensor_value_info("class_labels", TensorProto.INT64, ["rows"]),
    ]
    output = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["rows", *SHAPE])
    node = helper.make_node("Neg", ["sample"], ["prediction"])
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(
        helper.make_graph([node], "negative", inputs, [output]), opset_imports=opsets, ir_version=9
    )
    onnx.save(model, folder / "model.onnx")
    info = sf.ModelInfo(SHAPE, SCHEDULE, cond=COND)
    files = {"denoiser.onnx": folder / "model.onnx"}
    return sf.write_bundle(folder / "bundle", name="negative", info=info, files=files, provenance="-", licence="-").path


def run(report: Report, cases: Sequence[tuple[str, int, float, int]], rounds: int) -> None:
    """Both back ends over all cases."""
    for case in cases:
        python_case(report, case, rounds)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_identity_bundle(Path(folder))
        for case in cases:
            onnx_case(report, bundle, case, rounds)


def main() -> None:
    """Runs all cases."""
    quick = arguments(__doc__).quick
    torch.set_num_threads(1)
    rounds = 2 if quick else 60
    configuration = {"shape": SHAPE, "steps": STEPS, "guidance_scale": GUIDANCE, "rounds": rounds, "torch_threads": 1}
    report = Report("loop_overhead", quick, configuration, UNFAIR)
    run(report, CASES, rounds)
    report.publish()


if __name__ == "__main__":
    main()
