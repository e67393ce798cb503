"""The parts of ``http_load.py``: what clients ask and see, the peers, the figures, and that what is wrong is found."""

import asyncio
from collections import Counter
from pathlib import Path

import http_service
import numpy as np
import pytest
from PIL import Image

import stepfuse as sf

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("aiohttp", reason="needs the extra test")

from stepfuse.server import create_app

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield


@pytest.fixture(scope="module")
def engine():
    with sf.Engine.load("fashion", threads=1) as engine:
        yield engine


@pytest.fixture(scope="module")
def service(engine):
    with http_service.served(create_app({"fashion": engine}, warm_up=False)) as service:
        yield service


@pytest.fixture(scope="module")
def jobs(engine):
    from http_stress import jobs_of

    return jobs_of(engine, 60, different=6)


@pytest.fixture
def load(benchmarks):
    from http_requests import arrivals

    return arrivals(6, 60.0, 1, (2, 3))


def test_a_load_has_few_kinds_and_the_rate_asked_for(benchmarks):
    from http_requests import SAMPLER, STEPS, arrivals

    drawn = arrivals(4000, 20.0, 0)
    assert {(one.sampler, one.steps) for one in drawn.asked} == {(SAMPLER, steps) for steps in STEPS}
    assert drawn.at[-1] == pytest.approx(200, rel=0.1)
    assert np.std(np.diff(drawn.at)) == pytest.approx(1 / 20, rel=0.1)  # of a Poisson process the mean gap
    assert arrivals(4000, 20.0, 0).asked == drawn.asked != arrivals(4000, 20.0, 1).asked


def test_clients_get_the_pictures_of_sample_and_see_previews(service, engine, load):
    from http_client import at_once, open_loop
    from http_requests import arrivals, expected, picture, same

    wanted = [expected(engine, asked) for asked in load.asked]
    np.testing.assert_array_equal(wanted[0], http_service.as_levels(_sample(engine, load.asked[0])))
    for found in (asyncio.run(open_loop(service.port, load)), asyncio.run(at_once(service.port, load.asked, 2))):
        assert [one.error for one in found] == [""] * 6
        assert all(same(picture(one.answer), levels) for one, levels in zip(found, wanted, strict=True))
    # A preview that a later one has overtaken is not sent: two steps may pass before a busy machine sends the first.
    long = arrivals(1, 60.0, 1, (40,))
    [streamed] = asyncio.run(open_loop(service.port, long))
    assert 0 <= streamed.late < streamed.preview < streamed.seconds
    assert not same(wanted[0], wanted[0][:-1])
    assert not same(wanted[0], 255 - wanted[0])


def test_what_is_refused_or_not_there_is_an_error(service, load):
    from http_client import ask, connected
    from http_processes import free_port
    from http_requests import body

    async def errors():
        found = []
        for port, more in ((service.port, {"n": 99}), (free_port(), {})):
            async with connected(port) as session:
                found.append(await ask(session, body(load.asked[0]) | more, 0.0))
        return [one.error for one in found]

    assert asyncio.run(errors()) == ["status 400", "ClientConnectorError"]


def test_one_request_over_http_and_in_process_give_the_same_picture(service, engine, load):
    from http_alone import Client, drawn_in_process
    from http_requests import picture

    client, asked = Client(service.port), load.asked[0]
    client.health()
    inside = picture({"b64_json": drawn_in_process(engine, asked)})
    np.testing.assert_array_equal(picture(client.draw(asked)), inside)


def test_static_batches_hold_one_kind_and_no_more_than_they_may(benchmarks):
    from http_peers import Batches
    from load import Asked

    batches = []

    async def run(asked):
        batches.append([(one.steps, one.seed) for one in asked])
        await asyncio.sleep(0)
        return [Image.new("L", (1, 1), one.seed) for one in asked]

    async def all_drawn(window):
        drawing = Batches(run, most=2, window=window)
        serving = asyncio.create_task(drawing.serve())
        steps = (4, 8, 4, 4, 8)
        images = await asyncio.gather(*(drawing.draw(Asked("ddim", n, 2, 0, i)) for i, n in enumerate(steps)))
        serving.cancel()
        return [image.getpixel((0, 0)) for image in images]

    assert asyncio.run(all_drawn(0.01)) == [0, 1, 2, 3, 4]
    assert batches == [[(4, 0), (4, 2)], [(8, 1), (8, 4)], [(4, 3)]]


@pytest.mark.parametrize("kind", ["with_lock", "with_batches"])
def test_peers_draw_what_sample_draws(kind, engine, load):
    import http_peers
    from http_client import open_loop
    from http_requests import expected, picture, same

    app = getattr(http_peers, kind)(http_peers.Pipeline("fashion", threads=1))
    with http_service.served(app) as service:
        assert service.ask("GET", "/ready").status == 200
        found = asyncio.run(open_loop(service.port, load))
    for one, asked in zip(found, load.asked, strict=True):
        assert same(picture(one.answer), expected(engine, asked)), one.error


def test_figures_of_a_round_and_over_rounds(benchmarks):
    from http_rounds import _medians, ratios, summary

    got = [{"late": 0.001, "seconds": float(n), "preview": n / 2, "error": ""} for n in range(1, 5)]
    cell = {"got": [*got, {"error": "TimeoutError", "seconds": 60.0}], "wall_s": 8.0, "client_processor_s": 0.02}
    found = summary(cell)
    assert (found["mean_s"], found["p50_s"], found["preview_p50_s"]) == (2.5, 2.5, 1.25)
    assert (found["requests"], found["errors"], found["images_per_s"]) == (5, 1, 0.5)
    assert found["client_processor_ms"] == pytest.approx(4)
    slower = {**found, "mean_s": 3.5}
    over = _medians([found, slower, {**found, "mean_s": 9.0}])
    assert (over["mean_s"], over["mean_s_range"], over["errors"]) == (3.5, [2.5, 9.0], 3)
    rows = [{"load": 0.5, "system": "ours", "mean_s": 1.0}, {"load": 0.5, "system": "ray", "mean_s": 4.0}]
    assert ratios(rows) == [{"part": "ours_over", "load": 0.5, "ours_over": {"ray": {"mean_s": 0.25}}}]


def test_rounds_of_another_plan_are_not_added(benchmarks, tmp_path):
    from http_rounds import Plan, _same_plan

    _same_plan(Plan("fashion", 1), tmp_path)
    _same_plan(Plan("fashion", 1, rounds=9, systems=("ours",)), tmp_path)
    with pytest.raises(ValueError, match="--fresh measures anew"):
        _same_plan(Plan("fashion", 2), tmp_path)


def test_memory_grows_along_the_line_of_the_second_half(benchmarks):
    from http_stress import Watched, slope

    answered = list(range(0, 2001, 100))
    memory = [50 + 0.002 * max(n, 1000) - 40 * (n < 300) for n in answered]
    assert slope(Watched(answered, memory, [])) == pytest.approx(2.0)
    assert slope(Watched([0], [5.0], [])) == 0


def test_no_request_of_clients_of_all_manners_is_lost(jobs):
    from http_stress import counters, differences, work
    from http_stress_clients import RIGHT, SHARES

    found = Counter()
    with sf.Engine.load("fashion", threads=1) as engine:  # one whose counters begin at 0
        app = create_app({"fashion": engine}, warm_up=False)
        with http_service.served(app) as service:
            asyncio.run(work(service.port, jobs, 8, found))
            http_service.until(lambda: app.state.lifecycle.running == 0)
            counted = counters(service.ask("GET", "/metrics").body.decode())
    assert {outcome for _, outcome in found} == {RIGHT}
    assert {kind for kind, _ in found} == set(SHARES)
    assert differences(found, counted) == []
    assert counted["in_flight"] == 1


def test_a_wrong_picture_and_wrong_counters_are_found(service, jobs):
    from http_stress import differences, work
    from http_stress_clients import DRAW, REFUSED, RIGHT, SLOW, STREAM, VANISH

    wrong = [(kind, asked, 255 - wanted) for kind, asked, wanted in jobs[:12]]
    found = Counter()
    asyncio.run(work(service.port, [job for job in wrong if job[0] in (DRAW, STREAM, SLOW)], 2, found))
    assert {outcome for _, outcome in found} == {"another picture"}
    outcomes = {(DRAW, RIGHT): 5, (REFUSED, RIGHT): 1, (VANISH, RIGHT): 2, (DRAW, "status 500"): 1}
    counted = {"200": 6, "400": 1, "499": 1, "5xx": 0, "finished": 6, "failed": 0, "cancelled": 1, "expired": 0}
    counted |= {"submitted": 7, "waiting": 0, "running": 0}
    assert differences(outcomes, counted) == []
    for name in counted:
        if name != "499":
            assert differences(outcomes, counted | {name: 40}), name


def _sample(engine, asked):
    how = {"steps": asked.steps, "guidance_scale": asked.guidance_scale, "sampler": asked.sampler}
    return engine.sample(1, cond=asked.label, seed=asked.seed, **how)[0]
