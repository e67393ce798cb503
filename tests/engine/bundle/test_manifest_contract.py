"""Whatever a manifest says is taken, or refused by a BundleError that can be printed, within bounds of memory."""

import copy
import json
import tracemalloc

import pytest
import support
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.bundle import folder as checked_folder
from stepfuse.cli.app import app
from stepfuse.requests.bundle_defaults import check_defaults


class Text(str):
    """What stands in the manifest as it is."""


HOSTILE = [
    *(
        None,
        {},
        [],
        "",
        -1,
        True,
        0.5,
        float("nan"),
        10**30,
        2**63,
        "x" * 50_000,
        [[]],
        [None],
        {"a": None},
        ["a", "b"],
    ),
    *([2**28], [2**31, 1, 1], [1] * 70, {"type": "flow"}, "\ud800", "\u202e\x1b[31m"),
    *(Text("1e400"), Text("[" * 900 + "]" * 900)),
]
DEFAULTS = {"sampler": "ddim", "steps": 5, "guidance_scale": 2.0, "eta": 0.5, "clip": 1.0, "spacing": "leading"}
ENTRIES = [
    *((name,) for name in ("name", "shape", "prediction_type", "timestep_dtype", "schedule", "cond", "data_range")),
    *((name,) for name in ("range_known", "defaults", "sampler_options", "pipeline", "export", "files", "provenance")),
    *(("schedule", name) for name in ("type", "beta_start", "num_train_timesteps", "zero_terminal_snr")),
    *(("cond", "class_labels", name) for name in ("dtype", "shape", "null", "names", "free")),
    *(("defaults", name) for name in (*DEFAULTS, "timesteps", "dynamic_threshold", "no_such_option")),
    *(("sampler_options", name) for name in ("heun", "nonesuch")),
    *(("files", "denoiser.onnx", name) for name in ("size", "sha256")),
    *(("pipeline", name) for name in ("source", "prompts", "size_input", "max_size", "fixed_size", "size_multiple")),
    *(("pipeline", name) for name in ("aesthetic_scores", "masked_input", "controls")),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "tiny"
    return support.write_tiny_bundle(path, defaults=DEFAULTS, sampler_options={"heun": {"karras": True}}).path


def with_entry(manifest, entry, value):
    changed = copy.deepcopy(manifest)
    changed["pipeline"] = {"source": "X", "prompts": [], "size_multiple": 8}
    inner = changed
    for name in entry[:-1]:
        inner = inner[name]
    inner[entry[-1]] = "HERE" if isinstance(value, Text) else value
    text = json.dumps(changed)
    return text.replace('"HERE"', value) if isinstance(value, Text) else text


@pytest.mark.parametrize("entry", ENTRIES, ids=".".join)
def test_a_hostile_value_is_taken_or_refused(bundle, entry):
    file = bundle / "manifest.json"
    original = file.read_text()
    try:
        for value in HOSTILE:
            file.write_text(with_entry(json.loads(original), entry, value))
            try:
                check_defaults(sf.Bundle.load(bundle))
            except sf.BundleError as error:
                message = str(error)
            else:
                message = ""
                if entry[0] in ("name", "cond", "pipeline"):  # which ``info`` shows in its own words
                    shown = CliRunner().invoke(app, ["info", str(bundle)])
                    assert shown.exit_code == 0, (value, shown.exception)
            assert len(message.encode()) < 3000  # a lone surrogate cannot be encoded
    finally:
        file.write_text(original)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [1.5, 4, 5]}, "'float' object cannot be interpreted as an integer"),
        ({"data_range": ["-1", "1"]}, r"data_range must be two numbers, got \['-1', '1'\]"),
        ({"range_known": "no"}, "range_known must be a bool, got 'no'"),
        ({"format_version": True}, "format_version must be 1, got True"),
        ({"defaults": {"sampler": "nonesuch"}}, "defaults: sampler must be one of ddim, "),
        ({"defaults": {"apg": [1.0]}}, "defaults: apg must be two numbers"),
        ({"defaults": {"spacing": "zigzag"}}, "defaults: spacing must be 'leading', 'trailing' or 'linspace'"),
        ({"defaults": {"stepz": 5}}, r"defaults must be options of samplers, got \['stepz'\]"),
        (
            {"sampler_options": {"heun": {"stepz": 7}}},
            r"sampler_options\['heun'\] must be options of samplers, got \['stepz'\]",
        ),
        ({"cond": {"y": {"dtype": "float32", "shape": [2**28], "null": 0}}}, r"at most 2\^25 in all"),
        (
            {"cond": {str(i): {"dtype": "bool", "shape": [2**24], "null": 0} for i in range(3)}},
            r"at most 2\^25 numbers",
        ),
        ({"pipeline": {"source": "X", "prompts": {}}}, "prompts must be a list of at most 16"),
        ({"pipeline": {"source": "X", "fixed_size": "no"}}, "fixed_size must be true or false, got 'no'"),
    ],
)
def test_what_would_be_misread_is_refused(bundle, tmp_path, changes, message):
    file = bundle / "manifest.json"
    original = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(original), **changes}))
        tracemalloc.start()
        with pytest.raises(sf.BundleError, match=message):
            sf.Engine.load(bundle, threads=1)
        assert tracemalloc.get_traced_memory()[1] < 8e6  # the manifest is a few hundred bytes
    finally:
        tracemalloc.stop()
        file.write_text(original)


def test_a_manifest_is_bounded_before_it_is_read(bundle):
    file = bundle / "manifest.json"
    original = file.read_text()
    try:
        file.write_text(original + " " * checked_folder.MOST_BYTES)
        with pytest.raises(sf.BundleError, match=r"manifest\.json must have at most 8388608 bytes"):
            sf.Bundle.load(bundle)
    finally:
        file.write_text(original)


def test_files_are_bounded_in_number_and_depth(tmp_path):
    bundle = support.write_tiny_bundle(tmp_path / "tiny").path
    deep = bundle.joinpath(*"abcdefghij")
    deep.mkdir(parents=True)
    (deep / "file").touch()
    with pytest.raises(sf.BundleError, match="in folders at most 8 deep"):
        sf.Bundle.load(bundle)
    network = support.write_network(tmp_path / "network.onnx")
    (tmp_path / "empty").touch()
    files = {"denoiser.onnx": network, **{f"{i}.txt": tmp_path / "empty" for i in range(checked_folder.MOST_FILES)}}
    with pytest.raises(sf.BundleError, match="files must be at most 128, got 129"):
        sf.write_bundle(
            tmp_path / "many",
            name="many",
            info=sf.ModelInfo(support.SHAPE, support.SCHEDULE, cond=support.COND),
            files=files,
            provenance="",
            licence="",
        )
