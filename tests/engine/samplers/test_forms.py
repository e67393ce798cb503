"""Linear forms, and the columns that they become."""

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.kernels.reference import two_line_step_ref
from stepfuse.samplers.forms import H2, H3, ZERO, D, E, Form, H, Update, X, columns_of
from stepfuse.samplers.table import COLUMNS


def test_forms_add_and_scale():
    form = 2.0 * X + 0.5 * D - H
    assert form == Form({"x": 2.0, "d": 0.5, "h": -1.0})
    assert (form - form).reads == set()
    assert (0.0 * X + E).reads == {"e"}
    assert ZERO.reads == set()


def test_columns_compute_what_the_updates_say():
    rng = np.random.default_rng(0)
    weights = rng.uniform(-1, 1, (3, 8))
    updates = [Update(w[0] * X + w[1] * D, h=w[2] * E, h2=w[3] * X + w[4] * E) for w in weights[:1]]
    updates += [
        Update(
            w[0] * X + w[1] * H + w[2] * H2 + (w[3] * H3 if i else ZERO),
            h=w[4] * H,
            h2=w[5] * D + w[6] * H2,
            h3=w[7] * H,
        )
        for i, w in enumerate(weights[1:])
    ]
    table = sf.StepTable.from_columns({"t": [2, 1, 0], "p_e": 1.0, **columns_of(updates)})
    state = {name: np.zeros(5) for name in ("h", "h2", "h3")} | {"x": rng.standard_normal(5)}
    got = dict(state)
    for row, update in zip(table, updates, strict=True):
        e = rng.standard_normal(5)
        read = {**state, "e": e, "d": e}
        state = {
            written: sum(
                (weight * read[name] for name, weight in getattr(update, written).weights.items()), np.zeros(5)
            )
            for written in state
        }
        stepped = two_line_step_ref(got["x"], e, row, None, got["h"], None, got["h2"], got["h3"])
        got = {name: getattr(stepped, name) for name in got}
    np.testing.assert_allclose(got["x"], state["x"], rtol=1e-6)


def test_a_register_is_kept_only_where_the_next_row_reads_it():
    updates = [Update(X, h=D, h2=D), Update(X + H, h=D, h2=H), Update(X, h=D, h2=H2, h3=H2), Update(X, h=E)]
    columns = columns_of(updates)
    assert columns.keys() <= set(COLUMNS)
    np.testing.assert_array_equal(columns["u_d"], [1, 0, 0, 0])
    np.testing.assert_array_equal(columns["q_h"], [0, 1, 0, 0])


def test_the_first_step_reads_no_register():
    with pytest.raises(ValueError, match="the first step must read no register, got h, h2"):
        columns_of([Update(X + H - H2)])


def test_a_form_that_no_column_has_is_refused():
    with pytest.raises(ValueError, match=r"columns must be among .*, got w_d"):
        sf.StepTable.from_columns(columns_of([Update(X, h3=D), Update(X + H3)]))
