"""LoRAs of Flux with the names of its first code, of kohya's scripts and of XLabs': against diffusers' conversions."""

from dataclasses import dataclass

import numpy as np
import pytest
from safetensors.numpy import save_file

from stepfuse.bundle.bundle import DENOISER
from stepfuse.errors import LoraError
from stepfuse.lora.file import Lora
from stepfuse.lora.match import Targets

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

from diffusers.loaders.lora_conversion_utils import (  # noqa: E402
    _convert_kohya_flux_lora_to_diffusers,
    _convert_xlabs_flux_lora_to_diffusers,
)

WIDTH, RANK, ALPHA = 3072, 2, 1.0
#: Sizes of the modules of FLUX.1's first blocks by their first names, (out, in).
FIRST = {
    **{
        f"double_blocks.0.{side}_{name}": sizes
        for side in ("img", "txt")
        for name, sizes in {
            "mod.lin": (6 * WIDTH, WIDTH),
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.0": (4 * WIDTH, WIDTH),
            "mlp.2": (WIDTH, 4 * WIDTH),
        }.items()
    },
    "single_blocks.0.modulation.lin": (3 * WIDTH, WIDTH),
    "single_blocks.0.linear1": (7 * WIDTH, WIDTH),
    "single_blocks.0.linear2": (WIDTH, 5 * WIDTH),
}
#: The same of XLabs' processors.
PROCESSORS = {
    **{f"double_blocks.0.processor.qkv_lora{i}": (3 * WIDTH, WIDTH) for i in (1, 2)},
    **{f"double_blocks.0.processor.proj_lora{i}": (WIDTH, WIDTH) for i in (1, 2)},
    "single_blocks.0.processor.qkv_lora": (3 * WIDTH, WIDTH),
    "single_blocks.0.processor.proj_lora": (WIDTH, 5 * WIDTH),
}


@dataclass(frozen=True)
class Target:
    key: tuple[str, str]
    sizes: tuple[int, ...]


def kohya_state(**sizes):
    rng, state = np.random.default_rng(0), {}
    for module, (out, wide) in {**FIRST, **sizes}.items():
        name = f"lora_unet_{module.replace('.', '_')}"
        state[f"{name}.lora_down.weight"] = rng.standard_normal((RANK, wide), dtype=np.float32)
        state[f"{name}.lora_up.weight"] = rng.standard_normal((out, RANK), dtype=np.float32)
        state[f"{name}.alpha"] = np.full((), ALPHA, np.float32)
    return state


def dotted(state):
    """The same as a file with the first names themselves, whose alpha is its rank."""
    modules = {f"lora_unet_{module.replace('.', '_')}": module for module in FIRST}
    matrices = {"lora_down": "lora_A", "lora_up": "lora_B"}
    found = {}
    for key, value in state.items():
        module, _, matrix = key.partition(".")
        if matrix != "alpha":
            scale = ALPHA / RANK if matrix.startswith("lora_up") else 1
            name = matrices[matrix.removesuffix(".weight")]
            found[f"diffusion_model.{modules[module]}.{name}.weight"] = np.float32(scale * value)
    return found


def xlabs_state(prefix=""):
    rng, state = np.random.default_rng(0), {}
    for module, (out, wide) in PROCESSORS.items():
        state[f"{prefix}{module}.down.weight"] = rng.standard_normal((RANK, wide), dtype=np.float32)
        state[f"{prefix}{module}.up.weight"] = rng.standard_normal((out, RANK), dtype=np.float32)
    return state


def converted(state, convert=_convert_kohya_flux_lora_to_diffusers):
    """diffusers' pairs by module."""
    state = convert({name: torch.tensor(one) for name, one in state.items()})
    names = {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in state}
    return {name: [state[f"transformer.{name}.lora_{one}.weight"].numpy() for one in "AB"] for name in names}


@pytest.fixture(scope="module")
def theirs():
    return converted(kohya_state())


@pytest.fixture(scope="module")
def targets(theirs):
    weights = [Target((DENOISER, f"{name}.weight"), (len(up), down.shape[1])) for name, (down, up) in theirs.items()]
    return Targets("flux", weights)


@pytest.mark.parametrize("form", [dict, dotted])
def test_each_weight_changes_as_in_diffusers(form, theirs, targets, tmp_path):
    save_file(form(kohya_state()), tmp_path / "flux.safetensors")
    match = targets.match(Lora.read(tmp_path / "flux.safetensors"))
    assert (match.fitting, match.misfits, len(match.changes)) == (len(FIRST), 0, len(theirs))
    assert len(theirs) == 2 * (5 + 2) + 6
    assert_changes(match, theirs)


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_each_weight_of_xlabs_processors_changes_as_in_diffusers(prefix, targets, tmp_path):
    save_file(xlabs_state(prefix), tmp_path / "flux.safetensors")
    theirs = converted(xlabs_state(), _convert_xlabs_flux_lora_to_diffusers)
    match = targets.match(Lora.read(tmp_path / "flux.safetensors"))
    assert (match.fitting, match.misfits, len(match.changes)) == (len(PROCESSORS), 0, len(theirs))
    assert len(theirs) == 2 * (3 + 1) + 3 + 1
    assert_changes(match, theirs)


def assert_changes(match, theirs):
    for target, pair in match.changes:
        down, up = theirs[target.key[1].removesuffix(".weight")]
        assert pair.sizes == target.sizes
        np.testing.assert_allclose(pair.delta(0.7)[::97, ::89], 0.7 * up[::97] @ down[:, ::89], rtol=1e-4, atol=1e-5)


def test_one_of_other_rows_is_refused(targets, tmp_path):
    save_file(kohya_state(**{"double_blocks.0.img_attn.qkv": (WIDTH, WIDTH)}), tmp_path / "flux.safetensors")
    rule = "12 of 13 pairs do; another shape have lora_unet_double_blocks_0_img_attn_qkv"
    with pytest.raises(LoraError, match=rf"{rule} \(\(3072, 3072\) for \(9216, 3072\)\)$"):
        targets.match(Lora.read(tmp_path / "flux.safetensors"))


def test_a_weight_is_changed_once(theirs, targets, tmp_path):
    name = "transformer_blocks.0.attn.to_k"
    state = kohya_state() | {f"transformer.{name}.lora_{one}.weight": theirs[name]["AB".index(one)] for one in "AB"}
    save_file(state, tmp_path / "flux.safetensors")
    with pytest.raises(LoraError, match=f"{name} and lora_unet_double_blocks_0_img_attn_qkv are the same weight"):
        targets.match(Lora.read(tmp_path / "flux.safetensors"))
