"""The engine is left in the middle: by its caller, by an exception of a signal, by the end of the process."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from batch_platform.core.inference.computing import Patience
from batch_platform.core.inference.engine import Engine
from batch_platform_tests.core.inference.fakes import PLAN, FakePredictor, shard, threads

LONG = 60.0
AT_ONCE = (0.0, LONG)


@pytest.fixture(autouse=True, params=[1, 3])
def in_flight(request, monkeypatch):
    """Batches one after the other, and some of them launched before the first is collected."""
    monkeypatch.setattr(FakePredictor, "in_flight", request.param)
    return request.param


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, type("Interrupted", (BaseException,), {})])
def test_an_interruption_ends_the_batch_and_both_threads(error):
    predictor = FakePredictor(hangs=["slow"])

    def interrupted(done, seconds):
        while not done.wait(0.001):
            if predictor.hanging.is_set():
                raise error("now")
        return True

    engine = Engine(predictor, PLAN, Patience(wait=interrupted, ending=AT_ONCE))
    with pytest.raises(error, match="now"):
        list(engine.score_stream(iter([shard(["a"]), shard(["slow"]), shard(["b"])])))
    assert threads() == []
    assert not predictor.hanging.is_set()
    predictor.hangs = set()
    assert engine.score(shard(["slow"])).outputs.num_rows == 1


def test_a_stream_that_is_left_ends_the_reading_of_the_next_shard():
    reading, closed = threading.Event(), []

    def feed():
        yield shard(["a"])
        try:
            reading.set()
            while True:
                time.sleep(0.001)
        finally:
            closed.append(True)

    results = Engine(FakePredictor(), PLAN, Patience(ending=AT_ONCE)).score_stream(feed())
    next(results)
    reading.wait()
    results.close()
    assert closed == [True]
    assert threads() == []


def test_a_consumer_that_fails_ends_the_stream():
    def consume():
        for _ in Engine(FakePredictor(), PLAN).score_stream(iter([shard(["a"])] * 5)):
            raise ValueError("the consumer's own")

    with pytest.raises(ValueError, match="the consumer's own"):
        consume()
    assert threads() == []


SCRIPT = """
import signal, threading, time
{imports}
from batch_platform.core.inference.computing import Patience
from batch_platform.core.inference.engine import Engine
from batch_platform_tests.core.inference.fakes import PLAN, FakePredictor, shard, threads

def stop(number, frame):
    raise SystemExit(143)

signal.signal(signal.SIGTERM, stop)

def started():
    print("computing", flush=True)

class Slow(FakePredictor):
    def forward(self, prepared, rows):
        started()
        {body}

def feed():
    yield shard(["x" * 30] * 1000)
    {feed}

engine = Engine(Slow(), PLAN, Patience(ending=(0.2, {grace})))
try:
    for result in engine.score_stream(feed()):
        print("a shard was finished")
finally:
    print(threads())
"""
PYTHON = "while True: time.sleep(0.01)"
NATIVE = "threading.Event().wait()"
TORCH = """
        numbers = torch.randn(300, 300)
        with torch.inference_mode():
            while True:
                numbers = torch.tanh(numbers @ numbers)
"""


def _terminated(body, feed="yield shard(['y'])", grace=30):
    imports = "import torch" if "torch" in body else ""
    script = SCRIPT.format(body=body, feed=feed, grace=grace, imports=imports)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "computing\n", process.stderr.read()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=LONG)
    finally:
        process.kill()
    return process.returncode, output.splitlines()[-1], errors


@pytest.mark.parametrize("body", [PYTHON, TORCH], ids=["python", "torch"])
def test_a_process_that_is_told_to_end_does_so_with_its_own_status(body):
    assert _terminated(body) == (143, "[]", "")


def test_it_ends_while_the_next_shard_is_being_read():
    assert _terminated(PYTHON, feed=PYTHON) == (143, "[]", "")


def test_it_ends_with_a_batch_that_cannot_be_stopped_and_says_so():
    status, left, errors = _terminated(NATIVE, grace=0.2)
    assert (status, left) == (143, "['forward']")
    assert errors.count("\n") == 1
    assert "forward" in errors
    assert "left behind" in errors


MOMENTS = """
import random, signal, sys, time
from batch_platform.core.inference.computing import Patience
from batch_platform.core.inference.engine import Engine
from batch_platform_tests.core.inference.fakes import PLAN, FakePredictor, shard, threads

class Interrupted(BaseException):
    pass

def interrupt(number, frame):
    raise Interrupted

signal.signal(signal.SIGALRM, interrupt)
draw, times = random.Random(int(sys.argv[1])), 0
parts = [shard(["x" * (n % 37 + 1) for n in range(200)]) for _ in range(6)]
for _ in range(int(sys.argv[2])):
    engine = Engine(FakePredictor(), PLAN, Patience(ending=(draw.choice([0, 0.001]), 30)))
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-5, 0.03))
            for _ in engine.score_stream(iter(parts)):
                pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Interrupted:
        times += 1
    while threads():
        time.sleep(0.001)
print(times)
"""


@pytest.mark.parametrize("many", [150, pytest.param(5000, marks=pytest.mark.torture)])
def test_an_exception_at_any_moment_leaves_no_thread_and_no_lock_behind(many):
    done = subprocess.run(
        [sys.executable, "-c", MOMENTS, "1", str(many)],
        capture_output=True, text=True, timeout=LONG + many / 10, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > many / 10
