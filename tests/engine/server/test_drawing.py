"""Pictures that are queued together: all are made, or none is drawn on."""

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.requests.prompt_request import PromptRequest
from stepfuse.server.drawing import ClientGoneError, draw, unless_gone
from stepfuse.server.models import Drawing


class Model:
    """Queues what the test ends."""

    def __init__(self, *, refuses=None):
        self.futures, self._refuses = {}, refuses

    def submit(self, request):
        if request.prompt == self._refuses:
            raise ValueError("prompt is refused")
        future = self.futures[request.prompt] = Future()
        return Drawing(future, lambda sample: sample)


def drawn(model, names, ending, *, workers=None, receive=None):
    """What is drawn of prompts, which ``ending(model.futures)`` ends once all are queued."""

    async def run():
        asked = [PromptRequest(name) for name in names]
        with workers or ThreadPoolExecutor(2) as pool:
            awaited = draw(model, asked, lambda request, sample: (request.prompt, sample), pool)
            task = asyncio.ensure_future(unless_gone(receive or asyncio.Event().wait, awaited))
            while len(model.futures) < len(names) and not task.done():
                await asyncio.sleep(0)
            ending(model.futures)
            return await task

    return asyncio.run(run())


def test_pictures_have_the_order_of_requests_whatever_ends_first():
    def ending(futures):
        for name in ("c", "a", "b"):
            futures[name].set_result(name.upper())

    assert drawn(Model(), "abc", ending) == [("a", "A"), ("b", "B"), ("c", "C")]


def test_one_that_fails_withdraws_the_others():
    model = Model()
    with pytest.raises(RuntimeError, match="the network failed"):
        drawn(model, "abc", lambda futures: futures["b"].set_exception(RuntimeError("the network failed")))
    assert model.futures["a"].cancelled()
    assert model.futures["c"].cancelled()


def test_one_that_is_refused_withdraws_those_before():
    model = Model(refuses="c")
    with pytest.raises(ValueError, match="prompt is refused"):
        drawn(model, "abc", lambda _: None)
    assert [name for name, future in model.futures.items() if future.cancelled()] == ["a", "b"]


def test_a_client_that_goes_withdraws_all():
    gone = asyncio.Event()

    async def receive():
        await gone.wait()
        return {"type": "http.disconnect"}

    model = Model()
    with pytest.raises(ClientGoneError):
        drawn(model, "ab", lambda _: gone.set(), receive=receive)
    assert all(future.cancelled() for future in model.futures.values())


def test_what_is_queued_after_the_client_has_gone_is_withdrawn():
    class Late(ThreadPoolExecutor):
        """Runs what it is given when it ends."""

        def submit(self, *work):
            self.late = work

        def __exit__(self, *error):
            self.late[0](*self.late[1:])
            return super().__exit__(*error)

    async def receive():
        return {"type": "http.disconnect"}

    model = Model()
    with pytest.raises(ClientGoneError):
        drawn(model, "ab", lambda _: None, workers=Late(), receive=receive)
    assert len(model.futures) == 2
    assert all(future.cancelled() for future in model.futures.values())
