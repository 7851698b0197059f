"""Trains, measures and registers the model of `email_triage`.

The first three layers of MiniLM with mean pooling and a linear head, all weights trained, on the e-mails
before the cut-off; a quarter of those days is held out to choose epoch and threshold. It is measured on
all later e-mails, beside TF-IDF with logistic regression on the same rows.
"""

import copy
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from batch_platform.core.models.registry import Registry
from batch_platform.core.models.signature import InputColumn, ModelSignature
from batch_platform.core.models.versions import RegisteredVersion
from batch_platform.core.spec import PipelineSpec
from batch_platform.core.training import LabelledRows, binary_metrics, labelled_rows, progress
from batch_platform.errors import SourceError
from batch_platform.settings import Settings, project_root

LABELS = ("ham", "spam")
POSITIVE = "spam"
TEXT = "text"
GOLDEN_ROWS = 20
