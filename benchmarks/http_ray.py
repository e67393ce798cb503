"""Ray Serve's published text-to-image service around the same pipeline: an ingress that calls a deployment a request.

    python benchmarks/http_ray.py fashion --port 8001

The ingress and the deployment are those of Ray's example for Stable Diffusion, with OpenAI's body and answer, one
replica, and one processor in the place of its GPU.
"""

# Annotations are values here: Ray sends the class to its replicas without the names that texts would need.
import os
import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from fastapi import FastAPI
from http_peers import Generation, Pipeline, answer
from PIL import Image
from ray import serve
from ray.serve.handle import DeploymentHandle

api = FastAPI()


@serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class Ingress:
    """Takes the request and answers with the file."""

    def __init__(self, model: DeploymentHandle) -> None:
        self._model = model

    @api.get("/ready")
    async def ready(self) -> dict[str, str]:
        """Answers once the deployments run."""
        return {"status": "ready"}

    @api.post("/v1/images/generations")
    async def generate(self, given: Generation) -> dict[str, Any]:
        """Has the model draw."""
        return answer(await self._model.generate.remote(given))


@serve.deployment(num_replicas=1, max_ongoing_requests=1, ray_actor_options={"num_cpus": 1})
class Model:
    """The pipeline: one call at a time, since its scheduler holds the state of one run, and Ray calls from threads."""

    def __init__(self, bundle: str, threads: int) -> None:
        self._pipeline = Pipeline(bundle, threads)

    def generate(self, given: Generation) -> Image.Image:
        """Draws a picture."""
        [image] = self._pipeline(given.asked())
        return image


def main(bundle: str, port: Annotated[int, typer.Option()], threads: Annotated[int, typer.Option()] = 0) -> None:
    """Serves until SIGTERM."""
    stop = threading.Event()
    for kind in (signal.SIGTERM, signal.SIGINT):
        signal.signal(kind, lambda *_: stop.set())
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    environment = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
    ray.init(
        num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False, runtime_env=environment
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(Ingress.bind(Model.bind(bundle, threads)))
        stop.wait()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
