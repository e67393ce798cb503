"""Engines' counters for Prometheus: ``EngineCollector`` and ``serve_metrics``."""

from stepfuse.serving.metrics import EngineCollector, serve_metrics

__all__ = ["EngineCollector", "serve_metrics"]
