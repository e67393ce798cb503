"""Families of tiny pipelines, by module name, where diffusers is there."""

import importlib.util
import sys
from pathlib import Path

import pytest
import tiny_pipelines

FAMILIES = ("stable_pipelines", "stable_3_pipelines", "flux_pipelines", "text_pipelines", "video_pipelines")

if importlib.util.find_spec("diffusers") is not None:
    for name in ("shown", *FAMILIES):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / "pipelines" / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])


def export_networks(folder):
    import torch

    import stepfuse as sf
    from stepfuse.export import to_bundle

    class FirstHalf(torch.nn.Module):
        """A transformer without the variance that it learned."""

        def __init__(self, transformer):
            super().__init__()
            self.transformer = transformer

        def forward(self, x, t, class_labels):
            return self.transformer(x, timestep=t, class_labels=class_labels).sample.chunk(2, dim=1)[0]

    text = sf.CondInput(dtype="float32", shape=(tiny_pipelines.LENGTH, 16), null=0.0)
    label = sf.CondInput(dtype="int64", null=1000)
    for name, component, shape, cond in (
        ("DDIMPipeline", "unet", (3, 16, 16), {}),
        ("DiTPipeline", "transformer", (4, 8, 8), {"class_labels": label}),
        ("StableDiffusionPipeline", "unet", (4, 8, 8), {"encoder_hidden_states": text}),
    ):
        network = getattr(tiny_pipelines.tiny_pipeline(name), component)
        network = FirstHalf(network) if name == "DiTPipeline" else network
        to_bundle(network, shape=shape, schedule=sf.NoiseSchedule.scaled_linear(), cond=cond, out=folder / name)


@pytest.fixture(scope="session")
def networks(kept):
    """A folder with the networks of tiny pipelines as bundles, by the pipeline's name."""
    return kept("networks", export_networks)


@pytest.fixture
def gpu(fake, monkeypatch):
    """A pipeline's components count as on a GPU: torch.cuda is the recording driver, and Triton interprets the step."""
    pytest.importorskip("triton", reason="Triton is not installed: it comes for x86-64 Linux")
    from recording_torch import Gpu

    from stepfuse.integrations.diffusers import predictors

    gpu = Gpu(fake)
    gpu.patch(monkeypatch)
    monkeypatch.setattr(predictors, "runs_on_gpu", lambda pipe, network: network is not None)
    yield gpu
    vars(gpu).clear()  # pytest keeps it until all is released, which is to be checked before


@pytest.fixture(params=["host", "gpu"])
def where(request):
    """Where compiled pipelines run."""
    if request.param == "gpu":
        request.getfixturevalue("gpu")
        patch = request.getfixturevalue("monkeypatch")
        patch.setattr("stepfuse.integrations.diffusers.predictors.HostBatch", None)
