"""The plans of a bundle's networks: loaded if one fits, built if none does."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepfuse.bundle.bundle import DENOISER, Bundle, embedded_models
from stepfuse.bundle.pipeline_info import TEXT_ENCODER
from stepfuse.errors import PlanError
from stepfuse.export.tensorrt.build import build_plan
from stepfuse.tensorrt.choice import source_of
from stepfuse.tensorrt.library import Library, find_library
from stepfuse.tensorrt.logger import logger_for
from stepfuse.tensorrt.options import Options
from stepfuse.tensorrt.plan import Plan, PlanKey
from stepfuse.tensorrt.profile import Profile, Three
from stepfuse.tensorrt.store import PlanStore
from stepfuse.tensorrt.target import Target, this_gpu

log = logging.getLogger(__name__)


def plan_for(
    bundle: Bundle | str | os.PathLike[str],
    network: str = DENOISER,
    *,
    profiles: Sequence[Profile] = (Profile(),),
    target: Target | None = None,
    options: Options | None = None,
    library: Library | None = None,
    cache: str | os.PathLike[str] | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Plan:
    """The plan of a bundle's network: from the cache if one is there for the same key, else built and kept.

    The key: SHA-256 of the network and its weights, TensorRT's name and version, GPU, compute capability, driver,
    profiles and options. Where any differs, or a kept plan was changed, the reason is logged and the plan built anew. A
    plan that was built ahead of time serves every GPU that it was built for.

    Args:
        bundle: A bundle, its folder, or an embedded model's name.
        network: Name of the ONNX file in it.
        profiles: Shapes that the plan takes; sizes that are None are the bundle's own.
        target: What it runs on; None: the GPU of this machine.
        options: How it is built.
        library: The TensorRT that builds it; None: the first that is installed.
        cache: A folder where plans are kept; None: the bundle itself.
        timing_cache: As for ``build_plan``.
        progress: Whether progress bars are shown on standard error while it builds.

    Raises:
        BundleError: If the bundle is not as its manifest says.
        PlanError: If the bundle has no such network, a profile does not suit it, there is no GPU and ``target`` is
            None, or the plan cannot be built or kept.
        ImportError: If no TensorRT is installed.
    """
    bundle, key, library = _resolve(bundle, network, profiles, target, options, library)
    store = _store(bundle, cache)
    with store.locked():
        try:
            if found := _kept(store, key, library):
                return found
            log.info("building a plan of %s: %s", network, store.nearest(key))
        except PlanError as error:
            log.warning("building a plan of %s anew: %s", network, error)
        store.check_writable()
        plan = build_plan(
            bundle.path / network,
            profiles=key.profiles,
            target=key.target,
            options=key.options,
            library=library,
            pixels_per_cell=key.pixels_per_cell,
            timing_cache=timing_cache,
            progress=progress,
            source=key.source,
        )
        store.put(plan)
    return plan


def load_plan(
    bundle: Bundle | str | os.PathLike[str],
    network: str = DENOISER,
    *,
    profiles: Sequence[Profile] = (Profile(),),
    target: Target | None = None,
    options: Options | None = None,
    library: Library | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Plan:
    """As ``plan_for``, but never builds.

    Raises:
        PlanError: If no plan is there for the same key, with what differs; or the plan was changed.
    """
    bundle, key, library = _resolve(bundle, network, profiles, target, options, library)
    store = PlanStore(cache or bundle.path, bundle=cache is None)
    if found := _kept(store, key, library):
        return found
    raise PlanError(f"{bundle.path}: no plan of {network} fits ({store.nearest(key)}): build one with plan_for")


def remove_plans(bundle: Bundle | str | os.PathLike[str], *, cache: str | os.PathLike[str] | None = None) -> list[str]:
    """Removes all plans of a bundle, or of a folder ``cache``, and returns their names."""
    return _store(bundle if isinstance(bundle, Bundle) else Bundle.load(bundle), cache).clear()


def _resolve(
    bundle: Bundle | str | os.PathLike[str],
    network: str,
    profiles: Sequence[Profile],
    target: Target | None,
    options: Options | None,
    library: Library | None,
) -> tuple[Bundle, PlanKey, Library]:
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    networks = [name for name in bundle.files if name.endswith(".onnx")]
    if network not in networks:
        raise PlanError(f"network must be one of {', '.join(networks)}, got {network!r}")
    library = library or find_library()
    key = PlanKey(
        network=network,
        source=source_of(bundle, network),
        library=library.name,
        version=library.version,
        target=target or this_gpu(),
        profiles=tuple(_sized(profile, bundle, network) for profile in profiles),
        pixels_per_cell=bundle.pipeline.pixels_per_latent if bundle.pipeline else 1,
        options=options or Options(),
    )
    return bundle, key, library


def _sized(profile: Profile, bundle: Bundle, network: str) -> Profile:
    """A profile with the bundle's own size if it has no sizes, and with none for a network that takes no pictures."""
    if network == TEXT_ENCODER:
        return replace(profile, sizes=None)
    multiple = bundle.pipeline.size_multiple if bundle.pipeline else 1
    if uneven := [side for size in profile.sizes or () for side in size if side % multiple]:
        raise PlanError(f"sizes must be multiples of {multiple} pixels for {bundle.name}, got {uneven[0]}")
    profile = replace(profile, shapes={**_own_lengths(profile, bundle, network), **profile.shapes})
    if profile.sizes is not None or len(bundle.info.shape) != 3:
        return profile
    cell = bundle.pipeline.pixels_per_latent if bundle.pipeline else 1
    _, height, width = bundle.info.shape
    return replace(profile, sizes=((width * cell, height * cell),) * 3)


def _own_lengths(profile: Profile, bundle: Bundle, network: str) -> dict[str, Three]:
    """Shapes of the denoiser's inputs whose length is free: the model's own length."""
    if network != DENOISER:
        return {}
    free = {name: one.shape for name, one in bundle.info.cond.items() if one.free == "length"}
    least, best, most = profile.rows
    return {name: ((least, *shape), (best, *shape), (most, *shape)) for name, shape in free.items()}


def _store(bundle: Bundle, cache: str | os.PathLike[str] | None) -> PlanStore:
    """The store in the folder ``cache``, or in the bundle if that is None."""
    if cache is not None:
        Path(cache).mkdir(parents=True, exist_ok=True)
        return PlanStore(cache, bundle=False)
    name = bundle.path.name
    if name in embedded_models() and Bundle.load(name, verify=False).path == bundle.path:
        raise PlanError(f"{name} comes with the package, which stays as it is: give a folder as cache")
    return PlanStore(bundle.path, bundle=True)


def _kept(store: PlanStore, key: PlanKey, library: Library) -> Plan | None:
    """A kept plan of this key, or None; checked by TensorRT itself where there is a GPU."""
    plan = store.find(key)
    if plan is not None and not key.target.ahead:
        _check_by_library(plan, library)
    return plan


def _check_by_library(plan: Plan, library: Library) -> None:
    trt: Any = library.module
    runtime = trt.Runtime(logger_for(trt))
    if not hasattr(runtime, "get_engine_validity"):
        return  # tensorrt checks plans when it deserialises them
    validity, _ = runtime.get_engine_validity(plan.data)
    if validity == trt.EngineValidity.INVALID:
        raise PlanError(f"TensorRT {library.version} does not take the plan for {plan.key.target}")
