"""A pipeline's network on a GPU as CUDA graphs: captured for each kind of call, replayed on the pipeline's stream."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch

from stepfuse._core import cuda
from stepfuse.backends.cuda.capture import WARM_UPS, unrepeatable
from stepfuse.backends.cuda.torch_capture import RULE, TorchCapture
from stepfuse.integrations.diffusers.fingerprint import PLAIN, Fingerprint, cache_hooks, settings, tensors
from stepfuse.integrations.diffusers.network_inputs import leaves, mapped

#: Kinds of calls whose graphs are kept, those used last.
MOST_SIGNATURES = 8

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_hf_hook")  # torch's, accelerate's

logger = logging.getLogger(__name__)


class _NotCapturable(Exception):  # noqa: N818
    """Why a call is not captured."""


@dataclass
class _Signature:
    """Calls with tensors of the same shapes and dtypes, and otherwise the same arguments.

    Attributes:
        warm_ups: Calls so far.
        why_eager: Why they run kernel by kernel; empty: they are captured once they are warm.
        inputs: The tensors that the graph reads, in the order of the arguments.
        filled: What each was filled from, with its version then; None: to be filled.
        graph: The captured call.
        prediction: What the captured call returns, in the graph's memory.
    """

    warm_ups: int = 0
    why_eager: str = ""
    inputs: list[torch.Tensor] = field(default_factory=list)
    filled: list[tuple[torch.Tensor, int] | None] = field(default_factory=list)
    graph: torch.cuda.CUDAGraph | None = None
    prediction: Any = None

    def fill(self, given: Sequence[torch.Tensor]) -> None:
        """Copies a call's tensors to the graph's, but for those that are there already.

        A kernel of Triton's that writes to a tensor does not change its version: such a tensor must be a new one.
        """
        for number, (tensor, last) in enumerate(zip(given, self.filled, strict=True)):
            version = None if tensor.is_inference() else tensor._version
            if last is not None and last[0] is tensor and last[1] == version:
                continue
            if tensor.ndim == 0 and tensor.device.type == "cpu":
                self.inputs[number].fill_(tensor.item())  # a copy of it would wait for the GPU
            else:
                self.inputs[number].copy_(tensor)
            self.filled[number] = None if version is None else (tensor, version)


class NetworkGraphs:
    """Calls of a module: the first few of a signature kernel by kernel, later ones as one launch of a CUDA graph.

    Graphs hold as long as the module's tensors lie where they did and its settings are as they were: weights that
    change in place act on them. All of them work in one memory.
    """

    def __init__(self) -> None:
        self._module: weakref.ref[torch.nn.Module] | None = None
        self._state: tuple[Fingerprint, Fingerprint, str] = [], [], ""
        self._why_eager = ""
        self._signatures: OrderedDict[Hashable, _Signature] = OrderedDict()
        self._capturing: TorchCapture | None = None
        self._stream: torch.cuda.Stream | None = None
        self._logged: set[str] = set()

    def follow(self, module: torch.nn.Module) -> None:
        """Drops the graphs of another module, or of this one as it was before it changed; the log says so.

        To be called when a run begins, and where the module may have changed during one.
        """
        state = tensors(module), settings(module), torch.get_float32_matmul_precision()
        is_same = self._module is not None and self._module() is module
        if not is_same or state != self._state:
            if any(one.graph is not None for one in self._signatures.values()):
                changed = _difference(self._state, state) if is_same else "it is another"
                logger.info("compile: calls of %s are captured anew: %s", type(module).__name__, changed)
            self._forget(list(self._signatures))
            self._module, self._state = weakref.ref(module), state
            self._capturing = None  # of the device that it was on
        self._why_eager = _why_not_captured(module)
        self._log_eager(module, self._why_eager)

    def __call__(
        self, module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, owned: bool = True
    ) -> Any:
        """What ``module(*args, **kwargs)`` returns, of the module that was last followed.

        Args:
            module: The module.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            owned: Whether the result is the caller's to keep. Else it is to be read on the current stream before the
                next call, which may overwrite it.
        """
        kept = None if self._why_eager else self._signature(module, args, kwargs)
        if kept is None or kept.why_eager:
            return module(*args, **kwargs)
        given = [leaf for _, leaf in leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if kept.graph is None and kept.warm_ups < WARM_UPS:
            return self._warm_up(kept, module, args, kwargs)
        if kept.graph is None:
            self._capture(kept, module, args, kwargs, given)
        if kept.graph is None:
            return module(*args, **kwargs)
        self._order(_device_of(module))
        kept.fill(given)
        kept.graph.replay()
        return _copied(kept.prediction) if owned else kept.prediction

    def release(self) -> None:
        """Drops the references to the tensors of a run."""
        for kept in self._signatures.values():
            kept.filled = [None] * len(kept.inputs)

    def _signature(self, module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> _Signature | None:
        try:
            key = _key((args, kwargs))
        except _NotCapturable as why:
            self._log_eager(module, str(why))
            return None
        kept = self._signatures.setdefault(key, _Signature())
        self._signatures.move_to_end(key)
        if len(self._signatures) > MOST_SIGNATURES:
            self._forget([next(iter(self._signatures))])
        return kept

    def _warm_up(
        self, kept: _Signature, module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """A call kernel by kernel: libraries choose algorithms, load kernels and allocate in the first ones."""
        device = _device_of(module)
        generator = torch.cuda.get_rng_state(device)
        prediction = module(*args, **kwargs)
        kept.warm_ups += 1
        if not torch.equal(generator, torch.cuda.get_rng_state(device)):
            kept.why_eager = "it draws random numbers, which every replay would repeat"
            self._log_eager(module, kept.why_eager)
        return prediction

    def _capture(
        self,
        kept: _Signature,
        module: torch.nn.Module,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        given: Sequence[torch.Tensor],
    ) -> None:
        """Captures a call, or notes why it cannot be."""
        device = _device_of(module)

        def enqueue() -> None:
            kept.prediction = module(*own_args, **own_kwargs)

        try:
            if (now := settings(module)) != self._state[1]:
                raise _NotCapturable(f"it changes when it is called ({_changed(self._state[1], now)})")
            self._capturing = self._capturing or TorchCapture(device)
            with torch.inference_mode(False), self._capturing.ordered():
                kept.inputs = [torch.empty(one.shape, dtype=one.dtype, device=device) for one in given]
                kept.filled = [None] * len(given)
                kept.fill(given)  # so that what is captured could run on them
                own = iter(kept.inputs)
                own_args, own_kwargs = mapped((args, kwargs), lambda _: next(own))
                graph = self._capturing.capture(enqueue)
            _key(kept.prediction)
            if parts := unrepeatable(cuda.Graph.borrow(self._capturing.context, graph.raw_cuda_graph())):
                raise RuntimeError(f"it holds what a replay cannot repeat: {parts}")
            graph.instantiate()
        except Exception as error:
            kept.inputs, kept.filled, kept.prediction = [], [], None
            kept.why_eager = _why_failed(error)
            self._log_eager(module, kept.why_eager)
            return
        kept.graph = graph
        logger.info("compile: captured a call of %s on %s", type(module).__name__, tuple(given[0].shape))

    def _order(self, device: torch.device) -> None:
        """Has the current stream wait for the graphs' last launch, if that was on another one."""
        stream = torch.cuda.current_stream(device)
        if self._stream is not None and self._stream != stream:
            stream.wait_stream(self._stream)
        self._stream = stream

    def _forget(self, keys: Sequence[Hashable]) -> None:
        forgotten = [self._signatures.pop(key) for key in keys]
        if self._stream is not None and any(one.graph is not None for one in forgotten):
            self._stream.synchronize()  # the GPU may still be at work on them

    def _log_eager(self, module: torch.nn.Module, why: str) -> None:
        if why and why not in self._logged:
            self._logged.add(why)
            logger.warning("compile: %s runs kernel by kernel: %s", type(module).__name__, why)


def _key(value: Any) -> Hashable:
    """What a captured call depends on, of its arguments.

    Raises:
        _NotCapturable: If they are anything but tensors and plain values, or collections of these.
    """
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if isinstance(value, Mapping):
        return tuple((str(key), _key(one)) for key, one in value.items())
    if isinstance(value, list | tuple):
        return tuple(_key(one) for one in value)
    if isinstance(value, PLAIN):
        return type(value), value
    raise _NotCapturable(f"it takes or returns what is neither a tensor nor a plain value, a {type(value).__name__}")


def _copied(value: Any) -> Any:
    """The same with tensors of its own."""
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{one.name: _copied(getattr(value, one.name)) for one in fields(value)})
    return mapped(value, torch.clone)


def _why_failed(error: Exception) -> str:
    text = (str(error) or type(error).__name__).splitlines()[0]
    if isinstance(error, torch.OutOfMemoryError):
        return f"memory does not suffice for its graph: {text}"
    return text if isinstance(error, _NotCapturable) else f"{text}. {RULE}"


def _why_not_captured(module: torch.nn.Module) -> str:
    if module.training:
        return (
            "it is in training mode, where dropout draws random numbers that every replay would repeat: module.eval()"
        )
    if torch.is_autocast_enabled(_device_of(module).type):
        return "torch.autocast is in force"
    if torch.is_grad_enabled():
        return "gradients are asked for (torch.no_grad() is not in force)"
    for name, part in module.named_modules():
        if cache_hooks(part) or any(vars(part).get(hooks) for hooks in _HOOKS):
            return f"its part {name or type(part).__name__} has hooks, which a replay would leave out"
    return ""


def _device_of(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device


def _difference(before: tuple[Any, ...], after: tuple[Any, ...]) -> str:
    kinds = ("tensors that are others", "settings that are others")
    for kind, one, other in zip(kinds, before, after, strict=False):
        if one != other:
            return f"it has {kind} ({_changed(one, other)})"
    return f"torch multiplies matrices in {after[-1]!r} precision"


def _changed(before: Fingerprint, after: Fingerprint) -> str:
    """Names of what differs."""
    one, other = dict(before), dict(after)
    names = [name or "itself" for name in one | other if one.get(name) != other.get(name)]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
