"""What runs in a replica of Ray Serve: the app over models of its own, which have run before requests come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ray
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepfuse.integrations.ray.counters import Counters
from stepfuse.integrations.ray.scaling import PICTURES
from stepfuse.server.app import create_app
from stepfuse.server.http_metrics import collector_of
from stepfuse.server.loading import load_model
from stepfuse.server.models import ServedModel
from stepfuse.serving.config import CostCurve


@dataclass(frozen=True)
class Plan:
    """What a replica is made by.

    Attributes:
        models: As ``stepfuse serve`` names them.
        loading: Arguments of ``load_model``; ``threads`` None is one for each CPU that Ray has assigned to the replica.
        loras: Arguments of it for the LoRAs of each model; none where it has none.
        costs: As ``calibrate`` of ``create_app``, by the models' names.
        app: More of its arguments.
    """

    models: tuple[str, ...]
    loading: Mapping[str, Any]
    loras: Sequence[Mapping[str, Any]]
    costs: Mapping[str, bool | CostCurve]
    app: Mapping[str, Any]

    def open(self) -> FastAPI:
        """The app, with its models at ``app.state.models``.

        Raises:
            Exception: As ``load_model`` does, or a model's first run: Serve then does not start the replica.
        """
        threads = self.loading["threads"]
        loading = {**self.loading, "threads": _assigned() if threads is None else threads}
        with ExitStack() as stack:
            models = []
            for given, loras in zip(self.models, self.loras, strict=True):
                models.append(model := load_model(given, **loras, **loading))
                stack.callback(model.close, abort=True)
                model.warm_up(calibrate=self.costs.get(model.name, False))
            app = create_app({one.name: one for one in models}, warm_up=False, replicated=True, **self.app)
            stack.pop_all()
        app.add_middleware(WithoutId)
        app.state.models = models
        return app


class WithoutId:
    """Leaves out ``X-Request-ID`` of an answer, since Serve's proxy adds it, the same one.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""

        async def without(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["X-Request-ID"]
            await send(message)

        await self._app(scope, receive, without)


class Replica:
    """The hooks of Serve for a replica; its app answers the requests.

    Attributes:
        app: Of ``Plan.open``, set by Serve.
    """

    app: FastAPI

    def __init__(self) -> None:
        self._forwards: dict[str, tuple[int, int]] = {}
        self._counters: Counters | None = None

    @property
    def _models(self) -> list[ServedModel]:
        found: list[ServedModel] = self.app.state.models
        return found

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The pictures that wait or run, for ``by_pictures``."""
        counts = [model.stats() for model in self._models]
        return {PICTURES: float(sum(one["waiting"] + one["running"] for one in counts))}

    def check_health(self) -> None:
        """Brings the counters up to date, and has Serve replace the replica where a network does nothing but fail.

        Raises:
            RuntimeError: If every forward of a model since the last check has failed.
        """
        self._counters = self._counters or Counters(collector_of(self._models))
        self._counters.update()
        for model in self._models:
            counts = model.stats()
            now = counts["forwards"], counts["failed_forwards"]
            before = self._forwards.get(model.name, (0, 0))
            self._forwards[model.name] = now
            forwards, failed = (after - earlier for after, earlier in zip(now, before, strict=True))
            if forwards and forwards == failed:
                raise RuntimeError(f"{model.name}: all {failed} forwards since the last check have failed")

    def __del__(self) -> None:
        """Ends the models: Serve calls it when what ran is answered, after the app has ended."""
        for model in self._models if hasattr(self, "app") else ():  # there is none if a model could not be loaded
            model.close(abort=True, timeout=1.0)


def _assigned() -> int:
    """CPUs that the replica may use: at least one."""
    return max(int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)), 1)
