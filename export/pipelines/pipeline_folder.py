"""A diffusers pipeline's folder: its index and configurations, and its components, loaded one at a time."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stepfuse.bundle.foreign import next_step, require_pipeline_folder
from stepfuse.display import printable
from stepfuse.errors import ExportError, StepfuseError
from stepfuse.files.strict_json import parse_json

if TYPE_CHECKING:
    import torch


INDEX = "model_index.json"
_MOST_BYTES = 64 << 20  # of a JSON file: the index of a large model's shards is megabytes

# Weights without their ending: a shard's number behind the variant, or, as diffusers wrote it until 0.30, before it.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?P<old>-\d{5}-of-\d{5})?(?:\.(?P<variant>.+?))?(?:-\d{5}-of-\d{5})?"
)
# The index of shards of a variant: as both libraries write it now, and as they did.
_INDEX, *_OLD_INDICES = (
    ".safetensors.index.{}.json",
    ".safetensors.{}.index.json",
    ".{}.safetensors.index.json",
)
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_OTHERS = (*_PICKLES, ".msgpack", ".h5", ".onnx", ".gguf")


class PipelineFolder:
    """A pipeline saved with ``save_pretrained``. Nothing is unpickled, and no hub is asked.

    Args:
        path: The folder.

    Raises:
        ExportError: If it is no such folder.
    """

    def __init__(self, path: Path) -> None:
        require_pipeline_folder(path)
        self.path = path
        self.index = _read_json(path / INDEX)
        self._elsewhere: dict[str, Path] = {}
        self.class_name = str(self.index.get("_class_name"))

    def add(self, name: str, path: Path, kind: str) -> None:
        """Takes a folder that a model of diffusers was saved to as one more component.

        Raises:
            ExportError: If the pipeline has a component of this name, or the folder is not of a ``kind``.
        """
        if self.has(name) or (self.path / name).exists():
            raise ExportError(f"{self.path} has a {name} of its own: give {path} another name")
        found = _read_json(path / "config.json").get("_class_name")
        if found != kind:
            raise ExportError(f"{path / 'config.json'}: _class_name must be {kind}, got {found!r}")
        self.index[name] = ["diffusers", kind]
        self._elsewhere[name] = path

    def folder(self, name: str) -> Path:
        """Where a component is."""
        return self._elsewhere.get(name, self.path / name)

    def has(self, name: str) -> bool:
        """Whether the pipeline has a component."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None

    def kind(self, name: str, allowed: Collection[str]) -> str:
        """The class of a component.

        Raises:
            ExportError: If it is missing, or none of these.
        """
        if not self.has(name):
            raise ExportError(f"{self.path / INDEX}: {self.class_name} must have a {name}, got none")
        kind = str(self.index[name][1])
        if kind not in allowed:
            raise ExportError(f"{self.path / INDEX}: {name} must be {' or '.join(allowed)}, got {kind}")
        if not self.folder(name).is_dir():
            raise ExportError(f"{self.path / name} is missing: {INDEX} says that {name} is there")
        return kind

    def json(self, name: str, file: str) -> dict[str, Any]:
        """A file of a component."""
        return _read_json(self.folder(name) / file)

    def config(self, name: str, kind: str, *former: str) -> Config:
        """Configuration of a component of diffusers, with its class's defaults filled in.

        Args:
            name: The component.
            kind: Its class.
            former: Names that folders have for the class, of earlier versions.

        Raises:
            ExportError: If it is missing, or of another class.
        """
        import diffusers

        self.kind(name, (kind, *former))
        file = self.folder(name) / "config.json"
        parameters = inspect.signature(getattr(diffusers, kind).__init__).parameters.values()
        defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
        return Config(f"{name} ({kind})", {**defaults, **_read_json(file)}, kind)

    def text_config(self, name: str, allowed: Collection[str]) -> Config:
        """Configuration of a text encoder of transformers, likewise."""
        import transformers

        kind = self.kind(name, allowed)
        _read_json(self.path / name / "config.json")
        try:
            found = getattr(transformers, kind).config_class.from_pretrained(self.path / name, local_files_only=True)
        except Exception as error:  # whatever the library raises of a configuration that it does not take
            raise ExportError(f"{self.path / name / 'config.json'}: {kind} does not take it: {error}") from error
        return Config(f"{name} ({kind})", found.to_dict(), kind)

    def weights(self, name: str) -> str | None:
        """The variant of a component's weights, such as ``fp16``; None for those without one, which are preferred.

        Raises:
            ExportError: If there are none as safetensors, or a shard is missing.
        """
        folder = self.folder(name)
        names = sorted(file.name for file in folder.iterdir() if file.is_file())
        stems = [one.removesuffix(".safetensors") for one in names if one.endswith(".safetensors")]
        variants = {found["variant"] for stem in stems if (found := _WEIGHTS.fullmatch(stem))}
        if not variants:
            raise ExportError(self._no_weights(name, names))
        variant = None if None in variants else min(variants)
        endings = [one.format(variant) for one in (_INDEX, *_OLD_INDICES)] if variant else [".safetensors.index.json"]
        for index in (one for one in names if one.endswith(tuple(endings))):
            listed = _read_json(folder / index).get("weight_map")
            if not isinstance(listed, dict) or not all(isinstance(one, str) for one in listed.values()):
                raise ExportError(f"{folder / index}: weight_map must name a file for each weight")
            shards = set(listed.values())
            if missing := sorted(shards - set(names)):
                raise ExportError(f"{folder / missing[0]} is missing: {index} lists it")
        return variant

    def load(self, name: str, allowed: Collection[str]) -> torch.nn.Module:
        """A component with its weights, in float32 and evaluation mode.

        Raises:
            ExportError: If there are no weights as safetensors, a shard or a parameter is missing, or the class's own
                library cannot load them.
        """
        kind, variant = self.kind(name, allowed), self.weights(name)
        library = import_module("transformers" if self.index[name][0] == "transformers" else "diffusers")
        # diffusers' default is True, and without accelerate it warns at each load that it does otherwise.
        own = {"low_cpu_mem_usage": find_spec("accelerate") is not None} if library.__name__ == "diffusers" else {}
        try:
            with _no_bars(), _with_index_names_of_now(self.folder(name), variant) as path:
                module, report = getattr(library, kind).from_pretrained(
                    path,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                    **own,
                )
        except Exception as error:  # whatever the libraries raise, safetensors' own among it
            raise ExportError(f"{self.folder(name)}: {kind} cannot be loaded: {error}") from error
        if missing := sorted(report["missing_keys"]):
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise ExportError(f"{self.folder(name)}: weights of {kind} must be complete, {len(missing)} miss: {shown}")
        found: torch.nn.Module = module.float().eval()
        return found

    def licence(self) -> str:
        """The licence that the front matter of README.md names."""
        readme = self.path / "README.md"
        text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
        matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        entries = re.findall(r"^(license\w*):[ \t]*(\S.*?)\s*$", matter[1] if matter else "", re.MULTILINE)
        values = {key: value.strip("'\"") for key, value in entries}
        named = values.get("license_name") if values.get("license") == "other" else values.get("license")
        return " ".join(filter(None, (named or values.get("license"), values.get("license_link")))) or (
            "not stated: that of the weights it was exported from"
        )

    def _no_weights(self, name: str, names: list[str]) -> str:
        others = [one for one in names if one.endswith(_OTHERS)]
        if not others:
            hint = f": {step}" if (step := next_step(self.path)) else ""
            return f"{self.folder(name)} must hold weights as safetensors, got {', '.join(names) or 'nothing'}{hint}"
        if name in self._elsewhere:
            kind, path = self.index[name][1], self.folder(name)
            convert = (
                f'python -c "from diffusers import {kind} as M;'
                f" M.from_pretrained('{path}', use_safetensors=False).save_pretrained('CONVERTED')\""
            )
        else:
            convert = (
                f'python -c "from diffusers import {self.class_name} as P;'
                f" P.from_pretrained('{self.path}', use_safetensors=False)"
                ".save_pretrained('CONVERTED', safe_serialization=True)\""
            )
        return (
            f"{self.folder(name)} must hold weights as safetensors, got {others[0]}: files that can run code are not"
            f" opened here. If you trust them, convert them: {convert}"
        )


class Config(Mapping[str, Any]):
    """A component's configuration.

    Args:
        name: The component's name in error messages.
        values: Entries by name.
        kind: Its class.
    """

    def __init__(self, name: str, values: Mapping[str, Any], kind: str = "") -> None:
        self.name, self._values, self.kind = name, values, kind

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def require(self, key: str, rule: str, check: Callable[[Any], bool]) -> Any:
        """An entry's value.

        Raises:
            ExportError: If ``check`` refuses the value.
        """
        value = self._values.get(key)
        if not check(value):
            raise ExportError(f"{self.name}: {key} must be {rule}, got {value!r}: this network is not covered")
        return value

    def require_none(self, *keys: str) -> None:
        """Refuses a configuration in which one of these is set."""
        for key in keys:
            self.require(key, "None", lambda value: value is None)

    def number(self, key: str) -> int:
        """An entry that is one whole number."""
        return int(self.require(key, "a number", lambda value: isinstance(value, int)))


@contextmanager
def readable(folder: PipelineFolder) -> Iterator[None]:
    """Whatever a damaged configuration or tokenizer makes of this code or of a library is an error of the folder."""
    try:
        yield
    except BaseException as error:
        panic = type(error).__name__ == "PanicException"  # of the tokenizers library, which is no Exception
        if isinstance(error, StepfuseError | ImportError | MemoryError) or not (isinstance(error, Exception) or panic):
            raise
        reason = printable(f"{type(error).__name__}: {error}", 500)
        raise ExportError(f"{folder.path}: its files must be as diffusers writes them, got {reason}") from error


@contextmanager
def _with_index_names_of_now(folder: Path, variant: str | None) -> Iterator[Path]:
    """The folder; or, if the index of its shards has an old name, one of links to its files, with the name of now.

    diffusers itself looks for one of the old names, but not where a folder above has a dot in its name.
    """
    files = sorted(folder.iterdir())
    old = [ending.format(variant) for ending in _OLD_INDICES] if variant else []
    found = [(file, ending) for file in files for ending in old if file.name.endswith(ending)]
    if not found or any(file.name.endswith(_INDEX.format(variant)) for file in files):
        yield folder
        return
    index, ending = found[0]
    with TemporaryDirectory() as links:
        for file in files:
            (Path(links) / file.name).symlink_to(file.resolve())
        (Path(links) / (index.name.removesuffix(ending) + _INDEX.format(variant))).symlink_to(index.resolve())
        yield Path(links)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Hides the progress bars of transformers, which would overwrite the caller's."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ExportError(f"{file} must have at most {_MOST_BYTES} bytes")
        found = parse_json(content)
    except FileNotFoundError as error:
        raise ExportError(f"{file} is missing") from error
    except ExportError:
        raise
    except (OSError, ValueError) as error:
        raise ExportError(f"{file} is not readable JSON: {error}") from error
    if not isinstance(found, dict):
        raise ExportError(f"{file} must hold an object, got {type(found).__name__}")
    return found
