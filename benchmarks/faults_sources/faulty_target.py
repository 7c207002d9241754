"""The fake target, but it does what FAULTY says: to measuring, or to the process of a stage."""

import hashlib
import multiprocessing
import os
import signal
import time

import numpy as np
import onnx

from targets.fake import FakeTarget

SHARE = 8  # of 256: how many networks are bad


class Faulty(FakeTarget):
    name = "faulty"

    def build(self, content, out, batches=(), *, keep_fp32=()):
        is_candidate = multiprocessing.current_process().name == "measuring"
        how = os.environ["FAULTY"]
        if is_candidate and is_bad(content):
            misbehave(how)
        if how == "build hangs":
            time.sleep(10_000)
        return super().build(content, out, batches, keep_fp32=keep_fp32)

    def load(self, engine):
        loaded = super().load(engine)
        infer = loaded.infer_batch
        if os.environ["FAULTY"] == "nan":
            loaded.infer_batch = lambda images: infer(images) * np.float32(np.nan)
        if os.environ["FAULTY"] == "answer hangs":
            loaded.infer_batch = lambda images: time.sleep(10_000)
        return loaded


def is_bad(content):
    """By the widths: the bytes of one graph differ from time to time."""
    graph = onnx.load_from_string(content).graph
    shapes = sorted((weight.name, tuple(weight.dims)) for weight in graph.initializer)
    return hashlib.sha256(repr(shapes).encode()).digest()[0] < SHARE


def misbehave(how):
    if how == "hang":
        time.sleep(10_000)
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
