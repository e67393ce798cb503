"""Types of the compiled core; csrc/bindings holds the definitions, csrc/core says more of each."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

Float32Array: TypeAlias = npt.NDArray[np.float32]
State = TypeVar("State", npt.NDArray[np.float32], npt.NDArray[np.float16])

def step(
    x: State,
    eps: State,
    row: Float32Array,
    eps_uncond: State | None = None,
    h: State | None = None,
    z: State | None = None,
    out: State | None = None,
    isa: str | None = None,
    h2: State | None = None,
    h3: State | None = None,
) -> State:
    """The fused step; ``stepfuse.step`` documents it."""

def normal(seed: int, step: int, stream: int, n: int, first: int = 0, isa: str | None = None) -> Float32Array:
    """Elements [first, first + n) of one sample's standard normal noise."""

def isas() -> list[str]:
    """Instruction sets that this machine has a kernel for, the best one last."""

class Adaptive:
    """What a step takes from the whole of its sample; ``StepTable.adapt`` documents it."""

    def __init__(
        self,
        guidance_rescale: float = 0.0,
        threshold_ratio: float = 0.0,
        largest_threshold: float = ...,
        *,
        blend: str = "plain",
        eta: float = 1.0,
        norm_threshold: float = 0.0,
        renorm_patch: int = 0,
        shape: tuple[int, int, int] = (0, 0, 0),
    ) -> None: ...

def adapted_row(
    row: Float32Array, adaptive: Adaptive, x: npt.ArrayLike, eps: npt.ArrayLike, eps_uncond: npt.ArrayLike | None = None
) -> Float32Array:
    """The row with what it takes from the whole sample folded in."""

class Passes:
    """What a step computes; ``Both`` takes two rows of a forward, the others one."""

    Conditional: Passes
    Unconditional: Passes
    Both: Passes

class Policy:
    """Which sample steps first among those of the same priority."""

    FirstCome: Policy
    ShortestFirst: Policy
    EarliestDeadline: Policy

class CostCurve:
    """Seconds of a forward, ``fixed + row * rows``; unknown if ``row`` is 0."""

    def __init__(self, fixed: float = 0.0, row: float = 0.0) -> None: ...

class Order:
    """A position in line: the smaller steps first."""

    @property
    def priority(self) -> int: ...
    @property
    def urgency(self) -> float: ...
    @property
    def arrival(self) -> int: ...
    def __lt__(self, other: Order, /) -> bool: ...

def order_of(
    policy: Policy,
    ageing: float = 0.0,
    priority: int = 0,
    arrival: int = 0,
    arrival_passes: float = 0.0,
    passes_left: float = 0.0,
    deadline: float = ...,
) -> Order:
    """A sample's position in line; ``arrival`` is unique, ``arrival_passes`` the passes computed before it arrived."""

class Candidate:
    """A sample that may step, as the planner knows it.

    That is its position in line, what its next step computes, its set of adapters, and the forwards that the loop had
    computed when that set last had one.
    """

    def __init__(self, order: Order, passes: Passes, adapters: int = 0, served: int = 0) -> None: ...

class PlanEntry:
    """A sample that steps: its index among those running, then waiting, and its rows, -1 where it has none."""

    @property
    def sample(self) -> int: ...
    @property
    def row_cond(self) -> int: ...
    @property
    def row_uncond(self) -> int: ...

class StepPlan:
    """The samples that step in the next forward, and how many rows it has."""

    @property
    def entries(self) -> list[PlanEntry]: ...
    @property
    def rows(self) -> int: ...

def steps_alike(rows: npt.ArrayLike, conditioned: bool) -> int:
    """How many of these rows, from the first on, compute the same passes."""

def rows_worthwhile(cost: CostCurve, rows_wanted: int, max_rows: int) -> int:
    """Rows that the next forward is worth if all that run or wait want ``rows_wanted``."""

def make_plan(
    running: Sequence[Candidate],
    waiting: Sequence[Candidate],
    max_rows: int,
    max_joins: int,
    rows_wanted: int = 0,
    cost: CostCurve = ...,
) -> StepPlan:
    """The planner; ``waiting`` is sorted, at most ``max_joins`` of it begin."""

class LoopOptions:
    """How samples share forwards; ``pad``: every forward has ``max_rows`` rows."""

    def __init__(
        self, *, max_running: int, policy: Policy = ..., ageing: float = 0.0, pad: bool = False, cost: CostCurve = ...
    ) -> None: ...

class Table:
    """A sampler's rows, (S, 16) or (S, 32), for the loop."""

    def __init__(self, rows: Float32Array, init_scale: float, adaptive: Adaptive = ...) -> None: ...

class KnownRegion:
    """The known region of a sample: flat image and mask, and signal and noise level of each state, (S + 1, 2)."""

    def __init__(self, image: Float32Array, mask: Float32Array | None, levels: Float32Array) -> None: ...
    image: Float32Array
    mask: Float32Array | None
    @property
    def levels(self) -> Float32Array: ...

def replay(
    tables: Sequence[Table],
    at: Sequence[float],
    conditioned: Sequence[bool],
    priorities: Sequence[int],
    max_rows: int,
    options: LoopOptions,
    cost: CostCurve,
    trace: bool = False,
    adapters: Sequence[int] = (),
) -> dict[str, Any]:
    """The loop on a simulated clock that a forward advances by its cost; ``at`` in seconds, ascending.

    ``adapters`` is the set of adapters of each arrival; empty: none has any.

    Returns:
        ``began`` and ``finished``, seconds by arrival; ``counters``, as ``Server.status`` has them; and ``trace``: a
        tuple (iteration, began, ended, sample, step, row) for each row of each forward if asked for.

    Raises:
        ValueError: If an arrival could never run, times are infinite, negative or not in order, or the sequences differ
            in length.
    """

class EventKind:
    """What has happened to a sample."""

    Stepped: EventKind
    """A watched sample has done a step."""
    Finished: EventKind
    """Its result is in ``x``."""
    Failed: EventKind
    """Its state went non-finite, or the network raised for it alone."""
    Cancelled: EventKind
    """Withdrawn by the caller."""
    Expired: EventKind
    """Not finished within its timeout."""
    Retried: EventKind
    """A forward of ``step`` samples raised: each is tried alone, this being the first of them."""

_Event: TypeAlias = tuple[EventKind, Any, int, Any, float, float]
"""(kind, owner or id, steps done, error, wait_seconds, run_seconds).

The error of a failure is what the network raised, or the (16,) row whose step was not finite. Times are of samples that
have ended: to the first step, and from there.
"""

class StepfuseError(Exception):
    """Any error of stepfuse's own.

    Examples:
        >>> try:
        ...     engine = sf.Engine.load("no-such-model")
        ... except sf.StepfuseError as error:
        ...     print(type(error).__name__)
        BundleError
    """

class QueueFull(StepfuseError, RuntimeError):  # noqa: N818
    """As many requests wait as may; the message says how many.

    Examples:
        >>> serving = sf.Serving(max_rows=1, max_queue=1, max_running=1)
        >>> engine = sf.Engine.load("fashion", serving=serving)
        >>> try:
        ...     futures = [engine.submit(sf.Request(steps=1000)) for _ in range(50)]
        ... except sf.QueueFull:
        ...     print("try again later, or submit(..., wait=5.0)")
        try again later, or submit(..., wait=5.0)
        >>> engine.close(abort=True)
    """

class DeadlineError(StepfuseError, RuntimeError):
    """A request's deadline cannot be met; the message holds the estimate.

    Examples:
        >>> import time
        >>> with sf.Engine.load("fashion") as engine:
        ...     cost = engine.calibrate(sf.CostCurve(fixed=0.01, row=0.01))
        ...     try:
        ...         engine.submit(sf.Request(steps=1000, deadline=time.monotonic() + 1.0))
        ...     except sf.DeadlineError:
        ...         print("fewer steps, or a later deadline")
        fewer steps, or a later deadline
    """

class EngineClosed(StepfuseError, RuntimeError):  # noqa: N818
    """The engine takes no more requests, or was closed before this one was finished.

    Examples:
        >>> engine = sf.Engine.load("fashion")
        >>> engine.close()
        >>> try:
        ...     images = engine.sample(1)
        ... except sf.EngineClosed as error:
        ...     print(error)
        the engine is closed
    """

class Gate:
    """Open at first, closed by each iteration that a sample behind it steps in."""

    def __init__(self) -> None: ...

class Request:
    """A sample to compute; made by ``Server.request``, used up by ``Server.submit``."""

class Stepper:
    """Holds states and histories, fills a forward's rows and runs the fused step."""

class HostStepper(Stepper):
    """The stepper of the host's memory."""

    def __init__(self, elements: int, integer_timestep: bool, cond_bytes: Sequence[int], max_rows: int) -> None:
        """``cond_bytes``: bytes a row of each conditioning input.

        Raises:
            ValueError: If a size is below 1, or the memory does not fit the address space.
        """

    def buffers(self) -> dict[str, Any]:
        """Views of a forward's memory, a row each: ``sample``, ``timestep``, ``prediction``, and a list, ``cond``."""

class Denoiser:
    """A network that the loop runs without Python."""

    def forward(self, rows: int, adapters: int = 0) -> None: ...

class Phase:
    """How far a server has come: it goes on to a later phase, never back."""

    Open: Phase
    """Takes requests."""
    Draining: Phase
    """Refuses requests, computes those it has."""
    Aborting: Phase
    """Refuses requests, withdraws those it has between two iterations."""

def end_by_interrupt() -> None:
    """Has the process end by SIGINT when the interpreter has, as one does that Ctrl-C has stopped."""

class Server:
    """The loop, which one thread runs and any thread feeds.

    A call that returns a bool returns whether its caller has to have ``run`` called now.
    """

    def __init__(self, stepper: Stepper, options: LoopOptions, max_waiting: int, check: bool = False) -> None:
        """Runs ``stepper``, which belongs to this server alone; ``check``: checks the invariants after each iteration.

        Raises:
            ValueError: If another server has the stepper, or ``max_waiting`` or ``max_running`` is below 1.
        """

    def request(
        self,
        id: int,
        table: Table,
        seed: int,
        has_noise: bool,
        x: Float32Array,
        x0: Float32Array | None,
        cond: Sequence[npt.NDArray[Any]],
        null_cond: Sequence[npt.NDArray[Any]],
        *,
        priority: int = 0,
        deadline: float | None = None,
        timeout: float | None = None,
        watched: bool = False,
        gate: Gate | None = None,
        known_region: KnownRegion | None = None,
        adapters: int = 0,
        device_copy: cuda.DeviceBuffer | None = None,
        owner: Any = None,
    ) -> Request:
        """A sample computed in ``x``; its arrays are kept alive until its last event. Times in seconds from now.

        ``owner`` is kept alive, too, and stands for the sample in events, where else its id does. ``device_copy`` takes
        the result as well, where the server's samples are on a GPU.

        Raises:
            ValueError: If an array has not the size that the server was made for, or is not C-contiguous.
        """

    def submit(self, request: Request, wait: float | None = 0.0) -> bool:
        """Queues a sample; waits so many seconds for room, None queues it however full.

        Raises:
            QueueFull: If there was no room; the request may be submitted again.
            EngineClosed: If the server is closed.
            DeadlineError: If the deadline cannot be met.
            ValueError: If it was made by another server or is submitted already, its table is empty, its conditioning
                or levels are not as many as needed, a guided step does not fit a forward, a time is NaN, or its id is
                taken.
        """

    def submit_all(self, requests: Sequence[Request]) -> bool:
        """Queues all of the samples for the same iteration, however full, or none.

        Raises:
            EngineClosed: If the server is closed.
            ValueError: If one could never run or has a deadline, or an id is taken or occurs twice.
        """

    @overload
    def cancel(self, id: int) -> bool:
        """Cancels the sample of this id, if there is one."""

    @overload
    def cancel(self, ids: Sequence[int]) -> bool:
        """Cancels the samples of these ids, those that there are."""

    def cancel_all(self) -> bool:
        """Cancels all samples."""

    def open(self, gate: Gate) -> bool:
        """Lets the samples behind it step in one more iteration."""

    def run(
        self,
        forward: Callable[..., None] | Denoiser,
        on_events: Callable[[list[_Event]], None],
        on_failure: Callable[[list[Any], BaseException], None] | None = None,
    ) -> None:
        """Iterates until nothing is left to do; ``on_events`` gets their events.

        ``forward(rows)`` computes, or ``forward(rows, adapters)`` where the samples of the forward have a set.

        What ``on_events`` raises ends the run and cancels every sample: ``on_failure`` gets their owners and the error.
        Without it the run raises the error.
        """

    def serve(
        self,
        forward: Callable[..., None] | Denoiser,
        on_events: Callable[[list[_Event]], None],
        on_failure: Callable[[list[Any], BaseException], None],
        on_idle: Callable[[], None],
    ) -> None:
        """Runs, and waits for more when nothing is left to do, until closed and drained; returns where another does."""

    def poke(self) -> None:
        """Has the thread in ``serve`` call ``on_idle`` when nothing is left to do."""

    @property
    def served(self) -> bool:
        """Whether a thread is in ``serve``."""
    @property
    def on_loop_thread(self) -> bool:
        """Whether the calling thread is in ``run`` or ``serve``."""
    @property
    def phase(self) -> Phase:
        """How far it has come."""
    def close(self) -> bool:
        """Refuses further requests; those queued are still computed."""

    def abort(self) -> bool:
        """Refuses further requests and cancels those that there are."""

    def wait_ended(self, seconds: float | None = None) -> bool:
        """Waits until it is closed and drained and no thread is in it; False if that takes longer than ``seconds``.

        Raises:
            ValueError: If ``seconds`` is negative or NaN.
            RuntimeError: If called by a function that ``run`` or ``serve`` calls.
        """

    def owners(self) -> list[Any]:
        """Those of the samples whose end ``on_events`` has not been given."""

    def set_cost(self, cost: CostCurve) -> None:
        """Sets what the planner takes a forward to cost."""

    def status(self) -> dict[str, Any]:
        """Counters, ``waiting``, ``running``, refusals; histograms as ``bounds``, ``counts`` (one more) and ``sum``."""

class Lease:
    """Cancels samples of a server, or closes it, when it is let go: at once, not to be interrupted by a signal."""

    def __init__(self, server: Server, ids: Sequence[int] | None = None) -> None: ...

class cuda:  # noqa: N801  a submodule, which one stub file can only write as a class
    """The GPU through the CUDA driver, opened when it is first asked for; csrc/cuda documents each class."""

    class CudaError(StepfuseError, RuntimeError):
        """A call of the driver failed: which, how, and what to do.

        Examples:
            >>> try:
            ...     engine = sf.Engine.load("fashion", device="cuda")
            ... except sf.CudaError as error:  # such as 2: out of memory
            ...     print(error.code, error.out_of_memory)
            ... except sf.GpuError:  # no library that runs on a GPU
            ...     pass
        """

        code: int
        out_of_memory: bool

    class Context:
        """The primary context of a GPU."""

        @property
        def device(self) -> int: ...
        @property
        def name(self) -> str: ...
        @property
        def compute_capability(self) -> int: ...
        @property
        def multiprocessors(self) -> int: ...
        @property
        def cache_bytes(self) -> int:
            """Of the second level, which all multiprocessors share."""

        @property
        def driver_version(self) -> str: ...
        @property
        def has_while_nodes(self) -> bool: ...
        @property
        def memory(self) -> tuple[int, int]: ...

    class Current:
        """Makes a GPU's context the calling thread's, for libraries that work in that."""

        def __init__(self, context: cuda.Context) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *error: object) -> None: ...

    @staticmethod
    def open(device: int = 0, driver: str = "libcuda.so.1") -> cuda.Context: ...

    class Event:
        def __init__(self, context: cuda.Context, timing: bool = False) -> None: ...
        def passed(self) -> bool: ...
        def synchronize(self) -> None: ...
        def seconds_since(self, start: cuda.Event) -> float: ...

    class Stream:
        def __init__(self, context: cuda.Context) -> None: ...
        @staticmethod
        def borrow(context: cuda.Context, address: int) -> cuda.Stream: ...
        @property
        def address(self) -> int: ...
        def synchronize(self) -> None: ...
        def record(self, event: cuda.Event) -> None: ...
        def wait(self, event: cuda.Event) -> None: ...

    class Turn:
        """Inside its block this thread alone enqueues on a stream that several have."""

        def __init__(self, stream: cuda.Stream) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    class HostBuffer:
        """Pinned memory, as a buffer of bytes."""

        def __init__(self, context: cuda.Context, bytes: int) -> None: ...
        def __buffer__(self, flags: int, /) -> memoryview: ...

    class DeviceBuffer:
        def __init__(self, context: cuda.Context, bytes: int) -> None: ...
        @staticmethod
        def borrow(context: cuda.Context, address: int, bytes: int) -> cuda.DeviceBuffer: ...
        @property
        def address(self) -> int: ...
        @property
        def bytes(self) -> int: ...
        def upload(self, stream: cuda.Stream, source: Any, offset: int = 0) -> None: ...
        def download(self, stream: cuda.Stream, target: Any, offset: int = 0) -> None: ...
        def copy(self, stream: cuda.Stream, source: cuda.DeviceBuffer, bytes: int, offset: int = 0) -> None:
            """From an offset in another buffer to the beginning of this one."""

    class Module:
        def __init__(self, context: cuda.Context, image: bytes) -> None: ...
        def info(self, name: str) -> dict[str, int]: ...

    class StepKernel:
        """A compiled kernel and its arguments, as (name, type, whether divisible by 16).

        Its grid is (tiles, slots) if ``grid`` is ``tiles``, (slots,) if it is ``slots``.
        """

        def __init__(
            self,
            module: cuda.Module,
            name: str,
            arguments: Sequence[tuple[str, str, bool]],
            block: int,
            num_warps: int,
            shared_bytes: int = 0,
            grid: str = "tiles",
        ) -> None: ...
        def launch(self, stream: cuda.Stream, slots: int, values: dict[str, int]) -> None: ...

    class StepNeeds:
        """What a step needs beside the plain fused step, for any of its slots. Equal ones have the same hash."""

        def __init__(
            self,
            *,
            noise: bool = False,
            guidance: bool = False,
            threshold: bool = False,
            keep: bool = False,
            second: bool = False,
            renorm: bool = False,
        ) -> None: ...
        noise: bool
        guidance: bool
        threshold: bool
        keep: bool
        second: bool
        renorm: bool

    class StepArguments:
        """Values of the step's kernels' arguments by name, of which each kernel takes its own."""

        def __init__(self, values: dict[str, int]) -> None: ...

    class SlotMemory:
        """Device memory of a static batch's samples, a slot for each row of a forward.

        ``x``, ``h`` and ``seed``: (max_rows, ...) each. ``known``, once it is reserved: (max_rows, 3, elements) image,
        mask and first noise.
        """

        def __init__(self, stream: cuda.Stream, elements: int, integer_timestep: bool, max_rows: int) -> None: ...
        @property
        def x(self) -> cuda.DeviceBuffer: ...
        @property
        def h(self) -> cuda.DeviceBuffer: ...
        @property
        def seed(self) -> cuda.DeviceBuffer: ...
        @property
        def known(self) -> cuda.DeviceBuffer: ...
        def reserve_registers(self, count: int) -> None: ...
        def reserve_known(self) -> None: ...
        def reserve_scratch(self, bytes: int) -> None: ...
        def arguments(self, *, sample: int, timestep: int, prediction: int) -> cuda.StepArguments:
            """Of all kernels of a step over this memory and a network's rows, at these addresses."""

    class StepProgram:
        """The kernels of a step: the fused step by the most slots it is meant for, and those before and after it."""

        def __init__(
            self,
            plain: dict[int, cuda.StepKernel],
            noise: dict[int, cuda.StepKernel],
            guidance_sums: cuda.StepKernel | None = None,
            guided_rows: cuda.StepKernel | None = None,
            magnitude_counts: cuda.StepKernel | None = None,
            thresholded_rows: cuda.StepKernel | None = None,
            keep_known: cuda.StepKernel | None = None,
            second: dict[int, cuda.StepKernel] = ...,
            renormed_predictions: cuda.StepKernel | None = None,
        ) -> None: ...
        def scratch_bytes(self, slots: int, n: int, needs: cuda.StepNeeds) -> int:
            """Size of the memory that adapting rows works in; 0: none is adapted."""

        def launch(
            self,
            stream: cuda.Stream,
            slots: int,
            needs: cuda.StepNeeds,
            arguments: cuda.StepArguments | dict[str, int],
            frame: int,
        ) -> None:
            """One run over the frame at that address, whose rows are adapted in place."""

    class Graph:
        @staticmethod
        def borrow(context: cuda.Context, address: int) -> cuda.Graph: ...
        @property
        def address(self) -> int: ...
        def unrepeatable(self) -> list[str]:
            """What a trajectory cannot repeat: copies of pageable memory, calls of the host, allocations."""

    class Capture:
        """Records what is enqueued on the stream, from now on."""

        def __init__(self, stream: cuda.Stream) -> None: ...
        def end(self) -> cuda.Graph: ...

    class HeldReleases:
        """Inside its block handles that this thread lets go of are kept, and released at its end."""

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    class GraphExec:
        def __init__(self, graph: cuda.Graph) -> None: ...
        def upload(self, stream: cuda.Stream) -> None: ...
        def launch(self, stream: cuda.Stream) -> None: ...

    class Form:
        Unrolled: cuda.Form
        While: cuda.Form

    class NodeKind:
        Begin: cuda.NodeKind
        Loop: cuda.NodeKind
        Forward: cuda.NodeKind
        Step: cuda.NodeKind
        Advance: cuda.NodeKind

    class PlannedNode:
        kind: cuda.NodeKind
        in_body: bool
        after: int
        rows: int
        frame: int

    class TrajectoryPlan:
        form: cuda.Form
        slots: int
        steps: int
        forward_rows: list[int]
        nodes: list[cuda.PlannedNode]
        device_bytes: int
        host_bytes: int

    @staticmethod
    def plan_trajectory(
        form: cuda.Form,
        slots: int,
        forward_rows: Sequence[int],
        buckets: Sequence[int],
        second: bool = False,
        flags: bool = False,
    ) -> cuda.TrajectoryPlan:
        """Which nodes, in what order, and how much memory.

        ``flags``: each step of an unrolled trajectory reports which of its slots are not finite.
        """

    class Frames:
        """What the steps of a static batch take from its tables.

        A course: a table's rows, whether the sample has conditioning, and optionally what the table computes of whole
        samples, and the levels of a known region.
        """

        def __init__(
            self,
            courses: Sequence[
                tuple[Float32Array, bool]
                | tuple[Float32Array, bool, Adaptive]
                | tuple[Float32Array, bool, Adaptive, Float32Array | None]
            ],
        ) -> None: ...
        slots: int
        steps: int
        forward_rows: list[int]
        needs: cuda.StepNeeds
        registers: int
        @property
        def slot_rows(self) -> list[tuple[int, int]]: ...
        @property
        def words(self) -> npt.NDArray[np.uint32]:
            """A frame a step, (steps, words), laid out as ``frame_layout`` says."""

    @staticmethod
    def frame_layout(slots: int, second: bool = False) -> dict[str, int]:
        """Where in a frame each part begins, in words, by the names that kernels have for them."""

    class Trajectory:
        def __init__(
            self,
            context: cuda.Context,
            plan: cuda.TrajectoryPlan,
            program: cuda.StepProgram,
            needs: cuda.StepNeeds,
            arguments: cuda.StepArguments | dict[str, int],
            forwards: dict[int, cuda.Graph],
        ) -> None: ...
        def load(self, stream: cuda.Stream, frames: cuda.Frames) -> None: ...
        def launch(self, stream: cuda.Stream) -> None: ...

    @staticmethod
    def bucket_rows(max_rows: int) -> list[int]:
        """Row counts worth a graph of their own, the largest first."""

    @staticmethod
    def bucket_for(buckets: Sequence[int], rows: int) -> int:
        """The smallest bucket of at least ``rows``, or -1."""

    @staticmethod
    def plan_budget(buckets: Sequence[tuple[int, int, int]], available_bytes: int) -> tuple[list[int], int]:
        """Buckets as (rows, pool_bytes, own_bytes) to (rows kept, bytes)."""

    @staticmethod
    def capture_buckets(buckets: Sequence[int], capture: Callable[[int], bool]) -> list[int]:
        """Captures the largest first; ``capture(rows)`` says if there was memory. Returns what was captured."""

    @staticmethod
    def device_stepper(
        stream: cuda.Stream,
        elements: int,
        integer_timestep: bool,
        max_rows: int,
        sample: int,
        timestep: int,
        prediction: int,
        sample_bytes: int,
        cond: Sequence[tuple[int, int, str]],
        program: cuda.StepProgram,
        forwards: dict[int, cuda.Graph] = ...,
    ) -> Stepper:
        """Samples in a GPU's memory.

        ``sample``, ``timestep`` and ``prediction`` are addresses of ``max_rows`` rows each, of a sample's
        ``sample_bytes``; ``cond``: address, bytes of a value on the host, and what it is stored as: ``as_is``, or of
        float32 ``float16`` or ``bfloat16``. ``forwards``: captured ones by their rows, of which several in a row become
        one launch while no request joins or leaves.
        """

    @staticmethod
    def slot_bytes(slots: int, elements: int) -> int:
        """Device memory that so many samples' states take."""

    class GraphDenoiser(Denoiser):
        """Captured forwards: the smallest that has the rows is launched."""

        def __init__(self, stream: cuda.Stream, forwards: dict[int, cuda.Graph]) -> None: ...
