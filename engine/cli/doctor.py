"""The command ``stepfuse doctor``: what this machine can run, and the command that installs what is missing."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass

import typer
from rich.table import Table

from stepfuse import _core
from stepfuse.bundle.bundle import Bundle, embedded_models
from stepfuse.cli.console import Report, shown
from stepfuse.errors import BundleError
from stepfuse.extras import pip_install
from stepfuse.machine import machine

_EXPORTERS = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "safetensors")
_COLLISION = "pip uninstall onnxruntime onnxruntime-gpu, then pip install the one you want"


@dataclass(frozen=True)
class Finding:
    """One row of the report.

    Attributes:
        subject: What was examined.
        found: What is installed; empty if it is missing.
        needed_for: What cannot be done without it.
        remedy: The command that installs it; empty if nothing has to be done.
        required: Whether sampling on the CPU needs it.
    """

    subject: str
    found: str
    needed_for: str
    remedy: str = ""
    required: bool = False

    @property
    def ok(self) -> bool:
        """Whether it is installed and intact."""
        return bool(self.found) and not self.remedy


def doctor(*, report: Report) -> None:
    """Say what this machine can run, what is missing, and how to install it."""
    findings = examine()
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", "what", "found", "needed for"):
        table.add_column(heading, overflow="fold")
    remedies: dict[str, list[str]] = {}
    for finding in findings:
        mark = "[green]ok" if finding.ok else "[red]no" if finding.required else "[yellow]-"
        table.add_row(mark, *map(shown, (finding.subject, finding.found or "missing", finding.needed_for)))
        if finding.remedy:
            remedies.setdefault(finding.remedy, []).append(finding.subject)
    report.show(table)
    works = all(finding.ok for finding in findings if finding.required)
    report.say("")
    if works:
        report.say("Sampling on the CPU works." + (" For what else is named above:" if remedies else ""))
    for remedy, subjects in remedies.items():  # no table, which would break a command into lines
        report.say(f"{', '.join(subjects)}:")
        report.say(f"    {remedy}")
    report.finish(findings=[{**asdict(finding), "ok": finding.ok} for finding in findings])
    if not works:
        raise typer.Exit(1)


def examine() -> list[Finding]:
    """Examines this machine; of the extras it imports OpenVINO alone, and it opens the GPU if there is one."""
    return [
        Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", "everything"),
        Finding("processors", f"{machine()['cores']} of {machine()['processor']}", "running networks"),
        Finding("instruction sets", ", ".join(_core.isas()), "the fused step on the CPU"),
        _onnxruntime(),
        *(_model(name) for name in embedded_models()),
        _package("tokenizers", "prompts", pip_install("text")),
        _package("fastapi", "stepfuse serve", pip_install("serve")),
        _package("ray", "serving and batches on several machines", pip_install("ray")),
        _package("matplotlib", "stepfuse analyze, plots", pip_install("analysis")),
        _package("prometheus-client", "metrics", pip_install("metrics")),
        _package("opentelemetry-api", "tracing", pip_install("tracing")),
        *(_package(package, "exporting models", pip_install("export")) for package in _EXPORTERS),
        _openvino(),
        _tensorrt(),
        _package("triton", "compiling the step for GPUs", pip_install("kernels")),
        _driver(),
    ]


def _installed(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # slow to import, and needed here alone

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _package(package: str, needed_for: str, remedy: str) -> Finding:
    found = _installed(package)
    return Finding(package, found, needed_for, "" if found else remedy)


def _onnxruntime() -> Finding:
    cpu, gpu = _installed("onnxruntime"), _installed("onnxruntime-gpu")
    if cpu and gpu:
        found = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} in one folder: each overwrites the other"
        return Finding("onnxruntime", found, "running networks", _COLLISION, required=True)
    try:
        import onnxruntime

        providers = ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())
    except ImportError as error:
        return Finding("onnxruntime", "", f"running networks ({error})", "pip install onnxruntime", required=True)
    return Finding("onnxruntime", f"{gpu or cpu}: {providers}", "running networks", required=True)


def _model(name: str) -> Finding:
    try:
        Bundle.load(name)
    except BundleError as error:
        return Finding(f"model {name}", "", f"sampling it ({error})", "pip install --force-reinstall stepfuse", True)
    return Finding(f"model {name}", "checksums match", "sampling it", required=True)


def _openvino() -> Finding:
    missing = _package("openvino", "backend='openvino'", pip_install("openvino"))
    if not missing.found:
        return missing
    try:
        import openvino

        from stepfuse.backends.host.openvino.library import precisions

        found = f"{missing.found}: computes in {', '.join(precisions(openvino.Core()))}"
    except (ImportError, RuntimeError) as error:
        return Finding("openvino", "", f"backend='openvino' ({error})", pip_install("openvino"))
    return Finding("openvino", found, "backend='openvino'")


def _tensorrt() -> Finding:
    for package in ("tensorrt", "tensorrt-rtx-cu13"):
        if found := _installed(package):
            return Finding("TensorRT", f"{package} {found}", "building plans")
    return Finding("TensorRT", "", "building plans", f"{pip_install('tensorrt')}, or NVIDIA's tensorrt")


def _driver() -> Finding:
    try:
        gpu = _core.cuda.open()
    except _core.cuda.CudaError as error:
        return Finding("CUDA", "", "GPUs", str(error))
    free, total = (round(size / 2**30, 1) for size in gpu.memory)
    capability = f"{gpu.compute_capability // 10}.{gpu.compute_capability % 10}"
    found = f"{gpu.name}, compute capability {capability}, driver {gpu.driver_version}, {free} of {total} GiB free"
    return Finding("CUDA", found, "GPUs")
