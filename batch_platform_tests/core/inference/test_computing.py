"""Batches that fail: the rows at fault are found, the others keep their values."""

import gc
import threading
import weakref

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_platform.core.inference.batching import BatchPlan
from batch_platform.core.inference.computing import Patience
from batch_platform.core.inference.engine import Engine
from batch_platform.core.models.predictor import Prepared, load_predictor
from batch_platform.errors import InferenceError, StorageError
from batch_platform_tests import tiny_models
from batch_platform_tests.core.inference.fakes import PLAN, FakePredictor, shard, threads

TEXTS = ["x" * (n % 37 + 1) for n in range(100)]
ROWS = 10_000


def _failed(result):
    return [(failure.row_key, failure.error_type) for failure in result.failures]


def _predictions(result):
    return dict(zip(*(result.outputs[name].to_pylist() for name in ("row_key", "prediction")), strict=True))


# -- every flavor -----------------------------------------------------------------------------------------


class Batches:
    """Stands before a predictor's `forward`: remembers what succeeded, fails where the test says."""

    def __init__(self, predictor):
        self.predictor, self.real = predictor, predictor.forward
        self.fault, self.spoil = lambda rows: None, lambda rows, raw: raw
        self.begin()
        predictor.forward = self

    def begin(self):
        self.succeeded = []

    def __call__(self, prepared, rows):
        error = self.fault(rows)
        if error is not None:
            raise error
        raw = self.spoil(rows, self.real(prepared, rows))
        self.succeeded.append(frozenset(rows.tolist()))
        return raw


class Case:
    """An engine, ten thousand rows, and their undisturbed outputs and batches."""

    def __init__(self, predictor, plan, rows):
        self.batches, self.engine, self.rows = Batches(predictor), Engine(predictor, plan), rows
        self.outputs = self.engine.score(rows).outputs
        assert self.outputs.num_rows == ROWS
        self.undisturbed = self.batches.succeeded

    def run(self, fault=None, spoil=None):
        batches = self.batches
        real = batches.fault, batches.spoil
        batches.fault, batches.spoil = fault or real[0], spoil or real[1]
        batches.begin()
        try:
            return self.engine.score(self.rows)
        finally:
            batches.fault, batches.spoil = real

    def check_values(self, outputs, failed):
        """Bits where a row was computed in the same batch, 1e-6 where it was not."""
        kept = np.setdiff1d(np.arange(ROWS), failed)
        assert outputs["row_key"].to_pylist() == self.outputs["row_key"].take(kept).to_pylist()
        same = frozenset().union(*set(self.undisturbed) & set(self.batches.succeeded))
        same_rows = np.isin(kept, list(same))
        expected = self.outputs.take(kept)
        assert outputs.filter(same_rows) == expected.filter(same_rows)
        other = ~same_rows
        for name in expected.column_names:
            ours, theirs = (table[name].filter(other).combine_chunks() for table in (outputs, expected))
            if pa.types.is_list(ours.type):
                ours, theirs = ours.flatten(), theirs.flatten()
            if pa.types.is_floating(ours.type):
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
            else:
                assert ours == theirs
        return int(same_rows.sum())


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("models"), {}

    def text():
        predictor = load_predictor(
            tiny_models.text_classifier(folder / "t"), "transformers", tiny_models.TEXT_SIGNATURE
        )
        texts = [text[: 10 + place % 40] for place, text in enumerate(tiny_models.texts(ROWS))]
        return predictor, BatchPlan("cpu", "float32", 8192, 4096), shard(texts)

    def tabular():
        signature = tiny_models.TABULAR_CONFIG.signature()
        predictor = load_predictor(tiny_models.tabular_model(folder / "n"), "torch", signature)
        return predictor, BatchPlan("cpu", "float32", None, 1024), tiny_models.tabular_rows(ROWS)

    def fake():
        return FakePredictor(), PLAN, shard(["x" * (n % 37 + 1) for n in range(ROWS)])

    def flying():
        return FakePredictor(in_flight=3), PLAN, shard(["x" * (n % 37 + 1) for n in range(ROWS)])

    makers = {"text": text, "tabular": tabular, "fake": fake, "flying": flying}

    def case(name):
        if name not in made:
            made[name] = Case(*makers[name]())
        return made[name]

    return case


@pytest.fixture(params=["text", "tabular", "fake", "flying"])
def case(request, cases):
    return cases(request.param)


def test_one_poison_row_among_ten_thousand_fails_alone(case):
    poison = 6_001
    result = case.run(lambda rows: ValueError("poison") if poison in rows else None)
    assert _failed(result) == [(case.rows["row_key"][poison].as_py(), "ValueError")]
    assert case.check_values(result.outputs, [poison]) >= ROWS - 1 - max(map(len, case.undisturbed))
    largest = max(map(len, case.undisturbed))
    assert 0 < result.stats.bisections <= np.ceil(np.log2(largest))


def test_one_poison_text_among_a_hundred_thousand_costs_less_than_a_fiftieth():
    """In tokens given to the model: no clock is asked."""
    texts = ["x" * (n % 200 + 1) for n in range(100_000)]
    poison = "y" * 77
    texts[70_000] = poison
    predictor = FakePredictor(fails=[poison])
    given, real = [], predictor.forward

    def forward(prepared, rows):
        given.append(int(prepared.costs[rows].max()) * len(rows))
        return real(prepared, rows)

    predictor.forward = forward
    engine = Engine(predictor, BatchPlan("cpu", "float32", batch_tokens=1024, batch_rows=4096))
    parts = [shard(texts[first : first + 8192], first) for first in range(0, len(texts), 8192)]
    results = list(engine.score_stream(iter(parts)))
    assert [failed for result in results for failed in _failed(result)] == [("k70000", "ValueError")]
    undisturbed = sum(result.stats.padded_tokens for result in results)
    assert sum(given) < 1.02 * undisturbed


def test_memory_that_is_too_small_for_any_row_ends_with_every_row_named():
    predictor = FakePredictor(memory=0)
    result = Engine(predictor, PLAN).score(shard(TEXTS))
    assert {error_type for _, error_type in _failed(result)} == {"OutOfMemory"}
    assert len(result.failures) == len(TEXTS)
    assert len(predictor.tried) < 2 * len(TEXTS)


def test_poison_rows_at_the_edges_and_side_by_side(case):
    poison = [0, 1, 4_095, 4_096, 7_777, ROWS - 1]
    result = case.run(lambda rows: ValueError("poison") if set(poison) & set(rows.tolist()) else None)
    assert [key for key, _ in _failed(result)] == case.rows["row_key"].take(poison).to_pylist()
    case.check_values(result.outputs, poison)


def test_values_that_are_no_answer_fail_their_rows_and_change_no_other(case):
    bad = {5: np.nan, 4_000: np.inf, 9_999: -np.inf}

    def spoil(rows, raw):
        raw = raw.copy()
        for place, row in enumerate(rows):
            raw[place, -1] = bad.get(int(row), raw[place, -1])
        return raw

    result = case.run(spoil=spoil)
    assert _failed(result) == [(case.rows["row_key"][row].as_py(), "InvalidOutput") for row in bad]
    assert case.check_values(result.outputs, list(bad)) == ROWS - 3
    assert result.stats.bisections == 0


def test_memory_for_few_rows_at_a_time_is_enough(case):
    most = max(map(len, case.undisturbed)) // 3

    def fault(rows):
        return torch.OutOfMemoryError("CUDA out of memory") if len(rows) > most else None

    result = case.run(fault)
    assert result.failures == []
    case.check_values(result.outputs, [])
    assert 2 <= result.stats.back_offs <= 40
    assert result.stats.bisections == 0


def test_a_row_that_never_fits_fails_and_the_others_return_to_large_batches(case):
    too_large = 6_001
    result = case.run(lambda rows: MemoryError() if too_large in rows else None)
    assert _failed(result) == [(case.rows["row_key"][too_large].as_py(), "OutOfMemory")]
    case.check_values(result.outputs, [too_large])
    assert len(case.batches.succeeded) <= len(case.undisturbed) + 2 * result.stats.back_offs + 2


def test_rows_that_cannot_be_prepared_fail_alone(case, monkeypatch):
    evil = [3, 8_192, 8_193]
    predictor, prepare = case.engine.predictor, case.engine.predictor.prepare
    column = predictor.signature.inputs[0].name
    mark = "evil" if predictor.signature.text_column else 1e9
    values = [mark if row in evil else value for row, value in enumerate(case.rows[column].to_pylist())]
    place = case.rows.schema.get_field_index(column)
    rows = case.rows.set_column(place, case.rows.schema.field(column), [values])

    def picky(batch):
        if mark in batch.column(column).to_pylist():
            raise UnicodeError("cannot be read")
        return prepare(batch)

    monkeypatch.setattr(predictor, "prepare", picky)
    result = case.engine.score(rows)
    assert _failed(result) == [(case.rows["row_key"][row].as_py(), "UnicodeError") for row in evil]
    kept = np.setdiff1d(np.arange(ROWS), evil)
    assert result.outputs["row_key"].to_pylist() == case.rows["row_key"].take(kept).to_pylist()
    name = {"regression": "prediction", "classification": "score"}[predictor.signature.task]
    expected = case.outputs[name].take(kept)
    np.testing.assert_allclose(result.outputs[name], expected, rtol=0, atol=1e-6)


def test_no_row_can_be_prepared(case, monkeypatch):
    prepare = case.engine.predictor.prepare

    def never(batch):
        if batch.num_rows:
            raise ValueError("no")
        return prepare(batch)

    monkeypatch.setattr(case.engine.predictor, "prepare", never)
    result = case.engine.score(case.rows.slice(0, 50))
    assert (len(result.failures), result.outputs.num_rows) == (50, 0)


def test_scores_out_of_their_range_fail_their_rows(cases, monkeypatch):
    case = cases("tabular")
    predictor, finish = case.engine.predictor, case.engine.predictor.finish

    def wrong(raw):
        named = finish(raw)
        scores = named.column("score").to_pylist()
        scores[2:5] = [1.5, -0.1, None]
        labels = named.column("label").to_pylist()
        labels[7] = "neither"
        return pa.record_batch(
            [pa.array(labels), pa.array(scores, pa.float64()), named.column("scores")], schema=named.schema
        )

    monkeypatch.setattr(predictor, "finish", wrong)
    result = case.engine.score(case.rows)
    assert [(f.row_key, f.message) for f in result.failures] == [
        *((case.rows["row_key"][row].as_py(), "score is not within 0 and 1") for row in (2, 3, 4)),
        (case.rows["row_key"][7].as_py(), "label is not one of the signature's"),
    ]


# -- preparing --------------------------------------------------------------------------------------------


def test_rows_that_can_be_prepared_only_in_parts_are_not_blamed():
    predictor = FakePredictor()
    prepare = predictor.prepare

    def small(batch):
        if batch.num_rows > 10:
            raise MemoryError("too many at once")
        return prepare(batch)

    predictor.prepare = small
    with pytest.raises(InferenceError, match=r"100 rows can be prepared in parts .* inference\.shard_rows"):
        Engine(predictor, PLAN).score(shard(TEXTS))


def test_a_model_that_prepares_fewer_rows_is_not_believed():
    predictor = FakePredictor()
    predictor.prepare = lambda batch: Prepared(np.ones(batch.num_rows - 1, np.int64), ())
    with pytest.raises(InferenceError, match="prepared 99 rows of 100"):
        Engine(predictor, PLAN).score(shard(TEXTS))


@pytest.mark.parametrize("method", ["prepare", "forward"])
def test_an_error_of_the_platform_goes_through(method):
    def lost(*arguments):
        raise StorageError("the storage is gone")

    predictor = FakePredictor()
    setattr(predictor, method, lost)
    with pytest.raises(StorageError, match="the storage is gone"):
        Engine(predictor, PLAN).score(shard(TEXTS))
    assert threads() == []


# -- time-outs --------------------------------------------------------------------------------------------


def test_a_row_that_never_ends_fails_alone():
    predictor = FakePredictor(hangs=["h" * 9, "h" * 20])
    texts = [*TEXTS[:50], "h" * 9, *TEXTS[50:], "h" * 20]
    result = Engine(predictor, PLAN, predictor.patience(batch_timeout=7.0)).score(shard(texts))
    assert _failed(result) == [("k50", "Timeout"), ("k101", "Timeout")]
    assert result.failures[0].message == "computing this row alone takes longer than 7 s"
    assert _predictions(result) == {
        f"k{place}": len(text) for place, text in enumerate(texts) if text[0] == "x"
    }
    assert 2 < result.stats.timeouts <= 8
    assert threads() == []


def test_any_number_of_endless_rows_is_found_among_good_ones():
    texts = ["h" if place % 3 == 0 else "x" for place in range(60)]
    predictor = FakePredictor(hangs=["h"])
    result = Engine(predictor, PLAN, predictor.patience()).score(shard(texts))
    assert _failed(result) == [(f"k{place}", "Timeout") for place in range(0, 60, 3)]


def test_a_batch_that_is_only_large_succeeds_in_halves():
    predictor = FakePredictor(most_rows=3)
    result = Engine(predictor, PLAN, predictor.patience()).score(shard(["xxx"] * 16))
    assert result.failures == []
    assert result.stats.timeouts == result.stats.bisections > 0
    assert max(map(len, predictor.batches)) > 1


def test_real_batches_are_stopped_too(cases):
    """With a real clock: the batch lasts until it is stopped, however slow the machine is."""
    case = cases("tabular")

    def endless(rows):
        while 7 in rows:
            torch.tanh(torch.ones(50, 50))

    case.batches.fault, patience = endless, case.engine.patience
    case.engine.patience = Patience(batch_timeout=0.2)
    try:
        result = case.engine.score(case.rows.slice(0, 40))
    finally:
        case.batches.fault, case.engine.patience = lambda rows: None, patience
    assert (case.rows["row_key"][7].as_py(), "Timeout") in _failed(result)


def test_a_batch_that_cannot_be_stopped_is_a_hanging_device():
    predictor, free = FakePredictor(), threading.Event()

    def native(prepared, rows):
        predictor.hanging.set()
        free.wait()

    predictor.forward = native
    engine = Engine(predictor, PLAN, predictor.patience(batch_timeout=7.0, grace=0.01))
    results = engine.score_stream(iter([shard(["a"]), shard(["b"])]))
    with pytest.raises(InferenceError, match=r"device does not answer.* \(7 s\).*run the partition again"):
        next(results)
    assert threads() == ["forward"]
    # The next partition must not wait for the same device again.
    for score in (lambda: engine.score(shard(["a"])), lambda: next(engine.score_stream(iter([])))):
        with pytest.raises(InferenceError, match="device does not answer"):
            score()
    free.set()


def test_a_device_that_is_too_slow_for_any_row_is_not_tried_row_by_row():
    predictor = FakePredictor(most_rows=0)
    with pytest.raises(InferenceError, match=r"8 rows, each computed alone, .* inference\.batch_timeout"):
        Engine(predictor, PLAN, predictor.patience()).score(shard(TEXTS))
    assert len(predictor.tried) < 20


# -- errors that may pass ---------------------------------------------------------------------------------


def _waiting(predictor, texts, **others):
    slept = []
    engine = Engine(predictor, PLAN, Patience(sleep=slept.append, **others))
    return engine.score(shard(texts)), slept


def test_an_outage_that_passes_costs_no_row():
    predictor = FakePredictor(outages=[ConnectionResetError(), TimeoutError()])
    result, slept = _waiting(predictor, TEXTS)
    assert result.failures == []
    assert slept == [0.5, 2.0]
    assert (result.stats.retries, result.stats.bisections) == (2, 0)


def test_each_outage_begins_with_the_shortest_wait():
    predictor = FakePredictor()
    forward, calls = predictor.forward, []

    def shaky(prepared, rows):
        calls.append(1)
        if len(calls) in (1, 2, 5):
            raise ConnectionError("gone for a moment")
        return forward(prepared, rows)

    predictor.forward = shaky
    result, slept = _waiting(predictor, TEXTS)
    assert result.failures == []
    assert slept == [0.5, 2.0, 0.5]


def test_an_outage_that_lasts_is_waited_for_once():
    predictor = FakePredictor(fails=["bad"] * 9, error=ConnectionError)
    result, slept = _waiting(predictor, ["bad"] * 9)
    assert [kind for _, kind in _failed(result)] == ["ConnectionError"] * 9
    assert slept == [0.5, 2.0, 8.0]
    assert result.stats.retries == 3


def test_other_errors_are_not_tried_again():
    predictor = FakePredictor(fails=["bad"])
    result, slept = _waiting(predictor, ["bad"])
    assert (_failed(result), slept) == ([("k0", "ValueError")], [])
    assert predictor.tried == [1]


def test_what_a_failed_batch_held_is_given_up_before_the_next_one():
    class Tensor:
        pass

    predictor, held, alive = FakePredictor(), [], []

    def failing(prepared, rows):
        alive.append(sum(tensor() is not None for tensor in held))
        tensor = Tensor()
        held.append(weakref.ref(tensor))
        try:
            raise KeyError("first", rows)
        except KeyError as error:
            raise ValueError("then") from error

    predictor.forward = failing
    gc.disable()
    try:
        result = Engine(predictor, PLAN).score(shard(TEXTS[:9]))
    finally:
        gc.enable()
    assert len(result.failures) == 9
    assert alive == [0] * len(held)


# -- giving up --------------------------------------------------------------------------------------------


def test_the_rest_is_not_computed_when_too_many_rows_have_failed():
    texts = ["bad"] * 5000
    predictor = FakePredictor(fails=["bad"])
    engine = Engine(predictor, PLAN)
    with pytest.raises(
        InferenceError, match=r"151 rows have failed, and 150 may .* 151 ValueError \(bad text\)"
    ):
        list(engine.score_stream(iter([shard(texts)]), tolerated=150))
    assert len(predictor.tried) < 320
    assert len(next(engine.score_stream(iter([shard(texts)]))).failures) == 5000


def test_failures_of_all_shards_count():
    parts = [shard(["bad"] * 60 + ["x"] * 60, 120 * place) for place in range(4)]
    results = Engine(FakePredictor(fails=["bad"]), PLAN).score_stream(iter(parts), tolerated=130)
    assert [len(next(results).failures) for _ in range(2)] == [60, 60]
    with pytest.raises(InferenceError, match="131 rows have failed, and 130 may"):
        next(results)


def test_as_many_as_are_tolerated_and_a_hundred_for_the_record_are_named():
    engine = Engine(FakePredictor(fails=["bad"]), PLAN)
    for count, tolerated in ((150, 150), (100, 0)):
        [result] = engine.score_stream(iter([shard(["bad"] * count)]), tolerated=tolerated)
        assert len(result.failures) == count


# -- whatever happens -------------------------------------------------------------------------------------

KINDS = {
    "x": None, "p": "ValueError", "o": "OutOfMemory", "h": "Timeout", "c": "ConnectionError",
    "n": "InvalidOutput", "u": "ValueError", "-": "NullText",
}  # fmt: skip
kind = st.sampled_from("xxxxxxxxxxxxpocnu-")
healthy_or_not = st.lists(st.tuples(kind, st.integers(1, 30)), max_size=60)
hanging = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=4)


@settings(max_examples=120, deadline=None)
@given(
    rows=healthy_or_not,
    late=hanging,
    memory=st.sampled_from([10**9, 60, 25, 7]),
    plan=st.builds(
        BatchPlan,
        st.just("cpu"),
        st.just("float32"),
        st.sampled_from([None, 16, 64, 500]),
        st.sampled_from([1, 5, 64]),
    ),
)
def test_every_row_is_answered_once_and_exactly_the_bad_ones_fail(rows, late, memory, plan):
    for place, cost in late:
        rows.insert(place, ("h", cost))
    texts = [None if name == "-" else name * cost for name, cost in rows]
    of = {name: [text for text in texts if text and text[0] == name] for name in KINDS}
    errors = {"p": ValueError, "o": MemoryError, "c": ConnectionError}
    predictor = FakePredictor(
        memory=memory,
        fails={text: error for name, error in errors.items() for text in of[name]},
        hangs=of["h"],
        unpreparable=of["u"],
        answers=dict.fromkeys(of["n"], float("nan")),
    )
    result = Engine(predictor, plan, predictor.patience(sleep=lambda seconds: None)).score(shard(texts))

    expected = {}
    for place, (name, cost) in enumerate(rows):
        fits = name in "u-" or cost <= memory
        cause = KINDS[name] if fits else "OutOfMemory"
        if cause is not None:
            expected[f"k{place}"] = cause
    assert _failed(result) == list(expected.items())
    good = [(f"k{place}", float(cost)) for place, (_, cost) in enumerate(rows) if f"k{place}" not in expected]
    assert list(_predictions(result).items()) == good
    assert result.outputs["row_key"].to_pylist() == [key for key, _ in good]
    assert (result.stats.rows, result.stats.failed_rows) == (len(rows), len(expected))
    assert threads() == []
