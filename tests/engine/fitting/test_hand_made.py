"""All samplers made by hand: what is asked of each, and what is left out."""

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.fitting.hand_made import hand_made
from stepfuse.fitting.rivals import rivals

SCHEDULE = sf.NoiseSchedule.linear()


@pytest.fixture(scope="module")
def engine():
    cond = {"y": sf.CondInput(dtype="int64", null=0)}
    with sf.Engine.from_callable(lambda x, t, y: np.zeros_like(x), shape=(2,), schedule=SCHEDULE, cond=cond) as engine:
        yield engine


def test_samplers_take_the_most_forwards_within_those_allowed(engine):
    found = hand_made(engine, 6, 1.0, samplers=("heun", "plms", "lcm"))
    assert {(one.sampler, len(one.table)) for one in found} == {("heun", 5), ("plms", 6), ("lcm", 6)}
    by_name = {one.name: one.table for one in found}
    assert by_name["heun, karras"] == sf.samplers.heun(SCHEDULE, 3, levels="karras")
    assert by_name["heun, published"] == sf.samplers.heun(SCHEDULE, sigmas=sf.samplers.AYS["sd15"].at(3))
    assert by_name["plms, trailing"] == sf.samplers.plms(SCHEDULE, 5, spacing="trailing")
    assert not any(one.order for one in found)  # none of these has one


def test_tables_differ_and_what_is_refused_is_left_out(engine):
    found = hand_made(engine, 5, 1.0, samplers=("unipc", "lcm", "ddim"))
    assert len({one.table.digest for one in found}) == len(found)
    assert {one.order for one in found if one.sampler == "unipc"} == {None, 3, 1}  # 2 is its own
    assert [one.name for one in found if one.sampler == "lcm"] == ["lcm"]  # which takes no levels, but on a flow
    assert {one.levels for one in found if one.sampler == "ddim"} == {"trailing", "leading", "linspace"}


def test_rivals_are_deterministic_and_take_just_so_many(engine):
    found = dict(rivals(engine, 2, 3.0))
    assert all(len(table) == 2 and not table.uses_noise for table in found.values())
    assert all(table.passes == 4 for table in found.values())
    assert "ddim, trailing" in found
    assert not [name for name in found if name.startswith(("heun", "ddpm", "euler_ancestral"))]
