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


def held_after(calls, weights=None):
    """Widths of the engines that are kept after calls, which end before the next begins."""
    engines = Engines(lambda shape: support.make_engine(), limit=3, weights=weights)
    for width in calls:
        with engines.use((1, 4, width)):
            pass
    found = [shape[-1] for shape in engines.all()]
    engines.close()
    return found


def test_those_used_last_are_kept():
    assert held_after([1, 2, 3, 1, 4]) == [3, 1, 4]


def test_those_of_other_weights_are_not_kept():
    assert held_after([1, 3, 2, 4], weights=lambda shape: shape[-1] % 2) == [2, 4]
    assert held_after([1, 2, 3], weights=lambda shape: shape) == [3]


def test_what_a_call_uses_is_kept_whatever_its_weights():
    engines = Engines(lambda shape: support.make_engine(), weights=lambda shape: shape)
    with engines.use((1, 4, 1)):
        with engines.use((1, 4, 2)):
            assert len(engines.all()) == 2
        assert len(engines.all()) == 2
    assert [*engines.all()] == [(1, 4, 1)]
    engines.close()


def test_sizes_of_other_weights_do_not_fit_beside_each_other():
    def weights(shape):
        if shape[-1] == 9:
            raise ValueError("there is no such size")
        return shape[-1] % 2

    engines = Engines(lambda shape: support.make_engine(), limit=2, weights=weights)
    one, two, three, five, none = ((1, 4, width) for width in (1, 2, 3, 5, 9))
    assert engines.fits(one, [])
    assert engines.fits(one, [three])
    assert not engines.fits(one, [three, five])
    assert not engines.fits(one, [two])
    assert engines.fits(none, [one])
    with engines.use(one):
        pass
    with pytest.raises(ValueError, match="no such size"), engines.use(none):
        pass
    assert [*engines.all()] == [one]
    engines.close()
