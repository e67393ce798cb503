"""A torch module as a bundle: the same predictions and the same images, or a refusal and nothing on disk."""

import math
import resource
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import tolerances
import torch
from diffusers import UNet2DModel
from torch import nn

import stepfuse as sf
from stepfuse.export import ExportError, to_bundle
from stepfuse.export.onnx.validate import TOLERANCES
from stepfuse.extras import pip_install

SHAPE = (2, 6, 4)
SCHEDULE = sf.NoiseSchedule.linear()
COND = {
    "label": sf.CondInput(dtype="int64", null=3, names=("boot", "bag", "coat")),
    "text": sf.CondInput(dtype="float32", shape=(5, 8), null=0.0),
}


class Network(nn.Module):
    """A little of everything: a phase of t, a class, attention over a text, convolutions, norms, another size."""

    def __init__(self):
        super().__init__()
        self.time, self.label = nn.Linear(8, 8), nn.Embedding(4, 8)
        self.into, self.out = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 2, 3, padding=1)
        self.norm, self.token_norm, self.drop = nn.GroupNorm(2, 8), nn.LayerNorm(8), nn.Dropout(0.5)
        self.query, self.key, self.value = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.down, self.up = nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Upsample(scale_factor=2)

    def forward(self, x, t, label=None, text=None):
        phase = t[:, None].float() * torch.exp(torch.arange(4) * -2.0)
        embedding = self.time(torch.cat([phase.sin(), phase.cos()], dim=1))
        if label is not None:
            embedding = embedding + self.label(label)
        h = nn.functional.silu(self.norm(self.into(x) + embedding[:, :, None, None]))
        h = h + self.up(self.down(self.drop(h)))
        if text is not None:
            tokens, text = self.token_norm(h.flatten(2).transpose(1, 2)), text[:, None]  # one head
            query, key, value = self.query(tokens)[:, None], self.key(text), self.value(text)
            found = nn.functional.scaled_dot_product_attention(query, key, value)
            h = h + found.transpose(2, 3).reshape(h.shape)
        return self.out(h)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Network()


@pytest.fixture(scope="module")
def bundle(network, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "net"
    return to_bundle(network, shape=SHAPE, schedule=SCHEDULE, cond=COND, out=out, dynamic_size=2)


@pytest.fixture(scope="module")
def half(network, tmp_path_factory):
    out = tmp_path_factory.mktemp("bundles") / "half"
    return to_bundle(network, shape=SHAPE, schedule=SCHEDULE, cond=COND, out=out, precision="float16", external=True)


def in_torch(module, shape=SHAPE, cond=COND):
    """The module itself as the engine's network."""
    module = module.eval()

    def predict(x, t, conditioning):
        with torch.no_grad():
            found = module(
                torch.from_numpy(x), torch.from_numpy(t), **{k: torch.from_numpy(v) for k, v in conditioning.items()}
            )
        return getattr(found, "sample", found).numpy()

    return sf.Engine.from_callable(predict, shape=shape, schedule=SCHEDULE, cond=cond)


def relative(ours, theirs):
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("shape", [None, (2, 10, 14)], ids=["own size", "another size"])
def test_images_are_those_of_the_module(bundle, network, shape):
    text = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    arguments = {"cond": {"label": ["bag", "coat", None], "text": text}, "steps": 20, "guidance_scale": 2.0, "seed": 5}
    with sf.Engine.load(bundle, shape=shape) as ours, in_torch(network, shape or SHAPE) as theirs:
        assert relative(ours.sample(3, sampler="ddim", **arguments), theirs.sample(3, sampler="ddim", **arguments)) < (
            tolerances.EXPORTED_TRAJECTORY
        )


def test_the_bundle_says_how_it_was_exported(bundle, half):
    assert bundle.name == "net"
    assert bundle.info.cond["label"].names == ("boot", "bag", "coat")
    assert bundle.export["opset"] == onnx.load(bundle.denoiser).opset_import[0].version == 18
    assert bundle.export["precision"] == "float32"
    assert bundle.export["float32_operators"] == {}
    assert 0 < bundle.export["errors"]["prediction"] < TOLERANCES["float32"] == bundle.export["tolerance"]
    assert half.export["precision"] == "float16"
    assert {"Sin", "Cos", "Softmax", "InstanceNormalization"} <= half.export["float32_operators"].keys()
    assert TOLERANCES["float32"] < half.export["errors"]["prediction"] < TOLERANCES["float16"]


def test_float16_halves_the_weights_and_errs_no_more_than_torch(bundle, half, network):
    weights = onnx.load(half.denoiser, load_external_data=False).graph.initializer
    wide = {one.name for one in weights if one.data_type == onnx.TensorProto.FLOAT}
    assert not wide & {name for name, _ in network.named_parameters() if "norm" not in name}
    rng = np.random.default_rng(1)
    feed = [torch.from_numpy(rng.standard_normal((4, *SHAPE)).astype(np.float32)), torch.tensor([1.0, 300, 700, 999])]
    conditioning = [torch.arange(4), torch.from_numpy(rng.standard_normal((4, 5, 8)).astype(np.float32))]
    network.eval()
    with torch.no_grad(), sf.Engine.load(half) as engine:
        exact = network(*feed, *conditioning).numpy()
        with torch.autocast("cpu", dtype=torch.float16):
            theirs = network(*feed, *conditioning).float().numpy()
        ours = _predict(half, feed, conditioning)
        assert engine.sample(1, steps=2).dtype == np.float32
    assert relative(ours, exact) < tolerances.FLOAT16_AGAINST_TORCH * relative(theirs, exact)


def _predict(bundle, feed, conditioning):
    import onnxruntime as ort

    session = ort.InferenceSession(bundle.denoiser)
    names = ("sample", "timestep", *COND)
    inputs = zip(names, [*feed, *conditioning], strict=True)
    return session.run(None, {name: value.numpy() for name, value in inputs})[0]


def test_external_weights_are_files_of_the_bundle(half):
    assert set(half.files) == {"denoiser.onnx", "denoiser.onnx.data"}
    assert half.file("denoiser.onnx.data").stat().st_size > 0


def test_the_module_is_as_it_was(network, tmp_path):
    network.train()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    to_bundle(network, shape=SHAPE, schedule=SCHEDULE, out=tmp_path / "net", row_counts=(1,))
    assert network.training
    assert network.drop.training
    assert not network.norm.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_a_diffusers_unet_is_exported_as_it_is(tmp_path):
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=8,
        num_class_embeds=5,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    cond = {"class_labels": sf.CondInput(dtype="int64", null=4)}
    bundle = to_bundle(
        unet, shape=(3, 8, 8), schedule=SCHEDULE, cond=cond, out=tmp_path / "unet", timestep_dtype="int64", opset=21
    )
    with sf.Engine.load(bundle) as ours, in_torch(unet, (3, 8, 8), cond) as theirs:
        arguments = {"cond": [0, 3], "steps": 5, "seed": 1}
        assert relative(ours.sample(2, **arguments), theirs.sample(2, **arguments)) < tolerances.EXPORTED_TRAJECTORY


def test_a_network_without_parameters_and_one_axis(tmp_path):
    class Still(nn.Module):
        def forward(self, x, t):
            return x * (t / 1000)[:, None].cos()

    bundle = to_bundle(Still(), shape=(3,), schedule=SCHEDULE, out=tmp_path / "still")
    arguments = {"steps": 5, "seed": 2}
    with sf.Engine.load(bundle) as ours, in_torch(Still(), (3,), None) as theirs:
        assert relative(ours.sample(2, **arguments), theirs.sample(2, **arguments)) < tolerances.EXPORTED_TRAJECTORY


class Wrong(nn.Module):
    """Identity in x, but for what the function does."""

    def __init__(self, fn, **parameters):
        super().__init__()
        self.fn = fn
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(value))

    def forward(self, x, t):
        return self.fn(x, t)


REFUSED = {
    "another shape": (lambda x, t: x[:, :1], r"must return the shape of x, \(2, 2, 6, 4\), got \(2, 1, 6, 4\)"),
    "a learned variance": (lambda x, t: torch.cat([x, x], dim=1), "learned variance: wrap it to return the first C"),
    "no tensor": (lambda x, t: (x, t), "must return a tensor, or an object with one as .sample, got tuple"),
    "another dtype": (lambda x, t: x.double(), "must return float32, got torch.float64"),
    "not finite": (lambda x, t: x / (x - x), "must return finite numbers, got 96 of 96 that are not, in torch"),
    "rows mixed": (lambda x, t: x - x.mean(dim=0), "the same prediction whatever rows are beside it"),
    "a wrong size": (lambda x, t: x @ torch.ones(7, 7), r"must take sample \(2, 2, 6, 4\), timestep \(2,\): .*7"),
    "inputs changed": (lambda x, t: x.mul_(2), "must not change its inputs"),
    "values decide": (lambda x, t: x if x.sum() > 0 else -x * 1, "must not branch on the values of tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_module_that_is_none_is_refused(case, tmp_path):
    fn, message = REFUSED[case]
    with pytest.raises(ExportError, match=message):
        to_bundle(Wrong(fn), shape=SHAPE, schedule=SCHEDULE, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float8"}, "precision must be one of float32, float16, got 'float8'"),
        ({"opset": 17}, "opset must be between 18 and 23, got 17"),
        ({"dynamic_size": 4}, r"dynamic_size must divide the last two sizes of \(2, 6, 4\), got 4"),
        ({"cond": {"sample": COND["label"]}}, "cond must not be named sample"),
        ({"cond": {"lable": COND["label"]}}, r"callable as module\(x, t, lable=lable\): .*unexpected keyword"),
        ({"tolerance": 1e-12}, r"prediction at 1 rows: error must be at most 1e-12 of the largest magnitude, got \d"),
        ({"prediction_type": "flow"}, "a flow schedule go together"),
        ({"row_counts": ()}, "row_counts must be one or more, each at least 1, got"),
        ({"tolerance": -1.0}, "tolerance must be above 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(network, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_bundle(network, **{"shape": SHAPE, "schedule": SCHEDULE, "out": tmp_path / "out", **options})
    assert not list(tmp_path.iterdir())


def test_other_weights_than_float32_are_refused(tmp_path):
    module = Wrong(lambda x, t: x, scale=torch.ones(1, dtype=torch.float16))
    with pytest.raises(ExportError, match=r"must be float32 on the CPU, got torch.float16 on cpu for scale.*float\(\)"):
        to_bundle(module, shape=SHAPE, schedule=SCHEDULE, out=tmp_path / "out")


def test_a_bundle_that_is_there_is_kept_until_another_is_whole(bundle, network, tmp_path):
    still = Wrong(lambda x, t: x * math.pi)
    out = to_bundle(still, shape=SHAPE, schedule=SCHEDULE, out=tmp_path / "out").path
    with pytest.raises(ExportError, match="exists already: pass overwrite=True"):
        to_bundle(network, shape=SHAPE, schedule=SCHEDULE, out=out)
    with pytest.raises(ExportError, match="error must be at most"):
        to_bundle(network, shape=SHAPE, schedule=SCHEDULE, out=out, overwrite=True, tolerance=1e-12)
    assert sf.Bundle.load(out).provenance == "exported from the torch module Wrong"
    to_bundle(network, shape=SHAPE, schedule=SCHEDULE, out=out, overwrite=True, row_counts=(1,))
    assert sf.Bundle.load(out).provenance == "exported from the torch module Network"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_is_no_bundle_is_not_replaced(network, tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(ExportError, match=r"has no manifest.json: only a bundle is replaced"):
        to_bundle(network, shape=SHAPE, schedule=SCHEDULE, out=tmp_path, overwrite=True)
    assert [file.name for file in tmp_path.iterdir()] == ["photo.png"]


def test_a_disk_too_small_is_found_out_before_exporting(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000))
    module = Wrong(lambda x, t: x * module.scale.sum(), scale=torch.ones(1000, 1000))
    with pytest.raises(ExportError, match=r"must have room for 4 MB, the weights: 3 MB are free"):
        to_bundle(module, shape=SHAPE, schedule=SCHEDULE, out=tmp_path / "new" / "out")
    assert not list(tmp_path.iterdir())


def test_files_are_written_once_and_hashed_once(written, tmp_path):
    module = Wrong(lambda x, t: x * module.scale.sum(), scale=torch.ones(100, 100))
    bundle = to_bundle(module, shape=SHAPE, schedule=SCHEDULE, out=tmp_path / "out", external=True)
    assert sorted(written.hashed) == sorted(bundle.files) == ["denoiser.onnx", "denoiser.onnx.data"]
    assert written.peak_bytes == sum(file["size"] for file in bundle.files.values())
    assert sf.Bundle.load(bundle.path).files == bundle.files


@pytest.mark.parametrize("external", [False, True])
def test_a_disk_that_is_full_in_mid_export_is_left_as_it_was(external, tmp_path):
    module = Wrong(lambda x, t: x * module.scale.sum(), scale=torch.ones(500, 500))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # half of the weights
    try:
        with pytest.raises(ExportError, match=r"must have room for 1 MB of weights of denoiser.onnx: .*too large"):
            to_bundle(module, shape=SHAPE, schedule=SCHEDULE, out=tmp_path / "out", external=external)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_the_package_needs_no_torch_until_something_is_exported():
    code = """
import sys
import stepfuse.export
assert "torch" not in sys.modules and "onnx" not in sys.modules
assert "to_bundle" in dir(stepfuse.export)
sys.modules["torch"] = None
try:
    stepfuse.export.to_bundle
except ImportError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert pip_install("export") in found.stdout
