"""What a client may ask for at most."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from stepfuse.arguments import number, whole_number


@dataclass(frozen=True)
class Limits:
    """What a client may ask for at most. Requests beyond are refused, with the limit and the value.

    Attributes:
        images: Images of one request.
        steps: Steps of one image, and entries of a list of timesteps or noise levels.
        pixels: Width times height of an image, drawn or given.
        body_bytes: Bytes of a body without pictures.
        upload_bytes: Bytes of a body with pictures.
        body_seconds: Seconds in which a request's headers and then its body must have come.
        stored_bytes: Bytes of images that are kept for their urls; the oldest are dropped.
        stored_seconds: Seconds that an image is kept for its url.

    Examples:
        >>> from stepfuse.server import Limits
        >>> Limits(images=4, steps=100).images
        4
    """

    images: int = 10
    steps: int = 250
    pixels: int = 1 << 22
    body_bytes: int = 1 << 20
    upload_bytes: int = 1 << 25
    body_seconds: float = 30.0
    stored_bytes: int = 1 << 28
    stored_seconds: float = 3600.0

    def __post_init__(self) -> None:
        for one in fields(self):
            given = getattr(self, one.name)
            if one.name.endswith("_seconds"):
                if not 0 < number(one.name, given) < math.inf:
                    raise ValueError(f"{one.name} must be above 0 and finite, got {given}")
            elif whole_number(one.name, given) < 1:
                raise ValueError(f"{one.name} must be at least 1, got {given}")
