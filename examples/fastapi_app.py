"""Drawing within a FastAPI application: a route of one's own that awaits the engine, and the whole service beside it.

Requests of both share one engine's forwards.

pip install 'stepfuse[serve]'
uvicorn --factory fastapi_app:make_app
curl -o sneaker.png 'http://127.0.0.1:8000/garments/sneaker?seed=7'
curl http://127.0.0.1:8000/stepfuse/v1/models
"""

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI, HTTPException, Response
from PIL import Image

import stepfuse as sf
from stepfuse.server import create_app


def make_app(model: str = "fashion") -> FastAPI:
    """The application; it loads the model, and frees it when it ends."""
    engine = sf.Engine.load(model)
    service = create_app({model: engine})

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with engine:
            async with service.router.lifespan_context(service):  # Starlette does not enter that of a mounted app
                yield

    app = FastAPI(title="Garments", lifespan=lifespan)

    @app.get("/garments/{name}", response_class=Response)
    async def garment(name: str, seed: int = 0, steps: int = 20) -> Response:
        """A PNG of one garment; requests that come meanwhile share its forwards."""
        try:
            image = await engine.asample(cond=name, seed=seed, steps=steps)
        except ValueError as error:  # no such class, steps out of range: the message says the rule
            raise HTTPException(422, str(error)) from error
        except sf.QueueFull as error:
            raise HTTPException(503, str(error)) from error
        return Response(as_png(image, engine.info.data_range), media_type="image/png")

    app.mount("/stepfuse", service)
    return app


def as_png(image: np.ndarray, data_range: tuple[float, float]) -> bytes:
    """An image of one channel, (1, H, W), as the bytes of a file."""
    low, high = data_range
    grey = (255 * np.clip((image[0] - low) / (high - low), 0, 1)).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey).save(file, format="PNG")
    return file.getvalue()
