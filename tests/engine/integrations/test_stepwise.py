"""A batch that is stepped on the caller's own thread."""

import numpy as np
import pytest
import support

pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import stepfuse as sf
from stepfuse.backends.host.callable import CallableBackend
from stepfuse.bundle.model_info import ModelInfo
from stepfuse.integrations.diffusers.stepwise import InlineService, StepwiseBatch

TABLE = sf.samplers.ddim(support.SCHEDULE, 3)


def batch(network):
    info = ModelInfo(support.SHAPE, support.SCHEDULE)
    service = InlineService(info, CallableBackend(network, info, 4), 4)
    return StepwiseBatch(service, service.requests(2, TABLE), np.zeros((2, *support.SHAPE), np.float32))


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, StopIteration, ValueError])
def test_what_the_network_raises_on_the_caller_s_thread_is_the_caller_s(error):
    def network(x, t, cond):
        raise error("now")

    with pytest.raises(error, match="now"):
        batch(network).step()
