"""A diffusers scheduler that steps along the table of its run, whose rows the engine's samplers make.

The table is made at a run's first step, when timesteps, noise levels and the place to begin are known. What its rows
cannot do is refused: a run cannot go on by diffusers' own code, which has not kept what it needs of the steps before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from stepfuse.integrations.diffusers.fused_scheduler import FusedScheduler, Generators, noise_like
from stepfuse.integrations.diffusers.scheduler_rows import UnsupportedStep
from stepfuse.integrations.diffusers.scheduler_table import rest_of, settings_of, table_of
from stepfuse.integrations.diffusers.torch_step import require_supported, step_with, warn_once
from stepfuse.samplers.table import COLUMNS, Float32Array, StepTable

_LINE_1 = slice(COLUMNS.index("t"), COLUMNS.index("q_x"))
_OF_NEXT, _OF_KEPT = (slice(COLUMNS.index(f"{line}_x"), COLUMNS.index(f"{line}_e") + 1) for line in "qu")


@dataclass
class Run:
    """The steps of a run, and what they keep.

    Attributes:
        rows: Shape (S, 16) or (S, 32).
        second: Shape (S, 16), rows whose next state is the second result of a step; None: the first register is.
        options: The arguments of ``step`` that the rows were made for.
        begin: Index of the first row among all of the scheduler's steps.
        registers: Tensors like the state.
        at: Index of the next step; None: in any order, since no step reads what another kept.
    """

    rows: Float32Array
    second: Float32Array | None
    options: Mapping[str, Any]
    begin: int
    registers: list[torch.Tensor]
    at: int | None


class TableScheduler(FusedScheduler):
    """A base beside a class of diffusers, whose ``step`` it replaces; everything else is that class's own.

        class HeunDiscreteScheduler(TableScheduler, diffusers.HeunDiscreteScheduler): ...

    The class must be one that ``read_scheduler`` reads. Its results, signatures and defaults are found in it.

    Attributes:
        class_name: Name of the class of diffusers.
        chosen_in_step: Arguments of ``step`` that are options of the sampler.
        takes_indices: Whether ``step`` takes whole numbers for timesteps, which might be a loop's counter.
        own_entries: Entries of the configuration that it covers itself, with values that ``read_scheduler`` takes.
        keeps_dtype: Whether the next state has the wider dtype of state and prediction, and not the prediction's.
    """

    class_name: ClassVar[str]
    chosen_in_step: ClassVar[tuple[str, ...]] = ()
    takes_indices: ClassVar[bool] = True
    keeps_dtype: ClassVar[bool] = True
    own_entries: ClassVar[Mapping[str, Any]] = {}
    _result: ClassVar[Any]
    _has_second: ClassVar[bool]
    _run: Run | None = None
    _is_left: bool = False  # whether this run is left to diffusers' own code
    # Arguments of set_timesteps, and the levels that it made of them.
    _given: tuple[Mapping[str, Any], torch.Tensor | None] = ({}, None)

    if TYPE_CHECKING:  # of the class beside it
        order: Any
        timesteps: Any
        sigmas: Any
        step_index: Any
        _step_index: Any
        _init_step_index: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if TableScheduler in cls.__bases__:
            theirs: Any = cls.__bases__[-1]
            cls.class_name = theirs.__name__
            cls._result = vars(sys.modules[theirs.__module__]).get(f"{theirs.__name__}Output", SchedulerOutput)
            cls._has_second = len(fields(cls._result)) > 1
            cls.set_timesteps = _set_timesteps_of(theirs)  # type: ignore[attr-defined]
            cls.step = _step_of(theirs)  # type: ignore[attr-defined]

    @property
    def _remedy(self) -> str:
        return self.remedy or f"take diffusers.{self.class_name}"

    @property
    def state_in_first_order(self) -> bool:
        """Whether the next evaluation is the first of its step; some classes scale the others' inputs differently."""
        return int(self.step_index or 0) % int(self.order) == 0

    def _step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: Generators,
        options: Mapping[str, Any],
    ) -> tuple[torch.Tensor, ...]:
        """What ``step`` returns, as a tuple."""
        if self._run is None:
            self._require_steps()
        if not self.takes_indices and isinstance(timestep, int | torch.IntTensor | torch.LongTensor):
            raise ValueError(f"timestep must be one of the scheduler's timesteps, got {timestep}, a whole number")
        try:
            require_supported(sample, model_output)
        except UnsupportedStep as why:
            raise ValueError(f"{self.class_name} cannot step: {why}; {self._remedy}") from why
        index = self._index(timestep)
        run = self._run
        if run is None or run.options != options or run.at not in (None, index):
            run = self._run = self._begin(run, index, options, sample)
        row, z = self._row(run, index, timestep), self._noise(index, model_output, sample, generator)
        second = [] if run.second is None else [step_with(run.second[index - run.begin], sample, model_output, ())]
        following = step_with(row, sample, model_output, run.registers, z)
        if run.second is None and self._has_second:
            second = run.registers
            run.registers = [torch.empty_like(one) for one in second]  # the caller may keep those
        if run.at is not None:
            run.at += 1
        self._advance()
        if not self.keeps_dtype:
            return following.to(model_output.dtype), *second
        return following, *(one.to(following.dtype) for one in second)

    def _begin(self, last: Run | None, begin: int, options: Mapping[str, Any], sample: torch.Tensor) -> Run:
        """A run from a step on."""
        if last is not None and last.at is not None:
            of = (last.at, begin) if last.options == options else (dict(last.options), dict(options))
            raise ValueError(
                f"steps of {self.class_name} build on those before: a run must go on with {of[0]}, got {of[1]}; call"
                f" set_timesteps to begin another, or {self._remedy}"
            )
        if begin % self.order:
            raise ValueError(f"a run must begin at a multiple of order = {self.order} evaluations, got {begin}")
        try:
            return self._run_from(begin, options, sample)
        except ValueError as error:
            raise ValueError(f"{error}; or {self._remedy}") from error

    def _run_from(self, begin: int, options: Mapping[str, Any], sample: torch.Tensor) -> Run:
        table = self._table(options)
        in_order, begin = table.uses_history, begin if table.uses_history else 0
        table = self._rest(table, begin)
        rows, second = np.array(table.rows), self._second_rows(table, options) if self._has_second else None
        count = 3 if table.has_second_line and sample.device.type != "cpu" else table.registers  # the kernel takes all
        if second is not None and not count:  # one pass gives both
            rows[:, _OF_KEPT] = second[:, _OF_NEXT]
            second, count = None, 1
        return Run(rows, second, options, begin, new_registers(sample, count), begin if in_order else None)

    def _rest(self, table: StepTable, begin: int) -> StepTable:
        """The steps from a row on."""
        return table[begin:] if self.order > 1 else rest_of(table, begin, settings_of(self).schedule)

    def _row(self, run: Run, index: int, timestep: Any) -> Float32Array:
        if index - run.begin >= len(run.rows):
            raise ValueError(
                f"a run must end after its {len(self.timesteps)} steps: call set_timesteps to begin another"
            )
        row: Float32Array = run.rows[index - run.begin]
        return row

    def _table(self, options: Mapping[str, Any]) -> StepTable:
        """The table of all steps at the timesteps that are set."""
        custom, sigmas = self._given
        if sigmas is not None and not torch.equal(sigmas, self.sigmas):
            raise ValueError(f"{self.class_name}: sigmas must be those of set_timesteps, got others: pass them to it")
        table = table_of(self, custom, **options)
        if table.dynamic_threshold is not None:
            raise ValueError(f"{self.class_name}: thresholding must be False, got True")
        return table

    def _second_rows(self, table: StepTable, options: Mapping[str, Any]) -> Float32Array:
        """Rows, shape (S, 16), whose next state is the second result of each step: the clean sample."""
        rows = StepTable.from_columns({"q_d": np.ones(len(table))}).rows.copy()
        rows[:, _LINE_1] = table.rows[:, _LINE_1]
        return rows

    def _noise(
        self, index: int, model_output: torch.Tensor, sample: torch.Tensor, generator: Generators
    ) -> torch.Tensor | None:
        """The noise of a step, drawn as diffusers draws it, also where it is multiplied by 0."""
        dtype = self._noise_dtype(index, sample.dtype, model_output.dtype)
        return None if dtype is None else noise_like(sample, generator, dtype)

    def _noise_dtype(self, index: int, state: torch.dtype, output: torch.dtype) -> torch.dtype | None:
        """In which dtype a step draws noise; None: it draws none."""
        return None

    def _index(self, timestep: Any) -> int:
        """The step that is next."""
        if self.step_index is None:
            self._init_step_index(timestep)
        return int(self.step_index)

    def _advance(self) -> None:
        self._step_index += 1


def _set_timesteps_of(theirs: Any) -> Callable[..., None]:
    signature = inspect.signature(theirs.set_timesteps)

    @wraps(theirs.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        theirs.set_timesteps(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        sigmas = getattr(self, "sigmas", None)
        self._given = {name: given.get(name) for name in ("timesteps", "sigmas")}, _copy(sigmas)
        self._run, self._is_left = None, False

    return set_timesteps


def _step_of(theirs: Any) -> Callable[..., Any]:
    signature = inspect.signature(theirs.step)
    defaults = {name: parameter.default for name, parameter in signature.parameters.items()}

    @wraps(theirs.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._is_left:
            return theirs.step(self, *args, **kwargs)
        try:
            return fused(self, *args, **kwargs)
        except ValueError as why:
            if self._run is not None or not self.leaves_runs:
                raise
            warn_once(self.class_name, str(why))
            self._is_left = True
            return theirs.step(self, *args, **kwargs)

    def fused(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        names = ("model_output", "timestep", "sample", "generator", "return_dict")
        model_output, timestep, sample, generator, as_object = (given.arguments.get(name) for name in names)
        options = {}
        for name, value in list(given.arguments.items())[1:]:
            if name in self.chosen_in_step:
                options[name] = value
            elif name not in names and value is not defaults[name] and value != defaults[name]:
                raise ValueError(f"{name} must be left at {defaults[name]!r}, got {value!r}: {self._remedy}")
        results = self._step(model_output, timestep, sample, generator, options)
        return self._result(*results) if as_object else results

    return step


def new_registers(like: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Registers of a state, in float32 whatever its precision, for ``step_with``."""
    return [torch.zeros_like(like, dtype=torch.float32, memory_format=torch.contiguous_format) for _ in range(count)]


def _copy(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.clone()
