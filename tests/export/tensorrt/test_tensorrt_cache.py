"""Plans in a bundle or a folder: found for the very same, else built; never loaded where anything differs."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import support
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.bundle.pipeline_info import PipelineInfo
from stepfuse.cli import app
from stepfuse.errors import PlanError
from stepfuse.export.tensorrt import (
    Options,
    Profile,
    Target,
    cache,
    find_library,
    load_plan,
    plan_for,
    remove_plans,
)

TARGET = Target(("8.9",))
RTX = find_library("tensorrt_rtx")


@pytest.fixture
def bundle(tmp_path):
    return support.write_tiny_bundle(tmp_path / "tiny")


@pytest.fixture(params=["bundle", "folder"])
def location(request, bundle, tmp_path):
    """Where plans are kept: the argument ``cache``, and the folder that they are in."""
    if request.param == "bundle":
        return None, bundle.path / "plans"
    return tmp_path / "kept", tmp_path / "kept"


@pytest.fixture
def builds(monkeypatch):
    """The targets that plans were built for since."""
    built = []
    build = cache.build_plan

    def counted(*arguments, **options):
        built.append(options["target"])
        return build(*arguments, **options)

    monkeypatch.setattr(cache, "build_plan", counted)
    return built


def plans_in(folder):
    return sorted(file.name for file in folder.iterdir() if file.suffix == ".plan")


def test_a_plan_is_built_once_and_found_again(bundle, location, builds):
    where, folder = location
    first = plan_for(bundle, target=TARGET, cache=where)
    again = plan_for(bundle.path, target=TARGET, cache=where)
    assert len(builds) == 1
    assert bytes(first.data) == again.data == load_plan(bundle.path, target=TARGET, cache=where).data
    assert first.key == again.key
    (name,) = plans_in(folder)
    about = json.loads((folder / name).with_suffix(".json").read_text())
    assert about["key"]["version"] == RTX.version
    assert (about["size"], about["sha256"]) == (len(again.data), again.sha256)


def test_plans_of_a_bundle_are_in_its_manifest(bundle):
    plan = plan_for(bundle, target=TARGET)
    files = sf.Bundle.load(bundle.path).files
    (name,) = (name for name in files if name.endswith(".plan"))
    assert files[name]["sha256"] == plan.sha256
    with sf.Engine.load(bundle.path, threads=1) as engine:
        assert engine.sample(1, steps=2, cond="bag").shape == (1, *support.SHAPE)


CHANGES = {
    "target": {"target": Target(("8.6",))},
    "profiles": {"profiles": [Profile(rows=(1, 4, 8))]},
    "options": {"options": Options(tf32=False)},
    "version": {"library": replace(RTX, version="1.6.0.1")},
    "library": {"library": replace(RTX, name="tensorrt")},
}


@pytest.mark.parametrize("part", CHANGES)
def test_another_key_is_another_plan(bundle, location, builds, part, caplog):
    where, _ = location
    plan_for(bundle, target=TARGET, cache=where)
    asked = {"target": TARGET, "cache": where, **CHANGES[part]}
    with pytest.raises(PlanError, match=rf"no plan of denoiser\.onnx fits .*\.plan: ({part} is|it is for)"):
        load_plan(bundle, **asked)
    if part == "library":  # not installed here: that it was not taken for the same is what counts
        return
    caplog.set_level("INFO")
    plan_for(bundle, **asked)
    assert len(builds) == 2
    assert "building a plan of denoiser.onnx: " in caplog.text
    load_plan(bundle, **asked)
    load_plan(bundle, target=TARGET, cache=where)


def test_other_weights_are_another_plan(tmp_path, location, bundle):
    import onnx

    where, _ = location
    plan_for(bundle, target=TARGET, cache=where)
    model = onnx.load(bundle.denoiser)
    tensor = next(one for one in model.graph.initializer if one.name == "w_in")
    tensor.raw_data = tensor.raw_data[:-4] + b"\0\0\0\0"
    onnx.save(model, tmp_path / "other.onnx")
    other = support.write_tiny_bundle(tmp_path / "other", network=tmp_path / "other.onnx")
    with pytest.raises(PlanError, match=r"source is|there is none"):
        load_plan(other, target=TARGET, cache=where)


def test_weights_beside_the_network_are_part_of_the_key(tmp_path, bundle):
    plan_for(bundle, target=TARGET, cache=tmp_path / "kept")
    files = {"denoiser.onnx": bundle.denoiser, "denoiser.onnx.data": tmp_path / "data"}
    (tmp_path / "data").write_bytes(b"weights")
    facts = {"name": "tiny", "info": bundle.info, "provenance": "made by a test", "licence": "Apache-2.0"}
    with_data = sf.write_bundle(tmp_path / "data-bundle", files=files, **facts)
    with pytest.raises(PlanError, match="source is"):
        load_plan(with_data, target=TARGET, cache=tmp_path / "kept")


def test_adding_plans_does_not_change_the_key(bundle, builds):
    plan_for(bundle, target=TARGET)
    plan_for(bundle.path, target=Target(("8.6",)))
    plan_for(bundle.path, target=TARGET)
    assert builds == [TARGET, Target(("8.6",))]


GPU = Target(("8.9",), gpu="NVIDIA L4", driver="580.95.05")


@pytest.mark.parametrize(
    "other",
    [replace(GPU, gpu="NVIDIA L40S"), replace(GPU, driver="581.01"), replace(GPU, compute_capabilities=("8.6",))],
    ids=["gpu", "driver", "compute-capability"],
)
def test_a_plan_built_on_a_gpu_is_not_loaded_where_anything_differs(bundle, location, monkeypatch, other):
    where, _ = location
    monkeypatch.setattr(cache, "_check_by_library", lambda plan, library: None)
    _keep(bundle, GPU, where, monkeypatch)
    assert load_plan(bundle, target=GPU, cache=where).key.target == GPU
    with pytest.raises(
        PlanError, match=r"it is for NVIDIA L4 \(compute capability 8\.9\) with driver 580\.95\.05, not"
    ):
        load_plan(bundle, target=other, cache=where)


def test_a_plan_built_ahead_of_time_serves_the_gpus_that_it_was_built_for(bundle, location, monkeypatch):
    where, _ = location
    monkeypatch.setattr(cache, "_check_by_library", lambda plan, library: None)
    ahead = plan_for(bundle, target=Target(("8.9", "12.0")), cache=where)
    assert load_plan(bundle, target=GPU, cache=where).sha256 == ahead.sha256
    _keep(bundle, GPU, where, monkeypatch)
    assert load_plan(bundle, target=GPU, cache=where).key.target == GPU
    with pytest.raises(PlanError, match="no plan"):
        load_plan(bundle, target=replace(GPU, compute_capabilities=("9.0",)), cache=where)


@pytest.mark.parametrize("validity", ["VALID", "SUBOPTIMAL", "INVALID"])
def test_tensorrt_itself_is_asked_where_the_plan_is_for_this_machines_gpu(bundle, location, builds, validity):
    where, _ = location
    kept = plan_for(bundle, target=TARGET, cache=where)
    asked = []

    def answer(data):
        asked.append(bytes(data))
        return getattr(RTX.module.EngineValidity, validity), 0

    fake = SimpleNamespace(
        ILogger=RTX.module.ILogger,
        EngineValidity=RTX.module.EngineValidity,
        Runtime=lambda logger: SimpleNamespace(get_engine_validity=answer),
    )
    library = replace(RTX, module=fake)
    if validity == "INVALID":
        with pytest.raises(PlanError, match=r"does not take the plan for compute capability 8\.9"):
            load_plan(bundle, target=GPU, cache=where, library=library)
    else:
        load_plan(bundle, target=GPU, cache=where, library=library)
    assert asked == [kept.data]


def _keep(bundle, target, where, monkeypatch):
    """A plan as if it was built on a GPU."""

    def build(*arguments, target, **options):
        plan = real(*arguments, target=TARGET, **options)
        return replace(plan, key=replace(plan.key, target=target))

    with monkeypatch.context() as patched:
        real = cache.build_plan
        patched.setattr(cache, "build_plan", build)
        patched.setattr(cache, "_kept", lambda store, key, library: None)
        return plan_for(bundle, target=target, cache=where)


def _flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [_flip, _halve])
def test_a_plan_that_was_changed_is_never_loaded_and_is_built_anew(tmp_path, bundle, builds, damage, caplog):
    kept = tmp_path / "kept"
    plan_for(bundle, target=TARGET, cache=kept)
    damage(kept / plans_in(kept)[0])
    with pytest.raises(PlanError, match=r"\.plan must be \d+ bytes with sha256 .* the plan was changed, delete it"):
        load_plan(bundle, target=TARGET, cache=kept)
    plan_for(bundle, target=TARGET, cache=kept)
    assert len(builds) == 2
    assert "building a plan of denoiser.onnx anew: " in caplog.text
    load_plan(bundle, target=TARGET, cache=kept)
    assert len(plans_in(kept)) == 1


def test_a_plan_of_a_bundle_that_was_changed_makes_the_bundle_refused(bundle, builds):
    plan_for(bundle, target=TARGET)
    (plan,) = (bundle.path / "plans").glob("*.plan")
    _flip(plan)
    with pytest.raises(sf.BundleError, match=r"\.plan: sha256 must be"):
        plan_for(bundle.path, target=TARGET)
    with pytest.raises(PlanError, match="the plan was changed, delete it"):
        load_plan(bundle, target=TARGET)  # read before: the plan is checked again when it is loaded
    plan.unlink()
    plan_for(bundle.path, target=TARGET)
    assert len(builds) == 2
    load_plan(bundle.path, target=TARGET)


def _no_json(text):
    return text[: len(text) // 2]


def _of_another_format(text):
    return text.replace('"format_version": 1', '"format_version": 2')


def _for_another_gpu(text):
    return text.replace('"8.9"', '"8.6"')


def _without_key(text):
    return json.dumps({**json.loads(text), "key": {}})


def _no_object(_):
    return "[]"


@pytest.mark.parametrize("change", [_no_json, _of_another_format, _for_another_gpu, _without_key, _no_object])
def test_a_description_that_was_changed_is_passed_over(tmp_path, bundle, builds, change, caplog):
    kept = tmp_path / "kept"
    plan_for(bundle, target=TARGET, cache=kept)
    (about,) = kept.glob("*.json")
    about.write_text(change(about.read_text()))
    for target in (TARGET, Target(("8.6",))):
        with pytest.raises(PlanError, match=r"no plan of denoiser\.onnx fits \(there is none"):
            load_plan(bundle, target=target, cache=kept)
    assert "it is passed over" in caplog.text
    plan_for(bundle, target=TARGET, cache=kept)
    assert len(builds) == 2


def test_what_a_killed_build_leaves_is_no_plan_and_is_cleared_away(tmp_path, bundle, builds):
    kept = tmp_path / "kept"
    plan_for(bundle, target=TARGET, cache=kept)
    (about,) = kept.glob("*.json")
    about.unlink()
    (kept / ".a.plan-0123abcd.partial.plan").write_bytes(b"half")
    with pytest.raises(PlanError, match="no plan"):
        load_plan(bundle, target=TARGET, cache=kept)
    plan_for(bundle, target=TARGET, cache=kept)
    assert sorted(file.suffix for file in kept.iterdir()) == [".json", ".plan"]


PLAN = """
import sys
from stepfuse.export.tensorrt import Target, cache, plan_for
build, built = cache.build_plan, []
cache.build_plan = lambda *arguments, **options: built.append(1) or build(*arguments, **options)
print(len(built), plan_for(sys.argv[1], target=Target(("8.9",)), cache=sys.argv[2] or None).sha256, len(built))
"""


def test_of_builds_at_the_same_time_one_builds_and_all_have_its_plan(bundle, location):
    where, folder = location
    arguments = [sys.executable, "-c", PLAN, str(bundle.path), str(where or "")]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    reports = [process.communicate()[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sum(int(built) for _, _, built in reports) == 1
    assert len({digest for _, digest, _ in reports}) == 1
    assert len(plans_in(folder)) == 1


def test_plans_are_removed(bundle, location):
    where, folder = location
    plan_for(bundle, target=TARGET, cache=where)
    plan_for(bundle, target=Target(("8.6",)), cache=where)
    assert len(remove_plans(bundle, cache=where)) == 2
    assert list(folder.iterdir()) == []
    sf.Bundle.load(bundle.path)


def test_an_embedded_model_stays_as_it_is(tmp_path):
    with pytest.raises(PlanError, match="fashion comes with the package, which stays as it is: give a folder as cache"):
        plan_for("fashion", target=TARGET)
    assert plan_for("fashion", target=TARGET, cache=tmp_path).sha256


def test_a_place_that_cannot_be_written_is_refused_before_the_build(bundle, builds, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != bundle.path)
    with pytest.raises(PlanError, match="must be writable to keep plans here: give a folder as cache"):
        plan_for(bundle, target=TARGET)
    assert builds == []


def test_a_full_disk_leaves_the_bundle_whole(bundle, monkeypatch):
    def full(file, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stepfuse.bundle.cache._write_through", full)
    with pytest.raises(PlanError, match=r"plans cannot be kept here .*No space left on device"):
        plan_for(bundle, target=TARGET)
    assert not any(name.startswith("plans/") for name in sf.Bundle.load(bundle.path).files)


def test_a_network_that_is_not_in_the_bundle_is_refused(bundle):
    with pytest.raises(PlanError, match=r"network must be one of denoiser\.onnx, got 'vae_decoder\.onnx'"):
        plan_for(bundle, "vae_decoder.onnx", target=TARGET)


def test_the_bundles_own_size_is_taken_and_another_refused(bundle):
    width, height = support.SHAPE[2], support.SHAPE[1]
    assert plan_for(bundle, target=TARGET).key.profiles[0].sizes == ((width, height),) * 3
    with pytest.raises(PlanError, match=r"sample: the network takes shape \(\?, 1, 4, 5\), got \(1, 1, 5, 4\)"):
        plan_for(bundle, target=TARGET, profiles=[Profile(sizes=((height, width),) * 3)])


def test_sizes_are_multiples_of_the_pipelines(bundle):
    pipeline = PipelineInfo("Tiny", pixels_per_latent=2, size_multiple=4)
    with pytest.raises(PlanError, match="sizes must be multiples of 4 pixels for tiny, got 10"):
        plan_for(replace(bundle, pipeline=pipeline), target=TARGET, profiles=[Profile(sizes=((8, 10),) * 3)])


def test_without_a_gpu_the_target_must_be_named(bundle, monkeypatch):
    monkeypatch.setattr(cache, "this_gpu", _no_gpu)
    with pytest.raises(PlanError, match="name the compute capabilities"):
        plan_for(bundle)


def _no_gpu():
    raise PlanError("no GPU is found here: name the compute capabilities")


def test_the_command_builds_plans_and_finds_them_again(bundle):
    arguments = ["plan", str(bundle.path), "--for", "8.9", "--for", "8.6", "--rows", "4"]
    first, again = (CliRunner().invoke(app, arguments) for _ in range(2))
    assert first.exit_code == again.exit_code == 0
    assert re.search(r"(bytes|[kM]B) for compute capability 8\.6, 8\.9, ahead of time, built in", first.output)
    assert first.output == again.output
    (plan,) = (bundle.path / "plans").glob("*.plan")
    key = json.loads(plan.with_suffix(".json").read_text())["key"]
    assert key["profiles"][0]["rows"] == [4, 4, 4]


def test_the_command_says_in_a_line_what_is_wrong(bundle):
    result = CliRunner().invoke(app, ["plan", str(bundle.path), "--for", "9.0"])
    assert result.exit_code == 1
    assert "ahead of time for compute capabilities 7.5, 8.0" in " ".join(result.output.split())
