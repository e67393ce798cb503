"""Models and bundles small enough to make in a test."""

import functools
import importlib.util
import math
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import stepfuse as sf

SHAPE = (1, 4, 5)  # 20 elements: no multiple of a vector's width
ELEMENTS = math.prod(SHAPE)
SCHEDULE = sf.NoiseSchedule.linear()
EDM_SAMPLERS = {"edm_euler", "edm_dpmpp_2m", "cm"}
NAMES = ("boot", "bag", "coat", "dress", "shirt", "sandal", "sneaker")
NULL = len(NAMES)
COND = {"class_labels": sf.CondInput(dtype="int64", null=NULL, names=NAMES)}


def schedule_of(sampler):
    """A schedule that a sampler takes: a flow where the sampler takes one."""
    if sampler in EDM_SAMPLERS:
        return sf.NoiseSchedule.edm()
    return sf.NoiseSchedule.flow() if sampler == "euler" else SCHEDULE


def rowwise(x, t, cond):
    """A network of additions, products and quotients, row by row: a row's prediction is the same bits in any batch."""
    labels = cond.get("class_labels", np.full(len(x), NULL))
    return np.stack([_row(*row) for row in zip(x, t, labels, strict=True)])


def _row(x, t, label):
    neighbour = np.roll(x.reshape(-1), 1).reshape(x.shape)
    time = np.float32(math.cos(float(t) / 300))
    return time * (x - neighbour / (1 + abs(x))) + np.float32(0.1 * int(label) - 0.3)


def make_engine(fn=rowwise, **options):
    return sf.Engine.from_callable(fn, **{"shape": SHAPE, "schedule": SCHEDULE, "cond": COND, **options})


def replay(table, *, seed=0, cond=None, fn=rowwise):
    """One sample as the design defines it: a forward and a fused step after the other, no planner, no batch.

    Returns the final state, each step's predicted clean sample, and the rows (input, timestep, class) of each forward.
    """
    x = sf.normal(seed, SHAPE) * np.float32(table.init_scale)
    registers = {name: np.zeros_like(x) for name in ("h", "h2", "h3")[: table.registers]}
    previews, forwards = [], []
    for step, row in enumerate(table):
        t, s, g, p_x, p_e, lo, hi, *_ = row
        labels = [NULL] if cond is None or g == 0 else [cond] if g == 1 else [cond, NULL]
        rows = np.stack([s * x] * len(labels)), np.full(len(labels), t), np.array(labels)
        outputs = fn(rows[0], rows[1], {"class_labels": rows[2]})
        uncond = outputs[1] if len(labels) == 2 else None
        eps = outputs[0] if uncond is None else uncond + g * (outputs[0] - uncond)
        previews.append(np.clip(p_x * x + p_e * eps, lo, hi))
        z = sf.normal(seed, SHAPE, step=step, stream=1) if table[step : step + 1].uses_noise else None
        x = sf.step(x, outputs[0], row, eps_uncond=uncond, z=z, **registers)
        forwards.append(rows)
    return x, np.stack(previews), forwards


def two_line_table(steps, *, seed=0, noise=False, guidance_scale=3.0):
    """Rows of random coefficients, small enough that no state grows, which use all that a second line has."""
    rng = np.random.default_rng(seed)
    sizes = {"p_x": 0.5, "p_e": 0.5, "q_x": 0.5, "q_d": 0.5, "q_e": 0.2, "q_h": 0.2, "q_z": 0.2}
    sizes |= dict.fromkeys(("u_x", "u_d", "u_e", "u_h", *sf.samplers.table.SECOND_LINE[:-1]), 0.2)
    sizes |= {} if noise else {"q_z": 0.0, "u_z": 0.0}
    columns = {name: rng.uniform(-size, size, steps) for name, size in sizes.items()}
    for name, values in columns.items():
        if name[2:] in ("h", "h2", "h3"):  # of a register that the row before has left alone
            values[: 2 if name.endswith("h3") else 1] = 0
    return sf.StepTable.from_columns({**columns, "t": 100 * np.arange(steps)[::-1], "g": guidance_scale})


@functools.cache
def _weights():
    rng = np.random.default_rng(7)
    shapes = {"embedding": (NULL + 1, 64), "w_in": (ELEMENTS, 64), "w_time": (1, 64), "w_out": (64, ELEMENTS)}
    return {name: (rng.standard_normal(shape) / 8).astype(np.float32) for name, shape in shapes.items()}


def write_network(path, *, rows="R", timestep_shape=None, output="prediction"):
    """An ONNX network of two matrix products and a class embedding; the arguments give it faults."""
    constants = {**_weights(), "thousandth": np.float32([1e-3]), "column": np.int64([-1, 1])}
    shape = [rows, *SHAPE]
    timestep_shape = [rows] if timestep_shape is None else timestep_shape
    nodes = [
        helper.make_node("Flatten", ["sample"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "w_in"], ["from_sample"]),
        helper.make_node("Gather", ["embedding", "class_labels"], ["from_class"]),
        helper.make_node("Reshape", ["timestep", "column"], ["time"]),
        helper.make_node("Mul", ["time", "thousandth"], ["share"]),
        helper.make_node("MatMul", ["share", "w_time"], ["from_time"]),
        helper.make_node("Sum", ["from_sample", "from_class", "from_time"], ["summed"]),
        helper.make_node("Tanh", ["summed"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w_out"], ["out"]),
        helper.make_node("Shape", ["sample"], ["like"]),
        helper.make_node("Reshape", ["out", "like"], [output]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("sample", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("timestep", TensorProto.FLOAT, timestep_shape),
            helper.make_tensor_value_info("class_labels", TensorProto.INT64, [rows]),
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return Path(path)


def write_tiny_bundle(folder, *, network=None, overwrite=False, **info):
    """A bundle around ``network`` (a correct one if None); ``info`` changes what its manifest says."""
    folder = Path(folder)
    network = network or write_network(folder.with_suffix(".onnx"))
    facts = {"shape": SHAPE, "schedule": SCHEDULE, "cond": COND, **info}
    return sf.write_bundle(
        folder,
        name="tiny",
        info=sf.ModelInfo(**facts),
        files={"denoiser.onnx": network},
        provenance="made by a test",
        licence="Apache-2.0",
        overwrite=overwrite,
    )


def installed(package):
    """Whether a package that only some tests need is installed."""
    return importlib.util.find_spec(package) is not None
