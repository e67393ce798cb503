"""Plans of every network of exported pipelines: text encoders, denoisers, decoders and encoders, at several sizes."""

import shutil

import pytest
import tiny_pipelines

import stepfuse as sf
from stepfuse.export.tensorrt import Profile, Target, load_plan, plan_for

pytestmark = pytest.mark.slow  # 25 plans are built

TARGET = Target(("8.9", "12.0"))
NETWORKS = {"DDPMPipeline": 1, "DDIMPipeline": 1, "DiTPipeline": 3}  # the others have 4


@pytest.mark.parametrize("name", tiny_pipelines.NAMES)
def test_all_networks_of_a_pipeline_become_plans_that_its_bundle_keeps(tmp_path, exported, name):
    bundle = sf.Bundle.load(shutil.copytree(exported(name).path, tmp_path / "bundle"))
    networks = [file for file in bundle.files if file.endswith(".onnx")]
    assert len(networks) == NETWORKS.get(name, 4)
    pipeline, side = bundle.pipeline, bundle.info.shape[-1]
    pixels = side * pipeline.pixels_per_latent if pipeline else side
    wider = (pixels + 2 * pipeline.size_multiple, pixels) if pipeline else None
    sizes = ((pixels, pixels), wider, (2 * pixels, 2 * pixels)) if wider and not pipeline.fixed_size else None
    profiles = [Profile(rows=(1, 2, 8), sizes=sizes)]
    for network in networks:
        plan_for(bundle, network, profiles=profiles, target=TARGET)
    kept = sf.Bundle.load(bundle.path)
    assert sum(file.endswith(".plan") for file in kept.files) == len(networks)
    for network in networks:
        assert load_plan(kept, network, profiles=profiles, target=TARGET).key.network == network
