"""A bundle that is not as its manifest says is refused, by file, rule and value."""

import contextlib
import copy
import functools
import hashlib
import json

import pytest
import support
from hypothesis import given, settings
from hypothesis import strategies as st

import stepfuse as sf


@pytest.fixture
def bundle(tmp_path):
    return support.write_tiny_bundle(tmp_path / "tiny").path


def edit(folder, **entries):
    """Changes entries of the manifest; None takes one out."""
    file = folder / "manifest.json"
    manifest = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({name: value for name, value in manifest.items() if value is not None}))


def list_file(folder, name, content=b""):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    edit(folder, files={**files, name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}})


def link_outside(folder):
    outside = folder.parent / "outside"
    outside.write_bytes(b"secret")
    (folder / "weights").symlink_to(outside)
    list_file(folder, "weights", b"secret")


def tamper(folder):
    content = bytearray((folder / "denoiser.onnx").read_bytes())
    content[100] ^= 1
    (folder / "denoiser.onnx").write_bytes(content)


def unlisted(folder):
    (folder / "weights.bin").write_bytes(b"where an ONNX file may keep its weights")


def no_network(folder):
    (folder / "denoiser.onnx").unlink()
    edit(folder, files={})


def truncate(folder):
    file = folder / "denoiser.onnx"
    file.write_bytes(file.read_bytes()[:-1])


def manifest(text):
    return lambda folder: (folder / "manifest.json").write_text(text)


def entries(**changed):
    return lambda folder: edit(folder, **changed)


DAMAGE = {
    "not-json": (manifest("{'name'"), "manifest.json is not readable JSON: "),
    "nested-too-deep": (manifest("[" * 100_000), "manifest.json is not readable JSON: maximum recursion depth"),
    "key-there-twice": (
        manifest('{"name": 1, "name": 2}'),
        "manifest.json is not readable JSON: a key .* once, got 'name'",
    ),
    "half-a-surrogate": (
        manifest('{"name": "\\ud800"}'),
        "manifest.json is not readable JSON: .*surrogates not allowed",
    ),
    "endless-number": (
        manifest('{"name": ' + "1" * 5000 + "}"),
        "manifest.json is not readable JSON: Exceeds the limit",
    ),
    "not-an-object": (manifest("[1]"), "manifest.json must hold an object, got list"),
    "no-version": (entries(format_version=None), "manifest.json: format_version must be 1, got None"),
    "later-version": (entries(format_version=2), "manifest.json: format_version must be 1, got 2"),
    "dtype": (entries(dtype="float16"), "manifest.json: dtype must be 'float32', got 'float16'"),
    "no-shape": (entries(shape=None), "manifest.json: shape must be a list, got None"),
    "bad-shape": (entries(shape=[1, 0]), "manifest.json: shape must be .* at least 1, .*, got \\(1, 0\\)"),
    "bad-schedule": (entries(schedule={"type": "sigmoid"}), "manifest.json: schedule type must be .*, got 'sigmoid'"),
    "bad-prediction": (entries(prediction_type="score"), "manifest.json: prediction_type must be .*, got 'score'"),
    "bad-range": (entries(data_range=[1]), "manifest.json: data_range must be two numbers, got \\[1\\]"),
    "infinite-shape": (
        entries(shape=[float("inf")]),
        "manifest.json: 'float' object cannot be interpreted as an integer",
    ),
    "vast-schedule": (
        entries(schedule={"type": "linear", "num_train_timesteps": 10**15}),
        "manifest.json: num_train_timesteps must be between 1 and 1000000, got 1000000000000000",
    ),
    "bad-cond": (entries(cond={"y": {"dtype": "string", "null": 0}}), "manifest.json: dtype must be .*, got 'string'"),
    "bad-null": (entries(cond={"y": {"null": [0, 1]}}), "manifest.json: null must have shape \\(\\), got \\(2,\\)"),
    "no-null": (entries(cond={"y": {}}), "manifest.json: .*'null'"),
    "vast-shape": (entries(shape=[2**32, 2**32]), r"manifest.json: shape must be .* at most 2\^31 in all, got"),
    "flat-range": (entries(data_range=[0, 0]), r"manifest.json: data_range must be .*, got \(0.0, 0.0\)"),
    "list-sampler": (
        entries(defaults={"sampler": ["x"]}),
        r"manifest.json: defaults: sampler must be str, got \['x'\]",
    ),
    "unlisted-file": (unlisted, "every file must be listed in manifest.json, got weights.bin"),
    "no-network": (no_network, "manifest.json: files must list denoiser.onnx, got nothing"),
    "no-checksum": (entries(files={"a": {"size": 1}}), "files\\['a'\\] must give size and sha256"),
    "missing-file": (lambda f: (f / "denoiser.onnx").unlink(), "denoiser.onnx .* is missing"),
    "truncated-file": (truncate, "denoiser.onnx: size must be \\d+ bytes, got \\d+"),
    "tampered-byte": (tamper, "denoiser.onnx: sha256 must be [0-9a-f]{64}, got [0-9a-f]{64}"),
    "name-too-long": (lambda f: list_file(f, "a" * 300), "a{300} must be a name that a file can have: .*too long"),
    "name-with-zero": (lambda f: list_file(f, "a\0b"), "must be a name that a file can have: "),
    "name-leads-up": (lambda f: list_file(f, "../x"), "a file's name must stay inside the folder, got '../x'"),
    "name-absolute": (lambda f: list_file(f, "/etc/passwd"), "must stay inside the folder, got '/etc/passwd'"),
    "name-of-windows": (lambda f: list_file(f, "..\\x"), "must stay inside the folder, got "),
    "link-leads-out": (link_outside, "weights must stay inside the folder, .* leads to .*outside"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_bundle_is_refused(bundle, damage, message):
    damage(bundle)
    with pytest.raises(sf.BundleError, match=message) as caught:
        sf.Bundle.load(bundle)
    assert str(bundle) in str(caught.value)


def test_an_unknown_name_says_what_there_is():
    known = ", ".join(sf.embedded_models()) or "none"
    with pytest.raises(
        sf.BundleError, match=f"'nonesuch' is neither an embedded model \\({known}\\) nor a folder with a"
    ):
        sf.Bundle.load("nonesuch")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["linear", "int64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
ENTRIES = [
    *(["shape"], ["data_range"], ["files"], ["schedule"], ["cond"], ["defaults"], ["timestep_dtype"]),
    *(["schedule", key] for key in ("type", "beta_end", "num_train_timesteps", "zero_terminal_snr", "unheard-of")),
    *(["cond", "class_labels", key] for key in ("dtype", "shape", "null", "names")),
    *(["files", "denoiser.onnx", key] for key in ("size", "sha256")),
]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("fuzzed") / "tiny").path / "manifest.json"


@pytest.mark.parametrize("entry", ENTRIES, ids=".".join)
def test_any_json_in_a_manifest_is_taken_or_refused(fuzzed, entry):
    original = json.loads(fuzzed.read_text())

    @settings(deadline=None, max_examples=40)
    @given(JSON)
    def check(value):
        manifest = copy.deepcopy(original)
        *path, key = entry
        functools.reduce(dict.__getitem__, path, manifest)[key] = value
        fuzzed.write_text(json.dumps(manifest))
        with contextlib.suppress(sf.BundleError):
            sf.Bundle.load(fuzzed.parent)

    check()
    fuzzed.write_text(json.dumps(original))
