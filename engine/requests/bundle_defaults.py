"""What a bundle says of its samplers, checked by the samplers themselves before anything is drawn."""

from __future__ import annotations

import inspect

from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.folder import MANIFEST
from stepfuse.display import brief, shortened
from stepfuse.errors import BundleError
from stepfuse.requests.resolution import compile_table
from stepfuse.samplers import SAMPLERS

_NOT_OPTIONS = {"schedule", "prediction_type"}  # which the manifest says elsewhere


def check_defaults(bundle: Bundle) -> None:
    """Compiles the table of a call without arguments, and that of each sampler that ``sampler_options`` names.

    Raises:
        BundleError: If a sampler is unknown or refuses what the manifest says, or no sampler has such an option.
    """
    options = {"sampler", "guidance_rescale", "dynamic_threshold"}
    options |= {name for one in SAMPLERS.values() for name in inspect.signature(one).parameters} - _NOT_OPTIONS
    for given in (bundle.info.defaults, *bundle.info.sampler_options.values()):
        if unknown := sorted(set(given) - options):
            raise BundleError(
                f"{bundle.path / MANIFEST}: defaults and sampler_options must be options of samplers, got"
                f" {brief(unknown)}"
            )
    for sampler in (None, *bundle.info.sampler_options):
        try:
            compile_table(bundle.info, sampler, None, None, None, {})
        except (ValueError, TypeError, OverflowError) as error:
            name = "defaults" if sampler is None else f"sampler_options[{brief(sampler)}]"
            raise BundleError(shortened(f"{bundle.path / MANIFEST}: {name}: {error}")) from error
