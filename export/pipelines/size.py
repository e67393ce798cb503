"""The default size of a bundle's samples."""

from __future__ import annotations

from stepfuse.errors import ExportError
from stepfuse.export.pipelines.pipeline_folder import Config

#: Width and height in pixels; None is the model's own.
Size = tuple[int, int] | None


def own_size(config: Config, size: Size, multiple: int, *, cell: int = 1, fixed: bool = False) -> tuple[int, int]:
    """Height and width of a sample.

    Args:
        config: The denoiser's; ``sample_size`` is a number, or height and width.
        size: The size asked for; None is the model's own.
        multiple: Sides of a sample are multiples of this.
        cell: Pixels a side of one cell of it.
        fixed: Whether the network takes no other size than its own.

    Raises:
        ExportError: If ``size`` is not a multiple of the model's, or not its own where that is fixed; or it is None and
            ``sample_size`` is not stated, or not a multiple.
    """
    given = config["sample_size"]
    if size is not None and not fixed:
        for name, side in zip(("width", "height"), size, strict=True):
            if side < 1 or side % (multiple * cell):
                raise ExportError(
                    f"size: {name} must be a multiple of {multiple * cell} pixels for this model, got {side}"
                )
        return size[1] // cell, size[0] // cell
    if given is None:
        raise ExportError(f"{config.name}: sample_size is not stated: give the size in pixels with size=")
    height, width = (int(side) for side in (given if isinstance(given, list | tuple) else (given, given)))
    if size is not None and size != (width * cell, height * cell):
        raise ExportError(
            f"size must be {width * cell} x {height * cell}, all that this model draws, got {size[0]} x {size[1]}"
        )
    if height < 1 or width < 1 or height % multiple or width % multiple:
        raise ExportError(f"{config.name}: sample_size must be multiples of {multiple}, got {given}")
    return height, width
