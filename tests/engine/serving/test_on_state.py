"""``Engine.sample(on_state=...)``: the states themselves, between two steps."""

import numpy as np
import pytest
import support

import stepfuse as sf

TABLES = {
    "one-step": sf.samplers.ddim(support.SCHEDULE, 5, guidance_scale=3.0),
    "history": sf.samplers.dpmpp_2m(support.SCHEDULE, 5),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_change_is_what_the_next_forward_sees(table):
    def network(x, t, cond):
        return np.tanh(x) + cond["y"][:, None].astype(np.float32)

    def halved(step, total, x):
        assert x.shape == (3, 4)
        x *= 0.5

    inputs = {"y": sf.CondInput(null=-1)}
    with sf.Engine.from_callable(network, shape=(4,), schedule=support.SCHEDULE, cond=inputs) as engine:
        noise = sf.normal(0, (3, 4))
        got = engine.sample(3, cond=2, table=table, noise=noise, on_state=halved)
    x, h = noise.copy(), np.zeros_like(noise)
    for row in table.rows:
        t, cond, null = np.full(3, row[0]), {"y": np.full(3, 2)}, {"y": np.full(3, -1)}
        x = np.float32(0.5) * sf.step(x, network(x, t, cond), row, network(x, t, null) if row[2] != 1 else None, h=h)
    np.testing.assert_allclose(got, x, rtol=1e-5)


def test_states_come_before_the_preview_and_either_may_stop_the_run():
    seen = []

    def state(step, total, x):
        seen.append(("state", step, total))

    def preview(step, total, x0):
        seen.append(("preview", step, total))
        return step < 2

    with support.make_engine() as engine:
        engine.sample(1, steps=4, on_state=state, callback=preview)
        assert seen == [("state", 1, 4), ("preview", 1, 4), ("state", 2, 4), ("preview", 2, 4)]
        seen.clear()
        engine.sample(1, steps=4, on_state=lambda step, total, x: step < 3 and (state(step, total, x), True)[1])
        assert [step for _, step, _ in seen] == [1, 2]
