"""What Prometheus scrapes: the engines' counters and those of HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stepfuse.server.models import ServedModel
from stepfuse.serving.metrics import EngineCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


def collector_of(models: Sequence[ServedModel]) -> EngineCollector:
    """The counters of models, labelled with their names."""
    first, *others = models
    collector = EngineCollector(first.stats, {"model": first.name})
    for model in others:
        collector.add(model.stats, {"model": model.name})
    return collector


class HttpMetrics:
    """Of one app, in a registry of its own.

    Args:
        models: Whose counters are read when Prometheus asks.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector_of(models))
        labels, registry = ("method", "route", "status"), self._registry
        self.requests = Counter("stepfuse_http_requests", "Requests answered.", labels, registry=registry)
        self.in_flight = Gauge("stepfuse_http_requests_in_flight", "Requests not yet answered.", registry=registry)
        self.seconds = Histogram(
            "stepfuse_http_request_seconds", "From a request's headers to the end of its answer.",
            ("route",), buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_seconds = Histogram(
            "stepfuse_http_first_byte_seconds", "From a request's headers to the first byte of its answer's body.",
            ("route",), buckets=_SECONDS, registry=registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self._registry)
