from __future__ import annotations

import os
import signal
import threading
from types import ModuleType

import pytest

from targets.errors import BuildError
from targets.trt.log import Watch, collected_errors, interruptible, process_log, readable


class Logger:
    ERROR, INTERNAL_ERROR, WARNING = range(3)


@pytest.fixture
def trt() -> ModuleType:
    module = ModuleType("tensorrt")
    module.ILogger = Logger
    return module


def test_messages_lose_the_places_in_tensorrt_s_sources() -> None:
    cancelled = (
        "IBuilder::buildSerializedNetwork: Error Code 7: BuildCanceled (Build canceled by user "
        "In next at /_src/optimizer/common/scopedProgressReporter.cpp:92)"
    )
    assert readable(cancelled) == "Error Code 7: BuildCanceled (Build canceled by user)"
    assert readable("Error Code 1: Cuda\nRuntime (In x at /_src/a/b.cpp:25 (cudaError 35))") == (
        "Error Code 1: Cuda Runtime (cudaError 35)"
    )


def test_only_errors_of_the_block_are_told(trt: ModuleType) -> None:
    log = process_log(trt)
    log.log(Logger.ERROR, "before")
    with collected_errors(trt) as errors:
        assert errors() == "it gave no reason"
        log.log(Logger.ERROR, "first")
        log.log(Logger.WARNING, "a warning")
        log.log(Logger.INTERNAL_ERROR, "second")
        assert errors() == "first; second"
    assert process_log(trt) is log


def test_a_watch_passes_steps_on_until_told_to_stop() -> None:
    seen: list[tuple[str, int, int]] = []
    watch = Watch(lambda *step: seen.append(step) or len(seen) < 3)
    watch.start_phase("fuse", 5)
    assert [watch.step("fuse", index) for index in range(5)] == [True, True, False, False, False]
    assert seen == [("fuse", 1, 5), ("fuse", 2, 5), ("fuse", 3, 5)]
    assert isinstance(watch.stopped_by, BuildError)
    assert "cancelled" in str(watch.stopped_by)


def test_what_the_callback_raises_is_kept() -> None:
    def fail(phase: str, step: int, steps: int) -> bool:
        raise ZeroDivisionError

    watch = Watch(fail)
    assert not watch.step("fuse", 0)
    assert isinstance(watch.stopped_by, ZeroDivisionError)
    watch.stop(KeyboardInterrupt())
    assert isinstance(watch.stopped_by, ZeroDivisionError)  # the first reason counts


def test_without_a_callback_everything_goes_on() -> None:
    assert all(Watch(None).step("fuse", index) for index in range(3))


def test_ctrl_c_stops_the_watch_and_not_the_code_in_between() -> None:
    before = signal.getsignal(signal.SIGINT)
    watch = Watch(None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruptible(watch):
            os.kill(os.getpid(), signal.SIGINT)
            assert not watch.step("fuse", 0)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert isinstance(watch.stopped_by, KeyboardInterrupt)


def test_a_handler_of_somebody_else_stays() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[int] = []

    def handler(number: int, frame: object) -> None:
        seen.append(number)

    signal.signal(signal.SIGINT, handler)
    watch = Watch(None)
    try:
        with interruptible(watch):
            os.kill(os.getpid(), signal.SIGINT)
            assert watch.step("fuse", 0)
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.SIGINT]


def test_in_another_thread_no_handler_is_set() -> None:
    passed: list[bool] = []

    def work() -> None:
        with interruptible(Watch(None)):
            passed.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert passed == [True]
