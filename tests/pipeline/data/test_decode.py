import numpy as np
import pytest
from PIL import Image

from pipeline.data.decode import decode, fit, in_threads, intact_size


def save(path, image, **options):
    image.save(path, **options)
    return path


def grey16(path):
    return save(path, Image.fromarray(np.full((4, 6), 0x8000, dtype=np.uint16)))


def test_grey_becomes_three_equal_channels(tmp_path):
    path = save(tmp_path / "a.png", Image.new("L", (6, 4), 77))
    assert np.array_equal(decode(path, None), np.full((4, 6, 3), 77))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    assert np.array_equal(decode(grey16(tmp_path / "a.png"), None), np.full((4, 6, 3), 0x80))


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [("RGBA", (9, 8, 7, 50), (9, 8, 7)), ("LA", (5, 200), (5, 5, 5)), ("1", 1, (255, 255, 255))],
)
def test_alpha_and_bilevel_become_rgb(tmp_path, mode, color, expected):
    path = save(tmp_path / "a.png", Image.new(mode, (3, 3), color))
    assert np.array_equal(decode(path, None)[1, 1], expected)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=95)
    red, green, blue = decode(path, None)[4, 4].tolist()
    assert red > 200 > 100 > max(green, blue)


def test_palette_with_transparency_bytes_becomes_rgb(tmp_path):
    image = Image.new("P", (3, 3), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    path = save(tmp_path / "a.png", image, transparency=b"\x00\x80")
    assert np.array_equal(decode(path, None)[0, 0], (10, 20, 30))


def test_the_size_is_height_and_width(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (6, 4)))
    assert intact_size(path) == (4, 6)
    assert decode(path, (10, 20)).shape == (10, 20, 3)


def test_fit_cuts_the_centre_and_keeps_the_proportions():
    pixels = np.zeros((10, 30, 3), dtype=np.uint8)
    pixels[:, 10:20] = 255
    assert np.asarray(fit(Image.fromarray(pixels), (10, 10))).min() == 255


def test_fit_leaves_a_margin_from_64_pixels_on():
    pixels = np.zeros((80, 80, 3), dtype=np.uint8)
    pixels[6:74, 6:74] = 255  # 7/8 of 80 is 70: the black rim is outside the cut
    assert np.asarray(fit(Image.fromarray(pixels), (70, 70)))[3:67, 3:67].min() == 255


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".bmp"])
@pytest.mark.parametrize("damage", ["empty", "half", "text"])
def test_corrupt_files_are_found_both_ways(tmp_path, suffix, damage):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = save(tmp_path / f"a{suffix}", Image.fromarray(noise))
    whole = path.read_bytes()
    assert intact_size(path) == (40, 40)
    path.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"text"}[damage])
    assert decode(path, (8, 8)) is None
    assert intact_size(path) is None


def test_threads_keep_the_order_and_report_progress(tmp_path):
    paths = [tmp_path / str(index) for index in range(600)]
    seen = []
    names = in_threads(
        lambda path: path.name, paths, lambda done, total: seen.append((done, total))
    )
    assert names == [str(index) for index in range(600)]
    assert seen == [(256, 600), (512, 600), (600, 600)]
