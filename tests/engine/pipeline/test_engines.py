"""The engines of a pipeline, one a size, and the calls that use them."""

import threading

import pytest
import support

from stepfuse.errors import EngineClosed
from stepfuse.pipeline.engines import Engines

SHAPE = support.SHAPE


def test_a_call_that_ctrl_c_has_ended_does_not_keep_the_pipeline_open():
    """It may come when the call holds an engine and before it can say that it does not."""
    engines = Engines(lambda shape: support.make_engine())
    lost = engines.use(SHAPE)
    lost.__enter__()
    closer = threading.Thread(target=engines.close, daemon=True)  # of another thread: waits for the call
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    engines.close()
    lost.__exit__(None, None, None)
    closer.join(10)
    assert not closer.is_alive()
    with pytest.raises(EngineClosed), engines.use(SHAPE):
        pass
