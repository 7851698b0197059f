"""Several processes score like one engine; one that dies, or fails, ends the stream with its name and cause."""

import multiprocessing
import os
import signal
from functools import partial

import pyarrow as pa
import pytest

from batch_platform.core.inference import fleet, transport
from batch_platform.core.inference.device import device_count
from batch_platform.core.inference.engine import Engine
from batch_platform.core.inference.fleet import Fleet
from batch_platform.errors import InferenceError, ModelError
from batch_platform_tests.core.inference.fakes import PLAN, FakePredictor, shard

WORDS = [[f"text {number} of {place}" for number in range(7)] for place in range(20)]


def _load(**predictor):
    return Engine(FakePredictor(**predictor), PLAN)


def _load_killing(text):
    """An engine that kills its own process at a text."""

    class Killing(FakePredictor):
        def forward(self, prepared, rows):
            if text in [prepared.texts[row] for row in rows]:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(prepared, rows)

    return Engine(Killing(), PLAN)


def _refuse():
    raise ModelError("the files were altered")


def _unlike():
    names = multiprocessing.current_process().name
    return Engine(FakePredictor(), PLAN if names.endswith("0") else _other_plan())


def _other_plan():
    from dataclasses import replace

    return replace(PLAN, batch_rows=9)


@pytest.fixture
def two():
    made = []

    def make(load, count=2):
        made.append(Fleet(load, "cpu", count))
        return made[-1]

    yield make
    for each in made:
        each.close()
    assert multiprocessing.active_children() == []


def _shards():
    return (shard(words, first=100 * place) for place, words in enumerate(WORDS))


def test_results_are_those_of_one_engine_in_the_order_of_the_shards(two):
    one = list(_load().score_stream(_shards()))
    several = two(_load, 3)
    assert (several.plan, several.backend) == (PLAN, "")
    for _ in range(2):  # the processes stay for the next stream
        found = list(several.score_stream(_shards()))
        assert [result.outputs for result in found] == [result.outputs for result in one]
        assert [result.stats.rows for result in found] == [7] * 20


def test_all_processes_work(two):
    several = two(_load)
    list(several.score_stream(_shards()))
    assert all(member.returned >= 3 for member in several._members)


def test_no_more_than_three_shards_are_held_for_each(two):
    read = []

    def counted():
        for each in _shards():
            read.append(each)
            yield each

    several = two(_load)
    stream = several.score_stream(counted())
    next(stream)
    assert len(read) <= 7
    stream.close()


def test_failing_rows_come_back_as_failures(two):
    several = two(partial(_load, fails=["text 3 of 5"]))
    failures = [failure for result in several.score_stream(_shards()) for failure in result.failures]
    assert [(each.row_key, each.error_type) for each in failures] == [("k503", "ValueError")]


def test_too_many_failing_rows_on_all_devices_together(two, monkeypatch):
    monkeypatch.setattr(transport, "NAMED", 3)
    several = two(partial(_load, fails=[f"text 3 of {place}" for place in range(20)]))
    with pytest.raises(InferenceError, match="4 rows have failed on all devices together, and 2 may"):
        list(several.score_stream(_shards(), tolerated=2))
    assert len(list(several.score_stream(_shards()))) == 20


def test_a_process_that_is_killed_is_named_and_the_next_stream_has_new_ones(two):
    several = two(partial(_load_killing, "text 0 of 9"))
    done = []
    with pytest.raises(
        InferenceError, match=r"device-\d ended by itself \(exit code -9.*run the partition again"
    ):
        done += several.score_stream(_shards())
    assert multiprocessing.active_children() == []
    found = list(several.score_stream(iter([*_shards()][:9])))
    assert len(found) == 9


def test_what_loading_raises_comes_out(two):
    with pytest.raises(ModelError, match="altered"):
        two(_refuse)
    with pytest.raises(InferenceError, match="not alike"):
        two(_unlike)
    assert multiprocessing.active_children() == []


def test_a_source_that_fails_ends_the_processes(two):
    def failing():
        yield shard(WORDS[0])
        raise ValueError("the source is gone")

    several = two(_load)
    with pytest.raises(ValueError, match="source is gone"):
        list(several.score_stream(failing()))
    assert multiprocessing.active_children() == []


def test_how_many_devices():
    assert (device_count("all", "cpu"), device_count(3, "cpu")) == (1, 3)


def test_cuda_devices_are_those_that_this_process_sees(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert (device_count("all", "cuda"), device_count(2, "cuda")) == (2, 2)
    with pytest.raises(InferenceError, match="asks for 3 CUDA devices and there are 2"):
        device_count(3, "cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [each["CUDA_VISIBLE_DEVICES"] for each in fleet._environments("cuda", 2)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert [each["CUDA_VISIBLE_DEVICES"] for each in fleet._environments("cuda", 2)] == ["5", "GPU-7"]


def test_large_shards_do_not_block_each_other(two):
    """Both pipes are full at once: whoever sends must not wait for one that waits to send."""
    long = ["x" * 60_000 + str(number) for number in range(20)]
    several = two(partial(_load, answers=dict.fromkeys(long, 1.0)))
    found = list(several.score_stream(shard(long, first=100 * place) for place in range(8)))
    assert pa.concat_tables([result.outputs for result in found]).num_rows == 160
