"""A fake GPU for Triton: launches are compiled for an H200, with all specializations of their arguments, and not run.

Run by test_jit.py, in a process that does not interpret.
"""

import sys

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from stepfuse import kernels
from stepfuse.kernels import adapt, checks, keep, step


class Driver:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


compiled = []


def compile_only(self, *args, grid, warmup, **options):
    kernel = run(self, *args, grid=grid, warmup=True, **options)
    compiled.append(kernel.metadata.name)
    return kernel


driver.set_active(Driver())
run, JITFunction.run = JITFunction.run, compile_only
for module in (adapt, checks, keep, step):
    module.require_state = lambda *args: None  # which would ask for CUDA tensors


def launch_step(slots, n, state, network, timestep=None, noise=None):
    def zeros(*shape, dtype=torch.float32):
        return torch.zeros(shape, dtype=dtype)

    def ints():
        return zeros(slots, dtype=torch.int32)

    arguments = {}
    if timestep is not None:
        arguments = {name: ints() for name in ("row_cond", "row_uncond", "next_cond", "next_uncond", "nonfinite")}
        arguments |= {name: zeros(slots, n, dtype=state) for name in ("h", "x0")}
        arguments |= {"next_input": zeros(2 * slots, n, dtype=network), "next_rows": zeros(slots, 16)}
        arguments["next_timestep"] = zeros(2 * slots, dtype=timestep)
    if noise == "given":
        arguments["z"] = zeros(slots, n, dtype=state)
    elif noise == "made":
        arguments |= {"seed": zeros(slots, dtype=torch.int64), "step": ints()}
    kernels.fused_step(zeros(slots, n, dtype=state), zeros(slots, n, dtype=network), zeros(16), **arguments)


def launch_adapt(slots, n):
    x, rows, each = torch.zeros(slots, n), torch.zeros(slots, 16), torch.ones(slots)
    maps = torch.zeros(slots, dtype=torch.int32), torch.zeros(slots, dtype=torch.int32)
    kernels.guidance_rescale(x, rows, each, *maps)
    kernels.adapt_guidance(x, x, rows, torch.zeros(slots, 4), *maps)
    kernels.dynamic_threshold(x, x, rows, each, each)
    kernels.cfg_renorm(x.reshape(slots, 1, 1, n), rows, 1, *maps)


def launch_keep(slots, n, network=None):
    x, known, rows = torch.zeros(slots, n), torch.zeros(slots, 3, n), torch.zeros(slots, dtype=torch.int32)
    following = {}
    if network is not None:
        following = {"x0": torch.zeros(slots, n), "next_input": torch.zeros(slots, n, dtype=network)}
        following |= {"next_rows": torch.zeros(16), "next_cond": rows, "next_uncond": rows.clone()}
    kernels.keep_known(x, known, rows, torch.zeros(slots, 2), **following)


launch_step(1, 1, torch.float32, torch.float32)  # Triton turns integers that are 1 into constants
launch_step(1, 1, torch.float32, torch.float32, torch.int64, "made")
launch_step(3, 111, torch.float16, torch.float16, torch.int64, "given")
launch_step(64, 16384, torch.float32, torch.bfloat16, torch.float32, "made")
launch_adapt(1, 1)
launch_adapt(2, 4096)
launch_keep(1, 1)
launch_keep(3, 111, torch.bfloat16)
sys.stdout.write(" ".join(compiled))
