"""Every variant of the step, loaded through the driver, against the CPU's bits, launched and as a graph."""

from itertools import product

import numpy as np
import pytest

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.backends.cuda.kernels import StepKernels, packed
from stepfuse.backends.cuda.tuning import step_seconds
from stepfuse.kernels.configs import ALIGNED_LAYOUTS
from stepfuse.samplers.table import COLUMNS

STORAGE = ("float32.float32", "float16.float16", "bfloat16.bfloat16", "float32.float16", "float32.bfloat16")
#: Elements of a sample: one tile and more of each; where nothing is aligned also fewer than a vector.
SIZES = {
    "small": (16, 1040),
    "medium": (528, 2048),
    "large": (1040, 4096),
    "wide": (2064, 8192),
    "any": (3, 1111),
}
COND, UNCOND = (2, 0, -1, -1), (3, -1, 1, -1)  # guided, conditional, unconditional, absent
NEXT_COND, NEXT_UNCOND = (0, -1, 2, 4), (-1, 3, 1, -1)
ROWS = 5
SEEDS, STEPS = (5, (1 << 64) - 1, 7, 8), (0, 3, 999, 1)


def column(name):
    return COLUMNS.index(name)


def table_rows(rng, *, noise):
    rows = rng.uniform(-1.5, 1.5, (len(COND), len(COLUMNS))).astype(np.float32)
    rows[:, column("lo")], rows[:, column("hi")] = -0.6, 0.8
    rows[:, column("t")] = rng.integers(0, 999, len(COND)) + 0.5
    rows[2, [column(name) for name in ("q_h", "u_x", "u_d", "u_e", "u_h")]] = 0  # without a history
    if not noise:
        rows[:, column("q_z")] = 0
    return rows


@pytest.mark.parametrize(("storage", "noise", "layout"), list(product(STORAGE, ("plain", "noise"), SIZES)))
@pytest.mark.parametrize("as_graph", [False, True], ids=["launched", "graph"])
def test_a_cubin_gives_the_cpu_s_bits(torch, context, cubins, storage, noise, layout, as_graph):
    state_type, network_type = (getattr(torch, name) for name in storage.split("."))
    kernel = packed(cubins, f"fused_step.{storage}.{noise}.{layout}", context.compute_capability).load(context)
    for n in SIZES[layout]:
        check(torch, context, kernel, n, state_type, network_type, noise == "noise", as_graph)


@pytest.mark.parametrize("slots", [1, 16])
def test_layouts_are_timed_and_one_of_them_is_taken(context, cubins, slots):
    kernels, n = StepKernels(context, "bfloat16", cubins), 4 * 64 * 64
    layouts = [kernels.named(f"fused_step.float32.bfloat16.plain.{layout}") for layout in ALIGNED_LAYOUTS]
    assert kernels.get(slots, n, noise=False) in layouts
    for seconds in step_seconds(layouts, context, slots, n, 2, noise=False):
        assert 2e-7 < seconds < 1e-3


def test_a_torch_loop_s_configuration_is_one_of_the_layouts_and_its_tensors_are_left_alone(torch):
    from stepfuse.kernels import tune

    x, prediction = torch.ones(2, 4, 64, 64, device="cuda"), torch.zeros(4, 4, 64, 64, device="cuda")
    maps = (torch.tensor(rows, dtype=torch.int32, device="cuda") for rows in ([0, 1], [2, 3]))
    arguments = dict(zip(("row_cond", "row_uncond"), maps, strict=True))
    rows = torch.zeros(16, device="cuda")
    assert tune(x, prediction, rows, out=x, **arguments) in ALIGNED_LAYOUTS.values()
    assert (x == 1).all()


def check(torch, context, kernel, n, state_type, network_type, noise, as_graph):
    rng, slots = np.random.default_rng(n), len(COND)
    rows, next_rows = table_rows(rng, noise=noise), table_rows(rng, noise=noise)
    x, h, prediction = (
        torch.from_numpy(rng.standard_normal((count, n)).astype(np.float32)).to(kind)
        for count, kind in ((slots, state_type), (slots, state_type), (ROWS, network_type))
    )
    on_gpu = {
        "x": x.cuda(),
        "h": h.cuda(),
        "prediction": prediction.cuda(),
        "rows": torch.from_numpy(rows).cuda(),
        "next_rows": torch.from_numpy(next_rows).cuda(),
        "next_input": torch.full((ROWS, n), 77, dtype=network_type, device="cuda"),
        "next_t": torch.full((ROWS,), 77, dtype=torch.float32, device="cuda"),
        "next_t_int": torch.full((ROWS,), 77, dtype=torch.int64, device="cuda"),
        "x0": torch.full((slots, n), 77, dtype=state_type, device="cuda"),
        "nonfinite": torch.zeros(slots, dtype=torch.int32, device="cuda"),
    }
    maps = {"row_cond": COND, "row_uncond": UNCOND, "next_cond": NEXT_COND, "next_uncond": NEXT_UNCOND}
    on_gpu |= {name: torch.tensor(values, dtype=torch.int32, device="cuda") for name, values in maps.items()}
    if noise:
        on_gpu["seed"] = torch.from_numpy(np.array(SEEDS, np.uint64).view(np.int64)).cuda()
        on_gpu["step"] = torch.tensor(STEPS, dtype=torch.int32, device="cuda")
    values = {name: tensor.data_ptr() for name, tensor in on_gpu.items()}
    values["out"] = values["x"]
    values |= dict.fromkeys(("n", "x_stride", "out_stride", "prediction_stride", "next_input_stride"), n)
    values |= {"prediction_rows": ROWS, "next_input_rows": ROWS, "rows_stride": 16, "next_rows_stride": 16}
    torch.cuda.synchronize()
    stream = cuda.Stream(context)
    if as_graph:
        capture = cuda.Capture(stream)
        kernel.launch(stream, slots, values)
        graph = cuda.GraphExec(capture.end())
        assert torch.equal(on_gpu["x"].cpu(), x)  # captured, not run
        graph.launch(stream)
    else:
        kernel.launch(stream, slots, values)
    stream.synchronize()

    wide = {"x": x.float().numpy(), "h": h.float().numpy(), "prediction": prediction.float().numpy()}
    inputs = torch.full((ROWS, n), 77, dtype=network_type)
    timesteps = np.full(ROWS, 77, np.float32)
    for i in range(slots - 1):
        guided, own = COND[i] >= 0 and UNCOND[i] >= 0, wide["h"][i].copy()
        after = sf.step(
            wide["x"][i],
            wide["prediction"][max(COND[i], -1 if COND[i] >= 0 else UNCOND[i])],
            rows[i],
            eps_uncond=wide["prediction"][UNCOND[i]] if guided else None,
            h=own if i != 2 else None,
            z=sf.normal(SEEDS[i], (n,), step=STEPS[i], stream=1) if noise else None,
        )
        same(torch, on_gpu["x"][i], torch.from_numpy(after).to(state_type))
        same(torch, on_gpu["h"][i], torch.from_numpy(own).to(state_type))
        for to in {NEXT_COND[i], NEXT_UNCOND[i]} - {-1}:
            inputs[to] = torch.from_numpy(next_rows[i, column("s")] * after).to(network_type)
            timesteps[to] = next_rows[i, column("t")]
    same(torch, on_gpu["x"][-1], x[-1])  # absent: left alone, and so is its next row
    same(torch, on_gpu["next_input"], inputs)
    np.testing.assert_array_equal(on_gpu["next_t"].cpu(), timesteps)
    np.testing.assert_array_equal(on_gpu["next_t_int"].cpu(), np.rint(timesteps).astype(np.int64))
    assert on_gpu["nonfinite"].tolist() == [0] * slots


def same(torch, got, want):
    bits = {2: torch.int16, 4: torch.int32}[want.element_size()]
    assert torch.equal(got.cpu().view(bits), want.view(bits))
