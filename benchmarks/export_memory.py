"""Time and peak memory of exporting networks of published sizes, with random weights, each in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import arguments
from report import Report

QUICK = "a tiny UNet"
PEER = "torch.onnx.export"
GRAPH = "stepfuse export_onnx"
CLAIMED = "stepfuse to_bundle"
LIMIT_WEIGHTS, LIMIT_MB = 2, 1000  # times the bytes of the module's weights, and megabytes beside them

#: Configurations of google/ddpm-cifar10-32 and of Stable Diffusion 1.5's UNet, what diffusers has as defaults left out.
CASES: dict[str, dict[str, Any]] = {
    "CIFAR-10 DDPM UNet": {
        "class": "UNet2DModel",
        "config": {
            "sample_size": 32,
            "layers_per_block": 2,
            "block_out_channels": [128, 256, 256, 256],
            "attention_head_dim": None,
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
        },
        "parameters": 35_746_307,
        "shape": [3, 32, 32],
        "text": None,
        "precisions": ["float32"],
        "rounds": 3,
    },
    "Stable Diffusion 1.5 UNet": {
        "class": "UNet2DConditionModel",
        "config": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
        "parameters": 859_520_964,
        "shape": [4, 64, 64],
        "text": [77, 768],
        "precisions": ["float16", "float32"],
        "rounds": 1,
    },
}

#: With ``--quick``, in the benchmark's own process: seconds instead of minutes, and its peak memory is that of all.
QUICK_CASE: dict[str, Any] = {
    "class": "UNet2DModel",
    "config": {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": [8],
        "norm_num_groups": 4,
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "add_attention": False,
    },
    "parameters": None,
    "shape": [3, 8, 8],
    "text": None,
    "precisions": ["float32"],
    "rounds": 1,
}

UNFAIR = (
    "The peer and export_onnx export and save; to_bundle also runs torch and ONNX Runtime on three rows each (and torch"
    " on three more), of whose figures most is spent there, and writes checksums.",
    "Seconds are from a module in memory to files on disk; building the module and importing are left out.",
    "Peak memory is the kernel's largest resident set; times_weights leaves out what was resident once something tiny"
    " had been exported (the libraries), and counts weights as float32, as the module holds them.",
)


def child(case: dict[str, Any], contender: str, precision: str, folder: Path) -> dict[str, float]:
    """Exports one network in this process."""
    import diffusers
    import torch

    torch.manual_seed(0)
    if case is not QUICK_CASE:  # what the libraries take at their first export is not the network's
        export(diffusers.UNet2DModel(**QUICK_CASE["config"]), QUICK_CASE, contender, precision, folder / "tiny")
    before = resident_mb()
    module = getattr(diffusers, case["class"])(**case["config"]).eval()
    found = sum(parameter.numel() for parameter in module.parameters())
    if case["parameters"] not in (None, found):
        raise RuntimeError(f"the network must have {case['parameters']} parameters, got {found}")
    weights = 4 * found / 1e6
    began = time.perf_counter()
    error = export(module, case, contender, precision, folder / "net")
    seconds, peak = time.perf_counter() - began, peak_mb()
    written = sum(file.stat().st_size for file in (folder / "net").rglob("*") if file.is_file()) / 1e6
    return {
        "seconds": seconds,
        "weights_MB": weights,
        "written_MB": written,
        "peak_MB": peak,
        "times_weights": (peak - before) / weights,
        "error": error,
    }


def export(module: Any, case: dict[str, Any], contender: str, precision: str, folder: Path) -> float:
    """Exports a module into a folder; returns the error that was found, NaN where the contender compares nothing."""
    import torch

    import stepfuse as sf
    from stepfuse.export import to_bundle
    from stepfuse.export.onnx.denoiser_module import DenoiserModule
    from stepfuse.export.onnx.graph import export_onnx
    from stepfuse.export.onnx.inputs import Input

    cond = {}
    if case["text"] is not None:
        cond["encoder_hidden_states"] = sf.CondInput(dtype="float32", shape=tuple(case["text"]), null=0.0)
    if contender == CLAIMED:
        bundle = to_bundle(
            module,
            shape=case["shape"],
            schedule=sf.NoiseSchedule.linear(),
            cond=cond,
            out=folder,
            precision=precision,
            row_counts=(1, 2),
        )
        return float(bundle.export["errors"]["prediction"])
    folder.mkdir()
    if contender == GRAPH:
        conditioning = [Input(name, one.shape) for name, one in cond.items()]
        inputs = [Input("sample", tuple(case["shape"])), Input("timestep", (), low=0, high=1000), *conditioning]
        denoiser = DenoiserModule(module, tuple(cond))
        export_onnx(denoiser, folder / "net.onnx", inputs, ["prediction"], precision=precision, prefix="module.")
        return float("nan")
    text = [torch.randn(2, *one.shape) for one in cond.values()]
    given = (torch.randn(2, *case["shape"]), torch.tensor([1.0, 999.0]), *text)
    rows = torch.export.Dim("rows", max=63)
    shapes = tuple({0: rows} for _ in given)
    torch.onnx.export(module, given, folder / "net.onnx", dynamic_shapes=shapes, dynamo=True, verbose=False)
    return float("nan")


def resident_mb() -> float:
    """Megabytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_mb() -> float:
    """The most that was ever in memory."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def in_process(name: str, contender: str, precision: str) -> dict[str, float]:
    """Runs ``child`` in a fresh process; ``QUICK`` in this one."""
    with tempfile.TemporaryDirectory() as folder:
        if name == QUICK:
            return child(QUICK_CASE, contender, precision, Path(folder))
        command = [sys.executable, __file__, "--child", name, contender, precision, folder]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise RuntimeError(f"{name} by {contender} must exit with 0, got {found.returncode}: {found.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(found.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Exports all networks."""
    options = arguments(__doc__)
    cases = {QUICK: QUICK_CASE} if options.quick else CASES
    report = Report("export_memory", options.quick, {"cases": cases}, UNFAIR)
    for name, case in cases.items():
        contenders = {PEER: (PEER, "float32")}
        for precision in case["precisions"]:
            contenders |= {f"{way}, {precision}": (way, precision) for way in (GRAPH, CLAIMED)}
        rounds = case["rounds"]
        runs = {key: [in_process(name, *how) for _ in range(rounds)] for key, how in contenders.items()}
        extra = {
            key: {
                figure: sorted(run[figure] for run in found)[rounds // 2] for figure in found[0] if figure != "seconds"
            }
            for key, found in runs.items()
        }
        for figures in extra.values():
            if figures["error"] != figures["error"]:  # nothing was compared
                del figures["error"]
        report.add(name, {key: [run["seconds"] for run in found] for key, found in runs.items()}, PEER, extra=extra)
        for precision in case["precisions"]:
            found = extra[f"{CLAIMED}, {precision}"]
            limit = LIMIT_WEIGHTS * found["weights_MB"] + LIMIT_MB
            report.at_most(f"peak memory of exporting, {name}, {precision}", "MB", limit, found["peak_MB"])
    report.publish()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        case, contender, precision, folder = sys.argv[2:6]
        print(json.dumps(child(CASES[case], contender, precision, Path(folder))))
    else:
        main()
