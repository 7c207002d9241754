"""Memory that runs out while a network computes: fewer images at once, or one line that says so."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from pipeline.errors import TrainingError

LEAST_PART = 2  # images: a batch norm cannot be trained on one
ONEDNN_MEMORY = ("could not create a primitive", "could not create a memory object")
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
LARGE_BYTES = 1 << 20
Result = TypeVar("Result")


def with_memory(
    attempt: Callable[[int], Result], at_once: int, least: int = 1
) -> tuple[Result, int]:
    """What `attempt` gives with as many images at once as memory holds, and that number.

    It is called again with half as many each time that memory runs out, down to `least`.
    """
    while True:
        try:
            return attempt(at_once), at_once
        except RuntimeError as error:
            if not is_out_of_memory(error) or at_once <= least:
                raise
        # outside of the handler, whose traceback holds on to the activations
        give_memory_back()
        at_once = max(least, at_once // 2)


def give_memory_back() -> None:
    """What lies free: in torch's cache on a GPU, on the CPU in glibc's heap.

    From then on glibc takes large tensors from the system, and gives each back, instead of keeping
    them in its heap, where nothing else has a use for them, as the code that oneDNN makes for a
    size of batch.
    """
    torch.cuda.empty_cache()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc's own
        libc.mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        libc.malloc_trim(0)


@contextmanager
def memory_told(what: str) -> Iterator[None]:
    """Within the block memory that runs out is a TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"{what}: not even the fewest images at once fit into the device's memory "
            f"({str(error).strip().partition(chr(10))[0]})",
            fix="use smaller images, or another --device",
        ) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU's memory torch raises a class of its own; of the CPU's, only the text says it.

    oneDNN, which computes convolutions there, drops its status: that it could not create something
    which it had already planned is what it says where an allocation fails.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or str(error).strip() in ONEDNN_MEMORY
