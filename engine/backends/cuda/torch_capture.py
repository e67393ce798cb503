"""Captures of work in torch: CUDA graphs that share a pool, and what a capture that fails leaves to be put right."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from stepfuse._core import cuda
from stepfuse.backends.cuda.capture import undisturbed

#: What work may not do while it is captured.
RULE = (
    "A captured module must neither wait for the device (.item(), .cpu(), printing a tensor, branching on one), nor"
    " copy from the host's pageable memory, nor draw random numbers"
)

#: Graphs whose capture failed at its end: torch refers to them as long as the process lives.
_failed: list[torch.cuda.CUDAGraph] = []


class TorchCapture:
    """Captures on one GPU, on a stream of their own. All graphs work in one pool, so that one at a time may run.

    Args:
        device: The GPU.

    Attributes:
        context: Of the GPU.
        stream: What is captured is enqueued on it.
    """

    def __init__(self, device: torch.device) -> None:
        torch.cuda.init()
        self.context = cuda.open(device.index or 0)
        self.stream = torch.cuda.Stream(device)
        self._device = device
        self._pool: tuple[int, int] | None = None
        self._captured: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    @contextmanager
    def ordered(self) -> Iterator[torch.cuda.Stream]:
        """Makes our stream the current one, after the caller's work and before its next; gives the caller's stream."""
        callers = torch.cuda.current_stream(self._device)
        self.stream.wait_stream(callers)
        try:
            with torch.cuda.stream(self.stream), torch.no_grad():
                yield callers
        finally:
            callers.wait_stream(self.stream)

    def capture(self, enqueue: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """What ``enqueue`` enqueues inside ``ordered``, as a graph that owns its memory and is not instantiated.

        Raises:
            torch.OutOfMemoryError: If memory does not suffice.
            RuntimeError: If the work cannot be captured.
            Exception: What ``enqueue`` raises.
        """
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        if self._pool is None or not self._captured:
            self._pool = torch.cuda.graph_pool_handle()  # one that no graph uses any more is closed
        error: BaseException | None = None
        with undisturbed():
            # A workspace that is made during the capture belongs to the graph's pool, and nothing else frees it.
            _clear_workspaces()
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                enqueue()
            except BaseException as raised:
                error = raised
            try:
                graph.capture_end()
            except RuntimeError as raised:  # if the work has raised, its error is the reason
                error = error or raised
                self._mend_after(graph)
            finally:
                _clear_workspaces()
        try:
            if error is not None:
                raise error
        finally:
            del error  # or it and this frame would keep each other, and the graph with them
        self._captured.add(graph)
        return graph

    def _mend_after(self, failed: torch.cuda.CUDAGraph) -> None:
        """Does what torch (2.11) leaves undone where the end of a capture fails.

        Its allocator is directed to the pool and counts a user of it; the filter of its allocator of pinned memory
        refers to the graph; and its generators, which would refuse to draw, wait for the end that a capture that
        succeeds brings.
        """
        _failed.append(failed)
        for undone in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            with suppress(RuntimeError, AttributeError):
                getattr(torch._C, undone)(self._device.index or 0, self._pool)
        trivial = torch.cuda.CUDAGraph(keep_graph=True)
        number = torch.zeros((), device=self._device)
        with suppress(RuntimeError):
            trivial.capture_begin(pool=torch.cuda.graph_pool_handle(), capture_error_mode="thread_local")
            number.zero_()
            trivial.capture_end()


def _clear_workspaces() -> None:
    """Frees cuBLAS workspaces, which torch keeps for later products; its own graph trees do so around a capture."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
    if clear is not None:
        clear()
