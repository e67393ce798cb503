"""Which matrices a graph of ``stepfuse.export`` holds transposed, as its metadata says."""

from __future__ import annotations

import json
from collections.abc import Mapping

from stepfuse.errors import ExportError

TRANSPOSED = "stepfuse.transposed"  # key of a model's metadata


def transposed_weights(metadata: Mapping[str, str]) -> frozenset[str]:
    """Names of the parameters that a graph of ``stepfuse.export`` holds transposed, from its metadata.

    Raises:
        ExportError: If the metadata has no entry of them, as that of other exporters, or one that is no list of names.
    """
    if TRANSPOSED not in metadata:
        raise ExportError(f"a graph must say which weights it holds transposed ({TRANSPOSED}): export it with stepfuse")
    try:
        return frozenset(json.loads(metadata[TRANSPOSED]))
    except (ValueError, TypeError, RecursionError) as error:
        raise ExportError(f"{TRANSPOSED} of a graph must be a list of names: {error}") from error
