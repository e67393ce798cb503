"""StepTable as data: columns, slices, equality, files, what it counts, and what its check refuses."""

import json

import numpy as np
import pytest

import stepfuse as sf
from stepfuse.samplers.table import COLUMNS, SECOND_LINE, StepTable

LINEAR = sf.NoiseSchedule.linear()
TABLE = sf.samplers.ddim(LINEAR, 4, eta=0.5, clip=1.0)
NAN, INF = float("nan"), float("inf")


def table_with(row=2, max_timestep=999.0, **values):
    """Five plain rows, one of them with these values."""
    rows = StepTable.from_columns({"t": [800, 600, 400, 200, 0], "p_x": 1.0, "q_d": 1.0}).rows.copy()
    for name, value in values.items():
        rows[row, COLUMNS.index(name)] = value
    return StepTable(rows, "custom", max_timestep=max_timestep)


def test_columns_take_their_neutral_values():
    table = StepTable.from_columns({"t": [2, 1], "q_x": 0.5})
    assert table.rows.shape == (2, 16)
    assert table.rows.dtype == np.float32
    expected = dict.fromkeys(COLUMNS, 0.0) | {"s": 1, "g": 1, "lo": -INF, "hi": INF, "t": [2, 1], "q_x": 0.5}
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name], np.broadcast_to(values, 2), err_msg=name)


def test_indexing_gives_columns_rows_and_shorter_tables():
    np.testing.assert_array_equal(TABLE["t"], [750, 500, 250, 0])
    np.testing.assert_array_equal(TABLE[1], TABLE.rows[1])
    np.testing.assert_array_equal(list(TABLE), TABLE.rows)
    tail = TABLE[2:]
    np.testing.assert_array_equal(tail.rows, TABLE.rows[2:])
    assert (tail.sampler, tail.options, tail.max_timestep) == (TABLE.sampler, TABLE.options, TABLE.max_timestep)
    with pytest.raises(KeyError, match=r"columns are t, .*, got 'sigma'"):
        TABLE["sigma"]
    with pytest.raises(IndexError):
        TABLE[4]


def test_a_second_line_is_there_if_a_column_of_it_is_named():
    table = StepTable.from_columns({"t": [2, 1], "q_x": 0.5, "q_h2": [0.0, 0.25], "v_e": 1.0})
    assert table.rows.shape == (2, 32)
    assert table.columns == COLUMNS + SECOND_LINE
    np.testing.assert_array_equal(table["q_h2"], [0.0, 0.25])
    np.testing.assert_array_equal(table[1:].rows, table.rows[1:])
    assert "q_h2" in str(table)
    assert "q_h2" not in str(TABLE)
    np.testing.assert_array_equal(TABLE["q_h2"], np.zeros(4))


@pytest.mark.parametrize(
    ("columns", "registers"),
    [({"q_z": 1}, 0), ({"u_d": 1}, 1), ({"u_u": 1, "g": 0}, 1), ({"u_z": 1}, 1), ({"v_d": 1}, 2), ({"w_h2": 1}, 3)],
)
def test_registers_are_as_many_as_the_steps_use(columns, registers):
    table = StepTable.from_columns({"t": [2, 1], **columns})
    assert (table.registers, table.uses_history) == (registers, registers > 0)
    assert table.uses_noise == ("q_z" in columns or "u_z" in columns)


def test_a_second_line_of_zeros_is_none():
    wide = StepTable(np.pad(TABLE.rows, ((0, 0), (0, 16))))
    assert (wide, hash(wide), wide.digest) == (TABLE, hash(TABLE), TABLE.digest)
    assert StepTable.from_columns({"t": [1], "q_h2": 1.0}) != StepTable.from_columns({"t": [1]})


def test_rows_cannot_be_changed_from_either_side():
    rows = TABLE.rows.copy()
    table = StepTable(rows)
    rows[:] = 0
    assert table == TABLE
    with pytest.raises(ValueError, match="read-only"):
        table["t"][0] = 1


def test_equality_is_of_what_is_computed():
    renamed = StepTable(TABLE.rows, "other", {"steps": 4})
    assert renamed == TABLE
    assert hash(renamed) == hash(TABLE)
    assert StepTable(TABLE.rows, init_scale=2.0) != TABLE
    assert table_with(q_x=1e-7) != table_with()
    assert TABLE != "ddim"


@pytest.mark.parametrize(
    "table",
    [
        TABLE,
        sf.samplers.heun(LINEAR, 3, guidance_scale=2.0),
        sf.samplers.euler(sf.NoiseSchedule.flow(3.0), 5),
        table_with(max_timestep=None),
        StepTable.from_columns({"t": [2, 1], "q_x": 1.0, "u_z": [0.5, 0.0], "w_h3": 1.0}),
    ],
    ids=["ddim", "init-scale", "flow", "custom", "second-line"],
)
def test_load_gives_what_save_wrote(table, tmp_path):
    table.save(tmp_path / "table.npz")
    again = StepTable.load(tmp_path / "table.npz")
    assert again == table
    assert (again.sampler, again.max_timestep) == (table.sampler, table.max_timestep)
    assert dict(again.options) == json.loads(json.dumps(dict(table.options)))


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda path: path.write_bytes(b""), id="empty"),
        pytest.param(lambda path: path.write_text("t,s,g"), id="text"),
        pytest.param(lambda path: path.write_bytes(b"PK\x03\x04 and no more"), id="cut-short"),
        pytest.param(lambda path: np.savez(path, rows=TABLE.rows), id="no-header"),
        pytest.param(lambda path: np.savez(path, rows=TABLE.rows, header=np.array("{")), id="broken-header"),
        pytest.param(lambda path: np.savez(path, rows=TABLE.rows, header=np.array({"a": 1})), id="pickle"),
        pytest.param(lambda path: np.save(path.open("wb"), TABLE.rows), id="bare-array"),
    ],
)
def test_load_refuses_other_files(write, tmp_path):
    write(tmp_path / "table.npz")
    with pytest.raises(ValueError, match=r"table\.npz is not a saved StepTable"):
        StepTable.load(tmp_path / "table.npz")


def test_load_checks_what_it_reads(tmp_path):
    table_with(q_x=NAN).save(tmp_path / "table.npz")
    with pytest.raises(ValueError, match=r"row 2 \(t = 400\): q_x must be finite, got nan"):
        StepTable.load(tmp_path / "table.npz")


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("value", [NAN, INF, -INF], ids=str)
def test_check_refuses_rows_that_are_not_finite(name, value):
    table = table_with(**{name: value})
    if (name, value) in {("lo", -INF), ("hi", INF)}:  # no bound
        assert table.check() is table
        return
    with pytest.raises(ValueError, match=rf"custom: row 2 \(t = \S+\): {name} must be finite, got {value}\b"):
        table.check()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param(TABLE[:0], "a table must have at least one row, got 0$", id="empty"),
        pytest.param(
            table_with(lo=2.0, hi=1.0), r"row 2 \(t = 400\): lo must be at most hi, got 2$", id="bounds-cross"
        ),
        pytest.param(table_with(s=0.0), r"row 2 .*: s must not be 0, got 0$", id="input-scale"),
        pytest.param(table_with(t=-1.0), r"row 2 .*: t must be between 0 and 999, got -1$", id="t-below"),
        pytest.param(table_with(t=1000.0), r"row 2 .*: t must be between 0 and 999, got 1000$", id="t-above"),
        pytest.param(StepTable(TABLE.rows, init_scale=0.0), "init_scale must be positive .*, got 0.0$", id="init-0"),
        pytest.param(StepTable(TABLE.rows, init_scale=NAN), "init_scale must be positive .*, got nan$", id="init-nan"),
    ],
)
def test_check_refuses(table, message):
    with pytest.raises(ValueError, match=message):
        table.check()


def test_alpha_0_with_epsilon_says_which_row_and_what_to_do():
    zero_snr = LINEAR.rescale_zero_terminal_snr()
    with pytest.raises(ValueError, match=r"ddim: row 0 \(t = 999\): p_x must be finite, got inf .*v_prediction"):
        sf.samplers.ddim(zero_snr, 5, spacing="trailing")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        pytest.param({"t": [1], "sigma": [1]}, "columns must be among t, .*, got sigma$", id="unknown"),
        pytest.param({"t": [2, 1], "q_x": [1, 2, 3]}, "shape", id="lengths"),
        pytest.param({"t": [2, 1], "v_h2": NAN}, r"row 0 \(t = 2\): v_h2 must be finite, got nan", id="second-nan"),
        pytest.param({"t": [1], "spare": 1.0}, r"spare must be 0, got 1", id="spare"),
        pytest.param({"t": [1], "q_u": 1.0}, r"g must not be 1 where q_u or u_u is not 0, got 1", id="no-uncond"),
        pytest.param({"t": [1], "q_x": [1e39]}, r"row 0 \(t = 1\): q_x must be finite, got inf$", id="beyond-float32"),
    ],
)
def test_from_columns_refuses(columns, message):
    with pytest.raises(ValueError, match=message):
        StepTable.from_columns(columns)


@pytest.mark.parametrize("shape", [(16,), (3, 15), (1, 1, 16)], ids=str)
def test_rows_must_have_the_columns_of_one_line_or_two(shape):
    with pytest.raises(ValueError, match=r"must have shape \(S, 16\) or \(S, 32\), got"):
        StepTable(np.zeros(shape))


@pytest.mark.parametrize(
    ("table", "passes"),
    [
        pytest.param(sf.samplers.ddpm(LINEAR, 1000), 1000, id="ddpm"),
        pytest.param(sf.samplers.ddim(LINEAR, 50, guidance_scale=3.0), 100, id="guided"),
        pytest.param(sf.samplers.ddim(LINEAR, 50, guidance_scale=0.0), 50, id="unconditional"),
        pytest.param(sf.samplers.ddim(LINEAR, 10, guidance_scale=3.0, guidance_interval=(0.5, 1.0)), 15, id="interval"),
        pytest.param(sf.samplers.heun(LINEAR, 10), 19, id="heun"),
    ],
)
def test_passes(table, passes):
    assert table.passes == passes


@pytest.mark.parametrize(
    ("table", "history", "noise"),
    [
        pytest.param(sf.samplers.ddim(LINEAR, 5), False, False, id="ddim"),
        pytest.param(sf.samplers.ddim(LINEAR, 5, eta=0.1), False, True, id="ddim-eta"),
        pytest.param(sf.samplers.dpmpp_2m(LINEAR, 5), True, False, id="dpmpp_2m"),
        pytest.param(sf.samplers.heun(LINEAR, 5), True, False, id="heun"),
        pytest.param(sf.samplers.ddpm(LINEAR, 5), False, True, id="ddpm"),
    ],
)
def test_what_a_table_needs(table, history, noise):
    assert (table.uses_history, table.uses_noise) == (history, noise)


def test_text_has_a_line_a_step():
    lines = str(TABLE).splitlines()
    assert lines[0] == "<StepTable ddim: 4 steps, 4 passes>"
    assert [line.split()[1] for line in lines[1:]] == ["t", "750", "500", "250", "0"]


def test_equal_tables_have_equal_hashes():
    negative = table_with(q_x=-0.0)
    assert negative == table_with(q_x=0.0)
    assert hash(negative) == hash(table_with(q_x=0.0))


def test_a_table_carries_all_its_arguments():
    options = {"spacing": "trailing", "clip": 1.0, "clipped_eps": True, "guidance_interval": (0.2, 0.8)}
    table = sf.samplers.ddim(LINEAR, 7, **options)
    assert sf.samplers.ddim(LINEAR, **table.options) == table
    assert options.items() <= table.options.items()
