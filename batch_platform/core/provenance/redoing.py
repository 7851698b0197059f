"""Scoring again exactly the rows that something made, partition by partition, with the model of now.

Decides nothing about which rows these are (`impact` does) and copies all others untouched (`rescoring` does).
"""

import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from batch_platform.core.models.source import model_source
from batch_platform.core.provenance.impact import Impact, Question, affected_keys
from batch_platform.core.rescoring import Rescored, rescore_rows
from batch_platform.core.scoring import Progress, load_engine
from batch_platform.core.slice import Run, Slice
from batch_platform.core.spec import PipelineSpec
from batch_platform.settings import Settings


def rescore_affected(
    spec: PipelineSpec, settings: Settings, base: Path, question: Question, impact: Impact, progress: Progress
) -> Iterator[tuple[str, Rescored]]:
    """Score the rows again that `affected` has counted for one pipeline.

    Args:
        base: folder that relative URIs of the pipeline file start from.
        question: what was asked; not about history.
        impact: the answer.

    Yields:
        A partition key, and what scoring its rows again has changed, once it is committed.

    Raises:
        ModelError: the model that the pipeline's alias points to cannot be had.
        RescoreError: rows have come or gone since a partition was scored; those before it are committed.
        As `rescoring.rescore_rows`.
    """
    partitions = [found.partition_key for found in impact.partitions if found.pipeline == spec.name]
    if not partitions:
        return
    model = model_source(spec.model.name, settings.root).resolve(spec.model.name, spec.model.alias)
    run = Run(str(uuid.uuid4()), f"affected --rescore: {question.by or 'range'} {question.value}".rstrip())
    with closing(load_engine(model, spec, settings.root)) as engine:
        for key in partitions:
            slice_ = Slice(spec, spec.partitions.calendar().partition(key), settings, base, run)
            keys = affected_keys(slice_.lake, question, key)
            yield key, rescore_rows(slice_, keys, model, engine, progress)
