"""Image files to RGB pixels, and which files are corrupt; Pillow, without torch."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data.members import Place

Progress = Callable[[int, int], None]  # (images done, images in all)
Pixels = NDArray[np.uint8]  # (H, W, 3)
Size = tuple[int, int]  # (height, width) in pixels, as in tensors; Pillow says (width, height)
Task = TypeVar("Task")
Result = TypeVar("Result")

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
CHUNK = 256  # images a thread takes at once: one by one, hand-over costs more than a small JPEG

# Pillow's decoders report broken files with all of these
CORRUPT = (
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
_END_MARKS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}
_TAIL_BYTES = 64  # some cameras and editors add a few bytes after the end mark


def processors() -> int:
    """Processors this process may use: its affinity mask, not the machine's count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode(path: Place, size: Size | None) -> Pixels | None:
    """The image as RGB, cut to `size` if that is given; None if the file is corrupt."""
    try:
        image = open_rgb(path)
        return np.asarray(image if size is None else fit(image, size))
    except CORRUPT:
        return None


def intact_size(path: Place) -> Size | None:
    """Height and width from the header; None if the file is corrupt.

    Decodes only files without their end mark, so that a large folder is checked in minutes.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            width, height = image.size
    except CORRUPT:
        return None
    if not _has_end_mark(path) and decode(path, None) is None:
        return None
    return height, width


def open_rgb(path: Place) -> Image.Image:
    """Grey, palette, CMYK and 16-bit images become 8-bit RGB; an alpha channel is dropped."""
    with path.open("rb") as file, Image.open(file) as image:
        if image.mode.startswith("I"):
            # Pillow would clip 16-bit grey at 255, which turns most of such an image white
            grey = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")


def fit(image: Image.Image, size: Size) -> Image.Image:
    """Resize and cut the centre to `size`; from 64 pixels on with the usual margin of 1/8."""
    height, width = size
    if image.size == (width, height):
        return image
    margin = 1.0 if min(size) < 64 else 8 / 7
    scale = margin * max(width / image.width, height / image.height)
    wide = max(width, round(image.width * scale))
    high = max(height, round(image.height * scale))
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - width) // 2, (high - height) // 2
    return resized.crop((left, top, left + width, top + height))


def in_threads(
    work: Callable[[Task], Result], paths: Sequence[Task], progress: Progress | None
) -> list[Result]:
    """`work` on every path, results in the order of the paths."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    results: list[Result] = []
    with warnings.catch_warnings(), ThreadPoolExecutor(processors()) as pool:
        # Pillow warns of broken EXIF text and the like; filters are per process, so set them here
        warnings.simplefilter("ignore")
        for part in pool.map(lambda chunk: [work(path) for path in chunk], chunks):
            results.extend(part)
            if progress is not None:
                progress(len(results), len(paths))
    return results


def _has_end_mark(path: Place) -> bool:
    mark = _END_MARKS.get(path.suffix.lower())
    if mark is None:
        return False
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return mark in file.read()
