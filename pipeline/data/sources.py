"""Opens a data set by name: see `FORMS`."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from pipeline.data.arrays import load_cifar10, load_digits
from pipeline.data.base import ImageData
from pipeline.data.folder import load_folder
from pipeline.data.reading import ReadOptions, Wanted
from pipeline.data.shards import load_shards
from pipeline.data.user_arrays import from_user_factory
from pipeline.errors import DataError
from pipeline.models.user_file import is_user_file

FORMS = "digits, imagefolder:DIR, webdataset:SHARDS, cifar10:DIR or path/to/file.py:factory"
PLACES = {"imagefolder": load_folder, "webdataset": load_shards, "cifar10": load_cifar10}


def load_data(spec: str, **wanted: Unpack[Wanted]) -> ImageData:
    """Open the data; `image_size` in pixels, None keeps the native size where there is one.

    `limit` keeps that many training images, chosen by `seed`; the splits do not depend on it.
    `progress(done, total)` is called while image files are decoded; `workers` processes decode
    what does not fit into `cache_bytes`. `rand_augment` is a magnitude, 0 means none.
    """
    options = ReadOptions(**wanted)
    for name, value in (("image_size", options.image_size), ("limit", options.limit)):
        if value is not None and value < 1:
            raise DataError(f"{name} is {value}", fix="give at least 1, or leave it out")
    source, colon, place = spec.partition(":")
    if spec == "digits":
        return load_digits(options)
    if colon and source in PLACES:
        return PLACES[source](Path(place).expanduser(), options)
    if is_user_file(spec):
        return from_user_factory(spec, options)
    raise DataError(f"unknown data {spec!r}", fix=f"use {FORMS}")
