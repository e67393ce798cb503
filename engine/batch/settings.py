"""How the rows of a table are drawn, by a job or by an actor of Ray Data."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from stepfuse.batch.drawing import Drawer
from stepfuse.batch.formats import IMAGE_FORMATS
from stepfuse.batch.records import TYPES
from stepfuse.batch.rows import COLUMNS
from stepfuse.display import brief, did_you_mean
from stepfuse.server.loading import load_model
from stepfuse.serving.config import Serving


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How rows are drawn.

    Attributes:
        model: An embedded model's name or a bundle's folder.
        image_format: One of ``IMAGE_FORMATS``, of the pictures.
        keep: Columns that no request has, which come out with the pictures.
        deterministic: Whether forwards are padded, so that a picture is the same to the bit whatever shares them.
        max_rows: Most rows of one forward; None is the model's.
        device: What computes, as in ``Engine.load``.
        backend: Likewise.
        precision: Likewise.
        threads: Likewise.
        spinning: Likewise.
        loras: Files of LoRAs that rows can choose, by name.

    Raises:
        ValueError: If ``image_format`` is none of these, or ``keep`` names a column of requests or records.
    """

    model: str = "fashion"
    image_format: str = "png"
    keep: tuple[str, ...] = ()
    deterministic: bool = False
    max_rows: int | None = None
    device: str = "cpu"
    backend: str = "onnxruntime"
    precision: str = "float32"
    threads: int = 0
    spinning: bool | None = None
    loras: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_one_of("image_format", self.image_format, IMAGE_FORMATS)
        if taken := [name for name in self.keep if name in {*COLUMNS, *TYPES, "row", "file", "image"}]:
            raise ValueError(f"keep must name columns that neither requests nor records have, got {brief(taken[0])}")

    @contextmanager
    def drawer(self) -> Iterator[Drawer]:
        """What draws rows, with the model loaded. Leaving it by an exception withdraws what is in flight.

        Raises:
            Exception: As ``load_model`` does.
        """
        model = load_model(
            self.model,
            threads=self.threads,
            device=self.device,
            backend=self.backend,
            precision=self.precision,
            max_rows=self.max_rows,
            spinning=self.spinning,
            serving=Serving(deterministic=self.deterministic),
            loras=self.loras,
        )
        try:
            with Drawer(model, image_format=self.image_format, keep=self.keep) as drawer:
                yield drawer
        finally:
            model.close(abort=True)  # of a job that has ended nothing is left


def require_one_of(name: str, given: str, known: Collection[str]) -> None:
    """Refuses a name that there is not.

    Raises:
        ValueError: If ``given`` is none of ``known``.
    """
    if given not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {brief(given)}{did_you_mean(given, known)}")
