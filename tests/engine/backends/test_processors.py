"""How many processors a process may use, by what Linux says of its control groups."""

import os

import pytest

from stepfuse.backends.host.processors import processors

HELD_TO = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.fixture
def system(tmp_path):
    """``system(groups, {file: text})``: the arguments for a machine with these files below its mount."""

    def make(groups, files):
        (tmp_path / "groups").write_text(groups)
        for name, text in files.items():
            file = tmp_path / "mount" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / "groups", tmp_path / "mount"

    return make


@pytest.mark.parametrize(
    ("groups", "files", "share"),
    [
        pytest.param("0::/", {"cpu.max": "100000 100000\n"}, 1, id="one"),
        pytest.param("0::/", {"cpu.max": "150000 100000\n"}, 2, id="rounded-up"),
        pytest.param("0::/", {"cpu.max": "5000 100000\n"}, 1, id="at-least-one"),
        pytest.param("0::/", {"cpu.max": "max 100000\n"}, None, id="no-limit"),
        pytest.param("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "100000 100000"}, 1, id="of-a-parent"),
        pytest.param("0::/docker/1f", {"cpu.max": "100000 100000"}, 1, id="a-container-with-the-host-s-path"),
        pytest.param("0::/../x", {"cpu.max": "100000 100000"}, 1, id="outside-the-namespace"),
        pytest.param(
            "9:cpu,cpuacct:/a\n0::/",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "50000\n"},
            1,
            id="version-1",
        ),
        pytest.param(
            "1:cpu:/",
            {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
            None,
            id="version-1-no-limit",
        ),
        pytest.param("4:cpuset:/\n3:memory:/a", {"cpuset/cpu.max": "1 1"}, None, id="other-controllers"),
        pytest.param("0::/", {"cpu.max": "100000 0\n"}, None, id="no-period"),
        pytest.param("0::/", {"cpu.max": "\xff\xfe"}, None, id="unreadable"),
        pytest.param("what is this", {"cpu.max": "100000 100000"}, None, id="no-list"),
    ],
)
def test_a_quota_limits_the_processors(system, groups, files, share):
    assert processors(*system(groups, files)) == min(HELD_TO, share or HELD_TO)


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert processors(tmp_path / "groups", tmp_path) == HELD_TO
