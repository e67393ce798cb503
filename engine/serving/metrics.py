"""Counters of engines and pipelines for Prometheus, read when it asks: drawing pays nothing for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping
from threading import Thread
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from stepfuse.extras import pip_install

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

#: Reads counters as ``Engine.stats`` returns them.
Stats = Callable[[], Mapping[str, Any]]

_COUNTERS = {
    "submitted": ("stepfuse_requests_submitted", "Requests taken into the queue, one an image."),
    "deadline_misses": ("stepfuse_deadline_misses", "Requests finished after their deadline."),
    "steps": ("stepfuse_steps", "Fused steps, one a request and step."),
    "forwards": ("stepfuse_forwards", "Calls of the network."),
    "failed_forwards": ("stepfuse_forward_failures", "Calls of the network that raised."),
    "network_passes": ("stepfuse_network_passes", "Rows of the network's calls that a request asked for."),
    "padded_rows": ("stepfuse_padded_rows", "Rows of the network's calls that were computed to fill a forward up."),
}
#: Counters in several parts that add up: the name, its label, and the label's value for each part.
_DIVIDED = (
    (
        "stepfuse_requests",
        "Requests that have ended, one an image.",
        "outcome",
        {"samples": "finished", "failures": "failed", "cancelled": "cancelled", "expired": "expired"},
    ),
    (
        "stepfuse_requests_refused",
        "Requests not taken into the queue.",
        "reason",
        {"queue_refusals": "queue", "deadline_refusals": "deadline"},
    ),
    (
        "stepfuse_busy_seconds",
        "Time of an engine's thread: in the network, the fused step, planning and staging, and callbacks; of a"
        " pipeline also in its other stages.",
        "phase",
        {
            "network_seconds": "network",
            "step_seconds": "step",
            "loop_seconds": "loop",
            "callback_seconds": "callbacks",
            "text_encoder_seconds": "text_encoder",
            "vae_encoder_seconds": "vae_encoder",
            "vae_decoder_seconds": "vae_decoder",
        },
    ),
)
_GAUGES = {
    "waiting": ("stepfuse_requests_waiting", "Requests that wait for their first step."),
    "running": ("stepfuse_requests_running", "Requests that have begun and not ended."),
}
_HISTOGRAMS = {
    "wait_seconds": ("stepfuse_queue_wait_seconds", "From submission to the first step, of requests that began."),
    "latency_seconds": ("stepfuse_request_latency_seconds", "From submission to the image, of finished requests."),
    "forward_seconds": ("stepfuse_forward_seconds", "Time of one call of the network."),
    "forward_rows": ("stepfuse_forward_rows", "Rows of one call of the network, padding not counted."),
}
_RESERVED = {"le", *(label for _, _, label, _ in _DIVIDED)}


class Source(Protocol):
    """What has counters: an ``Engine``, closed or not."""

    def stats(self) -> Mapping[str, Any]:
        """As ``Engine.stats``."""


class PipelineSource(Protocol):
    """What has counters of several engines: a ``TextToImage``, closed or not."""

    def totals(self) -> Mapping[str, Any]:
        """As ``TextToImage.totals``."""


class EngineCollector:
    """A collector for ``prometheus_client``: register it, and each scrape reads each engine's ``stats`` once.

    A registry takes one of these, as a metric may have one heading only: further engines are added to it.

    Args:
        engine: An engine or a ``TextToImage``, or a callable that returns what ``Engine.stats`` does.
        labels: Set on all its series, such as ``{"model": "fashion"}``.

    Raises:
        ImportError: If prometheus-client is not installed.
        ValueError: As ``add`` does.
        TypeError: As ``add`` does.

    Examples:
        >>> import prometheus_client
        >>> from stepfuse.metrics import EngineCollector
        >>> full, fast = sf.Engine.load("fashion"), sf.Engine.load("fashion-8step")
        >>> collector = EngineCollector(full, {"model": "fashion"})
        >>> collector.add(fast, {"model": "fashion-8step"})
        >>> registry = prometheus_client.CollectorRegistry()
        >>> registry.register(collector)  # which asks describe(), and at each scrape collect()
        >>> registry.get_sample_value("stepfuse_steps_total", {"model": "fashion"})
        0
        >>> len(list(collector.collect())) > len(list(collector.describe()))
        False
    """

    def __init__(self, engine: Source | PipelineSource | Stats, labels: Mapping[str, str] | None = None) -> None:
        _prometheus()  # better missed here than at the first scrape
        self._sources: list[tuple[Stats, dict[str, str]]] = []
        self.add(engine, labels)

    def add(self, engine: Source | PipelineSource | Stats, labels: Mapping[str, str] | None = None) -> None:
        """Collects from one more engine.

        Args:
            engine: As in the constructor.
            labels: Of the same names as the other engines' and other values.

        Raises:
            ValueError: If a label's name is not one or is taken, or the labels do not tell the engines apart.
            TypeError: If a label is not text, or ``engine`` has no counters.
        """
        stats = getattr(engine, "totals", None) or getattr(engine, "stats", engine)
        if not callable(stats):
            raise TypeError(
                f"engine must be an Engine, a TextToImage or a callable that returns its stats, got {engine!r}"
            )
        given = dict(labels or {})
        for name, value in given.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise TypeError(f"labels must be text by name, got {name!r}: {value!r}")
            if not re.fullmatch(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*", name) or name in _RESERVED:
                raise ValueError(
                    f"a label's name must be of letters, digits and _, not begin with a digit or __, and be none of"
                    f" {', '.join(sorted(_RESERVED))}, got {name!r}"
                )
        others = [other for _, other in self._sources]
        if others and others[0].keys() != given.keys():
            raise ValueError(f"all engines must have labels of the same names, got {others[0]} and {given}")
        if given in others:
            raise ValueError(f"labels must tell the engines apart, {given} is taken")
        self._sources.append((stats, given))

    def collect(self) -> Iterator[Any]:
        """The metric families of all engines, as of now."""
        return _families([(stats(), labels) for stats, labels in self._sources])

    def describe(self) -> Iterator[Any]:
        """The same without values, so that a registry knows the names and reads no counters to learn them."""
        return _families([])


def serve_metrics(
    engine: Source | PipelineSource | EngineCollector, port: int, address: str = "127.0.0.1"
) -> tuple[WSGIServer, Thread]:
    """Serves an engine's metrics over HTTP, from a registry of their own, in a thread of their own.

    Args:
        engine: An engine or a ``TextToImage``, or a collector with those and the labels wanted.
        port: 0 lets the system choose: ``server.server_port`` of what is returned.
        address: Where to listen; ``"0.0.0.0"`` is everywhere.

    Returns:
        The server and its thread: ``server.shutdown()``, ``server.server_close()``, ``thread.join()`` end it.

    Raises:
        ImportError: If prometheus-client is not installed.
        OSError: If the port is taken.

    Examples:
        >>> from stepfuse.metrics import serve_metrics
        >>> engine = sf.Engine.load("fashion")
        >>> server, thread = serve_metrics(engine, 0)  # 0: any port that is free
        >>> server.shutdown()
    """
    prometheus = _prometheus()
    registry = prometheus.CollectorRegistry()
    registry.register(engine if isinstance(engine, EngineCollector) else EngineCollector(engine))
    served: tuple[WSGIServer, Thread] = prometheus.start_http_server(port, address, registry)
    return served


def _families(scraped: list[tuple[Mapping[str, Any], dict[str, str]]]) -> Iterator[Any]:
    core = _prometheus().core
    names = list(scraped[0][1]) if scraped else []
    found = [(counts, [labels[name] for name in names]) for counts, labels in scraped]
    for kind, metrics in ((core.CounterMetricFamily, _COUNTERS), (core.GaugeMetricFamily, _GAUGES)):
        for key, (name, meaning) in metrics.items():
            family = kind(name, meaning, labels=names)
            for counts, values in found:
                family.add_metric(values, counts[key])
            yield family
    for name, meaning, label, parts in _DIVIDED:
        family = core.CounterMetricFamily(name, meaning, labels=[*names, label])
        for counts, values in found:
            for key, part in parts.items():
                if key in counts:  # an engine has none of a pipeline's stages
                    family.add_metric([*values, part], counts[key])
        yield family
    for key, (name, meaning) in _HISTOGRAMS.items():
        family = core.HistogramMetricFamily(name, meaning, labels=names)
        for counts, values in found:
            family.add_metric(values, _cumulative(counts[key]), counts[key]["sum"])
        yield family


def _cumulative(histogram: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Prometheus' buckets: each counts all values up to its bound."""
    bounds = [*map(repr, histogram["bounds"]), "+Inf"]
    return list(zip(bounds, itertools.accumulate(histogram["counts"]), strict=True))


def _prometheus() -> ModuleType:
    try:
        import prometheus_client.core
    except ImportError as error:
        raise ImportError(f"metrics need prometheus-client: {pip_install('metrics')}") from error
    return prometheus_client
