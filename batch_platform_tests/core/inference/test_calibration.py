import pytest

from batch_platform.core.inference import calibration
from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.calibration import TRIED, Measured, choose, measure
from batch_platform.errors import InferenceError
from batch_platform_tests.core.inference.fakes import FakePredictor

PLAN = BatchPlan("cpu", "float32", batch_tokens=1024, batch_rows=4096)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(calibration, "_SECONDS", 0.0)


def test_every_size_is_measured_with_batches_of_that_size():
    predictor = FakePredictor()
    measured = measure(predictor, PLAN)
    assert [each.batch_tokens for each in measured] == [*TRIED["cpu"]]
    assert all(each.tokens_per_second > 0 for each in measured)
    for batch in predictor.batches:
        longest = max(map(len, batch))
        assert len(batch) == 1 or longest * len(batch) <= TRIED["cpu"][-1]
    assert max(map(len, predictor.batches)) > 1


def test_sizes_beyond_the_memory_are_left_out():
    # A text alone may be long, and is not what is measured.
    memory = 4096
    predictor = FakePredictor(memory=memory)
    measured = measure(predictor, PLAN)
    fitting = {each.batch_tokens for each in measured if each.tokens_per_second is not None}
    assert fitting == {size for size in TRIED["cpu"] if size <= memory}
    assert predictor.releases >= 1
    assert choose(measured) in fitting


def test_nothing_fits():
    with pytest.raises(InferenceError, match="not even 256 tokens fit"):
        choose(measure(FakePredictor(memory=1), PLAN))


def test_another_error_comes_out():
    predictor = FakePredictor(outages=[ValueError("broken")])
    with pytest.raises(ValueError, match="broken"):
        measure(predictor, PLAN)


def test_tables_are_refused():
    with pytest.raises(InferenceError, match="batch_rows"):
        measure(FakePredictor(), BatchPlan("cpu", "float32", None, 8))


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        ((10.0, 20.0, 30.0), 1024),
        ((29.5, 30.0, 30.0), 256),
        ((10.0, 30.0, 29.5), 512),
        ((10.0, 20.0, None), 512),
    ],
)
def test_the_smallest_of_the_fastest_is_taken(rates, expected):
    sizes = (256, 512, 1024)
    assert choose([Measured(*pair) for pair in zip(sizes, rates, strict=True)]) == expected
