"""Text to image on a GPU, on the stand-in of ONNX Runtime over the recording driver: pictures that numpy computes."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import handmade
import numpy as np
import pytest
from fake_onnxruntime import MIB

import stepfuse as sf
from stepfuse._core import cuda
from stepfuse.errors import CaptureError, DenoiserError, ProviderError
from stepfuse.pipeline.stage import Interrupt

#: A run of the VAE's decoder whose sample was in the GPU's memory.
ON_GPU = ["latent on the GPU"], ["image"]

NEAR = {"rtol": 0, "atol": 5e-6}  # latents are up to 8: ten units in the last place


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return handmade.write_bundle(tmp_path_factory.mktemp("pipeline") / "bundle")


@pytest.fixture
def load(onnxruntime_gpu, bundle):
    """``load(**options)``: the pipeline on the GPU, closed after the test."""
    pipes = []

    def make(device="cuda", **options):
        pipes.append(sf.TextToImage.load(bundle, device=device, **{"max_rows": 4, **options}))
        return pipes[-1]

    yield make
    for pipe in pipes:
        pipe.close()
    pipes.clear()


def expected(prompt, *seeds, negative="", size=(8, 8), start=None):
    """Latents and pixels; ``size`` is (width, height)."""
    width, height = size
    shape = (4, height // handmade.CELL, width // handmade.CELL)
    table = sf.samplers.ddim(handmade.SCHEDULE, 4, guidance_scale=3.0)
    noise = np.stack([sf.normal(seed, shape) for seed in seeds]) if start is None else start
    text, away = (np.repeat(handmade.embed(one)[None], len(noise), axis=0) for one in (prompt, negative))
    latents = handmade.draw(table, noise, text, away, (height, width, 0, 0, height, width))
    return latents, handmade.decode(latents)


def is_expected(got, *arguments, **options):
    latents, pixels = expected(*arguments, **options)
    np.testing.assert_allclose(got.latents, latents, **NEAR)
    np.testing.assert_allclose(got.pixels, pixels, **NEAR)
    assert pixels.std() > 0.05  # clipping would hide a difference


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
@pytest.mark.parametrize(
    "device",
    ["cuda", "cuda:0", sf.Cuda(eager=True), sf.Cuda(backend="onnxruntime-tensorrt"), sf.Cuda(buckets=[4, 2])],
    ids=str,
)
def test_a_prompt_becomes_the_picture_that_numpy_computes(load, fake, late, device):
    fake.late(late)
    pipe = load(device)
    is_expected(pipe("a red cat", seed=5), "a red cat", 5)
    is_expected(pipe("a cat", negative_prompt="a dog", num_images=3, seed=7), "a cat", 7, 8, 9, negative="a dog")


def test_all_networks_are_on_the_gpu(load, onnxruntime_gpu):
    pipe = load()
    pictures = pipe("a cat", seed=0)
    assert onnxruntime_gpu.arrays == [
        (["input_ids"], ["text"]),  # the prompt and the negative one
        (["input_ids"], ["text"]),
        ON_GPU,
    ]
    assert len(onnxruntime_gpu.ran) > 0
    pipe("a cat", image=pictures[0], strength=0.5, seed=1)
    assert onnxruntime_gpu.arrays[3:] == [(["image"], ["latent", "std"]), ON_GPU]


def decoded(onnxruntime_gpu):
    """Where each sample was that the VAE has decoded."""
    return [one for one in onnxruntime_gpu.arrays if one[1] == ["image"]]


def test_samples_stay_on_the_gpu_until_they_are_pixels(load, onnxruntime_gpu, fake):
    fake.late(True)
    pipe = load()
    requests = [sf.PromptRequest(prompt="a red cat", seed=seed) for seed in range(6)]
    for future, seed in [(pipe.submit(one), one.seed) for one in requests]:
        is_expected(future.result(30), "a red cat", seed)
    [last] = [one.decode() for one in pipe.stream(requests[0]) if one.step == one.total]
    is_expected(last, "a red cat", 0)
    is_expected(pipe("a red cat", num_images=3, seed=7), "a red cat", 7, 8, 9)
    assert decoded(onnxruntime_gpu) == 10 * [ON_GPU]


def test_on_the_host_are_previews_tiles_and_latents_of_one_s_own(load, onnxruntime_gpu):
    pipe, tiles = load(), load(tile=8)
    pictures = pipe("a red cat", seed=5)
    del onnxruntime_gpu.arrays[:]
    pipe.decode(pictures.latents)
    pipe("a red cat", seed=5, callback=lambda step, *_: step < 2)
    is_expected(tiles("a red cat", seed=5), "a red cat", 5)
    assert decoded(onnxruntime_gpu) == 3 * [(["latent"], ["image"])]


def test_requests_that_are_given_up_leave_no_memory_behind(load, onnxruntime_gpu):
    pipe = load()

    def draw():
        futures = [pipe.submit(sf.PromptRequest(prompt="a cat", seed=seed)) for seed in range(8)]
        for future in futures[::2]:
            future.cancel()
        for seed, future in list(enumerate(futures))[1::2]:
            is_expected(future.result(30), "a cat", seed)

    draw()
    taken = onnxruntime_gpu.context.memory[0]
    for _ in range(5):
        draw()
    assert taken - onnxruntime_gpu.context.memory[0] < MIB / 2


def test_an_image_begins_as_on_the_cpu(load, bundle):
    image = np.random.default_rng(0).random((8, 8, 3), dtype=np.float32)
    arguments = {"image": image, "strength": 0.5, "seed": 3, "sample_posterior": True}
    with sf.TextToImage.load(bundle) as pipe:
        want = pipe("a red cat", **arguments)
    got = load()("a red cat", **arguments)
    np.testing.assert_allclose(got.latents, want.latents, **NEAR)
    assert got.facts[0]["Description"] == want.facts[0]["Description"]


def test_requests_share_the_denoiser(load):
    pipe = load()
    futures = [pipe.submit(sf.PromptRequest(prompt="a red cat", seed=seed)) for seed in range(5)]
    for seed, future in enumerate(futures):
        is_expected(future.result(30), "a red cat", seed)
    assert pipe.totals()["samples"] == 5


SIZES = [(8, 8), (12, 8), (8, 16), (16, 8), (12, 12)]  # one more than are kept


@pytest.mark.parametrize("device", ["cuda", sf.Cuda(eager=True)], ids=["graphs", "eager"])
@pytest.mark.parametrize("late", [False, True], ids=["at-once", "late"])
def test_sizes_share_one_network(load, onnxruntime_gpu, fake, late, device):
    fake.late(late)
    pipe = load(device)
    for size in [*SIZES, SIZES[0]]:
        is_expected(pipe("a cat", width=size[0], height=size[1], seed=4), "a cat", 4, size=size)
    sizes = [SIZES[i % 4] for i in range(12)]
    requests = [sf.PromptRequest(prompt="a cat", width=w, height=h, seed=i) for i, (w, h) in enumerate(sizes)]
    futures = [pipe.submit(one) for one in requests]
    for i, future in enumerate(futures):
        is_expected(future.result(30), "a cat", i, size=sizes[i])
    assert (onnxruntime_gpu.most_alive, len(onnxruntime_gpu.sessions)) == (1, 1)
    assert pipe.totals()["samples"] == 18


def test_a_size_is_captured_while_others_draw(load, onnxruntime_gpu, fake):
    fake.late(True)
    pipe = load()
    stop = threading.Event()

    def draw(seed):
        width, drawn = 8 + 4 * (seed % 2), 0
        while not stop.is_set():
            is_expected(pipe("a cat", width=width, seed=seed), "a cat", seed, size=(width, 8))
            drawn += 1
        return drawn

    with ThreadPoolExecutor(4) as threads:
        drawing = [threads.submit(draw, seed) for seed in range(4)]
        try:
            for size in SIZES[2:]:
                is_expected(pipe("a cat", width=size[0], height=size[1], seed=9), "a cat", 9, size=size)
        finally:
            stop.set()
        assert all(one.result(60) for one in drawing)
    assert len(onnxruntime_gpu.sessions) == 1


def test_with_tensorrt_one_size_is_on_the_gpu_at_a_time(load, onnxruntime_gpu):
    pipe = load(sf.Cuda(backend="onnxruntime-tensorrt"))
    own = onnxruntime_gpu.context.memory[0]
    for size in [(8, 8), (12, 8), (8, 16), (8, 8)]:
        is_expected(pipe("a cat", width=size[0], height=size[1], seed=4), "a cat", 4, size=size)
    futures = [pipe.submit(sf.PromptRequest(prompt="a cat", width=8 + 4 * (i % 2), seed=i)) for i in range(4)]
    for i, future in enumerate(futures):
        is_expected(future.result(30), "a cat", i, size=(8 + 4 * (i % 2), 8))
    pipe("a cat", seed=4)
    assert onnxruntime_gpu.most_alive == 1
    assert abs(onnxruntime_gpu.context.memory[0] - own) < MIB / 2
    assert pipe.totals()["samples"] == 9


def test_closing_frees_all_memory(load, onnxruntime_gpu):
    free = onnxruntime_gpu.context.memory[0]
    pipe = load()
    pipe("a cat", seed=0)
    assert free - onnxruntime_gpu.context.memory[0] >= 2 * MIB
    pipe.close()
    assert onnxruntime_gpu.context.memory[0] == free


def test_the_memory_of_each_network_is_logged(load, caplog):
    with caplog.at_level(logging.INFO, logger="stepfuse"):
        load()
    assert "text_encoder.onnx on GPU 0: about 1.0 MiB, 1023.0 MiB are free" in caplog.text
    assert "vae_decoder.onnx on GPU 0: about 1.0 MiB, 1022.0 MiB are free" in caplog.text
    assert "capturing forwards of [4, 3, 2, 1] rows: about " in caplog.text


def test_a_request_that_is_given_up_ends_its_run(load):
    vae = load()._vae
    latents = np.zeros((1, *handmade.SHAPE), np.float32)
    interrupt = Interrupt()
    vae.decode(latents, interrupt)
    interrupt.set()
    for given in (interrupt, _set()):  # one that had a run, and one that had none
        with pytest.raises(DenoiserError, match=r"could not run vae_decoder\.onnx on latent \(1, 4, 4, 4\)"):
            vae.decode(latents, given)


def _set():
    interrupt = Interrupt()
    interrupt.set()
    return interrupt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "openvino"}, "backend must be left out for a pipeline on 'cuda'"),
        ({"precision": "bf16"}, "precision must be left out"),
        ({"threads": 2, "spinning": True}, "threads and spinning must be left out"),
        ({"lora_bytes": 1}, "lora_bytes must be left out"),
        ({"device": "tpu"}, "device must be 'cpu', 'cuda', .*, got 'tpu'"),
        ({"device": sf.Cuda(buckets=[5])}, "buckets must be row counts from 1 to 4"),
    ],
)
def test_what_has_no_effect_is_refused(load, options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)


def test_without_a_provider_nothing_runs_on_the_cpu(load, onnxruntime_gpu):
    onnxruntime_gpu.libraries_missing = True
    with pytest.raises(ProviderError, match="could not load it, and would run on CPU"):
        load()
    onnxruntime_gpu.available = ["CPUExecutionProvider"]
    with pytest.raises(ProviderError, match=r"must have CUDAExecutionProvider, it has .*pip install onnxruntime-gpu"):
        load()


def test_without_a_driver_it_is_refused(load, onnxruntime_gpu, monkeypatch):
    def absent(device):
        raise cuda.CudaError("the driver is not there")

    monkeypatch.setattr(cuda, "open", absent)
    with pytest.raises(cuda.CudaError, match="the driver is not there"):
        load()


def test_a_network_that_does_not_fit_is_named(load, onnxruntime_gpu):
    onnxruntime_gpu.too_large = True
    with pytest.raises(DenoiserError, match=r"the GPU has no memory for .*text_encoder\.onnx: .*out of memory"):
        load()


def test_a_denoiser_that_does_not_fit_is_refused(load, fake):
    fake.set(memory=3 * MIB)
    with pytest.raises(CaptureError, match=r"no forward can be captured: .*smaller network"):
        load(sf.Cuda(eager=False))
