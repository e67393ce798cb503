"""Entries that most classes read alike."""

from __future__ import annotations

from typing import Any

from stepfuse.integrations.readers.entries import Entries


def spacing_of(config: Entries) -> dict[str, Any]:
    """How timesteps are spaced, with the offset that one of the spacings has."""
    spacing = config.require("timestep_spacing", "leading", "trailing", "linspace")
    if spacing != "leading" or not config["steps_offset"]:
        return {"spacing": spacing}
    rule = "a whole number of at least 0"
    offset = config.number("steps_offset", rule, lambda offset: offset >= 0 and offset % 1 == 0)
    return {"spacing": spacing, "steps_offset": int(offset)}


def bounds_of(config: Entries) -> dict[str, Any]:
    """How the clean estimate is bounded: by thresholding if that is set, else by clipping."""
    if config.get("thresholding"):
        largest = config.number("sample_max_value", "at least 1 with thresholding", lambda largest: largest >= 1)
        rule = "above 0 and at most 1 with thresholding"
        return {"dynamic_threshold": (config.number("dynamic_thresholding_ratio", rule, lambda r: 0 < r <= 1), largest)}
    if config.get("clip_sample"):
        return {"clip": config.number("clip_sample_range", "above 0 with clip_sample", lambda bound: bound > 0)}
    return {}


def require_no_variance(config: Entries) -> None:
    """Refuses networks that predict a variance, too; other variances are DDPM's, and mean nothing to a solver."""
    if config["variance_type"] in ("learned", "learned_range"):
        config.refuse("variance_type", config["variance_type"], "neither 'learned' nor 'learned_range'")
