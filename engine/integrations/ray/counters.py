"""The engines' counters as metrics of Ray, which each node exports to Prometheus for the replicas on it."""

from __future__ import annotations

from typing import Any

from ray.serve import metrics

from stepfuse.serving.metrics import EngineCollector


class Counters:
    """Those of one replica, whose name Serve adds. Histograms are left out: Ray counts values one by one.

    Args:
        collector: Of the engines.
    """

    def __init__(self, collector: EngineCollector) -> None:
        self._collector = collector
        self._metrics: dict[str, Any] = {}
        self._before: dict[tuple[str, ...], float] = {}

    def update(self) -> None:
        """Brings Ray's metrics up to date."""
        for family in self._collector.collect():
            if family.type not in ("counter", "gauge"):
                continue
            for sample in family.samples:
                metric = self._metric(family, tuple(sample.labels))
                if family.type == "gauge":
                    metric.set(sample.value, tags=sample.labels)
                    continue
                key = (family.name, *sample.labels.values())
                if (more := sample.value - self._before.get(key, 0.0)) > 0:
                    metric.inc(more, tags=sample.labels)
                self._before[key] = sample.value

    def _metric(self, family: Any, labels: tuple[str, ...]) -> Any:
        if family.name not in self._metrics:
            kind = metrics.Gauge if family.type == "gauge" else metrics.Counter
            self._metrics[family.name] = kind(family.name, family.documentation, labels)
        return self._metrics[family.name]
