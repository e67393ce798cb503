"""TensorRT's log messages, forwarded to ``logging``."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger("stepfuse.tensorrt")

_LEVELS = {
    "INTERNAL_ERROR": logging.CRITICAL,
    "ERROR": logging.ERROR,
    "WARNING": logging.INFO,  # for example one for each int64 input, that it must be bound as int64
    "INFO": logging.DEBUG,  # dozens of lines a build
    "VERBOSE": logging.DEBUG,
}


def logger_for(trt: Any) -> Any:
    """An ``ILogger`` of this TensorRT that forwards to ``logging``, and keeps errors in its list ``errors``."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            level = _LEVELS[severity.name]
            if level >= logging.ERROR:
                self.errors.append(message)
                level = logging.DEBUG  # the exception reports it
            log.log(level, "%s", message)

    return Logger()
