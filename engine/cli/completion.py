"""What a shell completes: models, samplers, class names.

A shell evaluates what it is given, and names of folders and of a bundle's classes are of unknown origin: only words of
letters, digits and a few signs are offered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import stepfuse as sf
from stepfuse.bundle.bundle import bundles_beside

_PLAIN = re.compile(r"[\w./][\w./+-]*")


def words(*known: str) -> Callable[[str], list[str]]:
    """Completes one of some words."""

    def complete(incomplete: str) -> list[str]:
        return _offered(known, incomplete)

    return complete


def model_names(incomplete: str) -> list[str]:
    """Completes an embedded model's name or a bundle's folder; where there is neither, the shell takes any file."""
    return _offered((*sf.embedded_models(), *bundles_beside(Path(f"{incomplete}*"))), incomplete)


def sampler_names(ctx: Any, incomplete: str) -> list[str]:
    """Completes a sampler's name, or that of a table of the model that is named before it."""
    bundle = _bundle(ctx)
    fitted = [] if bundle is None else sorted({table.sampler for table in bundle.info.tables.values()})
    return _offered((*sf.samplers.SAMPLERS, *fitted), incomplete)


def class_names(ctx: Any, incomplete: str) -> list[str]:
    """Completes a class of the model that is named before it, as one word: ``ankle-boot``."""
    bundle = _bundle(ctx)
    names = [] if bundle is None else [name for spec in bundle.info.cond.values() for name in spec.names]
    count = Counter("-".join(re.findall(r"\w+", name.casefold().replace("_", " "))) for name in names)
    return _offered([word for word, times in count.items() if times == 1 and not word.isdigit()], incomplete)


def _bundle(ctx: Any) -> sf.Bundle | None:
    """The model that the command line names, or that the command takes unless one is named."""
    left = ctx.args  # what stands before an option that has no value yet
    model = ctx.params.get("model") or (left[0] if left else "fashion")
    try:
        return sf.Bundle.load(model, verify=False)
    except (sf.StepfuseError, OSError, ValueError):
        return None


def _offered(known: Sequence[str], incomplete: str) -> list[str]:
    return [word for word in known if word.startswith(incomplete) and _PLAIN.fullmatch(word)]
