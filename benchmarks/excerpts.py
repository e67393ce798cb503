"""What README.md and docs say of results, with each figure made of the result's number and marked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from frontier_results import MARK, advice, markdown

from stepfuse.analysis.experiments.wording import short

UNET = "CIFAR-10 DDPM UNet"

#: What README's table quotes; docs/measurements.md has ``mixed_load``, which takes three quarters of an hour.
TABLE = ("step_cpu", "step_bandwidth", "loop_overhead", "end_to_end", "pipeline_latency", "backends", "cold_start")


def excerpts(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """Lines and parts of lines by document, on one line each.

    Args:
        results: The JSON of each benchmark by name.
    """
    return {
        "README.md": [*_readme(results), _readme_bf16(results["backends"])],
        "docs/measurements.md": [*_mixed(results["mixed_load"]), *_recipe(results)],
        "docs/export.md": [
            *_pipelines(results["pipeline_latency"]),
            *_schedulers(results["diffusers_step"]),
            *_quantized(results["quantized"]),
            *_exports(results["export_memory"]),
        ],
        "docs/serving.md": [*_serving(results), *_policies(results["policies"]), *_backends(results["backends"])],
        "docs/performance.md": _genai(results["genai_latency"]),
        "docs/http.md": _http(results["http_load"]),
        "docs/how-to/choosing-a-sampler.md": advice(results["frontier"]),
        "docs/frontier.md": markdown(results["frontier"]),
    }


def _readme(results: Mapping[str, Any]) -> list[str]:
    step, loop, end = results["step_cpu"], results["loop_overhead"], results["end_to_end"]
    small, middle, large = (
        _row(step, case, "out=") for case in ("(1, 3, 32, 32)", "(8, 4, 64, 64)", "(8, 4, 128, 128)")
    )
    wide = "64 MiB a tensor, 1 thread"
    copy, in_place, out = (_row(results["step_bandwidth"], wide, one) for one in ("np.copyto", "in place", "out="))
    guided = ("Python function, 1 guided", "Python function, 16 guided")
    ours, theirs = ([_p50(_row(loop, case, one)) for case in guided] for one in ("stepfuse", "diffusers"))
    one, sixteen = (_row(end, case, "stepfuse") for case in ("1 guided", "16 guided"))
    peer_one, peer_sixteen = (_row(end, case, "torch, channels_last") for case in ("1 guided", "16 guided"))
    cold, imports = (
        _row(results["cold_start"], "first image", one) for one in ("stepfuse in Python", "import torch, diffusers")
    )
    outside = sixteen["us_a_step_outside_the_network"]
    tiny, mid = _cases(results["pipeline_latency"])
    pipes = {
        name: (_row(results["pipeline_latency"], tiny, name), _row(results["pipeline_latency"], mid, name))
        for name in ("TextToImage", "diffusers eager", "ONNX Runtime, Python loop")
    }
    texts = {name: _times_and_memory(*pair) for name, pair in pipes.items()}
    peer = "diffusers' cat, chunk, blend and `DDIMScheduler.step`"
    dates = [results[name]["date"][:10] for name in TABLE]
    return [
        f"medians of `make readme`, the oldest of {_figure(min(dates))}",
        f"| fused step with guidance, called from Python, (1,3,32,32) | {_us(small)} µs | {peer}: {_times(small)} times"
        " as long |",
        f"| the same at (8,4,64,64) | {_us(middle)} µs | {_times(middle)} times as long |",
        f"| the same at (8,4,128,128) | {_us(large)} µs | {_times(large)} times as long |",
        f"| its bandwidth on 64 MiB tensors, one thread | {_speed(in_place)} GB/s in place, {_speed(out)} GB/s with"
        f" `out=` | `np.copyto`: {_speed(copy)} GB/s |",
        f"| a step above a Python network, 1 to 16 guided samples | {_range(ours)} µs | diffusers' loop:"
        f" {_range(theirs)} µs |",
        f"| `fashion`, 1 image, 50 guided DDIM steps | {_ms(one)} ms | the same weights in eager torch (channels_last,"
        f" its faster layout) with diffusers' scheduler: {_ms(peer_one)} ms |",
        f"| `fashion`, 16 images | {_s(sixteen)} s | {_s(peer_sixteen)} s: of a {_fixed(20 * _p50(sixteen), 0)} ms step"
        f" the engine itself takes {_fixed(outside, 0)} µs, the network the rest |",
        "| a prompt's picture, 20 guided steps, UNet of 0.3 M and of 40 M parameters, random weights |"
        f" {texts['TextToImage']} | eager diffusers: {texts['diffusers eager']}. ONNX Runtime under a Python loop:"
        f" {texts['ONNX Runtime, Python loop']} |",
        f"| process start to the first image | {_digits(_p50(cold))} s, {_fixed(cold['peak_MB'], 0)} MB | importing"
        f" torch and a diffusers scheduler: {_digits(_p50(imports))} s, {_fixed(imports['peak_MB'], 0)} MB |",
    ]


def _mixed(document: Mapping[str, Any]) -> list[str]:
    names = {
        "ours": "stepfuse, shortest first",
        "static": "static batches on the same engine",
        "one": "one at a time on the same engine (at the edge of its capacity)",
    }
    rows = []
    for system, name in names.items():
        found = _system(document, 0.8, system)["measured"]
        mean, p95, slowdown = found["mean_s"], found["p95_s"], found["p95_slowdown"]
        rows.append(f"| {name} | {_seconds(mean)} s | {_seconds(p95)} s | {_digits(slowdown)} |")
    static, one = (_over(document, 0.8)[peer] for peer in ("static", "one"))
    return [
        *rows,
        f"the mean was {_fixed(static['mean_s'], 2)} of static batches' and {_fixed(one['mean_s'], 2)} of one at a"
        f" time's, p95 {_fixed(static['p95_s'], 2)} and {_fixed(one['p95_s'], 2)}. At 95 % the longest requests pay:"
        f" p95 was {_fixed(_over(document, 0.95)['static']['p95_s'], 1)} times that of static batches.",
    ]


def _readme_bf16(document: Mapping[str, Any]) -> str:
    ours, peer = (
        ", ".join(f"{_fixed(1e3 * _forward(document, name, rows), 0)} ms" for rows in (1, 16))
        for name in ("OpenVINO bf16", "ONNX Runtime float32")
    )
    what = "a forward of the CIFAR-10 UNet in our loop, 1 and 16 rows, OpenVINO in bf16 on a processor with AMX"
    return f"| {what} | {ours} | ONNX Runtime in float32: {peer} |"


def _recipe(results: Mapping[str, Any]) -> list[str]:
    named = _percent(results["recipe"]["accuracy_of_samples"]["overall"])
    student, plain = (
        _percent(results["recipe-8step"]["measured"][name]["accuracy_of_samples"]["overall"])
        for name in ("student", "teacher, 8 steps, no guidance")
    )
    return [
        f"names {named} % as asked for.",
        f"and {student} % of its samples are named right as well; `fashion` itself in 8 passes, unguided: {plain} %",
    ]


def _serving(results: Mapping[str, Any]) -> list[str]:
    mixed, scale = results["mixed_load"], results["simulate"]
    half, most = _over(mixed, 0.8)["static"], _over(mixed, 0.95)["static"]
    alone, ours = (_system(mixed, 0.5, system)["measured"]["mean_s"] for system in ("one", "ours"))
    slots = {
        count: max(one["us_an_iteration"]["p50"] for one in scale["results"] if one.get("slots") == count)
        for count in (64, 1024)
    }
    interval = _row(results["guidance_interval"], "64 requests at once", "guided in (0.2, 0.8)")
    lone, full = (
        [
            _row(results["deterministic"], f"{case}, max_rows {rows}", "deterministic")["times_peer"]["p50"]
            for rows in (8, 64)
        ]
        for case in ("a lone request", "64 requests at once")
    )
    beside = [
        _fixed(_row(results["threads"], case, "default")["times_peer"]["p50"], 2)
        for case in ("alone", "two processes that sample", "beside a busy process")
    ]
    return [
        f"{beside[0]} times the images a second alone, {beside[1]} times where two processes sample, and"
        f" {beside[2]} times beside a busy process",
        f"take {_fixed(slots[64], 1)} µs for 64 in-flight samples and {_fixed(slots[1024], 0)} µs for 1,024",
        f"(`guidance_interval=(0.2, 0.8)`) a full engine gives {_fixed(interval['times_peer']['p50'], 2)} times as many"
        " images",
        f"the mean was {_fixed(half['mean_s'], 2)} of static batches', p95 {_fixed(half['p95_s'], 2)}, p95 slowdown"
        f" {_fixed(half['p95_slowdown'], 2)}",
        f"one at a time was ahead of both (mean {_fixed(alone, 2)} s against {_fixed(ours, 2)} s)",
        f"the mean is {_fixed(most['mean_s'], 2)} of static batches' and p95 {_fixed(most['p95_s'], 1)} times as long",
        f"a full engine keeps {_fixed(100 * full[0], 0)} % of its throughput at 8 rows and {_fixed(100 * full[1], 0)} %"
        f" at 64, and a lone guided request takes {_fixed(1 / lone[0], 1)} and {_fixed(1 / lone[1], 0)} times as long",
    ]


def _policies(document: Mapping[str, Any]) -> list[str]:
    found = []
    for curve in dict.fromkeys(one["curve"] for one in document["results"]):
        rows = [one for one in document["results"] if one["curve"] == curve]
        cells = []
        for system in ("auto", "shortest", "fifo, full rows"):
            own = [one for one in rows if one["system"] == system]
            cells += [max(one[f"{figure}_over_the_best"] for one in own) for figure in ("mean_s", "p95_s")]
            cells.append(max(own, key=lambda one: float(one["load"]))["p99_s_over_the_best"])
        fixed = f"{rows[0]['fixed']:g} + {rows[0]['row']:g} a row"
        found.append(f"| {fixed} | {' | '.join(_fixed(cell, 2) for cell in cells)} |")
    return found


def _backends(document: Mapping[str, Any]) -> list[str]:
    names = ("ONNX Runtime float32", "OpenVINO float32", "OpenVINO bf16")
    found = []
    for network, shown in (("fashion", "`fashion`"), (UNET, UNET)):
        for rows in (1, 4, 16):
            taken = [_forward(document, name, rows, network) for name in names]
            cells = [f"{_digits(1e3 * seconds)} ms" for seconds in taken]
            found.append(f"| {shown} | {rows} | {' | '.join(cells)} | {_digits(taken[0] / taken[2])} |")
    judged = "500 guided and 500 unguided images"
    exact, half = (_row(document, judged, name) for name in ("float32", "bf16"))
    return [
        *found,
        f"the distance is {_fixed(half['distance'], 1)} guided and {_fixed(half['distance_unguided'], 2)} unguided"
        f" (float32: {_fixed(exact['distance'], 1)} and {_fixed(exact['distance_unguided'], 2)}), the judge names"
        f" {_percent(half['accuracy'])} and {_percent(half['accuracy_unguided'])} % as asked for"
        f" ({_percent(exact['accuracy'])} and {_percent(exact['accuracy_unguided'])} %)",
    ]


def _forward(document: Mapping[str, Any], contender: str, rows: int, network: str = UNET) -> float:
    """Seconds of one forward within our loop."""
    [case] = {row["case"] for row in document["results"] if re.fullmatch(f"{network}, .* of {rows}", row["case"])}
    return _p50(_row(document, case, f"{contender}, loop")) / int(case.split()[-4])


def _pipelines(document: Mapping[str, Any]) -> list[str]:
    names = {
        "diffusers, eager": "diffusers eager",
        "`compile(pipe)`": "compile(pipe)",
        "ONNX Runtime under a Python loop, as optimum does": "ONNX Runtime, Python loop",
        "`compile(pipe, bundle=...)`": "compile(pipe, bundle)",
        "`TextToImage`": "TextToImage",
    }
    return _pictures(document, names)


def _genai(document: Mapping[str, Any]) -> list[str]:
    ours = '`TextToImage.load(..., backend="openvino"'
    return _pictures(
        document,
        {
            "OpenVINO GenAI, float32": "OpenVINO GenAI",
            f"{ours})`": "TextToImage, OpenVINO",
            "`TextToImage` in ONNX Runtime": "TextToImage, ONNX Runtime",
            "OpenVINO GenAI, bf16": "OpenVINO GenAI, bf16",
            f'{ours}, precision="bf16")`': "TextToImage, OpenVINO, bf16",
        },
    )


def _pictures(document: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """A line a contender: latency and peak memory of the two sizes."""
    tiny, mid = _cases(document)
    pairs = {shown: (_row(document, tiny, name), _row(document, mid, name)) for shown, name in names.items()}
    return [f"| {shown} | {_times_and_memory(*pair, between=' | ')} |" for shown, pair in pairs.items()]


def _schedulers(document: Mapping[str, Any]) -> list[str]:
    def pair(name: str, shape: str) -> tuple[str, str]:
        rows = [row for row in document["results"] if row["case"] == f"{name} at {shape}"]
        peer = next(row for row in rows if row["contender"] == row["peer"])
        return _us(next(row for row in rows if row["contender"] == "stepfuse")), _us(peer)

    small, wide = "(1, 4, 64, 64)", "(8, 4, 64, 64)"
    (a, b), (c, d) = pair("DDIM", small), pair("DPM-Solver++ 2M", small)
    (e, f), (g, h) = pair("DDIM", wide), pair("DPM-Solver++ 2M", wide)
    noisy = [
        row["times_peer"]["p50"]
        for row in document["results"]
        if row["contender"] == "stepfuse" and row["case"].startswith(("DDIM, eta 1", "DDPM", "LCM"))
    ]
    return [
        f"at (1, 4, 64, 64) DDIM {a} µs against diffusers' {b} µs, DPM-Solver++ 2M {c} µs against {d} µs; at (8, 4, 64,"
        f" 64) {e} against {f}, and {g} against {h}.",
        f"the gain {_fixed(min(noisy), 1)} to {_fixed(max(noisy), 1)} times.",
    ]


def _quantized(document: Mapping[str, Any]) -> list[str]:
    names = {
        "static": "static",
        "dynamic": "dynamic",
        "dynamic, Conv": "dynamic, convolutions too",
        "float32, OpenVINO": "float32, OpenVINO",
        "bf16": "bf16, OpenVINO",
        "static, OpenVINO": "static, OpenVINO",
        "static and bf16": "static, the rest in bf16, OpenVINO",
    }
    plain = _row(document, "1 guided", "float32")
    found = [
        f"| float32 | 1 | | {_fixed(plain['distance_unguided'], 1)} | {_percent(plain['accuracy'])} % |"
        f" {_fixed(plain['megabytes'], 1)} |"
    ]
    for name, shown in names.items():
        one, sixteen = _row(document, "1 guided", name), _row(document, "16 guided", name)
        of = " of the range" if name == "static" else ""
        found.append(
            f"| {shown} | {_fixed(one['times_peer']['p50'], 2)}, {_fixed(sixteen['times_peer']['p50'], 2)} |"
            f" {_percent(one['image_error'])} %{of} | {_fixed(one['distance_unguided'], 1)} |"
            f" {_percent(one['accuracy'])} % | {_fixed(one['megabytes'], 1)} |"
        )
    return found


def _exports(document: Mapping[str, Any]) -> list[str]:
    shown = {
        "CIFAR-10 DDPM UNet, 143 MB, float32": ("CIFAR-10 DDPM UNet", "float32"),
        "Stable Diffusion 1.5's UNet, 3.4 GB, float32": ("Stable Diffusion 1.5 UNet", "float32"),
        "the same in float16, 1.7 GB": ("Stable Diffusion 1.5 UNet", "float16"),
    }
    found = []
    for name, (case, dtype) in shown.items():
        alone, compared = (_row(document, case, f"stepfuse {how}, {dtype}") for how in ("export_onnx", "to_bundle"))
        cells = [f"{_export_seconds(row)} s, {_gigabytes(row)} GB" for row in (alone, compared)]
        found.append(f"| {name} | {cells[0]} | {cells[1]} | {_figure(_exponent(compared['error']))} |")
    return found


def _http(document: Mapping[str, Any]) -> list[str]:
    rows = document["results"]
    short_one, usual = (row for row in rows if row["part"] == "overhead")
    ready = {row["system"]: row["seconds"]["p50"] for row in rows if row["part"] == "start"}
    [stress] = [row for row in rows if row["part"] == "stress"]
    memory = stress["memory_MB"]
    names = {
        "ours": "`stepfuse serve`",
        "batched": "FastAPI, static batches",
        "locked": "FastAPI, a lock",
        "ray": "Ray Serve, a call a request",
    }
    shown = []
    for row in rows:
        if row["part"] == "load":
            seconds = " | ".join(f"{_seconds(row[f'{name}_s'])} s" for name in ("mean", "p50", "p95", "p99"))
            speed = f"{_fixed(row['images_per_s'], 1)} | {_fixed(row['errors'], 0)}"
            shown.append(f"| {row['load']:g} | {names[row['system']]} | {seconds} | {speed} |")
    previews = [
        _fixed(1e3 * row["preview_p50_s"], 0) for row in rows if row["part"] == "load" and row["system"] == "ours"
    ]
    return [
        f"adds {_fixed(short_one['overhead_ms']['p50'], 1)} ms to a request of 5 steps and"
        f" {_fixed(usual['overhead_ms']['p50'], 1)} ms to one of 20 guided ones (medians",
        f"ready {_fixed(ready['ours'], 2)} s after its process has started; FastAPI around diffusers takes"
        f" {_fixed(ready['locked'], 1)} s",
        *shown,
        f"The first preview came after {' and '.join(previews)} ms (medians at the two loads)",
        f"Of {_figure(format(stress['requests'], ','))} requests over {_fixed(stress['connections_held'], 0)}"
        f" connections at once {_fixed(stress['lost'], 0)} were lost or wrong",
        f"took {_fixed(memory['after_a_fifth'], 0)} MB after a fifth of them and {_fixed(memory['end'], 0)} MB at the"
        " end",
    ]


def _row(document: Mapping[str, Any], case: str, contender: str) -> dict[str, Any]:
    [found] = [row for row in document["results"] if (row.get("case"), row.get("contender")) == (case, contender)]
    return dict(found)


def _cases(document: Mapping[str, Any]) -> tuple[str, str]:
    tiny, mid = dict.fromkeys(row["case"] for row in document["results"])
    return tiny, mid


def _system(document: Mapping[str, Any], load: float, system: str) -> dict[str, Any]:
    [found] = [row for row in document["results"] if (row["load"], row.get("system")) == (load, system)]
    return dict(found)


def _over(document: Mapping[str, Any], load: float) -> dict[str, dict[str, float]]:
    [found] = [
        row["ours_over"]["measured"] for row in document["results"] if row["load"] == load and "ours_over" in row
    ]
    return dict(found)


def _p50(row: Mapping[str, Any]) -> float:
    return float(row["seconds"]["p50"])


def _figure(text: str) -> str:
    return f"{MARK}{text}{MARK}"


def _digits(value: float) -> str:
    return _figure(short(value, 2))


def _fixed(value: float, decimals: int) -> str:
    return _figure(f"{value:.{decimals}f}")


def _percent(share: float) -> str:
    return _fixed(100 * share, 1)


def _seconds(value: float) -> str:
    """Two decimals below a second, one above, as the eye compares a column."""
    return _figure(f"{value:.2f}" if value < 1 else f"{value:.1f}")


def _us(row: Mapping[str, Any]) -> str:
    return _digits(1e6 * _p50(row))


def _ms(row: Mapping[str, Any]) -> str:
    return _fixed(1e3 * _p50(row), 0)


def _s(row: Mapping[str, Any]) -> str:
    return _fixed(_p50(row), 2)


def _times(row: Mapping[str, Any]) -> str:
    return _fixed(row["times_peer"]["p50"], 0)


def _speed(row: Mapping[str, Any]) -> str:
    return _fixed(row["GB_per_second"], 0)


def _range(seconds: list[float]) -> str:
    return f"{_fixed(1e6 * min(seconds), 0)} to {_fixed(1e6 * max(seconds), 0)}"


def _times_and_memory(tiny: Mapping[str, Any], mid: Mapping[str, Any], between: str = "; ") -> str:
    small = f"{_ms(tiny)} ms, {_fixed(tiny['peak_MB'], 0)} MB"
    return f"{small}{between}{_s(mid)} s, {_fixed(mid['peak_MB'], 0)} MB"


def _export_seconds(row: Mapping[str, Any]) -> str:
    seconds = _p50(row)
    return _figure(f"{seconds:.1f}" if seconds < 20 else f"{seconds:.0f}")


def _gigabytes(row: Mapping[str, Any]) -> str:
    gigabytes = row["peak_MB"] / 1e3
    return _figure(f"{gigabytes:.2f}" if gigabytes < 1 else f"{gigabytes:.1f}")


def _exponent(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"
