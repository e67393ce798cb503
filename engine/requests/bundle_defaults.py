"""What a bundle says of its samplers, checked by the samplers themselves before anything is drawn."""

from __future__ import annotations

import inspect

from stepfuse.bundle.bundle import Bundle
from stepfuse.bundle.folder import MANIFEST
from stepfuse.display import brief, shortened
from stepfuse.errors import BundleError
from stepfuse.requests.resolution import compile_table
from stepfuse.requests.sampler_defaults import OF_TABLES
from stepfuse.samplers import SAMPLERS

_OF_THE_MANIFEST = {"schedule", "prediction_type"}  # arguments of samplers that it says elsewhere
_OF_A_CALL = {"begin"}
_GUIDED = 2.0  # any guidance scale that takes both passes


def check_defaults(bundle: Bundle) -> None:
    """Compiles the table of a call without arguments, and of one that guides.

    Options of other samplers are known by name alone: whether they suit one depends on the steps that a call asks for.

    Raises:
        BundleError: If the model's sampler is unknown or refuses ``defaults``, or no sampler has an option of
            ``defaults`` or ``sampler_options``.
    """
    manifest, info = bundle.path / MANIFEST, bundle.info
    options = {"sampler", *OF_TABLES}
    options |= {name for one in SAMPLERS.values() for name in inspect.signature(one).parameters}
    options -= _OF_THE_MANIFEST | _OF_A_CALL
    others = {f"sampler_options[{brief(name)}]": values for name, values in info.sampler_options.items()}
    for name, values in {"defaults": info.defaults, **others}.items():
        if unknown := sorted(set(values) - options):
            raise BundleError(f"{manifest}: {name} must be options of samplers, got {brief(unknown)}")
    try:
        compile_table(info, None, None, None, None, {})
        ways = {"apg", "apg_form", "cfg_zero_star", "cfg_renorm"} & info.defaults.keys()
        if info.cond and ways:  # a call that does not guide leaves them out
            compile_table(info, None, None, _GUIDED, None, {})
    except (ValueError, TypeError, OverflowError) as error:
        raise BundleError(shortened(f"{manifest}: defaults: {error}")) from error
