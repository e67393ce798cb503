"""Tables and scheduler configurations anyone may have written: read, or refused as a ValueError or TypeError."""

import io
import json
import zipfile

import numpy as np
import pytest
import support
from hypothesis import given
from hypothesis import strategies as st
from mutations import NUMBERS, contents, contract, documents, fuzz, json_files
from targets import load_and_run

import stepfuse as sf
from stepfuse.integrations.scheduler_config import read_scheduler

TABLE = sf.samplers.dpmpp_2m(support.SCHEDULE, 3, guidance_scale=2.0)


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """A saved table, as the members of its archive."""
    path = tmp_path_factory.mktemp("table") / "table.npz"
    TABLE.save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def array(values):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(values), allow_pickle=True)
    return buffer.getvalue()


ROWS = st.one_of(
    st.builds(
        lambda row, column, value: _with(TABLE.rows, row, column, value), st.integers(0, 2), st.integers(0, 15), NUMBERS
    ),
    st.sampled_from([np.zeros((0, 16)), np.zeros(16), np.zeros((3, 17)), np.array("text"), np.array([{"a": 1}]), 1j]),
    st.sampled_from([np.float16, np.float64, np.int8, np.complex64, bool]).map(lambda kind: TABLE.rows.astype(kind)),
)


def _with(rows, row, column, value):
    rows = np.array(rows, dtype=np.float64)
    with np.errstate(all="ignore"):
        rows[row, column] = float(value) if abs(value) < 1e308 else np.sign(value) * np.inf
    return rows


def test_tables(members, tmp_path):
    header = json.loads(str(np.lib.format.read_array(io.BytesIO(members["header.npy"]))))
    file = tmp_path / "fuzzed.npz"

    @fuzz(4)
    @given(st.data())
    def check(data):
        changed = dict(members)
        kind = data.draw(st.sampled_from(["header", "header", "rows", "member", "archive", "missing"]))
        if kind == "header":
            changed["header.npy"] = array(data.draw(json_files(header)).decode(errors="replace"))
        elif kind == "rows":
            changed["rows.npy"] = array(data.draw(ROWS))
        elif kind == "member":
            name = data.draw(st.sampled_from(sorted(changed)))
            changed[name] = data.draw(contents(changed[name]))
        elif kind == "missing":
            del changed[data.draw(st.sampled_from(sorted(changed)))]
        with zipfile.ZipFile(
            file, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
        ) as archive:
            for name, content in changed.items():
                archive.writestr(name, content)
        if kind == "archive":
            file.write_bytes(data.draw(contents(file.read_bytes())))
        load_and_run(file)

    check()


def test_an_array_that_says_it_is_vast(members, tmp_path):
    file = tmp_path / "vast.npz"
    for shape in ("(4000000000, 16)", "(3, 16, 100000000)", "(-1, 16)", "(3, 16" + ", 1" * 40 + ")"):
        head = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        content = b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + TABLE.rows.tobytes()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("header.npy", members["header.npy"])
            archive.writestr("rows.npy", content)
        with contract(), pytest.raises(ValueError, match="vast"):
            sf.StepTable.load(file)


def test_an_archive_that_unpacks_without_end(members, tmp_path):
    file = tmp_path / "bomb.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.npy", members["header.npy"])
        with archive.open("rows.npy", "w", force_zip64=True) as member:
            head = "{'descr': '<f4', 'fortran_order': False, 'shape': (3000000, 16), }".ljust(117) + "\n"
            member.write(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode())
            for _ in range(192):
                member.write(bytes(1_000_000))
    with contract(), pytest.raises(ValueError, match="bomb"):
        sf.StepTable.load(file)


CONFIGS = [
    {"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False},
    {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "algorithm_type": "dpmsolver++"},
    {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "final_sigmas_type": "zero"},
    {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
    {"_class_name": "LCMScheduler", "original_inference_steps": 50, "rescale_betas_zero_snr": False},
]
COMMON = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["_class_name"])
def test_scheduler_configurations(config):
    @fuzz(1)
    @given(documents({**config, **COMMON}))
    def check(changed):
        if not isinstance(changed, dict):
            return
        settings = None
        with contract(ValueError, TypeError):
            settings = read_scheduler(changed)
        if settings is None:
            return
        with (
            contract(ValueError, TypeError),
            support.make_engine(schedule=settings.schedule, prediction_type=settings.prediction_type) as engine,
        ):
            engine.sample(1, steps=2, seed=0, **settings.defaults)

    check()
