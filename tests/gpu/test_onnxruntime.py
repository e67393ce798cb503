"""A bundle's network on a GPU through ONNX Runtime, where it has its CUDA execution provider: the CPU's images."""

import numpy as np
import onnxruntime
import pytest
import support
import tolerances

import stepfuse as sf
from stepfuse.backends.cuda.trajectories import Trajectories

GUIDED = {"cond": 3, "steps": 20, "eta": 1.0, "guidance_scale": 3.0, "seed": 7}
SNEAKERS = {"cond": "sneaker", "steps": 20, "guidance_scale": 3.0, "seed": 0}


@pytest.fixture(scope="module", autouse=True)
def provider():
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA execution provider: pip install 'onnxruntime-gpu[cuda,cudnn]'")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def near(got, bundle, n, **arguments):
    with sf.Engine.load(bundle) as engine:
        want = engine.sample(n, **arguments)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerances.GPU_IMAGES * np.abs(want).max())


@pytest.mark.parametrize("options", [{}, {"form": "loop"}, {"eager": True}], ids=str)
def test_a_captured_session_gives_the_cpu_s_images(tiny, cubins, options):
    trajectories = Trajectories.load(tiny, max_rows=8, cubins=cubins, **options)
    for n in (1, 4, 6):
        near(trajectories.sample(n, **GUIDED), tiny, n, **GUIDED)


def test_the_embedded_model_gives_the_cpu_s_images(cubins):
    # Its GatherND copies from pageable memory, which no graph can repeat: it may have to run kernel by kernel.
    trajectories = Trajectories.load("fashion", max_rows=8, cubins=cubins, eager=None)
    near(trajectories.sample(3, **SNEAKERS), "fashion", 3, **SNEAKERS)


@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_the_engine_s_loop_gives_the_cpu_s_images(tiny, cubins, eager):
    with sf.Engine.load(tiny, device=sf.Cuda(cubins=cubins, eager=eager), max_rows=8) as engine:
        for n in (1, 4, 9):
            near(engine.sample(n, **GUIDED), tiny, n, **GUIDED)
        requests = [
            sf.Request(cond=i % 7, seed=i, steps=3 + i % 5, guidance_scale=(1.0, 3.0)[i % 2]) for i in range(20)
        ]
        futures = [engine.submit(request) for request in requests]
        with sf.Engine.load(tiny) as host:
            wanted = [host.submit(request) for request in requests]
            for future, want in zip(futures, wanted, strict=True):
                image = want.result(timeout=60)
                bound = tolerances.GPU_IMAGES * np.abs(image).max()
                np.testing.assert_allclose(future.result(timeout=60), image, rtol=0, atol=bound)


def test_the_embedded_model_is_drawn_by_the_loop(cubins):
    with sf.Engine.load("fashion", device=sf.Cuda(cubins=cubins, eager=None), max_rows=8) as engine:
        near(engine.sample(3, **SNEAKERS), "fashion", 3, **SNEAKERS)


@pytest.mark.parametrize("eager", [False, True], ids=["captured", "eager"])
def test_a_prompt_becomes_the_cpu_s_picture(tmp_path, cubins, eager):
    pytest.importorskip("onnx")
    pytest.importorskip("tokenizers")
    import handmade

    bundle = handmade.write_bundle(tmp_path / "bundle")
    sizes = [(8, 8), (12, 8), (8, 16)]
    requests = [
        sf.PromptRequest(prompt="a red cat", negative_prompt="a dog", width=w, height=h, seed=seed)
        for seed in range(4)
        for w, h in sizes
    ]
    with sf.TextToImage.load(bundle) as host:
        wanted = [host.submit(one).result(timeout=60) for one in requests]
        batch = host("a cat", num_images=3, seed=7)
    with sf.TextToImage.load(bundle, device=sf.Cuda(cubins=cubins, eager=eager), max_rows=4) as pipe:
        found = [one.result(timeout=60) for one in [pipe.submit(one) for one in requests]]
        pairs = [*zip(found, wanted, strict=True), (pipe("a cat", num_images=3, seed=7), batch)]
        for got, want in pairs:
            bound = tolerances.GPU_IMAGES * np.abs(want.latents).max()
            np.testing.assert_allclose(got.latents, want.latents, rtol=0, atol=bound)
            np.testing.assert_allclose(got.pixels, want.pixels, rtol=0, atol=bound)
            np.testing.assert_allclose(pipe.decode(got.latents), got.pixels, rtol=0, atol=bound)
