"""A text-to-image bundle of a few nodes a network, whose results are all computed in numpy as well."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import stepfuse as sf
from stepfuse.bundle.pipeline_info import (
    CONTROL_FIRST,
    CONTROL_LAST,
    CONTROL_SCALE,
    PipelineInfo,
    PromptInput,
    control_input,
)

WORDS = ("<s>", "</s>", "?", "a", "red", "blue", "cat", "dog", "in", "the", "rain")
LENGTH, WIDTH, CELL = 6, 3, 2
SHAPE = (4, 4, 4)
SCHEDULE = sf.NoiseSchedule.scaled_linear()
STD = np.float32(0.1)
CONTROL = sf.CondInput("float32", (3, CELL * SHAPE[1], CELL * SHAPE[2]), null=0.0, free="size")
CONTROL_NUMBERS = CONTROL_SCALE, CONTROL_FIRST, CONTROL_LAST

TABLE = np.random.default_rng(3).standard_normal((len(WORDS), WIDTH)).astype(np.float32)


def ids(prompt):
    """The prompt's tokens as the tokenizer must give them: words, in bounds, cut and padded."""
    words = [WORDS.index(word) if word in WORDS else 2 for word in prompt.lower().split()][: LENGTH - 2]
    return [0, *words, 1] + [1] * (LENGTH - 2 - len(words))


def embed(prompt):
    """The text encoder."""
    return TABLE[ids(prompt)]


def denoise(x, t, text, size):
    """The denoiser, without ControlNets."""
    offset = text.mean(axis=(1, 2)) + size.mean(axis=1) / 100 + t / 1000
    return (np.float32(0.5) * x + offset[:, None, None, None]).astype(np.float32)


def decode(x):
    """The VAE's decoder, and pixels of it: (n, C, h, w) to (n, H, W, 3)."""
    image = x[:, :3].repeat(CELL, axis=2).repeat(CELL, axis=3) / 2
    return np.clip((image + 1) / 2, 0, 1).transpose(0, 2, 3, 1)


def encode(pixels):
    """The VAE's encoder: (n, H, W, 3) to the mean, (n, C, h, w)."""
    n, height, width, _ = pixels.shape
    cells = (pixels * 2 - 1).reshape(n, height // CELL, CELL, width // CELL, CELL, 3).mean(axis=(2, 4))
    mean = cells.transpose(0, 3, 1, 2) * 2
    return np.concatenate([mean, mean[:, :1]], axis=1).astype(np.float32)


def draw(table, noise, text, negative, size):
    """A run of the denoiser, step by step."""
    x = noise * np.float32(table.init_scale)
    size = np.repeat(np.float32(size)[None], len(x), axis=0)
    for row in table.rows:
        t = np.full(len(x), row[0], dtype=np.float32)
        uncond = None if row[2] == 1 else denoise(x * row[1], t, negative, size)
        x = sf.step(x, denoise(x * row[1], t, text, size), row, eps_uncond=uncond)
    return x


def write_bundle(folder, *, pipeline=None, without=(), controls=(), **info):
    """The bundle, ``without`` some files; ``pipeline`` and ``info`` change what its manifest says.

    A ControlNet of ``controls`` adds its scale times the mean of its picture to the prediction, between its timesteps.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    parts = folder.with_name(f"{folder.name}-parts")
    parts.mkdir()
    _tokenizer().save(str(parts / "tokenizer.json"))
    _save(parts / "text_encoder.onnx", _text_encoder())
    _save(parts / "denoiser.onnx", _denoiser(controls))
    _save(parts / "vae_decoder.onnx", _decoder())
    _save(parts / "vae_encoder.onnx", _encoder())
    facts = {
        "shape": SHAPE,
        "schedule": SCHEDULE,
        "cond": {
            "text": sf.CondInput("float32", (LENGTH, WIDTH), null=0.0),
            "size": sf.CondInput("float32", (6,), null=0.0),
            **{control_input(name): CONTROL for name in controls},
            **{name: sf.CondInput("float32", (len(controls),), null=0.0) for name in CONTROL_NUMBERS if controls},
        },
        "range_known": False,
        "defaults": {"sampler": "ddim", "steps": 4, "guidance_scale": 3.0},
    }
    prompts = (PromptInput("input_ids", "tokenizer.json", LENGTH, 1),)
    facts_of_pipeline = {
        "source": "HandMade",
        "prompts": prompts,
        "pixels_per_latent": CELL,
        "size_multiple": 2 * CELL,
        "size_input": "size",
        "controls": tuple(controls),
    }
    return sf.write_bundle(
        folder,
        name="handmade",
        info=sf.ModelInfo(**{**facts, **info}),
        files={path.name: path for path in sorted(parts.iterdir()) if path.name not in without},
        provenance="made by a test",
        licence="Apache-2.0",
        pipeline=PipelineInfo(**{**facts_of_pipeline, **(pipeline or {})}),
    )


def _tokenizer():
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="?"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(word, WORDS.index(word)) for word in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    return tokenizer


def _text_encoder():
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["text"])]
    return nodes, [("input_ids", [LENGTH], "INT64")], [("text", [LENGTH, WIDTH])], {"table": TABLE}


def _denoiser(controls):
    offsets = ["of_text", "from_size", "from_time", *(["of_controls"] if controls else [])]
    nodes = [
        helper.make_node("Mul", ["sample", "half"], ["from_sample"]),
        helper.make_node("ReduceMean", ["text", "axes_text"], ["of_text"], keepdims=0),
        helper.make_node("ReduceMean", ["size", "axes_size"], ["of_size"], keepdims=0),
        helper.make_node("Mul", ["of_size", "hundredth"], ["from_size"]),
        helper.make_node("Mul", ["timestep", "thousandth"], ["from_time"]),
        helper.make_node("Sum", offsets, ["offset"]),
        helper.make_node("Reshape", ["offset", "column"], ["spread"]),
        helper.make_node("Add", ["from_sample", "spread"], ["prediction"]),
    ]
    constants = {
        "half": np.float32(0.5),
        "hundredth": np.float32(0.01),
        "thousandth": np.float32(0.001),
        "axes_text": np.int64([1, 2]),
        "axes_size": np.int64([1]),
        "column": np.int64([-1, 1, 1, 1]),
    }
    inputs = [
        ("sample", [4, "h", "w"], "FLOAT"),
        ("timestep", [], "FLOAT"),
        ("text", [LENGTH, WIDTH], "FLOAT"),
        ("size", [6], "FLOAT"),
    ]
    if controls:
        inputs += [(control_input(name), [3, f"{name}_h", f"{name}_w"], "FLOAT") for name in controls]
        inputs += [(name, [len(controls)], "FLOAT") for name in CONTROL_NUMBERS]
        constants |= {"axes_control": np.int64([1, 2, 3]), "one": np.int64([1])}
        nodes[:0] = _of_controls(controls)
    return nodes, inputs, [("prediction", [4, "h", "w"])], constants


def _of_controls(controls):
    """What ControlNets add to a row's prediction."""
    means = [f"mean_{name}" for name in controls]
    return [
        *(
            node
            for name, mean in zip(controls, means, strict=True)
            for node in (
                helper.make_node("ReduceMean", [control_input(name), "axes_control"], [f"{mean}_flat"], keepdims=0),
                helper.make_node("Unsqueeze", [f"{mean}_flat", "one"], [mean]),
            )
        ),
        helper.make_node("Concat", means, ["means"], axis=1),
        helper.make_node("Unsqueeze", ["timestep", "one"], ["now"]),
        helper.make_node("LessOrEqual", ["now", CONTROL_FIRST], ["begun"]),
        helper.make_node("GreaterOrEqual", ["now", CONTROL_LAST], ["not_ended"]),
        helper.make_node("And", ["begun", "not_ended"], ["acts"]),
        helper.make_node("Cast", ["acts"], ["share"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["means", CONTROL_SCALE], ["scaled"]),
        helper.make_node("Mul", ["scaled", "share"], ["acting"]),
        helper.make_node("ReduceSum", ["acting", "one"], ["of_controls"], keepdims=0),
    ]


def _decoder():
    nodes = [
        helper.make_node("Slice", ["latent", "zero", "three", "one"], ["colours"]),
        helper.make_node("Resize", ["colours", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Mul", ["large", "half"], ["image"]),
    ]
    constants = {
        "zero": np.int64([0]),
        "three": np.int64([3]),
        "one": np.int64([1]),
        "scales": np.float32([1, 1, CELL, CELL]),
        "half": np.float32(0.5),
    }
    return nodes, [("latent", [4, "h", "w"], "FLOAT")], [("image", [3, "H", "W"])], constants


def _encoder():
    nodes = [
        helper.make_node("AveragePool", ["image"], ["small"], kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        helper.make_node("Mul", ["small", "two"], ["colours"]),
        helper.make_node("Slice", ["colours", "zero", "one", "one"], ["first"]),
        helper.make_node("Concat", ["colours", "first"], ["latent"], axis=1),
        helper.make_node("Mul", ["latent", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "deviation"], ["std"]),
    ]
    constants = {
        "two": np.float32(2),
        "zero": np.int64([0]),
        "one": np.int64([1]),
        "nothing": np.float32(0),
        "deviation": STD,
    }
    outputs = [("latent", [4, "h", "w"]), ("std", [4, "h", "w"])]
    return nodes, [("image", [3, "H", "W"], "FLOAT")], outputs, constants


def _save(path, parts):
    nodes, inputs, outputs, constants = parts
    graph = helper.make_graph(
        nodes,
        path.stem,
        [
            helper.make_tensor_value_info(name, getattr(TensorProto, kind), ["R", *shape])
            for name, shape, kind in inputs
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["R", *shape]) for name, shape in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
