"""The loop of a compiled pipeline's call: what its scheduler's step does in the place of the scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from stepfuse.integrations.diffusers.network import BundleNetwork, TorchNetwork
from stepfuse.integrations.diffusers.run import Run, States
from stepfuse.integrations.diffusers.stand_in import NetworkStandIn, SchedulerStandIn, Told
from stepfuse.integrations.diffusers.table import begun, settings_of, table_of


@dataclass(frozen=True)
class Family:
    """What pipelines of one kind do alike.

    Attributes:
        network: The component that predicts.
        told_first: Whether the rows with the condition come before those without.
        doubled: Whether the scheduler steps both of these.
    """

    network: str = "unet"
    told_first: bool = False
    doubled: bool = False


class Loop:
    """The loop of one call.

    Args:
        family: What its pipeline does as others of its kind.
        predictor: Who predicts.
        pipe: The pipeline, with its own components.
        arguments: Of the call.

    Attributes:
        network: Stands in for the pipeline's network.
        scheduler: Stands in for its scheduler.
    """

    def __init__(
        self, family: Family, predictor: TorchNetwork | BundleNetwork, pipe: Any, arguments: Mapping[str, Any]
    ) -> None:
        self._family = family
        self._predictor = predictor
        self._pipe = pipe
        self._arguments = arguments
        self._module, self._real = getattr(pipe, family.network), pipe.scheduler
        self.network = NetworkStandIn(self._module)
        self.scheduler = SchedulerStandIn(pipe.scheduler, self._step)
        self._row: int | None = None
        self._run: Run | None = None
        self._run_is: tuple[Any, ...] = ()
        self._after: tuple[torch.Tensor, int] | None = None

    def stop(self) -> None:
        """Ends the run, and lets go of what it was told."""
        if self._run is not None:
            self._run.stop()
        self._predictor.forget()

    def _step(
        self,
        timestep: Any,
        sample: torch.Tensor,
        *,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: Any = None,
        **options: Any,
    ) -> torch.Tensor:
        given = [name for name, value in options.items() if value]
        if given:
            raise ValueError(f"the scheduler's step must be left without {', '.join(given)}: call pipe.original")
        told = self.network.take()
        images = told.rows // 2 if self._family.doubled and self._scale() > 1 else len(sample)
        guided = told.rows > images
        self._row = self._first(timestep) if self._row is None else self._row + 1
        facts = (*self._guidance(guided), told.rows, float(eta or 0.0), bool(use_clipped_model_output))
        if self._run is None or self._run_is[:-1] != facts or self._run_is[-1] != told:
            self._begin(facts, told, sample[:images], guided)
        assert self._run is not None
        if self._changed(sample):
            self._run.x[...] = _states(sample[:images])
        self._run.step()
        self._add_noise(self._run.x, sample, generator, eta)
        after = torch.from_numpy(self._run.x.copy()).to(sample)
        after = torch.cat([after] * (len(sample) // images)) if len(sample) > images else after
        self._after = after, _version(after)
        return after

    def _begin(self, facts: tuple[Any, ...], told: Told, sample: torch.Tensor, guided: bool) -> None:
        scale, rescale, _, eta, clipped = facts
        table = table_of(
            self._real,
            self.scheduler.custom,
            guidance_scale=scale,
            guidance_rescale=rescale,
            eta=eta,
            clipped_eps=clipped,
        )
        if (table["s"] != 1).any() and not self.scheduler.scales:
            raise ValueError(
                f"{type(self._pipe).__name__} does not scale its network's inputs as {type(self._real).__name__} asks:"
                " take DDIMScheduler, DDPMScheduler, or another that does not"
            )
        if self._run is not None:
            if table.uses_history:
                raise ValueError(
                    f"guidance and prompts must stay as they are during a run of {type(self._real).__name__}, whose"
                    " steps build on the steps before: change them with another scheduler, or call pipe.original"
                )
            self._run.stop()
        assert self._row is not None
        table, self._noise = begun(table, self._row)
        self._begun_at = self._row
        predictor, images, rows = self._predictor, len(sample), np.arange(told.rows)
        halves = 2 if getattr(self._module.config, "out_channels", None) == 2 * sample.shape[1] else 1
        predictor.tell(self._module, told, halves)
        service = predictor.service(tuple(sample.shape[1:]), told.rows, settings_of(self._real))
        conditions: dict[str, Any] = {"cond": predictor.conditions(told, rows[:images])}
        if guided:
            first, second = (predictor.conditions(told, half) for half in (rows[:images], rows[images:]))
            cond, negative = (first, second) if self._family.told_first else (second, first)
            conditions = {"cond": cond, "negative_cond": negative}
        self._run = Run(service, service.requests(images, table, **conditions), _states(sample).copy())
        self._run_is = (*facts, told)

    def _first(self, timestep: Any) -> int:
        """The row that a run begins with: image-to-image leaves out the noisiest."""
        begin = getattr(self._real, "begin_index", None)
        if begin is not None:
            return int(begin)
        return int((self._real.timesteps.cpu() == torch.as_tensor(timestep).cpu()).nonzero()[0, 0])

    def _scale(self) -> float:
        return float(getattr(self._pipe, "guidance_scale", self._arguments.get("guidance_scale", 1.0)))

    def _guidance(self, guided: bool) -> tuple[float, float]:
        rescale = float(getattr(self._pipe, "guidance_rescale", 0.0) or 0.0)
        return (self._scale(), rescale) if guided else (1.0, 0.0)

    def _changed(self, sample: torch.Tensor) -> bool:
        """Whether a callback has changed what the last step returned."""
        after, version = self._after or (sample, _version(sample))
        return sample is not after or _version(sample) != version

    def _add_noise(self, x: States, sample: torch.Tensor, generator: Any, eta: float) -> None:
        """What the step adds, drawn as diffusers' schedulers draw it, also where they multiply it by 0."""
        assert self._row is not None
        scale = self._noise[self._row - self._begun_at]
        always = eta if type(self._real).__name__ == "DDIMScheduler" else self._noise.any()
        if scale or (always and type(self._real).__name__ in ("DDIMScheduler", "EulerAncestralDiscreteScheduler")):
            drawn = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            x += scale * _states(drawn[: len(x)])


def _states(sample: torch.Tensor) -> States:
    states: States = sample.detach().float().cpu().contiguous().numpy()
    return states


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
