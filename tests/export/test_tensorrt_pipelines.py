"""Plans of every network of exported pipelines: text encoders, denoisers, decoders and encoders, at several sizes."""

import pytest
import tiny_pipelines

import stepfuse as sf
from stepfuse.export import from_diffusers
from stepfuse.export.tensorrt import Profile, Target, load_plan, plan_for

TARGET = Target(("8.9", "12.0"))
# Those whose networks differ most; UNet2DModel and a single text encoder's UNet are built in test_tensorrt_build.py.
NAMES = ("DiTPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline")


@pytest.mark.parametrize("name", NAMES)
def test_all_networks_of_a_pipeline_become_plans_that_its_bundle_keeps(tmp_path, name):
    folder = tiny_pipelines.save_tiny(name, tmp_path / "pipeline")
    bundle = from_diffusers(folder, tmp_path / "bundle")
    networks = [file for file in bundle.files if file.endswith(".onnx")]
    assert len(networks) == (3 if name == "DiTPipeline" else 4)
    pixels = bundle.info.shape[-1] * bundle.pipeline.pixels_per_latent
    wider = (pixels + 2 * bundle.pipeline.size_multiple, pixels)
    sizes = None if bundle.pipeline.fixed_size else ((pixels, pixels), wider, (2 * pixels, 2 * pixels))
    profiles = [Profile(rows=(1, 2, 8), sizes=sizes)]
    for network in networks:
        plan_for(bundle, network, profiles=profiles, target=TARGET)
    kept = sf.Bundle.load(bundle.path)
    assert sum(file.endswith(".plan") for file in kept.files) == len(networks)
    for network in networks:
        assert load_plan(kept, network, profiles=profiles, target=TARGET).key.network == network
