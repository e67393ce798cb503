"""The loop of a compiled pipeline's call: what happens there instead of its scheduler's step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from stepfuse.integrations.diffusers.batches import Batch, Start
from stepfuse.integrations.diffusers.network_inputs import NetworkInputs
from stepfuse.integrations.diffusers.predictors import Predictor
from stepfuse.integrations.diffusers.scheduler_table import settings_of, table_from_row, table_of
from stepfuse.integrations.diffusers.stand_ins import NetworkStandIn, SchedulerStandIn
from stepfuse.integrations.readers.flow import FLOWS
from stepfuse.integrations.scheduler_readers import DPM_SOLVER


@dataclass(frozen=True)
class PipelineFamily:
    """What the pipelines of one kind have in common.

    Attributes:
        network: Name of the component that predicts.
        conditional_first: Whether the conditional rows of a guided batch come before the unconditional ones.
        steps_both: Whether the scheduler steps the rows of both.
    """

    network: str = "unet"
    conditional_first: bool = False
    steps_both: bool = False


@dataclass
class _Settings:
    """What a batch is compiled for: where a callback changes any of it, the rest of the steps is a new batch."""

    guidance_scale: float
    guidance_rescale: float
    eta: float | None
    clipped_eps: bool
    inputs: NetworkInputs


class DenoisingLoop:
    """The loop of one call.

    Args:
        family: The pipeline's family.
        predictor: Takes the place of the pipeline's network.
        pipe: The pipeline, with its own components.
        arguments: Those of the call.

    Attributes:
        network: Stands in for the pipeline's network.
        scheduler: Stands in for its scheduler.
        components: Both, by the names of the pipeline's own.
    """

    def __init__(self, family: PipelineFamily, predictor: Predictor, pipe: Any, arguments: Mapping[str, Any]) -> None:
        self._family = family
        self._predictor = predictor
        self._pipe = pipe
        self._arguments = arguments
        self._module, self._scheduler = getattr(pipe, family.network), pipe.scheduler
        self.network = NetworkStandIn(self._module)
        self.scheduler = SchedulerStandIn(pipe.scheduler, self._step)
        self.components = {family.network: self.network, "scheduler": self.scheduler}
        self._row: int | None = None
        self._batches: list[Batch] = []  # the last one steps
        self._settings: _Settings | None = None
        self._returned: tuple[torch.Tensor, int | None] | None = None  # by the last step, and its version then

    def check(self) -> None:
        """Raises DenoiserError if a state has been not finite; to be called when the pipeline's call is done."""
        for batch in self._batches:
            batch.check()

    def stop(self) -> None:
        """Ends the batch, and drops the references to the call's tensors."""
        if self._batches:
            self._batches[-1].stop()
        self._batches = []
        self._predictor.release()

    def _step(
        self,
        timestep: Any,
        sample: torch.Tensor,
        *,
        eta: float | None = None,
        use_clipped_model_output: bool | None = False,
        generator: Any = None,
        **options: Any,
    ) -> torch.Tensor:
        given = [name for name, value in options.items() if value]
        if given:
            raise ValueError(f"the scheduler's step must be left without {', '.join(given)}: call pipe.original")
        inputs = self.network.take_inputs()
        images = inputs.rows // 2 if self._family.steps_both and self._scale() > 1 else len(sample)
        guided = inputs.rows > images
        self._row = self._first_row(timestep) if self._row is None else self._row + 1
        settings = _Settings(*self._guidance(guided), eta, bool(use_clipped_model_output), inputs)
        if not self._batches or self._settings != settings:
            self._begin(settings, sample[:images], guided)
        elif self._is_changed(sample):
            self._batches[-1].put(sample[:images])
        states = self._batches[-1].step(lambda: self._noise(sample, images, generator, eta))
        following = states.to(sample.dtype)
        if len(sample) > images:
            following = torch.cat([following] * (len(sample) // images))
        self._returned = following, _version(following)
        if hasattr(self._scheduler, "_step_index"):
            self._scheduler._step_index = self._row + 1  # for callbacks, as diffusers' own step leaves it
        return following

    def _begin(self, settings: _Settings, sample: torch.Tensor, guided: bool) -> None:
        table = table_of(
            self._scheduler,
            self.scheduler.custom,
            guidance_scale=settings.guidance_scale,
            guidance_rescale=settings.guidance_rescale,
            eta=settings.eta,
            clipped_eps=settings.clipped_eps,
        )
        if (table["s"] != 1).any() and not self.scheduler.scales:
            raise ValueError(
                f"{type(self._pipe).__name__} does not scale its network's inputs as {type(self._scheduler).__name__}"
                " asks: take DDIMScheduler, DDPMScheduler, or another that does not"
            )
        if self._batches:
            if table.uses_history:
                raise ValueError(
                    f"guidance and prompts must stay as they are during a run of {type(self._scheduler).__name__},"
                    " whose steps build on the steps before: name prompt_embeds in callback_on_step_end_tensor_inputs,"
                    " which leaves guidance to the pipeline, take another scheduler, or call pipe.original"
                )
            self._batches[-1].stop()
        assert self._row is not None
        settings_read = settings_of(self._scheduler)
        table, self._noise_scales = table_from_row(table, self._row, settings_read.schedule)
        self._batch_row = self._row  # the row of the scheduler that is the batch's first
        images, rows = len(sample), np.arange(settings.inputs.rows)
        first, second = rows[:images], rows[images:]
        cond, uncond = (first, second) if self._family.conditional_first or not guided else (second, first)
        start = Start(
            module=self._module,
            inputs=settings.inputs,
            chunks=2 if getattr(self._module.config, "out_channels", None) == 2 * sample.shape[1] else 1,
            settings=settings_read,
            table=table,
            noise_scales=self._noise_scales,
            states=sample,
            cond=cond,
            uncond=uncond if guided else None,
        )
        self._batches.append(self._predictor.begin(start))
        self._settings = settings

    def _first_row(self, timestep: Any) -> int:
        """The row that the call begins with: image-to-image leaves out the noisiest."""
        begin = getattr(self._scheduler, "begin_index", None)
        if begin is not None:
            return int(begin)
        return int((self._scheduler.timesteps.cpu() == torch.as_tensor(timestep).cpu()).nonzero()[0, 0])

    def _scale(self) -> float:
        return float(getattr(self._pipe, "guidance_scale", self._arguments.get("guidance_scale", 1.0)))

    def _guidance(self, guided: bool) -> tuple[float, float]:
        rescale = float(getattr(self._pipe, "guidance_rescale", 0.0) or 0.0)
        return (self._scale(), rescale) if guided else (1.0, 0.0)

    def _is_changed(self, sample: torch.Tensor) -> bool:
        """Whether a callback has replaced or changed what the last step returned, or may have, unseen."""
        returned, version = self._returned or (sample, _version(sample))
        return sample is not returned or version is None or _version(sample) != version

    def _noise(self, sample: torch.Tensor, images: int, generator: Any, eta: float | None) -> torch.Tensor | None:
        """The step's noise, taken from the generator as diffusers takes it, also where it is multiplied by 0."""
        assert self._row is not None
        name = type(self._scheduler).__name__
        always = eta if name == "DDIMScheduler" else self._noise_scales.any()
        draws = always and name in ("DDIMScheduler", "EulerAncestralDiscreteScheduler", DPM_SOLVER)
        if not (draws or self._noise_scales[self._row - self._batch_row]):
            return None
        dtype = torch.float32 if name in (DPM_SOLVER, *FLOWS) else sample.dtype  # which step in float32
        noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=dtype)
        return cast("torch.Tensor", noise[:images])


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version
