"""A sampler, compiled: one row of sixteen numbers a step, or of thirty-two where it needs more memory."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from stepfuse import _core
from stepfuse.arguments import plain
from stepfuse.display import listed, shortened
from stepfuse.notebook import html_table
from stepfuse.samplers.adaptation import ADAPTIVE, Adaptation
from stepfuse.samplers.table_file import read_table, write_table

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

#: The columns of a row, in memory order; ``csrc/core/step/row.h`` says what each does.
COLUMNS = ("t", "s", "g", "p_x", "p_e", "lo", "hi", "q_x", "q_d", "q_e", "q_h", "q_z", "u_x", "u_d", "u_e", "u_h")

#: The columns of the second line, which a table has where its sampler needs more memory than one register: further
#: registers ``h2`` and ``h3``, noise that is kept (``u_z``), and the unconditional prediction by itself.
SECOND_LINE: tuple[str, ...] = (
    *("q_u", "q_h2", "q_h3", "u_u", "u_z", "u_h2", "u_h3"),
    *("v_x", "v_d", "v_e", "v_h", "v_h2", "w_h", "w_h2", "w_h3", "spare"),
)

#: What a column holds where a sampler does not set it.
DEFAULTS = {"s": 1.0, "g": 1.0, "lo": -np.inf, "hi": np.inf}

_BOTH_LINES = COLUMNS + SECOND_LINE

#: What each history register is read by and kept by.
_REGISTERS = (
    ("q_h", "u_h", "v_h", "w_h", "u_x", "u_d", "u_e", "u_u", "u_z", "u_h2", "u_h3"),
    ("q_h2", "u_h2", "v_h2", "w_h2", "v_x", "v_d", "v_e", "v_h"),
    ("q_h3", "u_h3", "w_h3", "w_h", "w_h2"),
)

#: The columns that multiply a prediction: a step without one has zeros there.
_OF_PREDICTION = ("p_e", "q_e", "u_e", "v_e", "q_u", "u_u")

_UNBOUNDED = {"lo": -np.inf, "hi": np.inf}


@dataclass(frozen=True, eq=False)
class StepTable(Adaptation):
    """A sampler as data: ``(S, 16)`` or ``(S, 32)`` float32, the noisiest step first.

    Attributes:
        rows: Shape (S, 16), float32, read-only, columns as in ``COLUMNS``; or (S, 32), followed by ``SECOND_LINE``.
        sampler: Name of the function that made it.
        options: All of that function's arguments but the schedule.
        init_scale: The first state is ``init_scale`` times standard normal noise.
        max_timestep: Largest timestep of the schedule it was made for; None if it is not bound to one.
        levels: Signal and noise of the state before each row, and of the result: shape (S + 1, 2), float64, read-only;
            a state is ``signal * x0 + noise * z``. An image that a run begins with, or keeps in part, is noised to
            them. None, in a table made by hand: the levels that the model's schedule has at ``t``.
        min_timestep: The least timestep of the schedule, below 0 on some of EDM.
        zero_init: As in ``with_zero_init``; in a part of a table, how many of these steps are left.

    Examples:
        >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4, guidance_scale=3.0)
        >>> table["t"], table.passes, table.guided
        (array([750., 500., 250.,   0.], dtype=float32), 8, array([ True,  True,  True,  True]))
        >>> table.rows.shape, len(table.columns), table.has_second_line, table.registers
        ((4, 16), 16, False, 0)
        >>> table.uses_history, table.uses_noise
        (False, False)
        >>> table.adapt(guidance_rescale=0.7).adaptation["guidance_rescale"]
        0.7
        >>> table.save("four.npz")
        >>> sf.StepTable.load("four.npz").digest == table.digest
        True
    """

    rows: Float32Array
    sampler: str = "custom"
    options: Mapping[str, Any] = field(default_factory=dict)
    init_scale: float = 1.0
    max_timestep: float | None = None
    levels: Float64Array | None = None
    min_timestep: float = 0.0
    zero_init: int = 0

    def __post_init__(self) -> None:
        rows = np.array(self.rows, dtype=np.float32, order="C")
        if rows.ndim != 2 or rows.shape[1] not in (len(COLUMNS), len(_BOTH_LINES)):
            raise ValueError(
                f"a table's rows must have shape (S, {len(COLUMNS)}) or (S, {len(_BOTH_LINES)}), got {rows.shape}"
            )
        rows.flags.writeable = False
        object.__setattr__(self, "rows", rows)
        for name in ("options", "init_scale", "max_timestep", "min_timestep", *ADAPTIVE, "zero_init"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        if self.levels is not None:
            levels = np.array(self.levels, dtype=np.float64, order="C")
            if levels.shape != (len(rows) + 1, 2):
                raise ValueError(f"levels must have shape (S + 1, 2) = ({len(rows) + 1}, 2), got {levels.shape}")
            levels.flags.writeable = False
            object.__setattr__(self, "levels", levels)

    @classmethod
    def from_columns(cls, columns: Mapping[str, npt.ArrayLike], **attributes: Any) -> StepTable:
        """A checked table from float64 columns; those not named take their neutral value, scalars fill a column.

        It has a second line if a column of ``SECOND_LINE`` is named.

        Raises:
            ValueError: If a column is unknown, lengths differ, or ``check`` finds something.

        Examples:
            >>> table = sf.StepTable.from_columns({"t": [900, 500, 100], "p_x": 1.0, "p_e": -0.5, "q_d": 1.0})
            >>> len(table), table["p_e"]
            (3, array([-0.5, -0.5, -0.5], dtype=float32))
        """
        unknown = set(columns) - set(_BOTH_LINES)
        if unknown:
            raise ValueError(f"columns must be among {', '.join(_BOTH_LINES)}, got {listed(sorted(unknown))}")
        steps = np.broadcast_shapes((1,), *(np.shape(values) for values in columns.values()))[0]
        names = COLUMNS if columns.keys() <= set(COLUMNS) else _BOTH_LINES
        rows = np.zeros((steps, len(names)))
        for index, name in enumerate(names):
            rows[:, index] = columns.get(name, DEFAULTS.get(name, 0.0))
        with np.errstate(over="ignore"):  # check() reports it with its row
            table = cls(rows.astype(np.float32), **attributes)
        return table.check()

    def check(self) -> StepTable:
        """Returns the table itself if a run of it makes sense.

        Raises:
            ValueError: If it is empty, a number is not finite, bounds cross, a timestep lies outside the schedule, or a
                step reads the unconditional prediction that its guidance scale of 1 leaves out; the message names row,
                column and value.

        Examples:
            >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4)
            >>> table.check() is table
            True
        """
        _ = self._is_sound
        return self

    @functools.cached_property
    def _is_sound(self) -> bool:
        """Found once, since nothing of a table changes: a service checks the same one for each request."""
        if len(self) == 0:
            raise ValueError("a table must have at least one row, got 0")
        if not (np.isfinite(self.init_scale) and self.init_scale > 0):
            raise ValueError(f"init_scale must be positive and finite, got {self.init_scale}")
        self._check_adaptive()
        for index, name in enumerate(self.columns):
            column = self.rows[:, index]
            unbounded = column == _UNBOUNDED.get(name, np.nan)
            self._require(np.isfinite(column) | unbounded, name, "must be finite")
        self._require(self["lo"] <= self["hi"], "lo", "must be at most hi")
        self._require(self["s"] != 0, "s", "must not be 0")
        self._require(self["spare"] == 0, "spare", "must be 0")
        reads_uncond = (self["q_u"] != 0) | (self["u_u"] != 0)
        self._require(~reads_uncond | (self["g"] != 1), "g", "must not be 1 where q_u or u_u is not 0")
        levels = np.zeros((0, 2)) if self.levels is None else self.levels
        for row, level in enumerate(levels):
            if not (np.isfinite(level) & (level >= 0)).all():
                raise ValueError(f"{self.sampler}: levels[{row}] must be finite and at least 0, got {level.tolist()}")
        if self.max_timestep is not None:
            t = self["t"].astype(np.float64)
            inside = (t >= self.min_timestep) & (t <= self.max_timestep)
            self._require(inside, "t", f"must be between {self.min_timestep:g} and {self.max_timestep:g}")
        return True

    def _require(self, holds: npt.NDArray[np.bool_], column: str, rule: str) -> None:
        if holds.all():
            return
        row = int(np.argmin(holds))
        message = f"{self.sampler}: row {row} (t = {self['t'][row]:g}): {column} {rule}, got {self[column][row]:g}"
        if column == "p_x" and self["p_x"][row] == np.inf:
            message += (
                " (alphas_cumprod is 0 there, and epsilon prediction cannot tell the clean sample from pure noise:"
                " use v_prediction or sample, or a schedule without zero terminal SNR)"
            )
        raise ValueError(message)

    def _check_adaptive(self) -> None:
        self.check_values()
        if not 0 <= self.zero_init < len(self):
            raise ValueError(f"zero_init must be between 0 and {len(self) - 1}, got {self.zero_init}")
        for name, value in {**self._blends, "cfg_renorm": self.cfg_renorm or None}.items():
            if value is None:
                continue
            if not self.guided.any():
                raise ValueError(f"{name} must be left out where no step of {self.sampler} is guided, got {value}")
            if self["q_u"].any() or self["u_u"].any():
                raise ValueError(
                    f"{name} must be left out with these steps of {self.sampler}, which read the unconditional"
                    f" prediction by itself, as those with cfg_pp do, got {value}"
                )
        if self.apg_form == "paper":
            self._require((self["p_e"] != 0) | ~self.guided, "p_e", "must not be 0 with apg_form='paper'")
        if self.dynamic_threshold is None:
            return
        if np.isfinite(self["lo"]).any() or np.isfinite(self["hi"]).any():
            raise ValueError(f"clip must be left out with dynamic_threshold, which clamps too, got {self['hi'][0]:g}")
        if not any(self[name].any() for name in ("q_d", "u_d", "v_d")):
            raise ValueError(
                f"dynamic_threshold must be left out with these steps of {self.sampler}, none of which reads the clean"
                f" sample that it bounds, got {self.dynamic_threshold}"
            )

    def adapt(
        self,
        *,
        guidance_rescale: float = 0.0,
        dynamic_threshold: tuple[float, float] | None = None,
        apg: tuple[float, float] | None = None,
        apg_form: str = "diffusers",
        cfg_zero_star: bool = False,
        cfg_renorm: int = 0,
    ) -> StepTable:
        """The same steps, each of which takes something from the whole of its sample.

        Args:
            guidance_rescale: φ of Lin et al. (2023), section 3.4: the share, 0 to 1, to which a guided prediction is
                given the standard deviation of the conditional one. It keeps strong guidance from over-exposing.
            dynamic_threshold: ``(ratio, largest)`` of Saharia et al. (2022), section 2.3: the clean estimate is clamped
                to that quantile of its absolute values, 0 to 1, which is taken to lie between 1 and ``largest``, and
                divided by it. For models of pixels in [-1, 1].
            apg: ``(eta, norm_threshold)`` of adaptive projected guidance, Sadat et al. (2024): the difference of both
                predictions is shortened to ``norm_threshold`` where it is longer (0: never), and of what of it is
                parallel to the conditional prediction the share ``eta`` is taken, usually 0. Without momentum, which
                line 1 of a row has no register for.
            apg_form: ``"diffusers"``: of the network's predictions, added to the unconditional one, as diffusers'
                ``AdaptiveProjectedGuidance`` does by default. ``"paper"``: of the clean estimates, added to the
                conditional one, as in Algorithm 1 of the paper: a guidance scale of 1 is the conditional estimate.
            cfg_zero_star: The optimized scale of CFG-Zero*, Fan et al. (2025): the unconditional prediction is first
                scaled to the multiple of it that is nearest to the conditional one. ``with_zero_init`` is the other
                part of that method.
            cfg_renorm: Side p of patches, all channels of p x p elements, in each of which a guided prediction is
                scaled to the norm of the conditional one; 0: none. diffusers' ``QwenImagePipeline`` does so in its
                tokens, which are patches of 2 x 2. Samples have shape (C, H, W), and p divides H and W.

        Raises:
            ValueError: If ``guidance_rescale`` is not within 0 to 1; ``dynamic_threshold`` is not (ratio in (0, 1],
                largest of at least 1), or it is given for a table that clips already or reads no clean sample; ``apg``
                is not (finite, at least 0) or plain guidance, ``apg_form`` unknown or without ``apg``; ``apg`` and
                ``cfg_zero_star`` come together, for a table without guided steps or one that reads the unconditional
                prediction by itself; ``cfg_renorm`` is below 0, or comes with these, with ``guidance_rescale``, or for
                such a table.

        Examples:
            >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4, guidance_scale=7.5)
            >>> table.adapt(guidance_rescale=0.7).guidance_rescale
            0.7
        """
        return replace(
            self,
            guidance_rescale=guidance_rescale,
            dynamic_threshold=dynamic_threshold,
            apg=apg,
            apg_form=apg_form,
            cfg_zero_star=cfg_zero_star,
            cfg_renorm=cfg_renorm,
        ).check()

    def with_zero_init(self, steps: int) -> StepTable:
        """The same table, with predictions of 0 in its first steps: zero-init of CFG-Zero*, Fan et al. (2025).

        On a flow a state stays as it is there. Each of these steps still takes one pass, whose prediction is not used.

        Args:
            steps: How many, as diffusers' ``zero_init_steps``: from 0 to all but one. Steps of a sampler with two rows
                a step count twice, as they do there.

        Raises:
            ValueError: If ``steps`` is out of bounds, or fewer than those whose predictions are 0 already: make the
                table anew.

        Examples:
            >>> table = sf.samplers.euler(sf.NoiseSchedule.flow(), steps=4, guidance_scale=5.0)
            >>> table.with_zero_init(1).zero_init
            1
        """
        if not self.zero_init <= steps < len(self):  # what is 0 already cannot be had back
            raise ValueError(f"zero_init must be between {self.zero_init} and {len(self) - 1}, got {steps}")
        rows = self.rows.copy()
        for name in set(_OF_PREDICTION) & set(self.columns):
            rows[:steps, self.columns.index(name)] = 0
        rows[:steps, COLUMNS.index("g")] = 1
        return replace(self, rows=rows, zero_init=steps)

    def adapted_row(
        self, index: int, x: npt.ArrayLike, eps: npt.ArrayLike, eps_uncond: npt.ArrayLike | None = None
    ) -> Float32Array:
        """A row for one sample, with what ``adapt`` says folded in, as ``stepfuse.step`` takes it.

        Args:
            index: Step.
            x: State of one sample, any shape.
            eps: Network output, the shape of ``x``; the conditional one if ``eps_uncond`` is given.
            eps_uncond: Unconditional output.

        Returns:
            Shape (16,) or (32,), float32.

        Raises:
            ValueError: If sizes differ, or the table has ``cfg_renorm``, which no row holds.

        Examples:
            >>> table = sf.samplers.ddim(sf.NoiseSchedule.linear(), steps=4, guidance_scale=7.5)
            >>> table = table.adapt(guidance_rescale=0.7)
            >>> x, eps, eps_uncond = (sf.normal(seed, (4, 8, 8)) for seed in range(3))
            >>> row = table.adapted_row(0, x, eps, eps_uncond)  # what the step of these arrays is done with
            >>> row.shape
            (16,)
        """
        if self.cfg_renorm:
            raise ValueError(
                "cfg_renorm must be left out, since it changes predictions and not rows: Engine.sample runs such a"
                f" table, got {self.cfg_renorm}"
            )
        return _core.adapted_row(self.rows[index], self.adaptive_of(np.shape(x)), x, eps, eps_uncond)

    @property
    def passes(self) -> int:
        """Network passes that one conditioned sample costs: 2 a guided step, 1 where g is 0 or 1."""
        return len(self) + int(self.guided.sum())

    @property
    def guided(self) -> npt.NDArray[np.bool_]:
        """Which steps need both passes, shape (S,): g is neither 0 nor 1."""
        guided: npt.NDArray[np.bool_] = (self["g"] != 0) & (self["g"] != 1)
        return guided

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns: ``COLUMNS``, and ``SECOND_LINE`` if there is one."""
        return _BOTH_LINES[: self.rows.shape[1]]

    @property
    def has_second_line(self) -> bool:
        """Whether ``rows`` has 32 columns."""
        return len(self.columns) > len(COLUMNS)

    @property
    def registers(self) -> int:
        """History registers that the steps read or keep: ``h``, ``h2`` and ``h3``, as many as are needed."""
        used = [i for i, names in enumerate(_REGISTERS, 1) if any(bool(self[name].any()) for name in names)]
        return max(used, default=0)

    @property
    def uses_history(self) -> bool:
        """Whether any step reads or keeps a history register."""
        return self.registers > 0

    @property
    def uses_noise(self) -> bool:
        """Whether any step adds noise: the sampler is stochastic, and its result depends on the seed."""
        return bool(self["q_z"].any() or self["u_z"].any())

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Float32Array]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: int | str) -> Float32Array: ...
    @overload
    def __getitem__(self, key: slice) -> StepTable: ...
    def __getitem__(self, key: int | str | slice) -> Float32Array | StepTable:
        """``table[i]`` is a row, shape (16,) or (32,); ``table["q_x"]`` a column, (S,); ``table[a:b]`` a shorter table.

        Columns of a second line that the table has not are 0.
        With a stride a shorter table has no ``levels``: its rows do not lead from one to the next.
        """
        if isinstance(key, str):
            if key not in _BOTH_LINES:
                raise KeyError(f"columns are {', '.join(_BOTH_LINES)}, got {key!r}")
            index = _BOTH_LINES.index(key)
            absent = index >= self.rows.shape[1]
            column: Float32Array = np.zeros(len(self), np.float32) if absent else self.rows[:, index]
            return column
        if isinstance(key, slice):
            start, stop, stride = key.indices(len(self))
            connected = stride == 1 and stop > start
            levels = self.levels[start : stop + 1] if self.levels is not None and connected else None
            zeroed = sum(step < self.zero_init for step in range(start, stop, stride))
            return replace(self, rows=self.rows[key], levels=levels, zero_init=zeroed)
        row: Float32Array = self.rows[key]
        return row

    def __eq__(self, other: object) -> bool:
        """Tables are equal if they compute the same thing; names, options and what is said of states do not count."""
        if other is self:  # as a weak reference asks in each look-up
            return True
        if not isinstance(other, StepTable):
            return NotImplemented
        same: bool = self._scalars == other._scalars and np.array_equal(self._both_lines, other._both_lines)
        return same

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self._scalars, (self._both_lines + 0.0).tobytes()))  # -0.0 equals 0.0

    @property
    def _both_lines(self) -> Float32Array:
        """Shape (S, 32): a second line of zeros says no more than none."""
        return np.pad(self.rows, ((0, 0), (0, len(_BOTH_LINES) - self.rows.shape[1])))

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of what the table computes: equal tables have equal digests."""
        numbers = (self.init_scale, self.guidance_rescale, *(self.dynamic_threshold or ()))
        scalars = json.dumps([float(one) for one in numbers])
        if self.apg is not None or self.cfg_zero_star:  # others keep the digests that they had
            scalars += json.dumps([self.apg, self.apg_form, self.cfg_zero_star])
        if self.cfg_renorm:
            scalars += json.dumps({"cfg_renorm": self.cfg_renorm})
        line = len(COLUMNS)
        rows = self.rows if self.rows[:, line:].any() else self.rows[:, :line]  # a second line of zeros is none
        return hashlib.sha256((rows + 0.0).astype("<f4").tobytes() + scalars.encode()).hexdigest()

    @property
    def _scalars(self) -> tuple[Any, ...]:
        return self.init_scale, *self.adaptation.values()

    def __repr__(self) -> str:
        return f"<StepTable {self.sampler}: {len(self)} steps, {self.passes} passes>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the first rows and the last, and of their columns those that are used."""
        used = [name for name in self.columns if name == "t" or (self[name] != DEFAULTS.get(name, 0.0)).any()]
        numbers = np.column_stack([np.arange(len(self)), *(self[name] for name in used)])
        return html_table(repr(self), [[f"{one:.5g}" for one in row] for row in numbers], ("step", *used))

    def __str__(self) -> str:
        """All rows as text, a line a step."""
        lines = [repr(self), " ".join(f"{name:>10}" for name in ("step", *self.columns))]
        lines += [" ".join(f"{value:>10.5g}" for value in (step, *row)) for step, row in enumerate(self.rows)]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table as an ``.npz`` without pickled objects: all of it, or what was there before stays.

        Examples:
            >>> table = sf.samplers.unipc(sf.NoiseSchedule.linear(), steps=8)
            >>> table.save("eight.npz")
        """
        header = {
            "sampler": self.sampler,
            "options": dict(self.options),
            "init_scale": self.init_scale,
            "max_timestep": self.max_timestep,
            **({"min_timestep": self.min_timestep} if self.min_timestep else {}),
            **self.adaptation,
            "zero_init": self.zero_init,
        }
        arrays: dict[str, npt.NDArray[Any]] = {"rows": self.rows}
        if self.levels is not None:
            arrays["levels"] = self.levels
        write_table(path, arrays, header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StepTable:
        """Reads what ``save`` wrote, and checks it. A file without ``levels``, of an earlier version, is read too.

        Raises:
            ValueError: If the file is no saved table, is larger than 128 MiB, or the table does not pass ``check``.
            OSError: If the file cannot be read.

        Examples:
            >>> sf.samplers.unipc(sf.NoiseSchedule.linear(), steps=8).save("eight.npz")
            >>> sf.StepTable.load("eight.npz").sampler
            'unipc'
        """
        try:
            arrays, header = read_table(path)
            return cls(arrays["rows"], **header, levels=arrays.get("levels")).check()
        except ValueError as error:
            raise ValueError(shortened(f"{os.fspath(path)} is not a saved StepTable: {error}")) from error
