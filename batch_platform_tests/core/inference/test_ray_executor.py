"""Actors of a real Ray cluster score like one engine; those that die are replaced, and not for ever."""

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest

from batch_platform.core.inference import ray_cluster as ours
from batch_platform.core.inference import ray_executor, transport
from batch_platform.core.inference.engine import Engine
from batch_platform.core.inference.ray_cluster import WAIT_VARIABLE
from batch_platform.core.inference.ray_executor import RayExecutor
from batch_platform.errors import InferenceError, ModelError
from batch_platform_tests.core.inference.fakes import PLAN, FakePredictor, shard
from batch_platform_tests.project import wait_for
from batch_platform_tests.ray_cluster import ray_cluster

WORDS = [[f"text {number} of {place}" for number in range(7)] for place in range(20)]


@pytest.fixture(scope="module")
def cluster():
    import ray

    with ray_cluster(cpus=2) as running:
        before = signal.getsignal(signal.SIGTERM)
        ray.init(address=running.address, logging_level="WARNING")  # once: a job's workers serve it alone
        signal.signal(signal.SIGTERM, before)
        yield running


@pytest.fixture
def actors(cluster):
    """Makes executors, and sees that none of their actors is left in the end."""
    made = []

    def make(load, devices=1, code=_code, **asked):
        asked = {"device": "cpu", "devices": devices, "flavor": "torch", **asked}
        made.append(RayExecutor(load, code, **asked))
        return made[-1]

    yield make
    for each in made:
        each.close()
    wait_for(lambda: cluster.actors() == [], "the end of the actors", 60)


def _code():
    return "some code"


def _load(device, **predictor):
    assert device == "cpu"
    return Engine(FakePredictor(**predictor), PLAN)


def _load_killing(text, done, device):
    """An engine that kills its own process at a text, unless a file is there; the file is there afterwards."""

    class Killing(FakePredictor):
        def forward(self, prepared, rows):
            if text in [prepared.texts[row] for row in rows] and (done is None or not done.exists()):
                if done is not None:
                    done.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().forward(prepared, rows)

    return Engine(Killing(), PLAN)


def _load_waiting(folder, device):
    """An engine that says that it computes, and waits for a word."""

    class Waiting(FakePredictor):
        def forward(self, prepared, rows):
            (folder / f"at-{os.getpid()}").touch()
            while not (folder / "go").exists():
                time.sleep(0.01)
            return super().forward(prepared, rows)

    return Engine(Waiting(), PLAN)


def _refuse(device):
    raise ModelError("the files were altered")


def _broken(device):
    raise KeyError("a mistake of ours")


def _dying(device):
    os.kill(os.getpid(), signal.SIGKILL)


def _process():
    return str(os.getpid())


def _load_unlike(place, device):
    """The first engine of all never ends a batch, the others have another plan."""
    try:
        place.touch(exist_ok=False)
    except FileExistsError:
        return Engine(FakePredictor(), replace(PLAN, batch_rows=9))
    return Engine(FakePredictor(most_rows=0), PLAN)


def _shards():
    return (shard(words, first=100 * place) for place, words in enumerate(WORDS))


def _alone():
    return [result.outputs for result in _load("cpu").score_stream(_shards())]


def test_results_are_those_of_one_engine_in_the_order_of_the_shards(actors):
    several = actors(_load, devices=2)
    assert (several.plan, several.backend) == (PLAN, "")
    assert several.hardware["processor"]
    for _ in range(2):  # the actors stay for the next stream
        found = list(several.score_stream(_shards()))
        assert [result.outputs for result in found] == _alone()
        assert [result.stats.rows for result in found] == [7] * 20
    assert re.fullmatch("by (1 Ray actor|2 Ray actors) on 1 node", several.where)

    read = []

    def counted():
        for each in _shards():
            read.append(each)
            yield each

    stream = several.score_stream(counted())
    next(stream)
    assert len(read) <= 2 * transport.HELD + 1
    stream.close()  # left in the middle: its actors go
    assert several._members == []


def test_failing_rows_come_back_as_failures(actors, monkeypatch):
    monkeypatch.setattr(transport, "NAMED", 3)
    several = actors(partial(_load, fails=[f"text 3 of {place}" for place in range(20)]))
    failures = [failure for result in several.score_stream(_shards()) for failure in result.failures]
    assert [(each.row_key, each.error_type) for each in failures][5] == ("k503", "ValueError")
    with pytest.raises(InferenceError, match="4 rows have failed on all devices together, and 2 may"):
        list(several.score_stream(_shards(), tolerated=2))
    assert several._members == []
    assert len(list(several.score_stream(_shards()))) == 20  # by new ones


def test_an_actor_that_is_killed_is_replaced(actors, tmp_path, caplog):
    several = actors(partial(_load_killing, "text 0 of 9", tmp_path / "done"))
    found = list(several.score_stream(_shards()))
    assert [result.outputs for result in found] == _alone()
    (line,) = [record.getMessage() for record in caplog.records if "died" in record.getMessage()]
    assert re.search(r"died \(.+\): another one gets its [123] shards", line)


def test_a_shard_that_kills_every_actor_is_given_up(actors):
    several = actors(partial(_load_killing, "text 0 of 9", None))
    with pytest.raises(InferenceError, match=r"3 Ray actors died with the same 7 rows in hand \(shard 10 "):
        list(several.score_stream(_shards()))
    assert several._members == []


def test_actors_that_always_die(actors, monkeypatch):
    monkeypatch.setattr(ray_executor, "_DEATHS", 2)
    with pytest.raises(InferenceError, match="2 Ray actors died one after the other"):
        actors(_dying)


def test_a_node_that_is_taken_away(cluster, actors, tmp_path):
    """It goes while both actors compute; what it had is computed on the other node."""
    with cluster.node(num_cpus=2) as node, ThreadPoolExecutor() as pool:
        several = actors(partial(_load_waiting, tmp_path), devices=2)
        results = pool.submit(list, several.score_stream(_shards()))
        wait_for(lambda: len(list(tmp_path.glob("at-*"))) == 2, "two actors that compute", 100)
        assert several.where == "by 2 Ray actors on 2 nodes"
        cluster.kill(node)
        (tmp_path / "go").touch()
        assert [result.outputs for result in results.result()] == _alone()
    assert several.where == "by 1 Ray actor on 1 node"


def test_errors_arrive_as_themselves(actors, tmp_path):
    with pytest.raises(ModelError, match=r"^the files were altered$"):
        actors(_refuse)
    with pytest.raises(KeyError, match="a mistake of ours"):
        actors(_broken)
    with pytest.raises(InferenceError, match="has other code of batch_platform"):
        actors(_load, code=_process)
    with pytest.raises(InferenceError, match="not alike"):
        list(actors(partial(_load_unlike, tmp_path / "first"), devices=2).score_stream(_shards()))


def test_what_the_cluster_does_not_have(actors, monkeypatch):
    with pytest.raises(
        InferenceError, match=r"device: cuda is asked for and the Ray cluster \(nodes: 1, processors: 2"
    ):
        actors(_load, device="cuda")
    with pytest.raises(
        InferenceError, match=r"5 actors are asked for \(inference.devices\), with a processor"
    ):
        actors(_load, devices=5)
    # Nodes that may still come are waited for, and not for ever.
    monkeypatch.setenv(WAIT_VARIABLE, "1")
    with pytest.raises(InferenceError, match="with a GPU and a processor for each, and the Ray cluster"):
        actors(_load, device="cuda")


def test_places_that_others_have(actors, monkeypatch):
    """They are not waited for for ever either."""
    first, beside = actors(_load, models=2), actors(_load, models=2)  # a champion and its challenger
    assert len(list(beside.score_stream(_shards()))) == 20
    monkeypatch.setattr(ours, "_WAIT", 1.0)
    with pytest.raises(InferenceError, match="no actor got its place within 1 s: others use the Ray cluster"):
        actors(_load)

    def failing():
        yield shard(WORDS[0])
        raise ValueError("the source is gone")

    with pytest.raises(ValueError, match="source is gone"):
        list(first.score_stream(failing()))
    assert first._members == []


def test_a_run_that_is_told_to_stop_ends_as_its_owner_wants(actors, tmp_path):
    """Not as a failure: what the handler of the signal raises comes out, and the actors go."""

    def stop(number, frame):
        raise KeyboardInterrupt

    several = actors(partial(_load_waiting, tmp_path))
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with ThreadPoolExecutor() as pool, pytest.raises(KeyboardInterrupt):
            pool.submit(_stop_when, lambda: list(tmp_path.glob("at-*")))
            list(several.score_stream(_shards()))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert several._members == []


def _stop_when(condition):
    wait_for(condition, "an actor that computes", 100)
    os.kill(os.getpid(), signal.SIGTERM)
