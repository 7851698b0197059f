"""The asset `delivered`: part of the chain, and a sink in trouble stops nothing else."""

import pytest

from batch_platform.core import outcomes
from batch_platform_tests.core.deliveries import SINK, ask
from batch_platform_tests.mini import DAYS, Mini, failure_message
from batch_platform_tests.postgres import Server


def test_predictions_reach_the_database(
    mini: Mini, postgres: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = postgres.database()
    monkeypatch.setenv("SCORES_DB", url)
    mini.change(sinks=[SINK])
    mini.write(DAYS[0], 20)
    mini.write(DAYS[1], 5)
    mini.run(DAYS[0], DAYS[1])
    count = "SELECT partition_key, count(*) FROM scores GROUP BY 1 ORDER BY 1"
    assert ask(url, mini.folder, count) == [(DAYS[0], 20), (DAYS[1], 5)]
    assert (mini.check("delivered", "delivered", DAYS[0]), mini.check("delivered", "complete", DAYS[1])) == (
        True,
        True,
    )

    mini.write(DAYS[1], 3)
    mini.write(DAYS[2], 4)
    monkeypatch.delenv("SCORES_DB")
    failed = mini.run(DAYS[1], DAYS[2], fail=True)
    assert f"{DAYS[2]}: delivered: the environment variable SCORES_DB is not set" in failure_message(failed)
    states = {stage: outcome.state for stage, outcome in outcomes.recall(mini.layout, DAYS[2]).items()}
    assert states.pop("delivered") == "failed"
    assert set(states.values()) == {"done"}
    assert "drift_report" in states

    monkeypatch.setenv("SCORES_DB", url)
    mini.run(DAYS[1], DAYS[2])
    assert ask(url, mini.folder, count) == [(DAYS[0], 20), (DAYS[1], 3), (DAYS[2], 4)]
    assert ask(url, mini.folder, "SELECT count(DISTINCT model_digest) FROM scores") == [(1,)]
