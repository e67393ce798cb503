"""Files that can be made again: whole or not there, found by all that they depend on, and bounded."""

import os
from dataclasses import replace

import pytest

from stepfuse.files.cache import FileCache


@pytest.fixture
def cache(tmp_path):
    return FileCache(tmp_path / "kept", ".thing", noun="a thing", verb="made", most_bytes=300)


def test_what_is_written_is_read_under_the_same_facts_in_any_order(cache):
    assert cache.read(cache.file({"a": 1})) is None
    cache.write(cache.file({"a": 1, "b": [2]}), b"content")
    assert cache.read(cache.file({"b": [2], "a": 1})) == b"content"
    assert cache.read(cache.file({"a": 1, "b": [3]})) is None


@pytest.mark.parametrize("damage", [lambda c: c[:-1], lambda c: b"", lambda c: c + b"x", lambda c: b"x" + c[1:]])
def test_a_damaged_file_is_said_and_removed(cache, caplog, damage):
    file = cache.file({})
    cache.write(file, b"content")
    file.write_bytes(damage(file.read_bytes()))
    assert cache.read(file) is None
    assert not file.exists()
    assert f"{file} is damaged, and is made anew: its checksum is another" in caplog.text


def test_what_was_not_used_for_longest_makes_room(cache):
    files = [cache.file({"number": number}) for number in range(4)]
    roomy = replace(cache, most_bytes=500)
    for at, file in enumerate(files[:3]):
        roomy.write(file, bytes(100))
        os.utime(file, (at, at))
    assert cache.read(files[0]) == bytes(100)  # used now
    cache.write(files[3], bytes(100))
    assert [file.exists() for file in files] == [True, False, False, True]
    cache.write(files[1], bytes(301))  # never fits
    assert not files[1].exists()


def test_a_folder_that_cannot_be_written_is_said(cache, caplog):
    cache.folder.write_text("no folder")
    cache.write(cache.file({}), b"content")
    assert "a thing cannot be kept, and is made anew by the next process" in caplog.text
    assert cache.read(cache.file({})) is None
    assert "a thing cannot be read, and is made anew" in caplog.text
