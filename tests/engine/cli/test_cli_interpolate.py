"""``stepfuse interpolate``, as a user types it."""

import json

import numpy as np
import pytest
import support
from PIL import ExifTags, Image
from typer.testing import CliRunner

import stepfuse as sf
from stepfuse.cli import app
from stepfuse.pipeline.image_files import image_grid
from stepfuse.pipeline.input_images import read_image

runner = CliRunner()
HEIGHT, WIDTH = support.SHAPE[1:]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return support.write_tiny_bundle(tmp_path_factory.mktemp("cli") / "tiny")


def run(bundle, *arguments):
    return runner.invoke(app, ["interpolate", str(bundle.path), *map(str, arguments)])


def test_a_strip_says_how_it_was_made(bundle, tmp_path):
    path = tmp_path / "deep" / "walk.png"
    result = run(bundle, "--cond", "bag", "-n", 6, "--steps", 4, "-g", 3, "-o", path)
    assert result.exit_code == 0, result.output
    assert "48 network passes" in result.output  # 6 samples, 4 steps, 2 passes
    with Image.open(path) as picture:
        assert picture.text["Description"] == "tiny bag: ddim, 4 steps, guidance 3, slerp, seed 0 to seed 1"
        assert picture.text["Software"] == f"stepfuse {sf.__version__}"
        assert picture.width > 3 * picture.height  # one row


def test_the_ends_of_a_walk_are_the_samples_of_their_seeds(bundle, tmp_path):
    path = tmp_path / "walk.npy"
    result = run(bundle, "--cond", "1", "-n", 3, "--steps", 4, "--seed-from", 5, "--seed-to", 9, "-o", path)
    assert result.exit_code == 0, result.output
    walk = np.load(path)
    with sf.Engine.load(bundle.path) as engine:
        ends = engine.sample(2, cond=1, steps=4, seed=[5, 9])
    assert walk.shape == (3, *support.SHAPE)
    np.testing.assert_array_equal(walk[[0, -1]], ends)


def test_the_corners_of_a_grid_are_the_samples_of_its_seeds(bundle, tmp_path):
    path = tmp_path / "grid.npy"
    result = run(bundle, "--grid", "3x4", "--seeds", "4, 5,6,7", "--steps", 4, "--path", "lerp", "-o", path)
    assert result.exit_code == 0, result.output
    grid = np.load(path)
    with sf.Engine.load(bundle.path) as engine:
        corners = engine.sample(4, steps=4, seed=4)
    assert grid.shape == (3, 4, *support.SHAPE)
    np.testing.assert_array_equal(grid[[0, 0, -1, -1], [0, -1, 0, -1]], corners)


def test_a_grid_is_one_picture(bundle, tmp_path):
    result = run(bundle, "--grid", "2x5", "--steps", 2, "-o", tmp_path / "grid.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.text["Description"] == "tiny: ddim, 2 steps, slerp, seeds 0, 1, 2, 3"
        assert picture.width > 2 * picture.height - 100  # five across, two down


def test_a_stochastic_walk_is_the_same_twice(bundle, tmp_path):
    for name in ("a.npy", "b.npy"):
        assert run(bundle, "--sampler", "ddpm", "--steps", 5, "-n", 3, "-o", tmp_path / name).exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


@pytest.mark.parametrize(
    ("name", "kind"), [("walk.gif", "GIF"), ("walk.apng", "PNG"), ("walk.webp", "WEBP")], ids=["gif", "apng", "webp"]
)
@pytest.mark.parametrize(("back", "frames"), [("--back", 8), ("--no-back", 5)])
def test_an_animation_goes_there_and_back(bundle, tmp_path, name, kind, back, frames):
    path = tmp_path / name
    result = run(bundle, "-n", 5, "--steps", 3, "--frame-ms", 80, back, "-o", path)
    assert result.exit_code == 0, result.output
    with Image.open(path) as picture:
        assert (picture.format, picture.n_frames) == (kind, frames)
        assert picture.width % WIDTH == 0
        assert picture.info["loop"] == 0
        about = f"{picture.info} {picture.getexif().get(ExifTags.Base.ImageDescription)}"
        assert "tiny: ddim, 3 steps, slerp, seed 0 to seed 1" in about
        picture.seek(1)
        picture.load()  # a WebP has a frame's duration once it is decoded
        assert picture.info["duration"] == 80


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two sneakers of the embedded model, as a user would have them: eight bits a pixel."""
    folder = tmp_path_factory.mktemp("pictures")
    with sf.Engine.load("fashion") as engine:
        samples = engine.sample(2, cond="sneaker", steps=20, seed=3)
    for index, sample in enumerate(np.clip(samples, -1, 1)):
        Image.fromarray(((sample[0] + 1) * 127.5).round().astype(np.uint8)).save(folder / f"{index}.png")
    return folder / "0.png", folder / "1.png"


def test_a_walk_between_pictures_begins_and_ends_with_them(tmp_path, pictures):
    path = tmp_path / "walk.npy"
    images = ["--from-image", str(pictures[0]), "--to-image", str(pictures[1])]
    arguments = ["interpolate", "fashion", "--cond", "sneaker", *images, "-n", "3", "--steps", "50", "-o", str(path)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    walk = np.load(path)
    for end, picture in zip(walk[[0, -1]], pictures, strict=True):
        there_and_back = np.mean((end - read_image(picture, (1, 28, 28), (-1.0, 1.0))) ** 2)
        assert there_and_back < 3e-4  # 6e-5 was measured; a walk between two sneakers is a thousand times as long


def test_a_picture_is_read_as_it_was_written(pictures):
    levels = np.asarray(Image.open(pictures[0]), dtype=np.float64)
    sample = read_image(pictures[0], (1, 28, 28), (-1.0, 1.0))
    np.testing.assert_allclose(sample, levels[None] / 127.5 - 1, atol=1e-6)
    assert (sample.shape, sample.dtype) == ((1, 28, 28), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-n", "1"], "--number must be at least 2, got 1"),
        (["--path", "spline"], "--path must be slerp or lerp, got 'spline'"),
        (["--seed-to", "-1"], "--seed-to must be between 0 and 2^64 - 1, got -1"),
        (["--cond", "spaceship"], "spaceship"),
        (["--grid", "5"], "--grid must be ROWSxCOLUMNS such as 5x8, got '5'"),
        (["--grid", "999999x999999"], "a picture must have at most 10,000 samples, got 999,998,000,001"),
        (["-n", "10001"], "a picture must have at most 10,000 samples, got 10,001"),
        (["--grid", "1x5"], "--grid must have at least 2 rows and 2 columns, got '1x5'"),
        (["--grid", "2x2", "--seeds", "1,2,x"], "--seeds must be four whole numbers such as 0,1,2,3, got '1,2,x'"),
        (["--grid", "2x2", "-o", "grid.gif"], "--output must end in .png or .npy for a grid, got 'grid.gif'"),
        (["-o", "walk.jpg"], "--output must end in .png, .npy, .gif, .apng or .webp, got 'walk.jpg'"),
        (["--from-image", "a.png"], "--from-image and --to-image go together"),
        (["--from-image", "a.png", "--to-image", "b.png"], "a.png: No such file or directory"),
        (["--from-image", "a.png", "--to-image", "b.png", "--sampler", "ddpm"], "with sampler ddim and eta 0 alone"),
        (["--from-image", "a.png", "--to-image", "b.png", "--eta", "0.5"], "got ddim with eta 0.5"),
        (["--grid", "2x2", "--from-image", "a.png", "--to-image", "b.png"], "--grid takes its corners from --seeds"),
        (["--grid", "2x2", "--seed-to", "7"], "--seed-to is for a walk"),
        (["--seeds", "0,1,2,3"], "--seeds is for the corners of --grid"),
        (["--frame-ms", "80"], "--frame-ms is for an animation, not for .png"),
        (["--columns", "3", "-o", "walk.gif"], "--columns is for a PNG, not for .gif"),
    ],
)
def test_bad_input_is_reported_in_a_line(bundle, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(bundle, "--steps", "3", *arguments)
    assert result.exit_code == (1 if "No such file" in message else 2)
    assert message in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_another_size_is_refused(bundle, tmp_path, pictures):
    Image.new("L", (8, 8)).save(tmp_path / "large.png")
    result = run(bundle, "--from-image", tmp_path / "large.png", "--to-image", pictures[1])
    assert result.exit_code == 2
    assert f"large.png must be {WIDTH} x {HEIGHT} pixels for this model, got 8 x 8" in result.output


def test_a_file_that_is_no_picture_is_refused(bundle, tmp_path, pictures):
    (tmp_path / "text.png").write_text("no picture")
    result = run(bundle, "--from-image", tmp_path / "text.png", "--to-image", pictures[1])
    assert result.exit_code == 1
    assert "cannot identify image file" in result.output


def test_a_gif_says_how_it_was_drawn(bundle, tmp_path):
    path = tmp_path / "walk.gif"
    assert run(bundle, "-n", 2, "--steps", 2, "--seed-from", 5, "-o", path).exit_code == 0
    shown = CliRunner().invoke(app, ["info", str(path), "--json"])
    found = json.loads(shown.output)
    assert found["format"] == "GIF"
    assert found["stepfuse"]["walk"]["path"] == "slerp"
    assert found["stepfuse"]["options"]["steps"] == 2
    assert found["description"].startswith("tiny")


def test_a_title_that_is_wider_than_its_picture_goes_on_below():
    samples = np.zeros((2, 1, 4, 4), np.float32)
    one, many = (
        image_grid(samples, ["", ""], title=title, data_range=(-1, 1), columns=2) for title in ("a", "a " * 299)
    )
    assert many.width == one.width
    assert many.height > one.height + 100


def test_a_walk_between_pictures_inverts_the_sampler_of_the_walk(bundle, tmp_path):
    """Options of the sampler reach the inversion: with both alike the ends of the walk are the pictures again."""
    with sf.Engine.load(bundle.path) as engine:
        images = engine.sample(2, steps=40, seed=0, sampler="ddim", spacing="trailing")
    pictures = []
    for index, image in enumerate(np.clip(images, -1, 1)):
        pictures.append(tmp_path / f"{index}.png")
        Image.fromarray(((image[0] + 1) * 127.5).round().astype(np.uint8)).save(pictures[-1])
    path = tmp_path / "walk.npy"
    options = ["--sampler-option", "spacing=trailing", "--sampler-option", "timesteps=950,600,250,10"]
    result = run(bundle, "--from-image", pictures[0], "--to-image", pictures[1], "-n", 2, *options, "-o", path)
    assert result.exit_code == 0, result.output
    with sf.Engine.load(bundle.path) as engine:
        given = np.stack([read_image(one, support.SHAPE, (-1, 1)) for one in pictures])
        noise = engine.encode(given, timesteps=(950, 600, 250, 10))
        want = engine.sample(2, noise=noise, timesteps=(950, 600, 250, 10), sampler="ddim")
    np.testing.assert_allclose(np.load(path), want, atol=1e-5)


def test_a_walk_names_its_class_and_the_null_class_is_none(bundle, tmp_path):
    path = tmp_path / "walk.png"
    common = ["-n", 2, "--steps", 2, "-g", 3, "--force", "-o", path]
    for cond, name in (("1", "bag: ddim, 2 steps, guidance 3"), (support.NULL, "unconditional: ddim, 2 steps,")):
        result = run(bundle, "--cond", cond, *common)
        assert f"tiny {name}" in result.output
        with Image.open(path) as picture:
            made = sf.Provenance.from_json(picture.text["stepfuse"])
        assert made.cond == (["bag", "bag"] if cond == "1" else None)
        assert made.walk == {"path": "slerp", "ends": "seed 0 to seed 1"}
    result = CliRunner().invoke(app, ["sample", str(bundle.path), "--like", str(path)])
    assert result.exit_code == 2
    assert "was drawn by stepfuse interpolate, which --like does not have" in result.output
