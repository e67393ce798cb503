"""Archives of arrays: NumPy writes them, and what it would read of a damaged one is refused or the same."""

import contextlib
import io
import json
import os
import random
import zipfile

import numpy as np
import pytest
import support

import stepfuse as sf
from stepfuse.files.npz import read_npz

HEADER = b"{'descr': '%s', 'fortran_order': False, 'shape': %s, }"


def archive(compression=zipfile.ZIP_STORED, **members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return stream.getvalue()


def member(descr, shape, content=b""):
    return b"\x93NUMPY\x01\x00\x76\x00" + (HEADER % (descr, shape)).ljust(117) + b"\n" + content


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12, dtype=">f8").reshape(3, 4)),
        np.array("a text, ünïcode"),
        np.array(""),
        np.int64(7),
        np.zeros((0, 3), np.uint8),
        np.array([True, False]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(array, save):
    stream = io.BytesIO()
    save(stream, one=array)
    (found,) = read_npz(stream.getvalue(), 1 << 20).values()
    assert found.shape == array.shape
    assert np.array_equal(found, array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no archive of arrays"),
        (b"PK\x03\x04", "no archive of arrays"),
        (archive(one=member(b"|O", b"(1,)", b"\x80\x04.")), "must be a plain array of numbers or text"),
        (archive(one=member(b"<f4", b"(99999999999999, 16)", bytes(64))), "as many bytes as its shape says"),
        (archive(one=member(b"<f4", b"(9999999999999999999, 0)")) + b"", None),
        (archive(one=member(b"<U9999999999", b"()")), "as many bytes as its shape says"),
        (archive(one=member(b"<U0", b"(9999999999,)")), "must be one text"),
        (archive(one=member(b"<U1", b"()", b"\xff" * 4)), "decode"),
        (archive(zipfile.ZIP_DEFLATED, one=bytes(2 << 20)), "its arrays must be at most 1048576 bytes, got 2097152"),
    ],
    ids=[  # the contents say when they were made, which differs between processes
        *("empty", "cut", "objects", "more than there is", "more than there can be", "a long text", "many texts"),
        *("no text", "unpacked too large"),
    ],
)
def test_what_is_no_plain_array_is_refused(content, message):
    if message is None:  # no bytes in any number of rows: nothing is allocated, and NumPy refuses the number
        with pytest.raises(ValueError, match=r".+"):
            read_npz(content, 1 << 20)
        return
    with pytest.raises(ValueError, match=message):
        read_npz(content, 1 << 20)


def test_a_damaged_table_is_the_same_or_refused(tmp_path):
    table = sf.samplers.ddim(support.SCHEDULE, 5, guidance_scale=2.0)
    file, rng = tmp_path / "table.npz", random.Random(3)
    table.save(file)
    good = file.read_bytes()
    for _ in range(300):
        damaged = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        file.write_bytes(damaged[: rng.choice((None, rng.randrange(len(damaged))))])
        with contextlib.suppress(ValueError):
            assert sf.StepTable.load(file) == table


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": None}, "sampler must be a str, got None"),
        ({"options": []}, r"options must be a dict, got \[\]"),
        ({"init_scale": "1"}, "init_scale must be a number, got '1'"),
        ({"init_scale": 10**4000}, "init_scale must be a number, got 1000"),
        ({"max_timestep": True}, "max_timestep must be a number, got True"),
        ({"dynamic_threshold": [1]}, r"dynamic_threshold must be two numbers, got \[1\]"),
        ({"rows": []}, r"header must have .* alone, got \['rows'\]"),
    ],
)
def test_a_header_that_says_something_else_is_refused(tmp_path, changes, message):
    table = sf.samplers.ddim(support.SCHEDULE, 2)
    header = {"sampler": "ddim", "options": {}, "init_scale": 1.0, "max_timestep": None, **changes}
    np.savez(tmp_path / "table.npz", rows=table.rows, header=np.array(json.dumps(header)))
    with pytest.raises(ValueError, match=message):
        sf.StepTable.load(tmp_path / "table.npz")


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "pipe"])
def test_what_is_no_file_is_not_read_to_its_end(tmp_path, path):
    if path == "pipe":
        path = tmp_path / path
        os.mkfifo(path)
    with pytest.raises(ValueError, match="must be a file of at most"):
        sf.StepTable.load(path)
