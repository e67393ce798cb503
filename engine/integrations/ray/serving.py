"""``stepfuse serve`` on Ray Serve."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from stepfuse.backends.cuda.config import Cuda, device_of
from stepfuse.backends.host.config import Cpu, OpenVino
from stepfuse.integrations.ray import scaling
from stepfuse.integrations.ray.replica import Plan, Replica
from stepfuse.lora.file import Lora
from stepfuse.lora.networks import AdaptedNetworks
from stepfuse.server.app import checked_costs, checked_origins
from stepfuse.server.keys import Keys
from stepfuse.server.limits import Limits
from stepfuse.server.loading import find_model, loras_by_model, named, takes_prompts
from stepfuse.serving.config import CostCurve, Serving

_POLICY = f"{scaling.by_pictures.__module__}:{scaling.by_pictures.__name__}"
_GRACE = 120.0  # seconds that a replica has for what it runs; Serve's own 20 are less than a picture may take


def deployment(
    models: Sequence[str],
    *,
    device: str | Cuda = "cpu",
    backend: str | OpenVino = "onnxruntime",
    precision: str = "float32",
    threads: int | None = None,
    spinning: bool | None = None,
    serving: Serving | None = None,
    loras: Mapping[str, str | os.PathLike[str]] | None = None,
    lora_bytes: int = 1 << 30,
    calibrate: bool | Mapping[str, CostCurve] = False,
    limits: Limits | None = None,
    api_keys: Collection[str] = (),
    cors_origins: Collection[str] = (),
    **options: Any,
) -> serve.Application:
    """The app of ``stepfuse.server.create_app`` for ``serve.run``, ``serve run module:app`` or Serve's configuration.

    Every replica has every model. It is ready when each has run; Serve lets it finish what it runs when it is to end.

    Args:
        models: Embedded models' names, folders of bundles that each node has, or ``NAME=FOLDER``; the first one draws
            what names none.
        device: Of all models, as in ``Engine.load``; on a GPU ``ray_actor_options`` must ask Ray for one.
        backend: As in ``Engine.load``, as ``precision``.
        precision: What networks are computed in; the nodes' processors must have it.
        threads: As in ``Engine.load``; None is one for each CPU that Ray assigns to a replica (``num_cpus``).
        spinning: As in ``Engine.load``.
        serving: How requests share each engine.
        loras: Files of LoRAs that requests can choose, which each node has, by name, of the first model, or by
            ``MODEL/NAME``. Only models on the CPU in ONNX Runtime take some.
        lora_bytes: Most memory of each model's LoRAs, as in ``Engine.load``.
        calibrate: As in ``create_app``; measured by each replica before it is ready.
        limits: As in ``create_app``, as what follows.
        api_keys: Kept by Ray with the deployment.
        cors_origins: Of web pages that may ask.
        **options: Of ``serve.deployment``: ``num_replicas``, ``ray_actor_options``, ``autoscaling_config`` and more.
            Unless said otherwise, the deployment is called ``stepfuse``, scales by ``scaling.by_pictures``, sends a
            replica as many requests as its engines take, and waits 120 seconds for those of one that ends.

    Raises:
        BundleError: If a model is not found or cannot be used.
        LoraError: If a LoRA cannot be read, or its model takes none. Whether it fits is seen by the replicas.
        ValueError: If another argument is refused, by us or by Serve.
        TypeError: If an argument is of another type, or Serve has no such option.

    Examples:
        >>> from ray import serve
        >>> from stepfuse.integrations.ray import deployment
        >>> serve.run(deployment(["fashion"], threads=2))  # doctest: +SKIP
    """
    if isinstance(models, str) or not all(isinstance(one, str) for one in models):
        raise TypeError(f'models must be a list of names, such as ["fashion"], got {models!r}')
    found = named(find_model(one, verify=False) for one in models)
    if not found:
        raise ValueError("models must hold at least one model, got none")
    engines = [name for name, bundle in found.items() if not takes_prompts(bundle)]
    if gpu := device_of(device) is not None:
        of_cpu: dict[str, object] = {"threads": threads, "spinning": spinning}
        of_cpu |= {"backend": None if backend == Cpu.backend else backend}
        of_cpu |= {"precision": None if precision == Cpu.precision else precision, "loras": loras or None}
        _check_gpu(device, options, of_cpu)
    Cpu(backend, precision, threads or 0, spinning)
    for name, value, kind in (("serving", serving, Serving), ("limits", limits, Limits)):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {value!r}")
    of_models = loras_by_model("loras", (loras or {}).items(), list(found))
    for name, files in of_models.items():
        AdaptedNetworks.of(found[name], [], lora_bytes, backend)  # refuses what takes none
        for file in files.values():
            Lora.read(file)
    Keys(api_keys)
    plan = Plan(
        models=tuple(models),
        loading={
            "device": device,
            "backend": backend,
            "precision": precision,
            "threads": 0 if gpu else threads,
            "spinning": spinning,
            "serving": serving,
        },
        loras=[_loras_of(of_models.get(name, {}), lora_bytes) for name in found],
        costs=checked_costs(engines, calibrate),
        app={"limits": limits, "api_keys": tuple(api_keys), "cors_origins": checked_origins(cors_origins)},
    )

    def open_app() -> FastAPI:
        return plan.open()

    shared = serving or Serving()
    defaults = {
        "name": "stepfuse",
        "max_ongoing_requests": len(found) * (shared.max_queue + shared.most_running),
        "graceful_shutdown_timeout_s": _GRACE,
    }
    made = serve.deployment(**{**defaults, **_scaled(options)})(serve.ingress(open_app)(Replica))
    return made.bind()


def _loras_of(files: Mapping[str, Path], lora_bytes: int) -> dict[str, Any]:
    """Arguments of ``load_model`` for a model's LoRAs, by absolute paths, since a replica has a folder of its own."""
    absolute = {name: file.absolute() for name, file in files.items()}
    return {"loras": absolute, "lora_bytes": lora_bytes} if files else {}


def _check_gpu(device: str | Cuda, options: Mapping[str, Any], of_cpu: Mapping[str, object]) -> None:
    for name, value in of_cpu.items():
        if value is not None:
            raise ValueError(f"{name} must be left out on {device!r}, being of the CPU, got {value}")
    if not (options.get("ray_actor_options") or {}).get("num_gpus"):
        raise ValueError(f'ray_actor_options must ask for a GPU for {device!r}, as {{"num_gpus": 1}}, got none')


def _scaled(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, with our policy where replicas are scaled and no other is named."""
    given = options.get("autoscaling_config")
    if given is None and options.get("num_replicas") != "auto":
        return dict(options)
    config = given if isinstance(given, AutoscalingConfig) else AutoscalingConfig(**(given or {}))
    if "policy" not in config.model_fields_set:
        config = config.model_copy(update={"policy": AutoscalingPolicy(policy_function=_POLICY)})
    return {**options, "autoscaling_config": config}
