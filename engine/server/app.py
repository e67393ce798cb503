"""The app: routes over loaded models."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.exceptions import HTTPException

from stepfuse.engine import Engine
from stepfuse.pipeline.text_to_image import TextToImage
from stepfuse.server.answers import Served
from stepfuse.server.class_model import ClassModel
from stepfuse.server.errors import answer_error, of_one_replica
from stepfuse.server.front import Front
from stepfuse.server.http_metrics import CONTENT_TYPE, HttpMetrics
from stepfuse.server.keys import Keys
from stepfuse.server.lifecycle import Lifecycle
from stepfuse.server.limits import Limits
from stepfuse.server.models import ServedModel
from stepfuse.server.openai_routes import EDITS, GENERATIONS, openai_routes
from stepfuse.server.page_routes import page_routes
from stepfuse.server.prompt_model import PromptModel
from stepfuse.server.store import Store
from stepfuse.server.webui_routes import IMG2IMG, TXT2IMG, webui_routes
from stepfuse.serving.config import CostCurve
from stepfuse.version import __version__

logger = logging.getLogger("stepfuse.server")


def create_app(
    models: Mapping[str, Engine | TextToImage | ServedModel],
    *,
    limits: Limits | None = None,
    api_keys: Collection[str] = (),
    cors_origins: Collection[str] = (),
    warm_up: bool = True,
    calibrate: bool | Mapping[str, CostCurve] = False,
    replicated: bool = False,
) -> FastAPI:
    """An ASGI app that draws with these models, with OpenAI's routes for images.

    Its life cycle is at ``app.state.lifecycle``: after ``drain()`` it refuses work. The models are the caller's to
    close, after the app has ended.

    Args:
        models: By the names that clients ask for them by; the first one is drawn with where a client names none.
        limits: What a client may ask for at most.
        api_keys: Of which a client has to send one, as ``Authorization: Bearer KEY``, for all but ``/health`` and
            ``/ready``; none: every client is served.
        cors_origins: Origins of web pages that may ask, such as ``https://example.com``; none by default.
        warm_up: Whether each model runs once before ``/ready`` says so; requests that come before are served.
        calibrate: Whether the cost of forwards is measured then, or costs by the models' names that were measured
            before: for deadlines, and for how many rows a forward takes. Engines alone have one.
        replicated: Whether other replicas of the app answer the same clients. What one of them has is then refused,
            since any may be asked for it: urls, ``/sdapi/v1/progress`` and ``/metrics``. A reader of live events is
            let go after five seconds, and asks again.

    Raises:
        ValueError: If there is no model, a name is empty, a model cannot be served or calibrated, or a key is refused.
        TypeError: If a model is neither an engine nor a ``TextToImage``, or a list is one text.

    Examples:
        >>> from stepfuse.server import Limits, create_app
        >>> app = create_app({"fashion": sf.Engine.load("fashion")}, limits=Limits(images=4))
        >>> app.title
        'stepfuse'
    """
    limits = limits or Limits()
    served = [_served(name, model) for name, model in models.items()]
    if not served:
        raise ValueError("models must hold at least one model, got none")
    origins = checked_origins(cors_origins)
    costs = checked_costs([model.name for model in served if model.classes is not None], calibrate)
    lifecycle, metrics = Lifecycle(), HttpMetrics(served)

    def run_once() -> None:
        for model in served:
            model.warm_up(calibrate=costs.get(model.name, False))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(_warmed(lifecycle, run_once)) if warm_up or costs else None
        lifecycle.warm = warming is None
        yield
        lifecycle.drain()
        if warming is not None:
            await warming

    app = FastAPI(
        title="stepfuse", description=_ABOUT, version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.lifecycle = lifecycle
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_error)
    store = Store(limits.stored_bytes, limits.stored_seconds)
    for routes in (openai_routes, webui_routes):
        app.router.routes += routes(Served(served, limits, store, replicated)).routes  # found sooner than in a router
    app.router.routes += page_routes(served, lifecycle, replicated=replicated).routes
    _add_probes(app, lifecycle, None if replicated else metrics)
    app.add_middleware(
        Front, keys=Keys(api_keys), limits=limits, uploads=_uploads(served), lifecycle=lifecycle, metrics=metrics
    )
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=["GET", "POST"], allow_headers=["*"])
    return app


def _uploads(served: Collection[ServedModel]) -> tuple[str, ...]:
    """Paths whose bodies hold pictures."""
    return (EDITS, IMG2IMG, *((GENERATIONS, TXT2IMG) if any(model.controls for model in served) else ()))


_ABOUT = "Pictures by trained diffusion models: OpenAI's images API, with previews, priorities and deadlines."


def _add_probes(app: FastAPI, lifecycle: Lifecycle, metrics: HttpMetrics | None) -> None:
    @app.get("/health", tags=["service"], summary="Whether the service is alive")
    async def health() -> dict[str, str]:
        return {"status": "alive"}

    @app.get(
        "/ready", tags=["service"], summary="Whether it takes work", responses={503: {"description": "It does not"}}
    )
    async def ready(response: Response) -> dict[str, str]:
        response.status_code = 200 if lifecycle.ready else 503
        return {"status": "ready" if lifecycle.ready else "draining" if lifecycle.draining else "warming up"}

    @app.get("/metrics", tags=["service"], summary="Counters for Prometheus", response_class=Response)
    async def scrape() -> Response:
        if metrics is None:
            raise of_one_replica("counters are", "read them of each by itself")
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _served(name: str, model: Engine | TextToImage | ServedModel) -> ServedModel:
    if not isinstance(name, str) or not name:
        raise ValueError(f"a model's name must be a text of at least one character, got {name!r}")
    if isinstance(model, ServedModel):
        if model.name != name:
            raise ValueError(f"a model must be given under its own name, {model.name!r}, got {name!r}")
        return model
    if isinstance(model, Engine):
        return ClassModel(name, model)
    if isinstance(model, TextToImage):
        return PromptModel(name, model)
    raise TypeError(f"a model must be an Engine or a TextToImage, got {type(model).__name__}")


def checked_origins(cors_origins: Collection[str]) -> list[str]:
    """Origins of web pages.

    Raises:
        TypeError: If they are one text.
    """
    if isinstance(cors_origins, str):
        raise TypeError(f"cors_origins must be a list of origins, got {cors_origins!r}")
    return list(cors_origins)


def checked_costs(engines: Collection[str], calibrate: bool | Mapping[str, CostCurve]) -> dict[str, bool | CostCurve]:
    """What each engine is calibrated by.

    Args:
        engines: Their names.
        calibrate: As in ``create_app``.

    Raises:
        ValueError: If it names others.
    """
    if isinstance(calibrate, bool):
        return dict.fromkeys(engines, True) if calibrate else {}
    if unknown := calibrate.keys() - set(engines):
        raise ValueError(f"calibrate must name engines among {', '.join(engines)}, got {', '.join(sorted(unknown))}")
    return dict(calibrate)


async def _warmed(lifecycle: Lifecycle, run_once: Callable[[], None]) -> None:
    try:
        await asyncio.to_thread(run_once)
    except Exception:
        logger.exception("a model cannot be warmed up: /ready stays false")
    else:
        lifecycle.warm = True
