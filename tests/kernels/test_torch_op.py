"""The fused step under ``torch.compile``: one operator, the same bits, the same errors."""

import numpy as np
import pytest

import stepfuse.kernels
from stepfuse.kernels import fused_step
from stepfuse.kernels.configs import SMALL
from stepfuse.samplers.table import COLUMNS, SECOND_LINE

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")

N = 48
WRITTEN = ("out", "h", "h2", "h3", "x0", "next_input", "next_timestep", "nonfinite")


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def clones(arguments):
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}


def assert_same_bits(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        if isinstance(value, torch.Tensor):
            assert got[name].dtype == value.dtype, name
            assert torch.equal(got[name].view(torch.uint8), value.view(torch.uint8)), name


@pytest.fixture
def arguments(device):
    """Two slots, guided and not, with a history and a second line; 5 rows of a prediction and of the next input."""
    rng = np.random.default_rng(0)
    rows = rng.uniform(-1.5, 1.5, (2, len(COLUMNS + SECOND_LINE))).astype(np.float32)
    rows[:, [COLUMNS.index("lo"), COLUMNS.index("hi")]] = (-1, 1)
    arrays = {
        "x": rng.standard_normal((2, N)).astype(np.float32),
        "prediction": rng.standard_normal((5, N)).astype(np.float32),
        "rows": rows,
        "row_cond": np.int32([4, 0]),
        "row_uncond": np.int32([2, -1]),
        **{name: rng.standard_normal((2, N)).astype(np.float32) for name in ("h", "h2", "h3")},
        "z": rng.standard_normal((2, N)).astype(np.float32),
    }
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


@pytest.fixture
def whole(arguments):
    """Every argument but a seed and a step, which exclude z."""
    x, rows = arguments["x"], arguments["rows"]
    return {
        **arguments,
        "out": torch.zeros_like(x),
        "x0": torch.zeros_like(x),
        "next_input": torch.zeros_like(arguments["prediction"]),
        "next_rows": rows.flip(0).contiguous(),
        "next_cond": torch.tensor([0, 1], dtype=torch.int32, device=x.device),
        "next_uncond": torch.tensor([3, -1], dtype=torch.int32, device=x.device),
        "next_timestep": torch.zeros(5, device=x.device),
        "nonfinite": torch.zeros(2, dtype=torch.int32, device=x.device),
    }


def in_a_loop(arguments):
    """Two steps around a network that torch traces, the second one in place."""
    given = {**arguments, "prediction": torch.tanh(arguments["prediction"])}
    x = fused_step(**given)
    return fused_step(**{**given, "x": x, "out": x, "prediction": 2 * given["prediction"]})


@pytest.mark.parametrize("config", [None, SMALL], ids=["config-by-rule", "config-given"])
@pytest.mark.parametrize("noise", ["given", "made"])
def test_a_compiled_loop_has_the_same_bits_in_all_that_is_written(whole, noise, config):
    if noise == "made":
        device = whole.pop("z").device
        whole["seed"] = torch.tensor([3, -1], device=device)
        whole["step"] = torch.tensor([1, 2], dtype=torch.int32, device=device)
    whole["config"] = config
    eager, graph = clones(whole), clones(whole)
    assert torch.equal(compiled(in_a_loop)(graph), in_a_loop(eager))
    assert_same_bits(graph, eager)
    assert all(not torch.equal(eager[name], whole[name]) for name in set(WRITTEN) - {"nonfinite"})


@pytest.mark.parametrize("in_place", [True, False], ids=["in-place", "allocated"])
def test_out_may_be_the_state_or_left_to_the_step(arguments, in_place):
    eager, graph = clones(arguments), clones(arguments)

    def step(given):
        return fused_step(**given, out=given["x"] if in_place else None)

    assert torch.equal(compiled(step)(graph), step(eager))
    assert_same_bits(graph, eager)
    assert torch.equal(eager["x"], arguments["x"]) != in_place


def test_a_batch_of_another_size_takes_the_same_code(arguments):
    step = compiled(lambda given: fused_step(**given) + 1)
    for slots in (2, 1):
        given = {
            name: value if name == "prediction" else value[:slots].contiguous() for name, value in arguments.items()
        }
        eager, graph = clones(given), clones(given)
        assert torch.equal(step(graph), fused_step(**eager) + 1)


def test_a_call_by_the_package_s_name_is_traced_too(arguments):
    eager = fused_step(**clones(arguments))
    assert torch.equal(compiled(lambda given: stepfuse.kernels.fused_step(**given))(arguments), eager)


def test_a_graph_holds_one_operator_a_step(arguments):
    graphs = []

    def keep(module, inputs):
        graphs.append(module)
        return module

    torch.compiler.reset()
    torch.compile(in_a_loop, backend=keep, fullgraph=True)({**arguments, "out": None})
    [graph] = graphs
    operators = [node for node in graph.graph.nodes if "stepfuse" in str(node.target)]
    assert [node.target for node in operators] == [torch.ops.stepfuse.fused_step.default] * 2


def test_the_operator_s_schema_and_fake_agree_with_what_it_does(whole):
    names = [argument.name for argument in torch.ops.stepfuse.fused_step.default._schema.arguments]
    written = [one.name for one in torch.ops.stepfuse.fused_step.default._schema.arguments if one.is_write]
    assert set(written) == set(WRITTEN)
    torch.library.opcheck(torch.ops.stepfuse.fused_step.default, [whole.get(name) for name in names])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param({"rows": (2, 15)}, ValueError, r"rows must have shape \(2, 16\), got \(2, 15\)", id="shape"),
        pytest.param({"row_cond": (2,)}, TypeError, "row_cond must be int32, got float32", id="dtype"),
        pytest.param({"seed": (2,)}, ValueError, "seed and step go together: pass both or neither", id="missing"),
    ],
)
def test_an_error_is_the_same_compiled_or_not(arguments, device, change, error, message):
    given = {**arguments, **{name: torch.zeros(shape, device=device) for name, shape in change.items()}}
    for step in (fused_step, compiled(fused_step)):
        with pytest.raises(error, match=message):
            step(**given)


def test_autograd_does_not_record_it(arguments):
    weight = torch.ones(N, device=arguments["x"].device, requires_grad=True)

    def step(given):
        return fused_step(**{**given, "prediction": weight * given["prediction"]})

    assert not step(clones(arguments)).requires_grad
    assert not compiled(step)(clones(arguments)).requires_grad
