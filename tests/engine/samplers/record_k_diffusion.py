"""Records whole runs of k-diffusion's SDE samplers in ``k_diffusion.json``, for ``test_k_diffusion.py``.

``python tests/engine/samplers/record_k_diffusion.py FOLDER``, where FOLDER holds the package ``k_diffusion``. It asks
for more packages than the tests do, most of which its samplers never call: their results are kept instead.
"""

import importlib.util
import itertools
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import peers  # noqa: E402
from test_k_diffusion import RECORDED, RUNS, table_of  # noqa: E402

import stepfuse as sf  # noqa: E402


def sampling_of(folder):
    """k-diffusion's module of samplers, with nothing in the place of what the SDE samplers do not call."""
    for name in ("torchdiffeq", "torchsde", "k_diffusion", "k_diffusion.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchdiffeq"].odeint = None
    sys.modules["k_diffusion.utils"].append_dims = lambda sigma, _: sigma  # one for all samples
    sys.modules["k_diffusion"].utils = sys.modules["k_diffusion.utils"]
    file = Path(folder) / "k_diffusion" / "sampling.py"
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def our_noise():
    """The noise of each row of ours, one after the other."""
    seeds = range(peers.SEED, peers.SEED + peers.BATCH)
    for step in itertools.count():
        z = np.stack([sf.normal(seed, (peers.SIZE,), step=step, stream=1) for seed in seeds])
        yield torch.from_numpy(z).double()


def run(sampling, name):
    """The last state of k-diffusion's sampler at the levels of our table."""
    sampler, _, _, options = RUNS[name]
    table = table_of(name)
    final = options.get("final_alpha_cumprod", 1.0)
    signal, noise = np.append(table.levels[:-1], [[final**0.5, (1 - final) ** 0.5]], axis=0).T
    levels, times = noise / signal, iter(table["t"])
    if sampler == "dpmpp_sde":  # which finds the level between two by itself
        levels = levels[[*range(0, len(table), 2), len(table)]]

    def denoised(x, sigma):
        sigma, time = sigma[0], np.full(peers.BATCH, next(times), np.float64)
        scale = 1 / torch.hypot(sigma, torch.ones(1))
        output = torch.from_numpy(peers.model((scale * x).numpy(), time, {"y": np.ones(peers.BATCH)}))
        if options.get("prediction_type") == "v_prediction":
            return scale**2 * x - sigma * scale * output
        return x - sigma * output

    x = torch.from_numpy(peers.NOISE).double() * table.init_scale / signal[0]
    own = {name: options[name] for name in ("eta", "solver_type") if name in options}
    own["noise_sampler"] = peers.BrownianPath(our_noise().__next__)
    last = getattr(sampling, f"sample_{sampler}")(denoised, x, torch.from_numpy(levels), disable=True, **own)
    return (last * signal[-1]).tolist()


def main(folder):
    sampling = sampling_of(folder)
    runs = {name: [[float(f"{one:.9g}") for one in row] for row in run(sampling, name)] for name in RUNS}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(states)}" for name, states in runs.items())
    RECORDED.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main(sys.argv[1])
