"""Compiled pipelines whose network is a bundle's denoiser in ONNX Runtime, against diffusers on torch."""

import copy
import sys

import numpy as np
import pytest
import tolerances

diffusers = pytest.importorskip("diffusers", reason="diffusers needs Python 3.11")

import tiny_pipelines  # noqa: E402
import torch  # noqa: E402

import stepfuse as sf  # noqa: E402
from stepfuse.integrations.diffusers import compile  # noqa: E402
from stepfuse.integrations.diffusers.fingerprint import fingerprint  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def compiled(networks):
    """Pairs of a pipeline and the same with its network in a bundle, by name."""
    torch.set_num_threads(1)
    pairs = {}
    for name in CALLS:
        pipe = tiny_pipelines.tiny_pipeline(name)
        pairs[name] = pipe, compile(pipe, bundle=networks / name)
    return pairs


CALLS = {
    "DDIMPipeline": {"batch_size": 3},
    "DiTPipeline": {"class_labels": [3, 700]},
    "StableDiffusionPipeline": {"prompt": tiny_pipelines.PROMPTS, "negative_prompt": ["grey", "dog"]},
}


def generate(pipe, given, **changes):
    seeded = {"generator": torch.Generator().manual_seed(3), "num_inference_steps": 4, "output_type": "np"}
    return pipe(**{**given, **seeded, **changes}).images


@pytest.mark.parametrize("name", CALLS)
def test_images_are_those_of_diffusers(name, compiled):
    pipe, ours = compiled[name]
    guided = {} if name == "DDIMPipeline" else {"guidance_scale": 1.0}
    want = generate(pipe, CALLS[name])
    assert np.abs(generate(ours, CALLS[name]) - want).max() < tolerances.COMPILED
    unguided = generate(ours, CALLS[name], **guided)
    assert np.abs(unguided - generate(pipe, CALLS[name], **guided)).max() < tolerances.COMPILED


def test_the_pipeline_s_own_network_does_not_run(compiled):
    pipe, ours = compiled["StableDiffusionPipeline"]
    handle = pipe.unet.register_forward_hook(lambda *_: pytest.fail("it has run"))
    generate(ours, CALLS["StableDiffusionPipeline"])
    handle.remove()


def test_prompts_may_change_during_a_run(compiled):
    def negated(pipe, step, timestep, tensors):
        return {"prompt_embeds": -tensors["prompt_embeds"]} if step == 1 else {}

    (pipe, ours), given = compiled["StableDiffusionPipeline"], CALLS["StableDiffusionPipeline"]
    callback = {"callback_on_step_end": negated, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    want, got = (generate(one, given, **callback, output_type="latent", guidance_scale=50.0) for one in (pipe, ours))
    unchanged = generate(ours, given, output_type="latent", guidance_scale=50.0)
    assert (got - want).abs().max() < tolerances.COMPILED * want.abs().max()
    assert (unchanged - want).abs().max() > 10 * tolerances.COMPILED * want.abs().max()


def test_a_bundle_of_another_pipeline_is_refused(compiled, tmp_path):
    (pipe, _), (_, other) = compiled["StableDiffusionPipeline"], compiled["DiTPipeline"]
    path = other._stepfuse.predictor._bundle.path
    wrong = compile(pipe, bundle=path)
    message = "must take what the pipeline passes to its network, encoder_hidden_states, got class_labels"
    with pytest.raises(ValueError, match=message):
        generate(wrong, CALLS["StableDiffusionPipeline"])
    velocity = compile(tiny_pipelines.tiny_pipeline("StableDiffusionPipeline-v"), bundle=path)
    with pytest.raises(ValueError, match="prediction_type must be the scheduler's, 'v_prediction', got 'epsilon'"):
        generate(velocity, CALLS["StableDiffusionPipeline"])
    with pytest.raises(sf.BundleError, match="no-such-bundle"):
        compile(pipe, bundle=tmp_path / "no-such-bundle")


def with_lora(pipe):
    torch.manual_seed(0)
    weights = {}
    for name, module in pipe.unet.named_modules():
        if name.endswith(("to_q", "to_v")):
            weights[f"unet.{name}.lora_A.weight"] = 0.01 * torch.randn(4, module.in_features)
            weights[f"unet.{name}.lora_B.weight"] = 0.01 * torch.randn(module.out_features, 4)
    pipe.load_lora_weights(weights)


def test_a_lora_on_the_module_is_refused_with_the_command_that_puts_it_into_the_bundle(compiled):
    pytest.importorskip("peft")
    pipe, ours = compiled["StableDiffusionPipeline"]
    before = generate(ours, CALLS["StableDiffusionPipeline"])
    with_lora(pipe)
    try:
        for change in (lambda: None, pipe.fuse_lora):
            change()
            with pytest.raises(ValueError, match=r"settings of UNet2DConditionModel must be those .*'stepfuse lora"):
                generate(ours, CALLS["StableDiffusionPipeline"])
    finally:
        pipe.unfuse_lora()
        pipe.unload_lora_weights()
    again = generate(ours, CALLS["StableDiffusionPipeline"])
    np.testing.assert_array_equal(again, before)


def with_an_image_adapter(pipe):
    weights = sys.modules["stable_pipelines"].image_adapter(pipe.unet)
    pipe.load_ip_adapter(weights, subfolder=None, weight_name=None, image_encoder_folder=None)


def with_another_network(pipe):
    pipe.unet = tiny_pipelines.tiny_pipeline("StableDiffusionPipeline-v").unet


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.enable_freeu(s1=0.2, s2=0.1, b1=2.0, b2=3.0),
        lambda pipe: pipe.unet.set_default_attn_processor(),
        with_an_image_adapter,
        with_another_network,
    ],
    ids=["FreeU", "attention processor", "IP-Adapter", "network"],
)
@pytest.mark.parametrize("kind", ["StableDiffusionPipeline", "StableDiffusionInpaintPipeline"])
def test_what_changes_the_module_s_prediction_is_refused(change, kind, compiled):
    (pipe, ours), given = compiled["StableDiffusionPipeline"], CALLS["StableDiffusionPipeline"]
    if kind == "StableDiffusionInpaintPipeline":
        given = {**given, "image": np.zeros((2, 16, 16, 3), np.float32), "mask_image": np.ones((2, 16, 16), np.float32)}
    parts = {**pipe.components, "unet": copy.deepcopy(pipe.unet), "requires_safety_checker": False}
    other = compile(getattr(diffusers, kind)(**parts), bundle=ours._stepfuse.predictor._bundle.path)
    other.set_progress_bar_config(disable=True)
    generate(other, given)
    change(other)
    with pytest.raises(ValueError, match=r"must be those that compile\(pipe, bundle=\.\.\.\) found, got others"):
        generate(other, given)


def test_what_a_lora_leaves_that_was_fused_and_taken_out_is_the_same_network(compiled):
    (pipe, _), changed = compiled["StableDiffusionPipeline"], 0
    network = copy.deepcopy(pipe.unet)
    before = fingerprint(network)
    with torch.no_grad():
        for weights in network.parameters():
            was, change = weights.clone(), 0.1 * torch.randn(weights.shape, generator=torch.manual_seed(0))
            weights.add_(change).sub_(change)
            changed += int((weights != was).sum())
    assert changed > 1000
    assert fingerprint(network) == before
    with torch.no_grad():
        network.conv_in.weight.mul_(1.001)
    assert fingerprint(network) != before


def test_an_adapter_is_refused_beside_a_bundle(compiled):
    pytest.importorskip("peft")
    pipe, ours = compiled["StableDiffusionPipeline"]
    with_lora(pipe)
    try:
        with pytest.raises(
            ValueError, match=r"must be without adapters beside a bundle, got default_0: .*stepfuse lora"
        ):
            compile(pipe, bundle=ours._stepfuse.predictor._bundle.path)
    finally:
        pipe.unload_lora_weights()


def test_arguments_that_act_on_the_module_are_refused(compiled):
    _, ours = compiled["StableDiffusionPipeline"]
    with pytest.raises(ValueError, match="must pass nothing but conditioning to a bundle's network, got scale"):
        generate(ours, CALLS["StableDiffusionPipeline"], cross_attention_kwargs={"scale": 0.3})
