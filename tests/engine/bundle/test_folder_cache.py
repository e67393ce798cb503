"""What a bundle caches under plans/: added while others read, listed like the rest, not missed where it is gone."""

import itertools
import subprocess
import sys
import threading

import pytest
import support

import stepfuse as sf
from stepfuse import BundleError
from stepfuse.bundle import cache
from stepfuse.bundle.cache import change_cache
from stepfuse.bundle.folder import MANIFEST
from stepfuse.files.atomic import locked

ADD_TEN = """
import sys
from pathlib import Path
from stepfuse.bundle.cache import change_cache
from stepfuse.files.atomic import locked
bundle, worker = Path(sys.argv[1]), sys.argv[2]
for index in range(10):
    with locked(bundle):
        change_cache(bundle, {f"plans/{worker}-{index}.plan": bytes([index])})
"""


@pytest.fixture
def bundle(tmp_path):
    return support.write_tiny_bundle(tmp_path / "tiny").path


def cached(bundle):
    return {name for name in sf.Bundle.load(bundle).files if name.startswith("plans/")}


def strays(bundle):
    return [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")]


def test_what_is_cached_is_listed_and_checked_like_the_rest(bundle):
    change_cache(bundle, {"plans/a.plan": b"first", "plans/b.plan": b"second"})
    read = sf.Bundle.load(bundle)
    assert read.file("plans/a.plan").read_bytes() == b"first"
    assert read.files["plans/b.plan"]["size"] == 6
    (bundle / "plans/a.plan").write_bytes(b"fIrst")
    with pytest.raises(BundleError, match=r"a\.plan: sha256 must be"):
        sf.Bundle.load(bundle)


def test_nothing_else_of_the_manifest_changes(bundle):
    before = (bundle / MANIFEST).read_text()
    change_cache(bundle, {"plans/a.plan": b"first"})
    assert (bundle / MANIFEST).read_text() != before
    change_cache(bundle, {}, ["plans/a.plan"])
    assert (bundle / MANIFEST).read_text() == before
    assert not (bundle / "plans/a.plan").exists()
    assert strays(bundle) == []


def test_a_cached_file_that_is_gone_is_left_out_and_may_come_back(bundle):
    change_cache(bundle, {"plans/a.plan": b"first"})
    (bundle / "plans/a.plan").unlink()
    assert sf.Bundle.load(bundle).file("plans/a.plan") is None
    change_cache(bundle, {"plans/a.plan": b"again"})
    assert sf.Bundle.load(bundle).file("plans/a.plan").read_bytes() == b"again"


def test_a_name_that_is_removed_and_added_has_the_new_content(bundle):
    change_cache(bundle, {"plans/a.plan": b"first"})
    change_cache(bundle, {"plans/a.plan": b"other"})
    assert (bundle / "plans/a.plan").read_bytes() == b"first"
    change_cache(bundle, {"plans/a.plan": b"other"}, ["plans/a.plan"])
    assert sf.Bundle.load(bundle).file("plans/a.plan").read_bytes() == b"other"


def test_the_cache_is_no_way_around_the_manifest(bundle):
    (bundle / "plans").mkdir()
    (bundle / "plans/unlisted.plan").write_bytes(b"weights")
    with pytest.raises(BundleError, match=r"every file must be listed in manifest\.json, got plans/unlisted\.plan"):
        sf.Bundle.load(bundle)


@pytest.mark.parametrize("name", ["denoiser.onnx", "plans/../denoiser.onnx", "/plans/a", "plans", "plan/a", ""])
def test_only_names_under_plans_are_cached(bundle, name):
    before = (bundle / MANIFEST).read_text()
    with pytest.raises(BundleError, match="must"):
        change_cache(bundle, {name: b"first"})
    assert (bundle / MANIFEST).read_text() == before


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_full_disk_changes_nothing(bundle, monkeypatch, calls):
    before, write, count = (bundle / MANIFEST).read_text(), cache._write_through, iter(range(calls))

    def full(file, content):
        if next(count) == calls - 1:
            raise OSError(28, "No space left on device")
        write(file, content)

    monkeypatch.setattr(cache, "_write_through", full)
    with pytest.raises(OSError, match="No space left"):
        change_cache(bundle, {"plans/a.plan": b"first", "plans/b.plan": b"second"})
    assert (bundle / MANIFEST).read_text() == before
    assert strays(bundle) == []
    assert cached(bundle) == set()


@pytest.mark.parametrize("landed", [set(), {"plans/a.plan"}], ids=len)
def test_a_writer_that_is_killed_leaves_a_bundle(bundle, monkeypatch, landed):
    class Killed(BaseException):
        pass

    replace, count = cache.Path.replace, iter(range(10))

    def killed(file, target):
        if next(count) == 1 + len(landed):  # the manifest, and as many files, are in place
            raise Killed
        return replace(file, target)

    with monkeypatch.context() as patched:
        patched.setattr(cache.Path, "replace", killed)
        with pytest.raises(Killed):
            change_cache(bundle, {"plans/a.plan": b"first", "plans/b.plan": b"second"})
    assert cached(bundle) == landed
    change_cache(bundle, {"plans/b.plan": b"second"})
    assert sf.Bundle.load(bundle).file("plans/b.plan").read_bytes() == b"second"


def test_writers_do_not_lose_each_others_files_and_readers_see_a_whole_bundle(bundle):
    workers = [subprocess.Popen([sys.executable, "-c", ADD_TEN, str(bundle), worker]) for worker in "ab"]
    reads = 0
    while any(worker.poll() is None for worker in workers):
        sf.Bundle.load(bundle)
        reads += 1
    assert [worker.returncode for worker in workers] == [0, 0]
    assert reads > 10
    assert cached(bundle) == {f"plans/{worker}-{index}.plan" for worker in "ab" for index in range(10)}


def test_a_folder_is_read_while_its_cache_comes_and_goes(bundle):
    stop = threading.Event()

    def churn():
        for index in itertools.takewhile(lambda _: not stop.is_set(), itertools.count()):
            with locked(bundle):
                change_cache(bundle, {f"plans/{index}.plan": b"first"})
                change_cache(bundle, {}, [f"plans/{index}.plan"])

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            sf.Bundle.load(bundle)
    finally:
        stop.set()
        thread.join()
