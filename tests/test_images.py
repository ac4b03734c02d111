"""Pictures: pixels as the formula says, sheets that come apart again, receipts that stay inside."""

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from pathline.core.errors import ReceiptError, UsageError
from pathline.core.images import (
    Layout,
    encode_png,
    read_pixels,
    read_receipt,
    to_pixels,
    write_picture,
)
from pathline.core.receipt import Receipt

RECEIPT = Receipt(
    {"cond": {"text": "a red apple 🍎"}}, (7,), (1.0, 0.0), 1, ("ok",), "cpu", "float32"
)


def test_pixels_are_the_nearest_of_256_levels():
    """−1 is 0, 1 is 255, level k comes back from its own value, and what lies outside is cut."""
    levels = torch.arange(256) / 127.5 - 1
    x = torch.cat([levels, torch.tensor([-3.0, 3.0])]).reshape(1, 1, 1, -1)
    assert to_pixels(x).ravel().tolist() == [*range(256), 0, 255]


def test_colour_comes_last_and_grey_has_none():
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) / 127.5 - 1
    assert np.array_equal(to_pixels(x), np.arange(120).reshape(2, 3, 4, 5).transpose(0, 2, 3, 1))
    assert to_pixels(x[:, :1]).shape == (2, 4, 5)


@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 8, 8), (3, 8, 8)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(UsageError, match="1 or 3 channels"):
        to_pixels(torch.zeros(shape))


@pytest.mark.parametrize("colour", [(), (3,)])
@pytest.mark.parametrize("layout", [Layout(), Layout(3, 2, 1), Layout(4, 1, 5)])
def test_a_sheet_can_be_taken_apart(layout, colour):
    """Sample i stands in row i // columns; everything else is white."""
    rng = np.random.default_rng(0)
    samples = rng.integers(0, 255, (7, 4, 5, *colour), dtype=np.uint8)
    sheet = layout.arrange(samples)
    s, g = layout.scale, layout.gap
    for i, sample in enumerate(samples):
        y, x = i // layout.columns * (4 * s + g) + g, i % layout.columns * (5 * s + g) + g
        cell = sheet[y : y + 4 * s, x : x + 5 * s]
        assert np.array_equal(cell, sample.repeat(s, 0).repeat(s, 1))
        cell[:] = 255
    assert (sheet == 255).all()


def test_a_layout_that_shows_nothing_is_refused():
    for columns, scale, gap in [(0, 1, 0), (1, 0, 0), (1, 1, -1)]:
        with pytest.raises(UsageError, match="columns ≥ 1"):
            Layout(columns, scale, gap)


def test_picture_and_receipt_come_back(tmp_path):
    pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    path = write_picture(tmp_path / "a.png", pixels, RECEIPT)
    assert np.array_equal(read_pixels(path), pixels)
    assert read_receipt(path) == RECEIPT
    assert path.read_bytes() == encode_png(pixels, RECEIPT)  # the same bytes each time


def without_receipt(path):
    write_picture(path, np.zeros((2, 2), np.uint8))


def with_text(name, text):
    def make(path):
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(name, text)
        Image.new("L", (2, 2)).save(path, pnginfo=chunks)

    return make


def damaged(path):
    path.write_bytes(encode_png(np.zeros((9, 9), np.uint8), RECEIPT).replace(b"apple", b"Apple"))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (without_receipt, "carries no receipt"),
        (with_text("parameters", "a red apple"), "carries no receipt"),
        (with_text("pathline", "a red apple"), "not a Pathline receipt"),
        (with_text("pathline", '{"receipt": 99}'), "format 99"),
        (with_text("pathline", '{"receipt": 1, "seeds": 3}'), "damaged"),
        (lambda path: path.write_text("not a picture"), "no PNG picture"),
        (lambda path: Image.new("L", (2, 2)).save(path, format="JPEG"), "no PNG picture"),
        (lambda path: path.mkdir(), "directory"),
        (lambda path: None, "No such file"),
        (damaged, "no PNG picture, or a damaged one"),
    ],
)
def test_a_picture_without_a_receipt_says_so(tmp_path, make, says):
    make(tmp_path / "a.png")
    with pytest.raises(ReceiptError, match=says):
        read_receipt(tmp_path / "a.png")


def test_a_picture_cut_short_says_so(tmp_path):
    path = write_picture(tmp_path / "a.png", np.zeros((64, 64), np.uint8), RECEIPT)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"IDAT") + 8])
    assert read_receipt(path) == RECEIPT
    with pytest.raises(ReceiptError, match="damaged"):
        read_pixels(path)
