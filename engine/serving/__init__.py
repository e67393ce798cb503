"""Requests on their way through a network and its loop: queueing, result handles, metrics, tracing."""
