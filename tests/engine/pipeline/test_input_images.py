"""Pictures given are taken as a viewer shows them: against Pillow's own conversions and diffusers' ``load_image``."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from stepfuse.pipeline.input_images import from_masks, from_pictures, read_image, read_mask, shown, size_of

WIDTH, HEIGHT = 6, 4
SHAPE, RANGE = (3, HEIGHT, WIDTH), (0.0, 1.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def turned(orientation):
    """EXIF data of this orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def as_sample(picture):
    """A picture in mode RGB as a sample, 0 to 1."""
    return np.asarray(picture, dtype=np.float32).transpose(2, 0, 1) / 255


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_read_upright_from_files_and_in_python(tmp_path, suffix, orientation):
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(PIXELS).save(path, exif=turned(orientation))
    with Image.open(path) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
        assert upright.size == ((WIDTH, HEIGHT) if orientation < 5 else (HEIGHT, WIDTH))
        want = as_sample(upright)
        np.testing.assert_array_equal(read_image(path, want.shape, RANGE), want)
        np.testing.assert_array_equal(from_pictures(picture, *upright.size), want[None] * 2 - 1)
        grey = np.asarray(upright.convert("L"), dtype=np.float32)[None] / 255
        np.testing.assert_array_equal(read_mask(path, want.shape, 1), grey)
        np.testing.assert_array_equal(from_masks(picture, *upright.size, 1), grey[None])
        assert size_of(shown("image", picture, "RGB")) == upright.size
        assert picture.getexif().get(0x0112) in (orientation, None)  # the caller's picture is as it was


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_opaque_modes_are_what_diffusers_loads(mode):
    diffusers = pytest.importorskip("diffusers.utils")
    picture = Image.fromarray(PIXELS).convert(mode)
    want = as_sample(diffusers.load_image(picture))[None]
    np.testing.assert_array_equal(from_pictures(picture, WIDTH, HEIGHT), want * 2 - 1)
    want = np.asarray(diffusers.load_image(picture, lambda one: one.convert("L")), dtype=np.float32)[None, None] / 255
    np.testing.assert_array_equal(from_masks(picture, WIDTH, HEIGHT, 1), want)


def with_alpha(mode, alpha):
    picture = Image.fromarray(np.dstack([PIXELS, alpha]))
    if mode == "PA":  # Pillow cannot convert to it
        picture = Image.fromarray(PIXELS).convert("P").convert("PA")
        picture.putalpha(Image.fromarray(alpha))
        return picture
    return picture.convert({"La": "LA"}.get(mode, mode)).convert(mode)


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_what_is_transparent_is_on_white(mode):
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, :2], alpha[:, 2:4] = 0, 51  # a fifth
    picture = with_alpha(mode, alpha)
    straight = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)  # Pillow converts few modes from these
    opaque = np.asarray(with_alpha(straight, np.full_like(alpha, 255)).convert("RGBA").convert("RGB"), dtype=np.float64)
    share = alpha[..., None] / 255
    want = (opaque * share + 255 * (1 - share)).transpose(2, 0, 1) / 255
    off = 2 if mode in ("La", "RGBa") else 0.6  # levels: multiplied colours are rounded, and at a fifth keep 51 values
    np.testing.assert_allclose((from_pictures(picture, WIDTH, HEIGHT)[0] + 1) / 2, want, atol=off * 2 / 255)
    assert (from_pictures(picture, WIDTH, HEIGHT)[..., :2] == 1).all()
    with pytest.raises(ValueError, match=r"mask must be opaque, .* got a picture with transparency"):
        from_masks(picture, WIDTH, HEIGHT, 1)
    full = with_alpha(straight, np.full_like(alpha, 255))
    want = np.asarray(full.convert("RGBA").convert("L"), dtype=np.float32)[None, None] / 255
    np.testing.assert_array_equal(from_masks(full, WIDTH, HEIGHT, 1), want)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_transparent_value_in_a_file_is_on_white(tmp_path, mode):
    picture = Image.fromarray(PIXELS).convert(mode)
    value = picture.getpixel((0, 0))
    picture.save(tmp_path / "clear.png", transparency=value)
    found = read_image(tmp_path / "clear.png", SHAPE, RANGE)
    clear = np.asarray([[picture.getpixel((x, y)) == value for x in range(WIDTH)] for y in range(HEIGHT)])
    assert clear.any()
    assert (found[:, clear] == 1).all()
    np.testing.assert_array_equal(found[:, ~clear], as_sample(picture.convert("RGB"))[:, ~clear])


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, suffix):
    levels = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    path = tmp_path / f"deep.{suffix}"
    if suffix == "pgm":
        path.write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + levels.astype(">u2").tobytes())
    else:
        Image.fromarray(levels).save(path)
    want = levels[None] / 65535
    half = 0.501 / 255  # of an 8-bit level
    np.testing.assert_allclose(read_image(path, (1, HEIGHT, WIDTH), RANGE), want, atol=half)
    np.testing.assert_allclose(read_mask(path, SHAPE, 1), want, atol=half)
    with Image.open(path) as picture:
        np.testing.assert_allclose(from_masks(picture, WIDTH, HEIGHT, 1)[0], want, atol=half)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_modes_without_a_white_are_refused(kind):
    with pytest.raises(ValueError, match=r"image must be of a mode that says which value is white, got mode [IF]"):
        from_pictures(Image.fromarray(GREY.astype(kind)), WIDTH, HEIGHT)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_of_several_frames_the_first_is_taken(tmp_path, suffix):
    path = tmp_path / f"moves.{suffix}"
    frames = [Image.fromarray(one) for one in (GREY, 255 - GREY)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    want = np.asarray(frames[0], dtype=np.float32)[None] / 255
    np.testing.assert_allclose(read_image(path, (1, HEIGHT, WIDTH), RANGE), want, atol=1e-6)


def png(picture=None):
    file = io.BytesIO()
    (picture or Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))).save(
        file, "PNG"
    )
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", png()[:2000], png().replace(b"IDAT", b"IDAX"), b"GIF89a", b"\xff\xd8\xff\xe0", png()[:40]],
    ids=["empty", "text", "cut off", "no data", "a head alone", "a JPEG's head", "a PNG's head"],
)
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "damaged.png"
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"damaged\.png"):
        read_image(path, SHAPE, RANGE)


def test_samples_that_are_no_pictures_take_none(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    for shape in ((2,), (2, HEIGHT, WIDTH)):
        with pytest.raises(ValueError, match=r"samples must have shape \(1 or 3, H, W\) to be read from a picture"):
            read_image(tmp_path / "a.png", shape, RANGE)
    with pytest.raises(ValueError, match=r"samples must have shape \(C, H, W\) to be masked"):
        read_mask(tmp_path / "a.png", (2,), 1)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        read_image(tmp_path, SHAPE, RANGE)


def test_a_decompression_bomb_says_the_limit(tmp_path, monkeypatch):
    (tmp_path / "bomb.png").write_bytes(png())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png must have at most 2,000 pixels"):
        read_image(tmp_path / "bomb.png", SHAPE, RANGE)


def test_pictures_of_several_sizes_need_a_size():
    pictures = [Image.new("RGB", (6, 4)), Image.new("RGB", (4, 6))]
    with pytest.raises(ValueError, match="one size unless width and height are given, got 4 x 6, 6 x 4"):
        size_of(pictures)
    assert from_pictures(pictures, 6, 4).shape == (2, 3, 4, 6)


def test_a_list_of_pictures_and_arrays_is_refused():
    with pytest.raises(TypeError, match="image must be Pillow images or an array, got a list with ndarray"):
        shown("image", [Image.new("RGB", (6, 4)), np.zeros((4, 6, 3))], "RGB")


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(ValueError, match="image must have pixels, got 0 x 3"):
        from_pictures(Image.new("RGB", (0, 3)), WIDTH, HEIGHT)


def test_a_closed_picture_says_so(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "closed.png")
    with Image.open(tmp_path / "closed.png") as picture:
        pass
    with pytest.raises(ValueError, match="image cannot be read as a picture: "):
        from_pictures(picture, WIDTH, HEIGHT)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 4), (3, 4, 6), (1, 3, 4, 6)])
def test_arrays_of_another_layout_are_refused(shape):
    assert size_of(np.zeros(shape)) is None
    with pytest.raises(ValueError, match=r"image must have shape \(4, 6, 3\) or \(n, 4, 6, 3\), got"):
        from_pictures(np.zeros(shape), WIDTH, HEIGHT)


def test_a_mask_of_black_and_white_stays_so_where_it_is_scaled():
    rng = np.random.default_rng(1)
    hard, soft = (Image.fromarray(rng.choice(np.uint8(levels), (21, 45))) for levels in ([0, 255], [0, 60, 255]))
    scaled = [np.asarray(one.resize((8, 8), Image.Resampling.LANCZOS)) / np.float32(255) for one in (hard, soft)]
    assert len(np.unique(scaled[0])) > 2
    np.testing.assert_array_equal(from_masks([hard, soft], 8, 8)[:, 0], [scaled[0] >= 0.5, scaled[1]])
