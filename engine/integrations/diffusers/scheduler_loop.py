"""A compiled call that keeps its pipeline's loop: guidance is the pipeline's code, the scheduler's step is fused."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from stepfuse.integrations import diffusers as ours
from stepfuse.integrations.diffusers.fused_scheduler import FusedScheduler
from stepfuse.integrations.diffusers.network_inputs import NetworkInputs
from stepfuse.integrations.diffusers.placement import networks_of
from stepfuse.integrations.diffusers.predictors import BundlePredictor, ModulePredictor, Predictor
from stepfuse.integrations.diffusers.scheduler_table import settings_of
from stepfuse.integrations.diffusers.stand_ins import StandIn
from stepfuse.integrations.uncovered import reason_of


class SchedulerLoop:
    """One call.

    Args:
        network: Name of the component that predicts.
        predictor: A bundle predicts in place of the pipeline's network; else the calls of all its networks are captured
            on a GPU.
        pipe: The pipeline, with its own components.

    Attributes:
        components: What stands in for the pipeline's own, by name.
        why_left: Why the scheduler's step is diffusers' own; empty where it is fused.

    Raises:
        ValueError: With a bundle, if the scheduler's settings are not covered, or ask for another prediction.
    """

    def __init__(self, network: str, predictor: Predictor, pipe: Any) -> None:
        self._predictor = predictor
        self._fused: Any = None
        self.components: dict[str, Any] = {}
        self.why_left = ""
        if isinstance(predictor, BundlePredictor):
            predictor.require_prediction(settings_of(pipe.scheduler))
            self.components[network] = PredictingStandIn(getattr(pipe, network), predictor)
        elif isinstance(predictor, ModulePredictor) and predictor.is_on_gpu:
            for name, module in networks_of(pipe).items():
                self.components[name] = CapturedStandIn(name, module, predictor)
        theirs = type(pipe.scheduler)
        kind = _fused_kind(theirs)
        if kind is None:
            self.why_left = f"no scheduler here is of its class{reason_of(theirs.__name__)}"
        elif kind is not theirs:
            self._fused = self.components["scheduler"] = _shared(pipe.scheduler, kind)

    def check(self) -> None:
        """Does nothing: what is not finite is the pipeline's, as with diffusers."""

    def stop(self) -> None:
        """Drops what the run has kept."""
        self._predictor.release()
        if self._fused is not None:
            self._fused.forget()


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


class CapturedStandIn(StandIn):
    """A network on a GPU whose calls become CUDA graphs."""

    def __init__(self, name: str, module: Any, predictor: ModulePredictor) -> None:
        super().__init__(module, _predictor=predictor, _name=name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the network returns."""
        return self._predictor.run(self._name, self._original, args, kwargs, owned=True)


def _fused_kind(theirs: type) -> type | None:
    """The class that steps as this one does, by the fused step; None where there is none."""
    if issubclass(theirs, FusedScheduler):
        return theirs
    kind = getattr(ours, theirs.__name__) if theirs.__name__ in ours.__all__ else None
    return kind if kind is not None and kind.__bases__[-1] is theirs else None


def _shared(scheduler: Any, kind: type) -> Any:
    """A scheduler of another class with the same state."""
    fused: Any = object.__new__(kind)
    fused.__dict__ = scheduler.__dict__
    fused.remedy, fused.leaves_runs = "call pipe.original", True
    return fused
