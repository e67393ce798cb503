"""Tables that are added to a bundle that is there already."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

from stepfuse.bundle.bundle import Bundle, finish_bundle
from stepfuse.bundle.new_folder import new_folder
from stepfuse.errors import BundleError
from stepfuse.samplers.table import StepTable


def place_of(bundle: Bundle, sampler: str, guidance_scale: float, *, overwrite: bool = False) -> str:
    """The file's name of a table that is to be added.

    Raises:
        BundleError: If there is one and ``overwrite`` is not set.
    """
    name = f"{sampler}-{guidance_scale:g}.npz"
    if name in bundle.info.tables and not overwrite:
        raise BundleError(f"{bundle.path / name} is there already: give --force or overwrite=True to replace it")
    return name


def add_table(bundle: Bundle, table: StepTable, *, overwrite: bool = False) -> Bundle:
    """Adds a table to a bundle's folder, where its name is that of a sampler from then on.

    Readers of the folder find the bundle with the table or the one without it.

    Args:
        bundle: A folder of the caller's.
        table: Such as ``stepfuse.fit`` makes; its options have ``guidance_scale``.
        overwrite: Whether a table of the same name and guidance scale is replaced.

    Returns:
        The bundle with the table.

    Raises:
        BundleError: If there is such a table and ``overwrite`` is not set.
        ValueError: If the table is not of the model's schedule, or its name is a sampler's.
        OSError: If the folder cannot be written.
    """
    name = place_of(bundle, table.sampler, float(table.options.get("guidance_scale", 1.0)), overwrite=overwrite)
    info = replace(bundle.info, tables={**bundle.info.tables, name: table})
    with new_folder(bundle.path, overwrite=True) as folder:
        for kept in bundle.files.keys() - {name}:
            (folder.path / kept).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(bundle.path / kept, folder.path / kept)
            except OSError:  # a file system without such links
                shutil.copyfile(bundle.path / kept, folder.path / kept)
        about = {key: getattr(bundle, key) for key in ("name", "provenance", "licence", "pipeline")}
        return finish_bundle(folder, info=info, export=bundle.export or None, **about)
