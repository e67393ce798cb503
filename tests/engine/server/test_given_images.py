"""Pictures that clients send, against Pillow."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

pytest.importorskip("fastapi", reason="needs the extra serve")

from stepfuse.server.given_images import given_image
from stepfuse.server.limits import Limits

ORIENTATION = 0x112  # of EXIF


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_is_turned_upright_once(format, orientation):
    picture = Image.fromarray(np.arange(12 * 8 * 3, dtype=np.uint8).reshape(12, 8, 3))
    picture.getexif()[ORIENTATION] = orientation
    file = io.BytesIO()
    picture.save(file, format, exif=picture.getexif())
    want = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    got = given_image("image", file.getvalue(), Limits())
    np.testing.assert_array_equal(np.asarray(got), want)
    np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(got)), want)
    assert got.format == format  # which says of 16 bits what is white
