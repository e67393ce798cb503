"""OpenVINO on the loop's own memory: pieces of a few fixed row counts, without a copy or an allocation a step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import openvino as ov

from stepfuse.backends.host.base import Array, HostBackend, fitting
from stepfuse.backends.host.interface import PREDICTION, SAMPLE, TIMESTEP
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.errors import DenoiserError

if TYPE_CHECKING:
    from stepfuse.backends.host.openvino.network import OpenVinoNetwork

#: Most rows that are computed together: more gain nothing, and leave the caches.
MOST_TOGETHER = 16

#: Bytes that the weights of all compiled networks may take; one there is in any case.
_WEIGHTS = 1 << 30


class OpenVinoBackend(HostBackend):
    """A network that is compiled for a few row counts, each when it is first needed; 11 rows run as 8 + 2 + 1.

    Compiled for any number of rows it is slower, and each that is compiled for one number has weights of its own.

    Args:
        network: Compiles it.
        info: What its inputs and output are.
        max_rows: Most rows of one forward.
        buckets: The row counts, 1 among them.

    Raises:
        BundleError: If the network cannot be compiled, or so many rows do not fit the memory.
        ValueError: If it does not compute in the precision asked for.
    """

    def __init__(self, network: OpenVinoNetwork, info: ModelInfo, max_rows: int, buckets: Iterable[int]) -> None:
        first = network.compile(info, 1)  # before memory is taken for what a manifest says
        with fitting(network.path, max_rows):
            super().__init__(info, max_rows)
        self._network, self._info = network, info
        self._compiled: dict[int, ov.CompiledModel] = {1: first}
        self._requests: dict[tuple[int, int], ov.InferRequest] = {}
        self._buckets = sorted({one for one in buckets if one <= max_rows}, reverse=True)
        self._running: ov.InferRequest | None = None
        self._interrupted = False

    def forward(self, rows: int) -> None:
        """Runs the first ``rows`` rows; OpenVINO releases the GIL while it computes.

        Raises:
            DenoiserError: If OpenVINO cannot, or was interrupted.
            BundleError: If the network cannot be compiled for as many rows.
        """
        for start, count in pieces(rows, self._buckets):
            request = self._requests.get((start, count)) or self._bind(start, count)
            self._running = request
            if self._interrupted:
                raise DenoiserError(f"OpenVINO could not run {rows} rows: the forward was given up")
            try:
                request.start_async()
                if self._interrupted:  # before there was anything to cancel
                    request.cancel()
                request.wait()
            except Exception as error:  # OpenVINO's exceptions share no base class
                raise DenoiserError(f"OpenVINO could not run {rows} rows: {error}") from error

    def interrupt(self) -> None:
        """Has OpenVINO give a forward up before its next operator, and those to come."""
        self._interrupted = True
        if self._running is not None:
            self._running.cancel()

    def close(self) -> None:
        """Frees the network."""
        self._running = None
        self._requests.clear()
        self._compiled.clear()

    def _bind(self, start: int, count: int) -> ov.InferRequest:
        """A request on the memory of some rows."""
        if count not in self._compiled:
            self._compiled[count] = self._network.compile(self._info, count)
        request = self._compiled[count].create_infer_request()
        memory: dict[str, Array] = {SAMPLE: self.buffers.sample, TIMESTEP: self.buffers.timestep}
        memory |= {**self.buffers.cond, PREDICTION: self.buffers.prediction}
        for name, rows in memory.items():
            request.set_tensor(name, ov.Tensor(rows[start : start + count], shared_memory=True))
        self._requests[start, count] = request
        return request


def default_buckets(max_rows: int, weights: int) -> list[int]:
    """Powers of two up to ``max_rows``, 1 among them, fewer of a network of many bytes of weights."""
    most = max(1, _WEIGHTS // max(weights, 1))
    return [1 << i for i in range(min(max_rows, MOST_TOGETHER).bit_length())][:most]


def pieces(rows: int, buckets: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First row and number of the pieces that make up ``rows`` rows, of the largest buckets first, which come first."""
    start = 0
    for count in buckets:
        while rows - start >= count:
            yield start, count
            start += count
