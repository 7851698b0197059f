"""A size of batches is measured once for a model and a kind of machine, and stands for all runs."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from batch_platform.core import calibrating, scoring
from batch_platform.core.calibrating import calibrate, kept
from batch_platform.core.inference.calibration import Measured
from batch_platform.core.models.registry import RegisteredVersion, Registry
from batch_platform.core.spec import PipelineSpec, parse_spec
from batch_platform.errors import InferenceError, StorageError
from batch_platform_tests import tiny_models

SIZES = (Measured(512, 100.0), Measured(1024, 200.0), Measured(2048, None))


@pytest.fixture
def model(tmp_path: Path) -> RegisteredVersion:
    folder = tiny_models.text_classifier(tmp_path / "model")
    return Registry(tmp_path / "root").register(
        "m", folder, "transformers", tiny_models.TEXT_SIGNATURE, card=tiny_models.CARD, by="me", why="a test"
    )


def spec(**inference: object) -> PipelineSpec:
    return parse_spec(
        {
            "partitions": {"start": "2026-01-01"},
            "source": {
                "uri": "{partition}.parquet",
                "row_key": "id",
                "columns": {"id": {"type": "string", "required": True}, "text": {"type": "string"}},
            },
            "model": {"name": "m"},
            "inference": {"device": "cpu", "batch_tokens": "calibrated", **inference},
        },
        "p",
    )


def places(root: Path) -> list[Path]:
    return [path for path in (root / "calibrations").rglob("*") if path.is_file()]


def test_measured_once_and_kept(
    model: RegisteredVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(calibrating, "measure", lambda *about: calls.append(about) or SIZES)
    root = tmp_path / "root"
    first = scoring.load_engine(model, spec(), root)
    again = scoring.load_engine(model, spec(), root)
    assert (first.plan.batch_tokens, again.plan, len(calls)) == (1024, first.plan, 1)
    (place,) = places(root)
    found = json.loads(place.read_bytes())
    assert (found["model_digest"], found["batch_tokens"], len(found["measured"])) == (model.digest, 1024, 3)
    assert found["hardware"]["processor"]
    # Another numeric type is measured by itself; what is not asked for is not measured.
    scoring.load_engine(model, spec(dtype="bfloat16"), root)
    scoring.load_engine(model, spec(batch_tokens="auto"), root)
    assert (len(calls), len(places(root))) == (2, 2)


def test_another_machine_measures_for_itself(
    model: RegisteredVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "measure", lambda *about: SIZES)
    scoring.load_engine(model, spec(), tmp_path / "root")
    other = {"processor": "another", "cores": 64, "gpu": None}
    monkeypatch.setattr(calibrating, "hardware_of", lambda device: other)
    engine = scoring.load_engine(model, spec(batch_tokens="auto"), tmp_path / "root")
    assert kept(engine, model.digest, tmp_path / "root") is None


def test_the_first_of_two_that_measure_at_once_decides(
    model: RegisteredVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    engine = scoring.load_engine(model, spec(batch_tokens="auto"), root)

    def slow(*about: object) -> tuple[Measured, ...]:
        monkeypatch.setattr(calibrating, "measure", lambda *about: SIZES)
        assert calibrate(engine, model.digest, root).batch_tokens == 1024
        return (Measured(512, 500.0), Measured(1024, 100.0))

    monkeypatch.setattr(calibrating, "measure", slow)
    assert calibrate(engine, model.digest, root).batch_tokens == 1024
    monkeypatch.setattr(calibrating, "measure", lambda *about: (Measured(512, 500.0),))
    assert calibrate(engine, model.digest, root, again=True).batch_tokens == 512
    found = kept(engine, model.digest, root)
    assert found is not None
    assert found.batch_tokens == 512
    assert "512: 500/s" in found.line()


def test_what_is_damaged_is_named(
    model: RegisteredVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrating, "measure", lambda *about: SIZES)
    scoring.load_engine(model, spec(), tmp_path / "root")
    (place,) = places(tmp_path / "root")
    for content in (b"{", b"[]", b'{"batch_tokens": 3}'):
        place.write_bytes(content)
        with pytest.raises(StorageError, match=f"{place.name} is damaged.*remove it"):
            scoring.load_engine(model, spec(), tmp_path / "root")


def test_a_table_has_no_tokens(tmp_path: Path) -> None:
    folder = tiny_models.tabular_model(tmp_path / "model")
    model = Registry(tmp_path / "root").register(
        "m",
        folder,
        "torch",
        tiny_models.TABULAR_CONFIG.signature(),
        card=tiny_models.CARD,
        by="me",
        why="a test",
    )
    with pytest.raises(InferenceError, match="only batches of texts"):
        scoring.load_engine(model, spec(), tmp_path / "root")


_KILLED = """
import os, signal, sys
from pathlib import Path
from batch_platform.core import calibrating, scoring
from batch_platform.core.inference import calibration
from batch_platform.core.models.registry import Registry
from batch_platform_tests.core.test_calibrating import spec

compute = calibration._compute
def killed(*arguments):
    compute(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
calibration._compute = killed
root = Path(sys.argv[1])
scoring.load_engine(Registry(root).get("m", "1"), spec(), root)
"""


def test_killed_while_calibrating(model: RegisteredVersion, tmp_path: Path) -> None:
    root = tmp_path / "root"
    made = subprocess.run([sys.executable, "-c", _KILLED, str(root)], env={**os.environ}, check=False)
    assert made.returncode == -signal.SIGKILL
    assert places(root) == []
    engine = scoring.load_engine(model, spec(), root)
    found = kept(engine, model.digest, root)
    assert found is not None
    assert replace(engine.plan, batch_tokens=found.batch_tokens) == engine.plan
    assert any(each.tokens_per_second for each in found.measured)
