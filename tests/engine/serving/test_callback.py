"""Watching a run: the callback, what it is shown, how it stops, and the bar."""

import functools
import sys

import numpy as np
import pytest
import support
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st

import stepfuse as sf

ddim = functools.partial(sf.samplers.ddim, support.SCHEDULE)


@pytest.fixture
def engine():
    with support.make_engine() as engine:
        yield engine


def check_clean(preview, expected):
    np.testing.assert_allclose(preview, expected, rtol=tolerances.STEP_FLOAT32, atol=tolerances.STEP_FLOAT32)


def test_the_callback_sees_each_step_and_the_clean_samples_that_it_implies(engine):
    tables = [ddim(4, guidance_scale=3.0, clip=2.0), sf.samplers.heun(support.SCHEDULE, 2)]
    seen = []
    images = engine.sample(2, table=tables, cond="bag", seed=6, callback=lambda *shown: seen.append(shown))

    assert [(step, total) for step, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for i, table in enumerate(tables):
        final, clean, _ = support.replay(table, cond=1, seed=6 + i)
        np.testing.assert_array_equal(images[i], final)
        for turn, (_, _, preview) in enumerate(seen):
            expected = clean[min(turn, len(clean) - 1)]  # a finished sample keeps its last
            check_clean(preview[i], expected)


def test_samples_that_wait_preview_as_zero():
    previews = []
    with support.make_engine(max_rows=2) as engine:
        engine.sample(3, steps=2, callback=lambda step, total, preview: previews.append(preview))
    assert [preview.any(axis=(1, 2, 3)).tolist() for preview in previews] == [[True, True, False]] * 2 + [
        [True] * 3
    ] * 2


def stop_by_false(step, total, preview):
    return step < 2


def stop_by_numpy(step, total, preview):
    return np.less(step, 2)


def stop_by_exception(step, total, preview):
    if step == 2:
        raise StopIteration


@pytest.mark.parametrize("callback", [stop_by_false, stop_by_numpy, stop_by_exception])
def test_a_callback_stops_the_run_and_the_engine_goes_on_to_the_next(engine, callback):
    table = ddim(5)
    stopped = engine.sample(2, table=table, seed=3, callback=callback)
    expected = np.stack([support.replay(table, seed=seed)[1][1] for seed in (3, 4)])
    check_clean(stopped, expected)
    assert engine.stats()["forwards"] == 2
    np.testing.assert_array_equal(engine.sample(1, table=table, seed=3)[0], support.replay(table, seed=3)[0])


def test_a_callback_may_change_what_it_is_shown(engine):
    def meddle(step, total, preview):
        preview[...] = np.nan
        return step < 2

    table = ddim(4)
    stopped = engine.sample(1, table=table, seed=0, callback=meddle)
    check_clean(stopped[0], support.replay(table)[1][1])


def test_an_exception_of_the_callback_comes_through(engine):
    def fail(step, total, preview):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        engine.sample(2, steps=3, callback=fail)
    np.testing.assert_array_equal(engine.sample(1, table=ddim(3), seed=0)[0], support.replay(ddim(3))[0])


def test_a_callback_may_use_the_engine_while_its_samples_rest(engine):
    inner = []
    images = engine.sample(
        2, table=ddim(3), seed=5, callback=lambda *_: inner.append(engine.sample(1, steps=2, seed=1))
    )
    np.testing.assert_array_equal(images, [support.replay(ddim(3), seed=seed)[0] for seed in (5, 6)])
    for image in inner:
        np.testing.assert_array_equal(image[0], support.replay(ddim(2), seed=1)[0])
    assert len(inner) == 3


def test_others_go_on_while_a_callback_thinks(engine):
    def think(step, total, preview):
        assert engine.submit(sf.Request(steps=4, seed=step)).result(60).shape == support.SHAPE

    engine.sample(1, steps=2, callback=think)


def test_an_engine_closed_from_its_own_callback_says_so_instead_of_waiting_for_itself(engine):
    with pytest.raises(RuntimeError, match="cannot be closed from a callback that its samples wait for"):
        engine.sample(1, steps=3, callback=lambda *_: engine.close())
    np.testing.assert_array_equal(engine.sample(1, table=ddim(3), seed=0)[0], support.replay(ddim(3))[0])


@pytest.mark.parametrize("call", [sf.Engine.sample, sf.Engine.warmup, sf.Engine.close])
def test_an_engine_called_from_its_own_network_says_so_instead_of_waiting_for_itself(call):
    def network(x, t, cond):
        call(engine)

    with support.make_engine(network) as engine, pytest.raises(RuntimeError, match="but neither wait for it nor close"):
        engine.sample(1, steps=3)


tables = st.builds(
    ddim,
    st.integers(1, 5),
    guidance_scale=st.sampled_from([0.0, 1.0, 3.0]),
    guidance_interval=st.sampled_from([(0.0, 1.0), (0.5, 1.0), (0.0, 0.5)]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(tables, st.sampled_from([None, "bag"])), min_size=1, max_size=9), st.integers(2, 7))
def test_steps_count_up_to_the_total_however_samples_queue(samples, max_rows):
    turns = []
    with support.make_engine(lambda x, t, cond: x, max_rows=max_rows) as engine:
        tables, conds = zip(*samples, strict=True)
        engine.sample(len(samples), table=tables, cond=conds, callback=lambda *shown: turns.append(shown[:2]))
    assert turns == [(step, len(turns)) for step in range(1, len(turns) + 1)]


def test_progress_shows_a_bar_on_standard_error_and_changes_nothing(engine, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    images = engine.sample(2, steps=4, seed=1, progress=True)
    shown = capsys.readouterr()
    assert "2 samples with ddim" in shown.err
    assert "4/4" in shown.err
    assert shown.out == ""
    np.testing.assert_array_equal(images, engine.sample(2, steps=4, seed=1))
