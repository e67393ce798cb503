"""What the service draws with: a model of either kind, behind one interface."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from PIL import Image

from stepfuse.bundle.identity import ModelIdentity
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.lora.adapters import LoraInfo
from stepfuse.pipeline.pictures import Pictures
from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.samplers import SAMPLERS
from stepfuse.samplers.names import steps_asked
from stepfuse.serving.config import CostCurve, Serving
from stepfuse.serving.reporting import Observer
from stepfuse.serving.stream import PreviewStream

_LONGEST_WAIT = 60  # seconds that a client is asked to wait
_UNMEASURED = 0.1  # seconds of a pass, before the first forward


@dataclass(frozen=True)
class Drawing:
    """One picture to come.

    Attributes:
        future: Holds its sample; cancelling it withdraws the request.
        finish: Makes the picture of that: takes a while, so on a worker thread.
    """

    future: Future[Any]
    finish: Callable[[Any], Pictures]


@dataclass(frozen=True)
class Watched:
    """One picture as it comes into being.

    Attributes:
        previews: Each with ``step`` and ``total``, the last one with ``step == total``; closing it withdraws the
            request.
        preview: Makes an image of one that is not the last, on a worker thread.
        finish: Makes the picture of the last one, on a worker thread.
    """

    previews: PreviewStream[Any]
    preview: Callable[[Any], Image.Image]
    finish: Callable[[Any], Pictures]


class ServedModel(ABC):
    """A model under the name that clients ask for it by. Calls from any number of threads are safe.

    Attributes:
        name: What clients call it.
        info: Its network.
        identity: Name and digests of its bundle; None for a network of Python's.
        serving: How requests share it.
        classes: The class names that it takes as prompts; None where it takes prompts as such.
        size: Width and height in pixels that it draws unless asked otherwise.
        cost: Of its forwards, once measured or given.

    Examples:
        >>> from stepfuse.server import ClassModel
        >>> model = ClassModel("fashion", sf.Engine.load("fashion"))
        >>> model.classes[:2], model.samplers[:2], model.digest[:6], model.cost is None
        (('t-shirt', 'trouser'), ['ddim', 'ddpm'], 'acf6dd', True)
        >>> dict(model.loras), model.controls
        ({}, ())
        >>> model.observe(None)
        >>> model.warm_up(calibrate=False)
        >>> request = sf.PromptRequest(prompt="bag", steps=3, seed=1)
        >>> model.warnings(request), model.retry_after() >= 1
        ([], True)
        >>> drawing = model.submit(request)
        >>> picture = drawing.finish(drawing.future.result())
        >>> model.drawn(picture)["seed"]
        1
        >>> watched = model.stream(request)
        >>> model.stats()["submitted"] >= 1
        True
        >>> model.close(abort=True)
    """

    classes: tuple[str, ...] | None = None
    cost: CostCurve | None = None

    def __init__(
        self, name: str, info: ModelInfo, identity: ModelIdentity | None, serving: Serving, size: tuple[int, int]
    ) -> None:
        self.name, self.info, self.identity, self.serving, self.size = name, info, identity, serving, size

    @abstractmethod
    def submit(self, request: PromptRequest) -> Drawing:
        """Queues a picture.

        Raises:
            Exception: As ``TextToImage.submit`` or ``Engine.submit`` does.
        """

    @abstractmethod
    def stream(self, request: PromptRequest) -> Watched:
        """Queues a picture that is watched.

        Raises:
            Exception: As ``submit`` does.
        """

    def warnings(self, request: PromptRequest) -> list[str]:
        """What of a request, which was taken, has no effect: its prompts beyond what the model reads of them."""
        return []

    @abstractmethod
    def stats(self) -> Mapping[str, Any]:
        """Counts since it was loaded: ``EngineStats``."""

    @abstractmethod
    def observe(self, observer: Observer | None) -> None:
        """Has each iteration reported, as ``Engine.observe``."""

    @abstractmethod
    def warm_up(self, *, calibrate: bool | CostCurve = False) -> None:
        """Runs what the first request would otherwise wait for; measures or takes its cost if ``calibrate`` says so."""

    @abstractmethod
    def close(self, *, abort: bool = False, timeout: float | None = None) -> None:
        """Ends it, as ``Engine.close``."""

    @property
    def digest(self) -> str:
        """SHA-256 of the file that holds its weights; empty for a network of Python's."""
        return "" if self.identity is None else self.identity.weights

    @property
    def loras(self) -> Mapping[str, LoraInfo]:
        """The LoRAs that requests can choose, by name."""
        return {}

    @property
    def controls(self) -> tuple[str, ...]:
        """The ControlNets that requests can have follow a picture, by name."""
        return ()

    @property
    def samplers(self) -> list[str]:
        """Names of the samplers that it draws with."""
        return list(dict.fromkeys([*SAMPLERS, *(table.sampler for table in self.info.tables.values())]))

    def drawn(self, pictures: Pictures) -> dict[str, Any]:
        """How one picture was drawn, which draws it again, in a request's words."""
        [made] = pictures.provenance
        return {
            "model": self.name,
            "digest": self.digest,
            "size": f"{pictures.pixels.shape[2]}x{pictures.pixels.shape[1]}",
            "sampler": made.sampler,
            "steps": steps_asked(made.options, made.steps),
            "guidance_scale": made.options.get("guidance_scale", 1.0),
            "seed": made.seed,
            "lora": {name: one["scale"] for name, one in (made.loras or {}).items()} or None,
        }

    def retry_after(self) -> int:
        """Seconds until what is queued and in flight now is drawn: by the cost curve, or by the forwards so far."""
        stats = self.stats()
        passes, finished = stats["network_passes"], stats["samples"]
        if self.cost is not None:
            a_pass = self.cost.row + self.cost.fixed / self.serving.row_limit
        else:
            a_pass = stats["network_seconds"] / passes if passes else _UNMEASURED
        each = passes / finished if finished else self.info.defaults.get("steps", 1)
        seconds = float((stats["waiting"] + stats["running"]) * each * a_pass)
        return min(max(math.ceil(seconds), 1), _LONGEST_WAIT)
