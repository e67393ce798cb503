"""A compiled pipeline follows its pipe: what is loaded, enabled, moved or replaced after ``compile`` acts on both."""

import copy
import sys

import numpy as np
import pytest
import tolerances

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")
pytest.importorskip("peft")

import torch  # noqa: E402

from stepfuse.integrations.diffusers import compile  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("where"),
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning", "ignore::FutureWarning"),
]

LOOPS = ["StableDiffusionPipeline", "StableDiffusionInpaintPipeline"]  # the engine's, and the pipeline's own


@pytest.fixture(params=LOOPS)
def case(request):
    torch.set_num_threads(1)
    return next(one for one in sys.modules["stable_pipelines"].CASES if one.label == request.param)


def fresh(case):
    """A pipeline with networks of its own, and the same compiled."""
    pipe = case.pipeline()
    for name in ("unet", "vae", "text_encoder"):
        setattr(pipe, name, copy.deepcopy(getattr(pipe, name)))
    return pipe, compile(pipe)


def call(case, pipe, **given):
    return case.call(pipe, num_inference_steps=2, **given)


def distance(one, other):
    return np.abs(one - other).max()


def lora(pipe, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: 0.5 * torch.randn(shape, generator=generator)  # noqa: E731
    weights = {}
    for name, layer in pipe.unet.named_modules():
        if name.endswith(("to_q", "to_v")):
            weights[f"unet.{name}.lora_A.weight"] = draw(2, layer.in_features)
            weights[f"unet.{name}.lora_B.weight"] = draw(layer.out_features, 2)
    return weights


def with_two_loras(pipe):
    pipe.load_lora_weights(lora(pipe, 1), adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.3, 0.9])


LORA = (
    (lambda pipe: pipe.load_lora_weights(lora(pipe), adapter_name="one"), True),
    (lambda pipe: pipe.set_adapters("one", 0.4), True),
    (with_two_loras, True),
    (lambda pipe: pipe.fuse_lora(), False),
    (lambda pipe: pipe.unfuse_lora(), False),
    (lambda pipe: pipe.disable_lora(), True),
    (lambda pipe: pipe.unload_lora_weights(), False),
)


def test_a_lora(case):
    pipe, compiled = fresh(case)
    first = before = call(case, compiled)
    for number, (change, acts) in enumerate(LORA):
        change((pipe, compiled)[number % 2])
        got = call(case, compiled)
        assert distance(got, call(case, pipe)) < tolerances.COMPILED
        assert (distance(got, before) > 1e-3) == acts, number
        before = got
    assert distance(before, first) < tolerances.COMPILED


def halved(pipe):
    pipe.unet = half = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.mul_(0.5)


def by_other_steps(pipe):
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)


def with_image_adapter(pipe):
    family = sys.modules["stable_pipelines"]
    weights = family.image_adapter(pipe.unet)
    pipe.load_ip_adapter(weights, subfolder=None, weight_name=None, image_encoder_folder=None)


CHANGES = {
    "network": (halved, True),
    "scheduler": (by_other_steps, True),
    "FreeU": (lambda pipe: pipe.enable_freeu(s1=0.2, s2=0.1, b1=2.0, b2=3.0), True),
    "VAE slicing": (lambda pipe: pipe.vae.enable_slicing(), False),
    "attention slicing": (lambda pipe: pipe.enable_attention_slicing(1), False),
    "dtypes": (lambda pipe: pipe.to(torch.float64).to(torch.float32), False),
}


@pytest.mark.parametrize("on", ["pipe", "compiled"])
@pytest.mark.parametrize("name", CHANGES)
def test_what_is_enabled_or_replaced(name, on, case):
    pipe, compiled = fresh(case)
    before = call(case, compiled)
    change, acts = CHANGES[name]
    change({"pipe": pipe, "compiled": compiled}[on])
    assert all(part is compiled.components[name] for name, part in pipe.components.items())
    got = call(case, compiled)
    assert distance(got, call(case, pipe)) < tolerances.COMPILED
    assert (distance(got, before) > 1e-4) == acts


def test_an_image_adapter_and_its_scale(case):
    pipe, compiled = fresh(case)
    with_image_adapter(compiled)
    embeds = sys.modules["shown"].tensor(2, 1, 6)
    before = None
    for scale in (0.2, 0.9):
        pipe.set_ip_adapter_scale(scale)
        want, got = (call(case, one, ip_adapter_image_embeds=[embeds]) for one in (pipe, compiled))
        assert distance(got, want) < tolerances.COMPILED
        assert before is None or distance(got, before) > 1e-3
        before = got
    compiled.unload_ip_adapter()
    assert distance(call(case, compiled), call(case, pipe)) < tolerances.COMPILED


def test_a_lora_s_scale_in_a_call(case):
    pipe, compiled = fresh(case)
    pipe.load_lora_weights(lora(pipe))
    given = {"cross_attention_kwargs": {"scale": 0.3}}
    got = call(case, compiled, **given)
    assert distance(got, call(case, pipe, **given)) < tolerances.COMPILED
    assert distance(got, call(case, compiled)) > 1e-3


def test_networks_in_half_precision(case):
    """Pictures of both are as far from those in float32: steps round once here, and several times in diffusers."""
    pipe, compiled = fresh(case)
    exact = call(case, pipe, output_type="pt", as_numpy=False)
    compiled.to(torch.bfloat16)
    pictures = (call(case, one, output_type="pt", as_numpy=False) for one in (pipe, compiled))
    want, got = ((one.float() - exact).abs().max() for one in pictures)
    assert 0 < got <= tolerances.FLOAT16_AGAINST_TORCH * want


def test_a_component_is_not_replaced_where_the_engine_stands_in_for_it():
    case = next(one for one in sys.modules["stable_pipelines"].CASES if one.label == LOOPS[0])
    _, compiled = fresh(case)

    def replace(pipe, *_):
        pipe.scheduler = diffusers.DDIMScheduler()

    with pytest.raises(ValueError, match=r"scheduler must not be replaced while .* call pipe\.original"):
        call(case, compiled, callback_on_step_end=replace)
    assert compiled.original.scheduler is compiled.scheduler
