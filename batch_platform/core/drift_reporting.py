"""Stage `drift_report`: one partition's features and predictions judged against the reference, and a page.

Streams the committed tables once for profiles and samples. The verdict stands when this returns; the page is
made beside the next partitions.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_platform.core.data import files
from batch_platform.core.data.files import Location
from batch_platform.core.diagnosing import Samples, diagnose
from batch_platform.core.gate import CheckResult
from batch_platform.core.monitoring import summary
from batch_platform.core.monitoring.diagnosis import Diagnosis
from batch_platform.core.monitoring.evidently_report import RenderRequest
from batch_platform.core.monitoring.judging import DriftJudgement, judge_partition, moment_of
from batch_platform.core.monitoring.profile import Profile, Profiler, profile_table
from batch_platform.core.monitoring.reference import Reference, ReferenceStore
from batch_platform.core.monitoring.rendering import Renderer
from batch_platform.core.monitoring.reviews import Reviewed, ReviewStore, reviewed
from batch_platform.core.provenance.fingerprint import code_version, fingerprint
from batch_platform.core.provenance.receipts import inherited, read_from
from batch_platform.core.slice import Slice, StageResult, commit_small
from batch_platform.core.watching import unusual, watched_features
from batch_platform.errors import MonitoringError

# Evidently's cost grows with the rows; half a thousand draw a distribution well enough.
SAMPLE_ROWS = 500
_SAMPLED = f"Distributions are drawn from at most {SAMPLE_ROWS} rows each; the verdict read all rows."

_METRICS = pa.schema(
    [
        ("group", pa.string()),
        ("column", pa.string()),
        ("largest_z", pa.float64()),
        ("alert", pa.bool_()),
        ("status", pa.string()),
        ("reference_version", pa.int64()),
    ]
)


def report_drift(slice_: Slice, renderer: Renderer) -> StageResult:
    """Judge one partition and ask for its page.

    Raises:
        UpstreamMissingError: features or predictions are not there.
        MonitoringError: a profile or the reference cannot be read, or `drift.columns` names what is no feature.
        StorageError: the lake cannot be written.
    """
    features, predictions = slice_.committed("features"), slice_.committed("predictions")
    store = ReferenceStore(slice_.layout.monitoring)
    watched = _watched(slice_)
    profiles = {table: _profile(slice_, table, columns) for table, columns in watched.items()}
    judgement = judge_partition(
        store,
        slice_.key,
        _days(slice_, store),
        profiles,
        slice_.spec.drift.reference_partitions,
        slice_.spec.drift.false_alarms_per_quarter,
    )
    version = judgement.reference.version if judgement.reference else 0
    decided = reviewed(judgement.verdicts, ReviewStore(slice_.layout.monitoring).all(), slice_.key, version)
    # From here on the verdicts are those that stand after the owners' decisions.
    judgement = replace(judgement, verdicts={table: each.verdict for table, each in decided.items()})
    verdicts = {table: summary.reviewed_values(each) for table, each in decided.items()}
    identity = fingerprint(
        {
            "features": features.fingerprint,
            "predictions": predictions.fingerprint,
            "drift": slice_.spec.drift.model_dump(),
            "reference": version,
            "code": code_version("monitoring", "drift_reporting.py"),
            "verdicts": verdicts,  # the days before have a say in them
        }
    )
    nulls = _null_shares(profiles)
    page = slice_.layout.report(slice_.key) / "drift.html"
    found = _diagnosis(slice_, judgement, watched)
    calibrations = judgement.calibrations
    said = {
        "fingerprint": identity,
        "reference": version,
        **verdicts,
        "diagnosis": found and found.to_values(),
        "calibration": {group: summary.calibration_values(each) for group, each in calibrations.items()},
    }
    quality = unusual(slice_.layout, slice_.key)
    reused = not _write_verdicts(page.with_suffix(".json"), said) and page.is_file()
    what = {
        **inherited(predictions.receipt),
        **read_from("predictions", predictions.receipt),
        "rows_in": predictions.rows,
        "drift": {table: verdict.status for table, verdict in judgement.verdicts.items()},
    }
    _commit_metrics(slice_, judgement, decided, identity, what)
    decisions = _decisions(decided)
    top = summary.summary_html(judgement.verdicts, nulls, _SAMPLED, decisions, found, calibrations, quality)
    request = None if reused else _request(slice_, judgement, watched, top, page)
    return StageResult(
        table="drift_metrics",
        rows=features_rows(features.receipt),
        data_version=identity,
        reused=reused,
        checks=tuple(_check(table, each, found) for table, each in decided.items()),
        metadata={
            **{f"{table} verdict": verdict.message for table, verdict in judgement.verdicts.items()},
            "reference": "none yet" if judgement.reference is None else judgement.reference.words,
            "owner's decision": decisions or None,
            "diagnosis": found and found.paragraph,
        },
        markdown=summary.markdown(judgement.verdicts, nulls, decisions, found, calibrations, quality),
        report=page,
        trend=slice_.layout.trend,
        rendering=None if request is None else renderer.submit(request),
    )


def features_rows(receipt: Mapping) -> int:
    """Rows of a committed partition."""
    return sum(file["rows"] for file in receipt["files"])


# -- what is watched --------------------------------------------------------------------------------------


Watched = dict[str, dict[str, str]]  # table -> column -> its name in profiles and on pages


def _watched(slice_: Slice) -> Watched:
    """Columns to judge: features that are no keys and not sensitive, and the model's outputs."""
    features = slice_.lake.schema("features")
    predictions = slice_.lake.schema("predictions")
    assert features is not None
    assert predictions is not None
    try:
        names = watched_features(slice_.spec, features.names)
    except MonitoringError as error:
        raise MonitoringError(f"{slice_.about}: {error}") from None
    outputs = ("label", "score", "prediction", "embedding", "generated_text", "decision")
    return {
        "features": {name: name for name in names},
        # A feature may bear the name of an output.
        "predictions": {
            name: f"{name} (prediction)" if name in names else name
            for name in outputs
            if name in predictions.names
        },
    }


def _days(slice_: Slice, store: ReferenceStore) -> dict[str, datetime]:
    reference = store.current()
    known = {slice_.key, *store.keys("features"), *(reference.keys if reference else ())}
    return {key: moment_of(key) for key in known}


def _profile(slice_: Slice, table: str, columns: Mapping[str, str]) -> Profile:
    """The profile that was made when the rows were judged, where it is of the rows that stand; else it is made."""
    made = slice_.committed(table).receipt.get("profile")
    if made is not None:
        content = ReferenceStore(slice_.layout.monitoring).content_of(table, slice_.key, made)
        found = Profile() if content is None else Profile.from_bytes(content)
        if found.columns.keys() == _profiled(slice_, table, columns):
            return found
    profiler = Profiler()
    for batch in slice_.lake.batches(table, slice_.key, list(columns)):
        profiler.add(batch.rename_columns([columns[name] for name in batch.schema.names]))
    return profiler.profile()


def _profiled(slice_: Slice, table: str, columns: Mapping[str, str]) -> set[str]:
    """Of the columns, those of a type that is profiled."""
    schema = slice_.lake.schema(table)
    assert schema is not None
    return set(profile_table(pa.schema([schema.field(name) for name in columns]).empty_table()).columns)


def _null_shares(profiles: Mapping[str, Profile]) -> dict[str, float]:
    return {
        name: (column.nulls + column.bad) / column.rows
        for profile in profiles.values()
        for name, column in profile.columns.items()
        if column.rows
    }


# -- the verdict ------------------------------------------------------------------------------------------


def _check(table: str, decided: Reviewed, diagnosis: Diagnosis | None) -> CheckResult:
    verdict = decided.verdict
    values: dict[str, Any] = {
        "status": verdict.status,
        "rows": verdict.rows,
        "reference_days": verdict.reference_days,
    }
    if decided.words:
        values["owner's decision"] = decided.words
    if verdict.alert and diagnosis is not None:
        values["diagnosis"] = diagnosis.paragraph
    found = {
        f"{f.column}: {f.statistic}": f"{f.direction}, effect {f.effect:+.3f}" for f in verdict.findings[:10]
    }
    return CheckResult(f"{table}_drift", not verdict.alert, verdict.message, values | found, severity="warn")


def _decisions(decided: Mapping[str, Reviewed]) -> str:
    """What owners decided on the causes of all groups."""
    return "; ".join(dict.fromkeys(each.words for each in decided.values() if each.words))


def _commit_metrics(
    slice_: Slice,
    judgement: DriftJudgement,
    decided: Mapping[str, Reviewed],
    identity: str,
    what: Mapping[str, Any],
) -> None:
    version = judgement.reference.version if judgement.reference else None
    rows = []
    for table, verdict in judgement.verdicts.items():
        named = {finding.column for finding in verdict.findings}
        for column, score in verdict.scores.items():
            rows.append((table, column, score, column in named, verdict.status, version))
    columns = list(zip(*rows, strict=True)) or [()] * len(_METRICS)
    arrays = [pa.array(values, field.type) for values, field in zip(columns, _METRICS, strict=True)]
    numbers = {review.number for each in decided.values() for review in each.reviews}
    rows_of_metrics = pa.RecordBatch.from_arrays(arrays, schema=_METRICS)
    commit_small(slice_, "drift_metrics", rows_of_metrics, identity, owners_decisions=sorted(numbers), **what)


def _write_verdicts(path: Location, said: Mapping[str, Any]) -> bool:
    """Write `drift.json`; False where it says the same of the same work already."""
    content = json.dumps(said, indent=1).encode()
    if files.read_if_there(path) == content:
        return False
    # First the old page: were this run killed before the new one is made, the next would take it for the new.
    files.remove(path.with_suffix(".html"))
    files.replace(path, content)
    return True


def _diagnosis(slice_: Slice, judgement: DriftJudgement, watched: Watched) -> Diagnosis | None:
    """What an alarm is about; None where there is none, or no sample of the reference to compare with."""
    if judgement.reference is None or not any(verdict.alert for verdict in judgement.verdicts.values()):
        return None
    current, reference = _samples(slice_, judgement, watched)
    then = pa.table({}) if reference is None else files.read_table(reference)
    samples = Samples(files.read_table(current), then)
    return diagnose(slice_, judgement.verdicts, watched, samples, judgement.reference)


# -- the page ---------------------------------------------------------------------------------------------


def _request(
    slice_: Slice,
    judgement: DriftJudgement,
    watched: Watched,
    summary_html: str,
    page: Location,
) -> RenderRequest:
    current, reference = _samples(slice_, judgement, watched)
    named = frozenset(
        finding.column for verdict in judgement.verdicts.values() for finding in verdict.findings
    )
    scores = {
        column: score for verdict in judgement.verdicts.values() for column, score in verdict.scores.items()
    }
    return RenderRequest(
        title=f"Drift report: {slice_.spec.name}, {slice_.key}",
        summary_html=summary_html,
        current=current,
        reference=reference,
        scores=scores,
        detected=named,
        out=page,
    )


def _samples(slice_: Slice, judgement: DriftJudgement, watched: Watched) -> tuple[Location, Location | None]:
    """Samples of the partition and of the reference, as files."""
    return _keep_sample(slice_, watched), _reference_sample(slice_, judgement.reference)


def _keep_sample(slice_: Slice, watched: Watched) -> Location:
    """Sample the partition evenly: features and outputs of the same rows, without vectors."""
    scored = _sample(slice_, "predictions", list(watched["predictions"]))
    features = _sample(slice_, "features", list(watched["features"]), scored["row_key"].to_pylist())
    order = {key: row for row, key in enumerate(features["row_key"].to_pylist())}
    rows = pa.array([order[key] for key in scored["row_key"].to_pylist()], pa.int64())
    columns = {
        shown: table[name]
        for table, names in ((features.take(rows), watched["features"]), (scored, watched["predictions"]))
        for name, shown in names.items()
        if name in table.column_names and not pa.types.is_nested(table[name].type)
    }
    return _write(slice_.layout.monitoring / "samples" / f"{slice_.key}.parquet", pa.table(columns))


def _sample(slice_: Slice, table: str, columns: list[str], keys: list[str] | None = None) -> pa.Table:
    """Rows of a committed table: those with these keys, or every n-th so that about SAMPLE_ROWS remain.

    A column that the partition's files do not have (features come and go) is not in the sample.
    """
    import pyarrow.compute as pc

    every = max(1, -(-features_rows(slice_.committed(table).receipt) // SAMPLE_ROWS))
    wanted = None if keys is None else pa.array(keys, pa.string())
    kept, first = [], 0
    for batch in slice_.lake.batches(table, slice_.key, ["row_key", *columns]):
        if wanted is not None:
            kept.append(batch.filter(pc.is_in(batch["row_key"], value_set=wanted)))
        else:
            kept.append(batch.take(pa.array(range(-first % every, batch.num_rows, every), pa.int64())))
        first += batch.num_rows
    return pa.Table.from_batches(kept) if kept else pa.table({"row_key": pa.array([], pa.string())})


def _reference_sample(slice_: Slice, reference: Reference | None) -> Location | None:
    """A sample over all reference partitions, made once per reference; None where there is none."""
    if reference is None:
        return None
    folder = slice_.layout.monitoring / "samples"
    path = folder / f"reference-{reference.version:06d}.parquet"
    if path.is_file():
        return path
    parts = [folder / f"{key}.parquet" for key in reference.keys]
    tables = [files.read_table(part) for part in parts if part.is_file()]
    if not tables:
        return None
    together = _together(tables)
    every = max(1, -(-together.num_rows // SAMPLE_ROWS))
    return _write(path, together.take(pa.array(range(0, together.num_rows, every), pa.int64())))


def _together(tables: list[pa.Table]) -> pa.Table:
    """The rows of all tables; columns have the type they had last, null where a table has not that."""
    types = {field.name: field.type for table in tables for field in table.schema}
    columns = {
        name: pa.chunked_array(
            [
                chunk
                for table in tables
                for chunk in (
                    table[name].chunks
                    if name in table.column_names and table[name].type == kind
                    else [pa.nulls(table.num_rows, kind)]
                )
            ],
            kind,
        )
        for name, kind in types.items()
    }
    return pa.table(columns)


def _write(path: Location, table: pa.Table) -> Location:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    files.replace(path, sink.getvalue().to_pybytes())
    return path
