import contextlib
import gc
import logging
import threading
import time
import weakref

import pytest

from batch_platform.core.inference import deadline
from batch_platform.core.inference.deadline import DeadlineError, StuckError, Worker
from batch_platform_tests.core.inference.fakes import threads

LONG = 60.0


def _when(event):
    """A wait that is over when the call is, or when it has set `event`."""

    def wait(done, seconds):
        while not done.wait(0.001):
            if event.is_set():
                return False
        return True

    return wait


def _forever(begun):
    begun.set()
    while True:
        time.sleep(0.001)


def test_calls_are_made_in_order_on_one_thread():
    with Worker("forward") as worker:
        made = [worker.call(threading.current_thread, LONG, LONG) for _ in range(3)]
        jobs = [worker.submit(lambda n=n: (n, threading.current_thread())) for n in range(3)]
        assert [job.result() for job in jobs] == [(n, made[0]) for n in range(3)]
    assert made[0] is made[1] is made[2] is not threading.current_thread()
    assert made[0].name == "forward"
    assert threads() == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_a_call_raises_comes_out_and_the_thread_goes_on(error):
    def failing():
        raise error("told")

    with Worker("forward") as worker:
        thread = worker.call(threading.current_thread, LONG, LONG)
        with pytest.raises(error, match="told"):
            worker.call(failing, LONG, LONG)
        assert worker.call(threading.current_thread, LONG, LONG) is thread


def test_a_late_call_is_stopped_and_the_next_one_gets_a_new_thread():
    begun = threading.Event()
    with Worker("forward", _when(begun)) as worker:
        first = worker.call(threading.current_thread, LONG, LONG)
        with pytest.raises(DeadlineError):
            worker.call(lambda: _forever(begun), LONG, LONG)
        assert not first.is_alive()
        begun.clear()
        assert worker.call(threading.current_thread, LONG, LONG) is not first
    assert threads() == []


def test_a_late_call_may_clean_up():
    begun, seen = threading.Event(), []

    def careful():
        try:
            _forever(begun)
        except Exception:  # noqa: BLE001 -- as careless code has it
            seen.append("Exception")
        finally:
            seen.append("finally")

    with Worker("forward", _when(begun)) as worker, pytest.raises(DeadlineError):
        worker.call(careful, LONG, LONG)
    assert seen == ["finally"]


def test_a_call_that_ends_as_the_deadline_passes_gives_its_result():
    def too_late(done, seconds):
        done.wait()
        return False

    with Worker("forward", too_late) as worker:
        assert worker.call(lambda: 7, LONG, LONG) == 7
        assert worker.call(lambda: 8, LONG, LONG) == 8


def test_a_call_that_cannot_be_stopped_is_told_and_its_thread_takes_no_more_calls(caplog):
    begun, free = threading.Event(), threading.Event()

    def native():
        begun.set()
        free.wait()  # one call into C that does not come back

    with Worker("forward", _when(begun)) as worker:
        with pytest.raises(StuckError):
            worker.call(native, LONG, 0.01)
        begun.clear()
        assert worker.call(threading.current_thread, LONG, LONG).name == "forward"
        stuck = [thread for thread in threading.enumerate() if thread.name == "forward"]
        assert len(stuck) == 2
    assert threads() == ["forward"]
    [left] = [thread for thread in stuck if thread.is_alive()]
    free.set()
    left.join(LONG)
    assert threads() == []


def test_leaving_lets_a_call_end_that_ends_soon():
    begun, ended = threading.Event(), []
    with Worker("prepare", ending=(LONG, LONG)) as worker:
        worker.submit(lambda: (begun.set(), time.sleep(0.02), ended.append(1)))
        begun.wait()
    assert ended == [1]
    assert threads() == []


def test_leaving_stops_a_call_that_does_not():
    begun = threading.Event()
    with Worker("prepare", ending=(0.0, LONG)) as worker:
        worker.submit(lambda: _forever(begun))
        begun.wait()
    assert threads() == []


def test_a_thread_that_is_left_behind_is_logged(caplog):
    begun, free = threading.Event(), threading.Event()
    with caplog.at_level(logging.ERROR), Worker("prepare", ending=(0.0, 0.01)) as worker:
        worker.submit(lambda: (begun.set(), free.wait()))
        begun.wait()
    assert "prepare" in caplog.text
    assert "left behind" in caplog.text
    free.set()


def test_stopping_at_any_moment_leaves_nothing_behind(capfd):
    """The exception arrives before, in and after the call; none is lost, doubled or shown."""
    for moment in range(300):

        def wait(done, seconds, moment=moment):
            for _ in range(moment * 3):
                pass
            return done.is_set()

        with Worker("forward", wait) as worker:
            for _ in range(3):
                with contextlib.suppress(DeadlineError):
                    assert worker.call(lambda: sum(range(200)), LONG, LONG) == 19900
    assert threads() == []
    assert capfd.readouterr().err == ""


def test_an_error_does_not_keep_the_call_s_objects_alive():
    class Tensor:
        pass

    kept = []

    def failing():
        tensor = Tensor()
        kept.append(weakref.ref(tensor))
        raise ValueError("with a tensor in its frame")

    with Worker("forward") as worker:
        gc.disable()
        try:
            try:
                worker.call(failing, LONG, LONG)
            except ValueError as error:
                error.with_traceback(None)
            assert kept[0]() is None
        finally:
            gc.enable()


class _Lock:
    """Never free; time passes by what it is asked to wait."""

    def __init__(self, clock):
        self.clock, self.waits = clock, []

    def acquire(self, timeout):
        self.waits.append(timeout)
        self.clock[0] += timeout
        return False


def test_no_wait_is_so_long_in_one_piece_that_a_signal_goes_unseen(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: clock[0])
    event = deadline.Event()
    event._lock = lock = _Lock(clock)
    assert event.wait(600) is False
    assert sum(lock.waits) == pytest.approx(600)
    assert max(lock.waits) <= 0.5
    assert event.wait(0) is False


def test_an_event_that_has_happened_stays_so():
    event = deadline.Event()
    assert not event.is_set()
    threading.Timer(0.01, event.set).start()
    assert [event.wait(LONG), event.wait(0), event.wait(), event.is_set()] == [True] * 4
