"""A torch module becomes a bundle: exported into a new folder, compared with the module, then put in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from stepfuse.bundle.bundle import DENOISER, Bundle, finish_bundle
from stepfuse.bundle.cond_input import CondInput
from stepfuse.bundle.folder import MANIFEST
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.bundle.new_folder import new_folder
from stepfuse.display import byte_size
from stepfuse.errors import ExportError
from stepfuse.export.onnx.denoiser_module import PREDICTION, SAMPLE, TIMESTEP, DenoiserModule, check_module
from stepfuse.export.onnx.graph import Report, export_onnx
from stepfuse.export.onnx.inputs import Input, first_sizes
from stepfuse.export.onnx.validate import TOLERANCES, require_trials, validate
from stepfuse.extras import pip_install
from stepfuse.samplers.schedule import NoiseSchedule

try:
    import torch
except ImportError as error:
    raise ImportError(f"exporting needs torch ({error}): {pip_install('export')}") from error


def to_bundle(
    module: torch.nn.Module,
    *,
    shape: Sequence[int],
    schedule: NoiseSchedule,
    out: str | os.PathLike[str],
    prediction_type: str = "epsilon",
    cond: Mapping[str, CondInput] | None = None,
    timestep_dtype: str = "float32",
    dynamic_size: bool | int = False,
    precision: str = "float32",
    opset: int = 18,
    external: bool | None = None,
    data_range: tuple[float, float] = (-1.0, 1.0),
    defaults: Mapping[str, Any] | None = None,
    guidance: str = "classifier_free",
    name: str | None = None,
    provenance: str = "",
    licence: str = "",
    row_counts: Sequence[int] = (1, 2, 5),
    tolerance: float | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Writes a noise-prediction network as a bundle, and compares it with the module first.

    The graph is run in ONNX Runtime beside the module at each number of rows, on the same random inputs; a bundle whose
    error is too large is not put in place, and nothing is left of a failed export. Weights are written one at a time,
    once, into a temporary folder beside ``out`` that is renamed to it.

    Args:
        module: Called as ``module(x, t, **cond)`` with x (R, *shape) float32, t (R,), and the conditioning inputs by
            name, each with leading R. It returns the prediction, shape of x, or an object with that as ``.sample``,
            as diffusers' models do. Float32, on the CPU; it is not changed.
        shape: Shape of one sample, such as (C, H, W).
        schedule: Noise levels that the module was trained with.
        out: The folder to make.
        prediction_type: ``epsilon``, ``v_prediction``, ``sample``, or ``flow`` with a flow schedule.
        cond: Its conditioning inputs.
        timestep_dtype: ``float32``, or ``int64`` for a module that takes whole timesteps.
        dynamic_size: Whether the last two sizes of a sample are free; a number: free multiples of it.
        precision: ``float32`` or ``float16``: weights and arithmetic in half the bytes, inputs and outputs float32.
            What stays float32 is ``stepfuse.export.onnx.precision.FLOAT32_OPERATORS`` and the arguments of sines and
            cosines.
        opset: ONNX operator set, 18 to 23.
        external: Whether weights lie in a file of their own; None: from 2 GB on, where they must.
        data_range: Least and greatest value of its samples.
        defaults: Arguments of ``Engine.sample`` where the caller gives none.
        guidance: As in ``ModelInfo``: whether ``guidance_scale`` blends predictions, or is an input of the module.
        name: The model's name; None is the folder's.
        provenance: Where the weights come from.
        licence: Under which terms.
        row_counts: Numbers of rows to compare at.
        tolerance: Largest error allowed, relative to the prediction's largest magnitude; None is
            ``stepfuse.export.onnx.validate.TOLERANCES``.
        overwrite: Whether a bundle that is there already is replaced.

    Returns:
        The bundle; ``bundle.export`` says how it was exported and the error that was found.

    Raises:
        ExportError: If ``module`` is not as described above, cannot be exported, or its graph's error is above the
            tolerance; ``out`` is there already and is not to be replaced; or the disk is too small.
        ValueError: If ``opset`` or ``precision`` is not supported, ``row_counts`` is empty or has a number below 1,
            ``tolerance`` is not above 0, ``dynamic_size`` does not divide the last two sizes, ``cond`` has a name of
            the network's own inputs, or ``ModelInfo`` refuses ``shape``, ``schedule`` or another argument of its own.

    Examples:
        >>> import torch
        >>> from stepfuse.export import to_bundle
        >>> class Network(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        ...
        ...     def forward(self, x, t):
        ...         return self.conv(x) + 0.001 * t[:, None, None, None]
        >>> schedule = sf.NoiseSchedule.linear()
        >>> bundle = to_bundle(Network().eval(), shape=(3, 8, 8), schedule=schedule, out="my-model")
        >>> with sf.Engine.load("my-model") as engine:
        ...     engine.sample(2, steps=4).shape
        (2, 3, 8, 8)
    """
    target, cond = Path(out), dict(cond or {})
    info = ModelInfo(
        tuple(shape),
        schedule,
        prediction_type,
        cond,
        timestep_dtype,
        data_range,
        defaults=dict(defaults or {}),
        guidance=guidance,
    )
    inputs, sizes = _spec(info, dynamic_size)
    require_trials(row_counts, tolerance)
    numbers = sum(tensor.numel() for tensor in module.state_dict().values())
    _check_target(target, overwrite, numbers * (2 if precision == "float16" else 4))
    denoiser = DenoiserModule(module, tuple(cond))
    check_module(denoiser, inputs, first_sizes(sizes))
    with new_folder(target, overwrite=overwrite) as folder:
        report = export_onnx(
            denoiser,
            folder.path / DENOISER,
            inputs,
            [PREDICTION],
            sizes=sizes,
            opset=opset,
            precision=precision,
            external=external,
            prefix="module.",
        )
        errors = validate(
            report.files[DENOISER],
            denoiser,
            inputs,
            [PREDICTION],
            sizes=sizes,
            row_counts=row_counts,
            tolerance=tolerance,
            precision=precision,
        )
        try:
            return finish_bundle(
                folder,
                name=name or target.name,
                info=info,
                provenance=provenance or f"exported from the torch module {type(module).__name__}",
                licence=licence or "not stated",
                export=_record(report, errors, row_counts, tolerance),
            )
        except OSError as error:
            needed, free = byte_size(report.weight_bytes), byte_size(shutil.disk_usage(target.parent).free)
            raise ExportError(f"{target} cannot be written: {error}: it takes {needed}, {free} are free") from error


def _spec(info: ModelInfo, dynamic_size: bool | int) -> tuple[list[Input], dict[str, tuple[int, ...]]]:
    """The network's inputs, and the sizes to compare at where height and width are free."""
    if taken := {SAMPLE, TIMESTEP, PREDICTION} & info.cond.keys():
        raise ValueError(f"cond must not be named {', '.join(sorted(taken))}: the network's own inputs are")
    shape: tuple[int | str, ...] = info.shape
    sizes: dict[str, tuple[int, ...]] = {}
    if dynamic_size is not False:
        multiple = int(dynamic_size)
        if len(info.shape) < 2 or multiple < 1 or any(size % multiple for size in info.shape[-2:]):
            raise ValueError(f"dynamic_size must divide the last two sizes of {info.shape}, got {dynamic_size}")
        own = [size // multiple for size in info.shape[-2:]]
        height, width = (max(2, size) for size in own)  # torch would take a size of 1 for a constant
        sizes = {"height": (height, height + 1, *own[:1]), "width": (width, width + 2, *own[1:])}
        sizes = {name: tuple(dict.fromkeys(values)) for name, values in sizes.items()}
        shape = (*info.shape[:-2], *(axis if multiple == 1 else f"{multiple}*{axis}" for axis in sizes))
    timesteps = info.schedule.max_timestep + 1
    low = info.schedule.min_timestep
    inputs = [Input(SAMPLE, shape), Input(TIMESTEP, (), info.timestep_dtype, low=low, high=timesteps)]
    return [*inputs, *(_cond_input(name, spec) for name, spec in info.cond.items())], sizes


def _cond_input(name: str, spec: CondInput) -> Input:
    if spec.dtype.startswith("float"):
        return Input(name, spec.shape, spec.dtype)
    null = np.asarray(spec.null)
    high = 2 if spec.dtype == "bool" else max(int(null.max()) + 1, len(spec.names), 1)
    return Input(name, spec.shape, spec.dtype, low=min(int(null.min()), 0), high=high)


def _check_target(target: Path, overwrite: bool, weight_bytes: int) -> None:
    """Refuses at once what would be refused after minutes of exporting."""
    if target.exists() and not overwrite:
        raise ExportError(f"{target} exists already: pass overwrite=True to replace it")
    if target.exists() and not (target / MANIFEST).is_file():
        raise ExportError(f"{target} has no {MANIFEST}: only a bundle is replaced")
    folder = next(parent for parent in target.absolute().parents if parent.exists())
    if (free := shutil.disk_usage(folder).free) < weight_bytes:
        raise ExportError(
            f"{folder} must have room for {byte_size(weight_bytes)}, the weights: {byte_size(free)} are free"
        )


def _record(
    report: Report, errors: Mapping[str, float], rows: Sequence[int], tolerance: float | None
) -> dict[str, Any]:
    """How it was exported, for the manifest."""
    return {
        "opset": report.opset,
        "precision": report.precision,
        "float32_operators": dict(report.float32_operators),
        "torch": torch.__version__,
        "onnxruntime": ort.__version__,
        "rows": list(rows),
        "errors": dict(errors),
        "tolerance": TOLERANCES[report.precision] if tolerance is None else tolerance,
    }
