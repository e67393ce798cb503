"""What a back end is: a network, and the stepper whose rows it turns into predictions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from stepfuse import _core
from stepfuse.bundle.cond_input import CondInput

if TYPE_CHECKING:
    from stepfuse.backends.device_samples import DeviceSamples
    from stepfuse.lora.adapters import Adapters


class Backend(Protocol):
    """A network, in the memory that a stepper's samples and a forward's rows are in."""

    @property
    def stepper(self) -> _core.Stepper:
        """Holds the samples and steps them; one loop takes it."""

    @property
    def enqueue(self) -> Callable[..., None] | _core.Denoiser:
        """What the loop calls with a number of rows; on a GPU it returns before the predictions are there.

        Where samples have a set of LoRAs, its number comes behind the rows.
        """

    @property
    def adapters(self) -> Adapters | None:
        """The network's LoRAs; None: it takes none while it runs."""

    @property
    def device_samples(self) -> DeviceSamples | None:
        """Memory for samples that stay on the device at their end; None: the loop's samples are on the host."""

    @property
    def rowwise(self) -> bool:
        """Whether a row's prediction is the same to the bit whatever is beside it, so that no forward needs padding."""

    def forward(self, rows: int) -> None:
        """Turns the first ``rows`` rows of the inputs into predictions, and returns when they are there."""

    def interrupt(self) -> None:
        """Asks a forward in progress to fail soon, and those to come; called from any thread. It may go on."""

    def close(self) -> None:
        """Frees the network."""


def row_bytes(spec: CondInput) -> int:
    """Bytes of one value of a conditioning input, as a request holds it."""
    return math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
