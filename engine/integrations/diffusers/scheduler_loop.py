"""A compiled call that keeps its pipeline's loop: guidance is the pipeline's code, the scheduler's step is fused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from stepfuse.integrations import diffusers as ours
from stepfuse.integrations.diffusers.fused_scheduler import FusedScheduler
from stepfuse.integrations.diffusers.network_inputs import NetworkInputs
from stepfuse.integrations.diffusers.predictors import BundlePredictor, Predictor
from stepfuse.integrations.diffusers.scheduler_table import settings_of
from stepfuse.integrations.diffusers.stand_ins import StandIn
from stepfuse.integrations.uncovered import reason_of


class SchedulerLoop:
    """One call.

    Args:
        network: Name of the component that predicts.
        predictor: A bundle predicts in place of the pipeline's network; any other leaves the network as it is.
        pipe: The pipeline, with its own components.

    Attributes:
        components: What stands in for the pipeline's own, by name.

    Raises:
        ValueError: If no scheduler here has the class of the pipeline's, or it predicts something else than the bundle.
    """

    def __init__(self, network: str, predictor: Predictor, pipe: Any) -> None:
        self._predictor = predictor
        self._is_ours = isinstance(pipe.scheduler, FusedScheduler)
        self._scheduler = pipe.scheduler if self._is_ours else _fused(pipe.scheduler)
        self.components: dict[str, Any] = {"scheduler": self._scheduler}
        if isinstance(predictor, BundlePredictor):
            predictor.require_prediction(settings_of(pipe.scheduler))
            self.components[network] = PredictingStandIn(getattr(pipe, network), predictor)

    def stop(self) -> None:
        """Drops what the run has kept."""
        self._predictor.release()
        if not self._is_ours:
            self._scheduler.forget()


class PredictingStandIn(StandIn):
    """A network whose predictions are a bundle's."""

    def __init__(self, module: Any, predictor: BundlePredictor) -> None:
        super().__init__(module, _predictor=predictor)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The prediction, as a tuple or an object, whichever the caller asks for."""
        inputs = NetworkInputs(args, kwargs)
        prediction = torch.from_numpy(self._predictor.predict(self._original, inputs)).to(inputs.sample)
        channels = getattr(self._original.config, "out_channels", None) or prediction.shape[1]
        if missing := channels - prediction.shape[1]:  # of a learned variance, which no step here reads
            rest = prediction.new_zeros(len(prediction), missing, *prediction.shape[2:])
            prediction = torch.cat([prediction, rest], dim=1)
        return (prediction,) if kwargs.get("return_dict") is False else SimpleNamespace(sample=prediction)


def _fused(scheduler: Any) -> Any:
    """A scheduler with the same state, shared, and the fused step."""
    name = type(scheduler).__name__
    covered = [one for one in ours.__all__ if one != "compile"]
    kind = getattr(ours, name) if name in covered else None
    if kind is None or kind.__bases__[-1] is not type(scheduler):
        raise ValueError(
            f"scheduler must be one of {', '.join(covered)}, got {name}{reason_of(name)}: set another, or call"
            " pipe.original"
        )
    fused = object.__new__(kind)
    fused.__dict__ = scheduler.__dict__
    fused.remedy = "call pipe.original"
    return fused
