"""Which of our sources each result depends on, and the digest of their code that a result carries.

Comments, docstrings and white space do not count, so that only code makes a result stale. No git is needed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
_STEP = ("csrc/core/step",)
_LOOP = ("csrc/core/loop", "csrc/bindings/bind_server.cpp", "engine/serving", "engine/backends/base.py")
_HOST = "engine/backends/host"
_ONNX = tuple(
    f"{_HOST}/{name}.py" for name in ("base", "callable", "interface", "network", "onnxruntime", "processors")
)
_PROCESSES = "benchmarks/picture_processes.py"
#: By result: files, and folders with all in them. Not what only decides that a call is made, as checks of arguments do.
SOURCES: dict[str, tuple[str, ...]] = {
    "step_cpu": (*_STEP, "csrc/bindings/bind_step.cpp", "engine/samplers/step.py"),
    "step_bandwidth": (*_STEP, "csrc/bindings/bind_step.cpp", "engine/samplers/step.py"),
    "loop_overhead": (*_STEP, *_LOOP, *_ONNX),
    "end_to_end": (*_STEP, *_LOOP, *_ONNX),
    "pipeline_latency": (*_STEP, *_LOOP, *_ONNX, "engine/pipeline", "engine/integrations/diffusers", _PROCESSES),
    "genai_latency": (*_STEP, *_LOOP, *_ONNX, f"{_HOST}/openvino", "engine/pipeline", _PROCESSES),
    "threads": _ONNX,
    "cold_start": ("engine/__init__.py", "engine/engine.py", "engine/bundle", "engine/files", *_ONNX, "engine/serving"),
    "mixed_load": (*_STEP, *_LOOP, *_ONNX),
    "http_load": (*_STEP, *_LOOP, *_ONNX, "engine/server"),
    "guidance_interval": (*_STEP, *_LOOP, *_ONNX),
    "deterministic": (*_STEP, *_LOOP, *_ONNX),
    "simulate": ("csrc/core/loop", "csrc/bindings/bind_replay.cpp"),
    "policies": (
        "csrc/core/loop",
        "csrc/bindings/bind_replay.cpp",
        "engine/serving/config.py",
        "benchmarks/simulated.py",
        "benchmarks/load.py",
    ),
    "diffusers_step": (*_STEP, "csrc/bindings/bind_step.cpp", "engine/integrations/diffusers"),
    "backends": (*_STEP, *_LOOP, *_ONNX, f"{_HOST}/openvino"),
    "quantized": ("export/quantization",),
    "export_memory": ("export/onnx",),
    "frontier": ("engine/samplers", "engine/fitting/hand_made.py", "benchmarks/frontier_problems.py"),
}
_SCRIPTS = {"guidance_interval": "saturated", "deterministic": "saturated"}
_C_TEXTS = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|//[^\n]*|/\*.*?\*/', re.DOTALL)


def digest(result: str) -> str:
    """SHA-256 of the code that a result depends on, its own script included."""
    found = hashlib.sha256()
    for path in sorted(_files(result)):
        found.update(f"{path.relative_to(ROOT)}\0{code_of(path)}\0".encode())
    return found.hexdigest()


def _files(result: str) -> Iterator[Path]:
    yield ROOT / "benchmarks" / f"{_SCRIPTS.get(result, result)}.py"
    for name in SOURCES[result]:
        path = ROOT / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (one for one in found if one.suffix in (".py", ".h", ".cpp", ".inl"))


def code_of(path: Path) -> str:
    """A file's code without comments, docstrings and white space.

    Raises:
        OSError: If it cannot be read.
        SyntaxError: If it is Python and cannot be parsed.
    """
    return _code(path.read_text(encoding="utf-8"), path.suffix)


@functools.cache  # results share most of their sources
def _code(text: str, suffix: str) -> str:
    if suffix == ".py":
        text = _without_docs(text)
    else:
        text = _C_TEXTS.sub(lambda found: "" if found[0].startswith("/") else found[0], text)
    return re.sub(r"\s+", "", text)


def _without_docs(text: str) -> str:
    """Python without comments and docstrings.

    Where these are is the same in all versions of Python; how they cut tokens or print trees is not.
    """
    lines = text.splitlines(keepends=True)
    spans = [
        (token.start, token.end)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    ]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            match node.body[0]:
                case ast.Expr(value=ast.Constant(value=str()) as docs):
                    start, end = (docs.lineno, docs.col_offset), (docs.end_lineno or 0, docs.end_col_offset or 0)
                    spans.append(((start[0], _characters(lines, start)), (end[0], _characters(lines, end))))
    for (first_line, begin), (last_line, end) in sorted(spans, reverse=True):
        rest = lines[last_line - 1][end:]
        lines[first_line - 1 : last_line] = [lines[first_line - 1][:begin] + rest] + [""] * (last_line - first_line)
    return "".join(lines)


def _characters(lines: list[str], at: tuple[int, int]) -> int:
    """A column in characters, where ``ast`` counts bytes."""
    line, column = at
    return len(lines[line - 1].encode()[:column].decode())
