"""What a mask keeps, by every cubin, against the CPU's bits; and a step's layouts, which differ in time alone."""

import logging

import numpy as np
import pytest
import support

from stepfuse._core import cuda
from stepfuse.backends.cuda.kernels import StepKernels
from stepfuse.backends.cuda.trajectories import Trajectories
from stepfuse.samplers.table import COLUMNS

#: Elements of a sample: fewer than a tile and more than one; where nothing is aligned also fewer than a vector.
SIZES = {"aligned": (16, 1040), "any": (3, 1111)}
#: Slots that keep a part, the same beside no unconditional pass, one that keeps nothing, one that does no step.
COND, UNCOND, KNOWN_ROW = (2, 0, 1, -1), (3, -1, 4, -1), (1, 0, -1, 1)
NEXT_COND, NEXT_UNCOND = (0, -1, 2, -1), (-1, 3, 1, -1)
KEEPING, ROWS = (0, 1), 5


@pytest.mark.parametrize("network", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("layout", "n"), [(layout, n) for layout, sizes in SIZES.items() for n in sizes])
def test_what_a_mask_keeps_is_the_cpu_s_to_the_bit(torch, context, cubins, network, layout, n):
    rng, slots, kind = np.random.default_rng(n), len(COND), getattr(torch, network)
    x, x0 = rng.standard_normal((2, slots, n)).astype(np.float32)
    known = rng.standard_normal((2, 3, n)).astype(np.float32)
    known[:, 1] = np.clip(rng.uniform(-1, 2, (2, n)), 0, 1)
    levels = rng.uniform(0, 1.5, (slots, 2)).astype(np.float32)
    next_rows = rng.uniform(-1.5, 1.5, (slots, len(COLUMNS))).astype(np.float32)
    arrays = {"x": x, "x0": x0, "known": known, "levels": levels, "next_rows": next_rows}
    on_gpu = {name: torch.from_numpy(array.copy()).cuda() for name, array in arrays.items()}
    maps = {"row_cond": COND, "row_uncond": UNCOND, "next_cond": NEXT_COND, "next_uncond": NEXT_UNCOND}
    maps["known_row"] = KNOWN_ROW
    on_gpu |= {name: torch.tensor(rows, dtype=torch.int32, device="cuda") for name, rows in maps.items()}
    on_gpu["next_input"] = torch.full((ROWS, n), 77, dtype=kind, device="cuda")
    values = {name: tensor.data_ptr() for name, tensor in on_gpu.items()}
    values |= dict.fromkeys(("n", "x_stride", "next_input_stride"), n)
    values |= {"next_input_rows": ROWS, "next_rows_stride": len(COLUMNS)}
    kernel = StepKernels(context, network, cubins).named(f"keep_known.float32.{network}.{layout}")
    stream = cuda.Stream(context)
    torch.cuda.synchronize()
    kernel.launch(stream, slots, values)
    stream.synchronize()

    one, inputs = np.float32(1), torch.full((ROWS, n), 77, dtype=kind)
    for slot in KEEPING:
        (image, mask, noise), (signal, sigma) = known[KNOWN_ROW[slot]], levels[slot]
        x[slot] = mask * x[slot] + (one - mask) * (signal * image + sigma * noise)
        x0[slot] = mask * x0[slot] + (one - mask) * image
        for to in {NEXT_COND[slot], NEXT_UNCOND[slot]} - {-1}:
            inputs[to] = torch.from_numpy(next_rows[slot, COLUMNS.index("s")] * x[slot]).to(kind)
    np.testing.assert_array_equal(on_gpu["x"].cpu().numpy().view(np.int32), x.view(np.int32))
    np.testing.assert_array_equal(on_gpu["x0"].cpu().numpy().view(np.int32), x0.view(np.int32))
    bits = {2: torch.int16, 4: torch.int32}[inputs.element_size()]
    assert torch.equal(on_gpu["next_input"].cpu().view(bits), inputs.view(bits))


def test_tuned_or_not_the_images_are_the_same_bits_and_the_choice_is_logged(torch, cubins, make_module, model, caplog):
    module = make_module().cuda()
    made = Trajectories.from_torch(module, **model, max_rows=8, buckets=[8], cubins=cubins)
    network, arguments = made._network, {"cond": 3, "steps": 12, "eta": 1.0, "guidance_scale": 3.0, "seed": 7}
    drawn = {}
    with caplog.at_level(logging.DEBUG, logger="stepfuse"):
        for tune in (False, True):
            kernels = StepKernels(network.context, network.storage, cubins, tune=tune)
            drawn[tune] = Trajectories(made.info, network, kernels).sample(4, **arguments)
    assert torch.equal(drawn[True], drawn[False])
    logged = [message for message in caplog.messages if message.startswith("a step over 4 samples of 768 elements")]
    assert len(logged) == 1
    assert logged[0].count(" us") == 4


def test_a_loop_s_kernels_are_all_in_the_pack(context, cubins):
    from stepfuse.backends.cuda.program import loop_program

    for storage in ("float32", "float16", "bfloat16"):
        for n in (support.ELEMENTS, 768):
            loop_program(StepKernels(context, storage, cubins), storage, n, 8)
