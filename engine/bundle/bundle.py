"""The bundle: a trained network as a folder that can be checked before it is trusted.

``manifest.json`` says what the network takes and gives; every other file is listed there with its size and SHA-256.
Nothing is unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.folder import MANIFEST, CheckedFolder, entry, open_folder_to_use, settle_all
from stepfuse.bundle.foreign import next_step
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.new_folder import NewFolder, copy_files, new_folder
from stepfuse.bundle.onnx_file import OnnxFile
from stepfuse.bundle.open_file import OpenFile
from stepfuse.bundle.pipeline_info import TEXT_ENCODER, PipelineInfo
from stepfuse.display import NAME, brief, did_you_mean, printable, shortened
from stepfuse.errors import BundleError
from stepfuse.samplers.schedule import NoiseSchedule
from stepfuse.samplers.table import StepTable

DENOISER = "denoiser.onnx"
QUANTIZATION = "quantization"  # in a manifest's export entry: options and measurements of int8


_MODELS = Path(__file__).resolve().parents[1] / "models"  # a strict editable install is a tree of links


@dataclass(frozen=True)
class Bundle:
    """A model folder, read and checked.

    Attributes:
        path: The folder.
        name: The model's name.
        info: What the network is.
        provenance: Where the weights come from.
        licence: Under which terms.
        files: Size and SHA-256 of each file by name.
        pipeline: What stands around the denoiser, where it is a whole pipeline's.
        export: How it was exported: opset, precision, versions, measured errors; empty if the manifest does not say.
        opened: The files that were checked, open, by name. They stay what they were if the folder is replaced.
        networks: The ONNX files among them by name, each with the files that hold weights of it.

    Examples:
        >>> bundle = sf.Bundle.load("fashion")
        >>> bundle.name, bundle.info.shape, bundle.info.cond["class_labels"].names[7]
        ('fashion', (1, 28, 28), 'sneaker')
        >>> bundle.denoiser.name, bundle.file("vae_decoder.onnx")
        ('denoiser.onnx', None)
    """

    path: Path
    name: str
    info: ModelInfo
    provenance: str
    licence: str
    files: Mapping[str, Mapping[str, Any]]
    pipeline: PipelineInfo | None = None
    export: Mapping[str, Any] = field(default_factory=dict)
    opened: Mapping[str, OpenFile] = field(default_factory=dict, repr=False, compare=False)
    networks: Mapping[str, OnnxFile] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
        """Opens an embedded model by name or a bundle by path, and checks every file against the manifest.

        Args:
            name_or_path: Such as ``"fashion"``, or a folder with a ``manifest.json``.
            verify: Whether checksums are compared; False trusts the files' sizes.

        Raises:
            BundleError: If there is no such bundle, or anything in it is not as its manifest says.

        Examples:
            >>> bundle = sf.Bundle.load("fashion", verify=False)  # sizes alone: for files that are trusted
            >>> bundle.info.defaults["sampler"]
            'ddim'
        """
        with checked_in_use(open_to_use(name_or_path, verify=verify)) as bundle:
            return bundle

    def __repr__(self) -> str:
        kind = f"{self.info.shape} {self.info.prediction_type}"
        around = "" if self.pipeline is None else f" of {printable(self.pipeline.source, NAME)}"
        files = f"{len(self.files)} file{'' if len(self.files) == 1 else 's'}"
        return f"<Bundle {brief(self.name)}: {kind}{around}, {files} in {printable(self.path, NAME)}>"

    @property
    def denoiser(self) -> Path:
        """The network's ONNX file."""
        return self.path / DENOISER

    def file(self, name: str) -> Path | None:
        """The path of a file that the manifest lists, or None."""
        return self.path / name if name in self.files else None


def open_to_use(name_or_path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """As ``Bundle.load``, but checksums of files from 1 MiB on are compared meanwhile: ``checked_in_use`` waits."""
    path = _locate(name_or_path)
    folder = open_folder_to_use(path, verify=verify)
    manifest = folder.manifest
    files = manifest["files"]
    if DENOISER not in files:
        raise BundleError(f"{path / MANIFEST}: files must list {DENOISER}, got {', '.join(files) or 'nothing'}")
    return Bundle(
        path=path,
        name=entry(path, manifest, "name", str),
        info=_model_info(path, manifest, _tables(folder)),
        provenance=entry(path, manifest, "provenance", str),
        licence=entry(path, manifest, "licence", str),
        files=files,
        pipeline=_pipeline_info(path, manifest),
        export=entry(path, manifest, "export", dict) if "export" in manifest else {},
        opened=folder.opened,
        networks=folder.networks,
    )


@contextmanager
def checked_in_use(name_or_path: str | os.PathLike[str] | Bundle, *, verify: bool = True) -> Iterator[Bundle]:
    """A bundle that is used while it is checked: what comes of it leaves the block if every checksum is right.

    Args:
        name_or_path: As in ``Bundle.load``, or a bundle that is open.
        verify: Likewise.

    Raises:
        BundleError: As ``Bundle.load`` does, in the place of what a damaged file has made the block raise.
    """
    bundle = name_or_path if isinstance(name_or_path, Bundle) else open_to_use(name_or_path, verify=verify)
    try:
        yield bundle
    except Exception:
        settle_all(bundle.opened)
        raise
    settle_all(bundle.opened)


def embedded_models() -> list[str]:
    """Names of the models that come with the package.

    Examples:
        >>> sf.embedded_models()
        ['fashion', 'fashion-8step']
    """
    return sorted(manifest.parent.name for manifest in _MODELS.glob(f"*/{MANIFEST}"))


def write_bundle(
    path: str | os.PathLike[str],
    *,
    name: str,
    info: ModelInfo,
    files: Mapping[str, str | os.PathLike[str]],
    provenance: str,
    licence: str,
    pipeline: PipelineInfo | None = None,
    export: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Writes a bundle: all of it, or nothing.

    Args:
        path: The folder to make.
        name: The model's name.
        info: What the network is.
        files: Files to copy, by their name in the bundle; ``denoiser.onnx`` is required.
        provenance: Where the weights come from.
        licence: Under which terms.
        pipeline: What stands around the denoiser, if anything does.
        export: How it was exported, as JSON can say it.
        overwrite: Whether a bundle that is there already is replaced.

    Returns:
        The bundle, read back and checked.

    Raises:
        BundleError: If the folder is there already and ``overwrite`` is not set, or the result does not load.

    Examples:
        >>> fashion = sf.Bundle.load("fashion")
        >>> copy = sf.write_bundle(
        ...     "my-bundle",
        ...     name="my-bundle",
        ...     info=fashion.info,
        ...     files={"denoiser.onnx": fashion.denoiser},
        ...     provenance="a copy of fashion",
        ...     licence="Apache-2.0",
        ... )
        >>> sf.Bundle.load("my-bundle").provenance
        'a copy of fashion'
    """
    with new_folder(Path(path), overwrite=overwrite) as folder:
        copy_files(folder.path, files)
        return finish_bundle(
            folder, name=name, info=info, provenance=provenance, licence=licence, pipeline=pipeline, export=export
        )


def finish_bundle(
    folder: NewFolder,
    *,
    name: str,
    info: ModelInfo,
    provenance: str,
    licence: str,
    pipeline: PipelineInfo | None = None,
    export: Mapping[str, Any] | None = None,
) -> Bundle:
    """Makes a bundle of the files that were written into a new folder. Arguments are those of ``write_bundle``.

    Raises:
        BundleError: If the result does not load, or ``folder.target`` was made meanwhile and is not to be replaced.
    """
    manifest: dict[str, Any] = {
        "name": name,
        "shape": list(info.shape),
        "dtype": "float32",
        "prediction_type": info.prediction_type,
        "timestep_dtype": info.timestep_dtype,
        "schedule": info.schedule.config,
        "cond": {key: _cond_entry(spec) for key, spec in info.cond.items()},
        "data_range": list(info.data_range),
        **({} if info.range_known else {"range_known": False}),
        "defaults": dict(info.defaults),
        **(
            {"sampler_options": {name: dict(options) for name, options in info.sampler_options.items()}}
            if info.sampler_options
            else {}
        ),
        **({"tables": sorted(info.tables)} if info.tables else {}),
        **({} if info.guidance == "classifier_free" else {"guidance": info.guidance}),
        **({} if pipeline is None else {"pipeline": pipeline.config}),
        **({} if export is None else {"export": dict(export)}),
        "files": None,
        "provenance": provenance,
        "licence": licence,
    }
    for file_name, table in info.tables.items():
        if not (folder.path / file_name).exists():
            table.save(folder.path / file_name)
    bundle = folder.finish(manifest, partial(Bundle.load, verify=False))
    for file_name, file in bundle.opened.items():
        file.path = folder.target / file_name
    return replace(bundle, path=folder.target)


def _cond_entry(spec: CondInput) -> dict[str, Any]:
    found = {**asdict(spec), "null": np.asarray(spec.null).tolist()}
    if spec.free is None:
        del found["free"]
    return found


def _locate(name_or_path: str | os.PathLike[str]) -> Path:
    given = os.fspath(name_or_path)
    if given in embedded_models():
        return _MODELS / given
    path = Path(given)
    try:
        found = (path / MANIFEST).is_file()
    except OSError as error:
        raise BundleError(f"{brief(given)} must be a folder with a {MANIFEST}: {error}") from error
    if found:
        return path
    models = embedded_models()
    rule = f"is neither an embedded model ({', '.join(models) or 'none'}) nor a folder with a {MANIFEST}"
    hint = f": {step}" if (step := next_step(given)) else did_you_mean(given, [*models, *bundles_beside(path)])
    raise BundleError(f"{given!r} {rule}{hint}")


def bundles_beside(path: Path) -> list[str]:
    """Bundles in the folder that ``path`` would be in, whether it is there or not."""
    try:
        return [str(path.with_name(manifest.parent.name)) for manifest in path.parent.glob(f"*/{MANIFEST}")]
    except (OSError, ValueError):
        return []


def _tables(folder: CheckedFolder) -> dict[str, StepTable]:
    """The tables that the manifest lists, of the files that were checked."""
    path, found = folder.path, {}
    names = entry(path, {"tables": [], **folder.manifest}, "tables", list)
    for name in names:
        if not isinstance(name, str) or name not in folder.opened:
            raise BundleError(f"{path / MANIFEST}: tables must be among its files, got {brief(name)}")
        file = folder.opened[name]
        file.settle()
        try:
            found[name] = StepTable.load(file.link)
        except (OSError, ValueError) as error:
            raise BundleError(shortened(f"{path / name}: {error}")) from error
        file.require_unchanged()
    return found


def _model_info(path: Path, manifest: Mapping[str, Any], tables: Mapping[str, StepTable]) -> ModelInfo:
    try:
        cond = {name: CondInput(**spec) for name, spec in entry(path, manifest, "cond", dict).items()}
        return ModelInfo(
            shape=tuple(entry(path, manifest, "shape", list)),
            schedule=NoiseSchedule.from_config(entry(path, manifest, "schedule", dict)),
            prediction_type=entry(path, manifest, "prediction_type", str),
            cond=cond,
            timestep_dtype=manifest.get("timestep_dtype", "float32"),
            data_range=_data_range(entry(path, manifest, "data_range", list)),
            range_known=entry(path, {"range_known": True, **manifest}, "range_known", bool),
            defaults=entry(path, manifest, "defaults", dict),
            sampler_options=_sampler_options(path, manifest),
            tables=tables,
            guidance=entry(path, {"guidance": "classifier_free", **manifest}, "guidance", str),
        )
    except BundleError:
        raise
    except (TypeError, ValueError, OverflowError, MemoryError) as error:
        raise BundleError(shortened(f"{path / MANIFEST}: {error}")) from error


def _pipeline_info(path: Path, manifest: Mapping[str, Any]) -> PipelineInfo | None:
    if "pipeline" not in manifest:
        return None
    try:
        pipeline = PipelineInfo.from_config(entry(path, manifest, "pipeline", dict))
    except BundleError:
        raise
    except (TypeError, ValueError) as error:
        raise BundleError(shortened(f"{path / MANIFEST}: {error}")) from error
    if len(shape := entry(path, manifest, "shape", list)) != 3:
        raise BundleError(f"{path / MANIFEST}: shape must be (C, h, w) for a pipeline, got {brief(shape)}")
    listed, cond = entry(path, manifest, "files", dict), entry(path, manifest, "cond", dict)
    missing = {one.tokenizer for one in (*pipeline.prompts, *pipeline.negative_prompts)}
    missing |= {TEXT_ENCODER} if pipeline.prompts else set()
    if missing := missing - set(listed):
        raise BundleError(f"{path / MANIFEST}: files must list {', '.join(sorted(missing))}, which pipeline needs")
    for entry_name, inputs in pipeline.inputs.items():
        for one in inputs:
            if one not in cond:
                raise BundleError(
                    f"{path / MANIFEST}: pipeline: {entry_name} must be one of cond's names, got {brief(one)}"
                )
    if pipeline.masked_input is not None:
        _check_masked(path, pipeline, shape, cond[pipeline.masked_input])
    return pipeline


def _check_masked(path: Path, pipeline: PipelineInfo, shape: list[Any], given: Any) -> None:
    """Refuses an input for masked pictures that is neither a mask before latents nor a cell's pixels behind them."""
    channels, sides = shape[0], list(shape[1:])
    allowed = [[1 + channels, *sides], [channels + pipeline.pixels_per_latent**2, *sides]]
    found = given.get("shape") if isinstance(given, Mapping) else None
    if found not in allowed:
        raise BundleError(
            f"{path / MANIFEST}: pipeline: shape of {pipeline.masked_input} must be"
            f" {' or '.join(map(str, allowed))}, got {brief(found)}"
        )


def _sampler_options(path: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if "sampler_options" not in manifest:
        return {}
    given = entry(path, manifest, "sampler_options", dict)
    for name, options in given.items():
        if not isinstance(options, dict):
            raise BundleError(
                f"{path / MANIFEST}: sampler_options[{brief(name)}] must be an object, got {brief(options)}"
            )
    return dict(given)


def _data_range(given: list[Any]) -> tuple[float, float]:
    if len(given) != 2 or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in given):
        raise ValueError(f"data_range must be two numbers, got {brief(given)}")
    return float(given[0]), float(given[1])
