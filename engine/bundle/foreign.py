"""What is given for a bundle and is none: what it is, and the commands that make a bundle of it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from stepfuse.errors import ExportError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_INDEX, _CONFIG = "model_index.json", "config.json"
_MOST_BYTES = 64 << 20  # of a safetensors header
_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def next_step(given: str | Path) -> str:
    """What a path or name that is no bundle is, and the commands that lead on; empty if that cannot be seen.

    Args:
        given: A path or name; a file is read as far as its header.
    """
    path, text = Path(given), str(given)
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.is_file():
            return _of_file(path)
    except (OSError, ValueError):
        return ""
    return _of_name(text)


def require_pipeline_folder(path: Path) -> None:
    """Refuses what is no folder of a diffusers pipeline, without reading more of it.

    Raises:
        ExportError: If it is none; the message says what it is instead, where that can be seen.
    """
    if not path.is_dir():
        raise ExportError(f"{path} must be the folder of a diffusers pipeline: {next_step(path) or 'there is none'}")
    if not (path / _INDEX).is_file():
        hint = next_step(path) or "it does not"
        raise ExportError(f"{path} must hold a {_INDEX}, as save_pretrained writes it: {hint}")


def _of_folder(path: Path) -> str:
    if any(path.glob("model.onnx")) or any(path.glob("*/model.onnx")):
        if (path / _CONFIG).is_file() or (path / _INDEX).is_file():
            return (
                "it is an export of optimum, whose graphs lack what a bundle says of its model; export the pipeline"
                f" that it was made of: {_export('PIPELINE')}"
            )
        return ""
    if (path / _INDEX).is_file():
        return f"it is a pipeline of diffusers; make a bundle of it: {_export(path)}"
    if (path / _CONFIG).is_file() and (path.parent / _INDEX).is_file():
        return f"it is a part of a pipeline; make a bundle of the whole: {_export(path.parent)}"
    return ""


def _of_file(path: Path) -> str:
    suffix = path.suffix.lower()
    if path.name == "manifest.json":
        return f"give the folder that it is in, {path.parent}"
    if suffix == ".safetensors":
        if _is_lora(path):
            return f"it is a LoRA; fuse it into a bundle: stepfuse lora BUNDLE {shlex.quote(str(path))} -o NEW-BUNDLE"
        return f"it is a checkpoint in one file; have diffusers take it apart and make a bundle: {_taken_apart(path)}"
    if suffix in _PICKLES:
        return (
            f"it is a pickle, which can run code, so stepfuse does not open it; if you trust it: {_taken_apart(path)}"
        )
    if suffix == ".gguf":
        return (
            "it holds weights quantized for other programs; make a bundle of the pipeline that they are of:"
            f" hf download ORG/NAME --local-dir PIPELINE && {_export('PIPELINE')}"
        )
    if suffix == ".onnx":
        return "it is a network alone: stepfuse.write_bundle makes a bundle of it and of what it takes, docs/bundles.md"
    return ""


def _of_name(text: str) -> str:
    if not _HUB_ID.fullmatch(text) or text.startswith((".", "/")) or Path(text).suffix in (".json", *_PICKLES):
        return ""
    name = shlex.quote(text.rpartition("/")[2])
    return (
        f"if it is a model of the Hugging Face hub, download it and make a bundle of it: hf download {text}"
        f" --local-dir {name} && {_export(name)}"
    )


def _export(source: object) -> str:
    folder = Path(str(source))
    return f"stepfuse export {shlex.quote(str(source))} -o {shlex.quote(folder.name + '-bundle')}"


def _taken_apart(path: Path) -> str:
    code = "import sys; from diffusers import StableDiffusionPipeline as P;"  # or that of XL, of 3, ...
    code += " P.from_single_file(sys.argv[1]).save_pretrained(sys.argv[2])"
    file, folder = shlex.quote(str(path)), path.stem or "pipeline"
    return f'python -c "{code}" {file} {shlex.quote(folder)} && {_export(folder)}'


def _is_lora(path: Path) -> bool:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _MOST_BYTES:
            return False
        names = json.loads(file.read(length))
    return isinstance(names, dict) and any(re.search(r"lora|\.alpha$", name) for name in names)
