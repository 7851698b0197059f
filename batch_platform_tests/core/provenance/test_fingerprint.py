"""Equal work has one fingerprint; anything that could change a value gives another."""

import pyarrow as pa
import pytest

from batch_platform.core.provenance.fingerprint import code_version, fingerprint, input_hashes


def test_order_of_names_does_not_matter_and_values_do() -> None:
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})


def test_code_version_is_stable_within_a_process() -> None:
    assert code_version() == code_version()
    assert len(code_version()) == 12


TABLE = pa.table(
    {
        "n": pa.array([1, 1, None, 0], pa.int64()),
        "x": pa.array([0.5, 0.5, 0.5, None], pa.float64()),
        "t": ["ab", "ab", "ab", None],
        "e": pa.array([[1.0], [1.0], [], None], pa.list_(pa.float32())),
        "b": [True, True, False, None],
    }
)


@pytest.mark.parametrize("column", TABLE.column_names)
def test_equal_rows_have_equal_hashes_and_null_is_a_value_of_its_own(column: str) -> None:
    hashes = input_hashes(TABLE, [column]).to_pylist()
    values = [repr(value) for value in TABLE[column].to_pylist()]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == len(set(values))


def test_values_do_not_run_into_one_another() -> None:
    one = pa.table({"a": ["x"], "b": ["yz"]})
    other = pa.table({"a": ["xy"], "b": ["z"]})
    assert input_hashes(one, ["a", "b"]) != input_hashes(other, ["a", "b"])


def test_only_the_named_columns_count_and_chunks_do_not() -> None:
    changed = TABLE.set_column(0, "n", pa.array([9, 9, 9, 9], pa.int64()))
    assert input_hashes(TABLE, ["x", "t"]).equals(input_hashes(changed, ["x", "t"]))
    chunked = pa.concat_tables([TABLE.slice(0, 1), TABLE.slice(1)])
    assert input_hashes(TABLE, TABLE.column_names).equals(input_hashes(chunked, TABLE.column_names))
