"""Decoding and encoding in tiles and slices."""

import handmade
import numpy as np
import pytest
import tolerances

import stepfuse as sf
from stepfuse.pipeline.tiles import tiled
from stepfuse.pipeline.vae import AUTO_TILE, Vae


@pytest.fixture(scope="module")
def autoencoder():
    """diffusers' own, tiny: tiles of 16 pixels, which are 8 cells."""
    import diffusers
    import torch

    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )
    return vae.eval().requires_grad_(False)


# One tile; two; a last one that is short; a last one of all but one cell; both directions.
@pytest.mark.parametrize(("height", "width"), [(8, 8), (14, 8), (8, 17), (13, 20), (23, 14)])
def test_tiles_are_blended_as_diffusers_blends_them(autoencoder, height, width):
    import torch

    x = np.random.default_rng(0).standard_normal((1, 4, height, width)).astype(np.float32)

    def run(tile):
        return autoencoder.decode(torch.from_numpy(tile)).sample.numpy()

    autoencoder.disable_tiling()
    got, whole = tiled(run, x, 8, 16), run(x)
    autoencoder.enable_tiling()
    want = autoencoder.decode(torch.from_numpy(x)).sample.numpy()
    autoencoder.disable_tiling()
    assert got.shape == want.shape == (1, 3, 2 * height, 2 * width)
    # diffusers has one more tile, of a cell or two, where the last but one reaches the end: it changes that end alone.
    tiles = height > 8 or width > 8
    rows, columns = (2 * size - 4 * (tiles and size % 6 in (1, 2)) for size in (height, width))
    np.testing.assert_allclose(got[..., :rows, :columns], want[..., :rows, :columns], rtol=0, atol=tolerances.TILES)
    if tiles:
        assert np.abs(got - whole).max() > 100 * tolerances.TILES  # tiles are normalised each on its own


def test_tiles_of_a_network_that_is_blind_beyond_a_cell_have_no_seams():
    x = np.random.default_rng(1).standard_normal((1, 3, 37, 22)).astype(np.float32)
    sizes = []

    def run(tile):
        sizes.append(tile.shape[2:])
        return tile.repeat(2, axis=2).repeat(2, axis=3)

    np.testing.assert_allclose(tiled(run, x, 8, 16), run(x), rtol=1e-6)
    assert max(sizes[:-1]) == (8, 8)
    assert min(sizes) == (7, 4)  # none that lies within the one before it

    def shrink(tile):
        return np.ascontiguousarray(tile[:, :, ::2, ::2])

    np.testing.assert_allclose(tiled(shrink, x, 16, 8), shrink(x), rtol=1e-6)


def test_large_pictures_are_tiled_and_small_ones_not(tmp_path, monkeypatch):
    bundle = handmade.write_bundle(tmp_path / "bundle")
    shapes = []
    vae = Vae(bundle, threads=1)
    run = vae._decoder.run
    monkeypatch.setattr(vae._decoder, "run", lambda feeds, *rest: shapes.append(feeds["latent"].shape) or run(feeds))
    small, large = np.zeros((2, 4, 512, 512), np.float32), np.zeros((1, 4, 520, 512), np.float32)
    vae.decode(small)
    assert shapes == [(1, 4, 512, 512)] * 2  # 1024 x 1024 pixels, one picture at a time
    shapes.clear()
    vae.decode(large)
    assert shapes[0] == (1, 4, AUTO_TILE // 2, AUTO_TILE // 2)


@pytest.mark.parametrize("tile", ["auto", None, 16])
def test_pictures_are_the_same_however_many_are_decoded_and_in_whatever_tiles(tmp_path, tile):
    bundle = handmade.write_bundle(tmp_path / "bundle")
    latents = np.random.default_rng(2).standard_normal((3, 4, 18, 26)).astype(np.float32)
    with sf.TextToImage.load(bundle, threads=1, tile=tile) as pipe:
        pixels = pipe.decode(latents)
        np.testing.assert_allclose(pixels, handmade.decode(latents), rtol=0, atol=1e-6)
        np.testing.assert_array_equal(pixels[1], pipe.decode(latents[1:2])[0])
        np.testing.assert_allclose(pipe.encode_image(pixels), handmade.encode(pixels), rtol=0, atol=2e-6)
        with pytest.raises(ValueError, match=r"latents must have shape \(n, 4, h, w\), got \(4, 18, 26\)"):
            pipe.decode(latents[0])


@pytest.mark.parametrize(
    ("tile", "kind", "message"),
    [
        (12, ValueError, "tile must be a multiple of 8 pixels for this model, got 12"),
        (0, ValueError, "tile must be a multiple of 8 pixels for this model, got 0"),
        (True, TypeError, "tile must be a number of pixels, 'auto' or None, got True"),
        ("big", TypeError, "tile must be a number of pixels, 'auto' or None, got 'big'"),
    ],
)
def test_bad_tiles_say_the_rule(tmp_path, tile, kind, message):
    bundle = handmade.write_bundle(tmp_path / "bundle")
    with pytest.raises(kind, match=message):
        sf.TextToImage.load(bundle, tile=tile)


def test_a_network_that_overflows_is_reported(tmp_path):
    bundle = handmade.write_bundle(tmp_path / "bundle")
    with (
        sf.TextToImage.load(bundle, threads=1) as pipe,
        pytest.raises(sf.DenoiserError, match="must be finite, got inf"),
    ):
        pipe.decode(np.full((1, 4, 4, 4), np.inf, np.float32))


def test_a_picture_to_begin_with_needs_an_encoder(tmp_path):
    bundle = handmade.write_bundle(tmp_path / "bundle", without=("vae_encoder.onnx",))
    with sf.TextToImage.load(bundle, threads=1) as pipe:
        assert len(pipe("a cat")) == 1
        with pytest.raises(sf.BundleError, match=r"needs vae_encoder.onnx"):
            pipe("a cat", image=np.zeros((8, 8, 3)))
    bundle = handmade.write_bundle(tmp_path / "blind", without=("vae_decoder.onnx",))
    with pytest.raises(sf.BundleError, match=r"has no vae_decoder.onnx"):
        sf.TextToImage.load(bundle)
