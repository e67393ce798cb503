"""A run of the engine that goes on by one step at a time, as a pipeline's own loop asks for it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

States = npt.NDArray[np.float32]


class Run:
    """Rests after each step until the next is asked for.

    Args:
        sample: ``Engine.sample`` with all arguments but ``on_state``. It runs in a thread of its own.
    """

    def __init__(self, sample: Callable[..., Any]) -> None:
        self._sample = sample
        self._news: SimpleQueue[BaseException | States] = SimpleQueue()
        self._orders: SimpleQueue[bool] = SimpleQueue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._work,), name="stepfuse-run", daemon=True)

    def step(self) -> States:
        """Does a step.

        Returns:
            The states, shape (n, *shape), which may be changed until the next step is asked for.

        Raises:
            BaseException: What the run failed with.
        """
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._orders.put(True)
        news = self._news.get()
        if isinstance(news, BaseException):
            raise news
        return news

    def stop(self) -> None:
        """Ends the run wherever it is, and waits for it."""
        self._orders.put(False)
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            self._sample(on_state=self._rest)
            self._news.put(RuntimeError("the run has no step left"))
        except BaseException as error:
            self._news.put(error)
        finally:
            del self._sample

    def _rest(self, step: int, total: int, x: States) -> bool:
        self._news.put(x)
        return self._orders.get()
