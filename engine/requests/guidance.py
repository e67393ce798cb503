"""Guidance of networks that were distilled from guided predictions: one pass a step, whatever the scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepfuse.bundle.model_info import GUIDANCE_INPUT, ModelInfo
from stepfuse.display import brief
from stepfuse.samplers.table import COLUMNS, StepTable

_OF_TWO_PREDICTIONS = {"guidance_rescale": 0.0, "apg": None, "cfg_zero_star": False, "cfg_renorm": 0}


def require_guidable(info: ModelInfo, guidance_scale: float) -> None:
    """Refuses guidance where there is nothing to guide by.

    Raises:
        ValueError: If ``guidance_scale`` is not 1 for a model without conditioning or without guidance.
    """
    if guidance_scale == 1:
        return
    if not info.cond:
        raise ValueError(f"guidance_scale must be 1 for a model that takes no conditioning, got {guidance_scale}")
    if info.guidance == "none":
        raise ValueError(
            "guidance_scale must be 1, or left out, for this model, which was distilled to be sampled without guidance,"
            f" got {guidance_scale}"
        )


def require_no_negative(info: ModelInfo, name: str, given: Any) -> None:
    """Refuses negative conditioning where no pass takes it; None and empty texts are none.

    Raises:
        ValueError: If some is given to a model whose guidance is not classifier-free.
    """
    texts = [given] if isinstance(given, str) else given
    if info.guidance == "classifier_free" or given is None:
        return
    if isinstance(texts, list | tuple) and all(isinstance(one, str) and not one for one in texts):
        return
    raise ValueError(
        f"{name} must be left out for this model: a step is one pass, guided as it was distilled, and diffusers'"
        f" true_cfg_scale, which takes a second, is not offered, got {brief(given)}"
    )


def in_its_passes(info: ModelInfo, table: StepTable) -> StepTable:
    """A table as the model runs it: of embedded guidance the scale is in its options alone, and each step is one pass.

    Raises:
        ValueError: If it guides a model that takes no guidance, does anything else than guide all steps alike where
            guidance is embedded, or has patches that the model's samples are not made of.
    """
    table.adaptive_of(info.shape)  # refuses what samples of this shape have no patches for
    if info.guidance == "classifier_free":
        return table
    scales = table["g"]
    if info.guidance == "none":
        require_guidable(info, float(scales[np.argmax(scales != 1)]))
        return table
    parted = [name for name, off in _OF_TWO_PREDICTIONS.items() if getattr(table, name) != off]
    if (scales != scales[0]).any() or tuple(table.options.get("guidance_interval", (0.0, 1.0))) != (0.0, 1.0):
        parted.append("guidance_interval")
    if table.has_second_line and (table["q_u"].any() or table["u_u"].any()):
        parted.append("cfg_pp")
    if parted:
        raise ValueError(
            f"{parted[0]} must be left out for this model: it takes guidance_scale as an input, the same in all steps,"
            " and makes one prediction a step"
        )
    if scales[0] == 1:
        return table
    rows = np.array(table.rows)
    rows[:, COLUMNS.index("g")] = 1
    said = table.options.get("guidance_scale")
    scale = float(scales[0]) if said is None or np.float32(said) != scales[0] else said
    return replace(table, rows=rows, options={**table.options, "guidance_scale": scale})


def with_scale(
    info: ModelInfo, cond: Sequence[npt.NDArray[Any]] | None, table: StepTable
) -> list[npt.NDArray[Any]] | None:
    """A sample's conditioning with the guidance scale of its table, where that is embedded.

    Args:
        info: The model.
        cond: A value for each of ``info.given_cond``; None is the null value of each.
        table: What ``in_its_passes`` has returned.
    """
    if info.guidance != "embedded":
        return None if cond is None else list(cond)
    given = iter([spec.value(name, None) for name, spec in info.given_cond.items()] if cond is None else cond)
    scale = table.options.get("guidance_scale", 1.0)
    return [spec.value(name, scale) if name == GUIDANCE_INPUT else next(given) for name, spec in info.cond.items()]
