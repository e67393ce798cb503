"""Figures that README and docs quote are those of the committed results, and README's are of the code as it is."""

import copy
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def results():
    from quoted import read_results

    return read_results()


def test_every_quoted_figure_is_its_results(results):
    from quoted import differences

    assert differences(results) == []


def test_what_readme_quotes_was_measured_with_the_code_as_it_is(results):
    from quoted import README, stale

    old = set(stale(results)) & set(README)
    assert not old, f"measure again (make readme, make bench-load), or accept (benchmarks/README.md): {sorted(old)}"


def test_another_result_is_found_and_written(results, tmp_path):
    from excerpts import excerpts
    from quoted import differences, write

    other = copy.deepcopy(results)
    for row in other["step_cpu"]["results"]:
        if (row["case"], row["contender"]) == ("(8, 4, 64, 64)", "out="):
            row["seconds"]["p50"], row["times_peer"]["p50"] = 123e-6, 7.0
    other["cold_start"]["date"] = "2001-02-03T00:00:00+00:00"
    for document in excerpts(results):
        (tmp_path / document).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / document).write_bytes((ROOT / document).read_bytes())
    assert differences(results, tmp_path) == []
    found = differences(other, tmp_path)
    assert len(found) == 2
    assert found[1].startswith("README.md must have 123, 7: | the same at (8,4,64,64) |")
    assert write(other, tmp_path) == ["README.md"]
    assert differences(other, tmp_path) == []
    text = (tmp_path / "README.md").read_text()
    assert "| the same at (8,4,64,64) | 123 µs | 7 times as long |" in text
    assert "the oldest of 2001-02-03" in text
    write(results, tmp_path)
    assert (tmp_path / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()
    (tmp_path / "README.md").write_text(text.replace("| the same at (8,4,64,64)", "| at (8,4,64,64)"))
    assert "README.md must have once, and has 0 times: | the same at" in differences(results, tmp_path)[1]


def test_comments_docstrings_and_white_space_are_no_code(tmp_path):
    from sources import code_of

    (tmp_path / "a.py").write_text('"""Docs é."""\n\n\ndef f(x):  # why\n    """É doc."""\n    return "# no comment"\n')
    (tmp_path / "b.py").write_text("def f(x):\n\n    return '# no comment'  # é\n".replace("'", '"'))
    assert code_of(tmp_path / "a.py") == code_of(tmp_path / "b.py") == 'deff(x):return"#nocomment"'
    (tmp_path / "a.h").write_text('/* docs\n */ int f(); // why\nconst char* s = "// no comment";\n')
    (tmp_path / "b.h").write_text('int f();\n  const char* s = "// no comment";')
    assert code_of(tmp_path / "a.h") == code_of(tmp_path / "b.h")
    (tmp_path / "b.h").write_text('int g();\n  const char* s = "// no comment";')
    assert code_of(tmp_path / "a.h") != code_of(tmp_path / "b.h")


def test_every_source_is_there_and_a_change_is_seen(monkeypatch, tmp_path):
    import shutil

    import sources

    for name, paths in sources.SOURCES.items():
        assert all((ROOT / path).exists() for path in paths), name
    for folder in ("csrc/core/step", "csrc/bindings", "engine/samplers", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("results", "__pycache__"))
    before = sources.digest("step_cpu")
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    assert sources.digest("step_cpu") == before
    kernel = tmp_path / "csrc" / "core" / "step" / "fused_step.cpp"
    kernel.write_text(kernel.read_text() + "\n// a comment\n")
    assert sources.digest("step_cpu") == before
    kernel.write_text(kernel.read_text() + "\nstatic int more = 1;\n")
    assert sources.digest("step_cpu") != before


def test_what_is_accepted_is_accepted_of_the_code_as_it_is(results, monkeypatch, tmp_path):
    import quoted
    from sources import digest

    monkeypatch.setattr(quoted, "ACCEPTED", tmp_path / "accepted.json")
    unmeasured = copy.deepcopy(results)
    unmeasured["simulate"].pop("sources_sha256", None)
    assert "simulate" in quoted.stale(unmeasured)
    quoted.ACCEPTED.write_text(json.dumps({"simulate": {"sources_sha256": "other", "reason": "none"}}))
    assert "simulate" in quoted.stale(unmeasured)
    quoted.ACCEPTED.write_text(json.dumps({"simulate": {"sources_sha256": digest("simulate"), "reason": "none"}}))
    assert "simulate" not in quoted.stale(unmeasured)
    unmeasured["simulate"]["sources_sha256"] = "of other code"
    assert "simulate" not in quoted.stale(unmeasured)
