"""The whole chain with the platform's root in object storage: `dg launch`, the commands, the report server."""

import json
import threading
import urllib.request
from pathlib import Path

from batch_platform.core.data.objects import object_root
from batch_platform.core.monitoring.report_server import report_server
from batch_platform_tests.mini import ATTRIBUTES, DAYS
from batch_platform_tests.project import Project


def test_from_launch_to_report(tmp_path: Path, object_storage: str) -> None:
    project = Project(tmp_path / "project", object_root(object_storage))
    project.add_pipeline("mini", ATTRIBUTES)
    mini = project.mini()
    mini.register()
    for day in DAYS:
        mini.write(day, 40)

    launched = project.command(
        "dg", "launch", "--job", "mini", "--partition-range", f"{DAYS[0]}...{DAYS[-1]}"
    )
    assert launched.returncode == 0, launched.stdout[-2000:]
    assert {day: mini.rows("predictions", day) for day in DAYS} == dict.fromkeys(DAYS, 40)

    status = project.command("batch-platform", "status", "--json")
    assert status.returncode == 0, status.stdout
    verified = project.command("batch-platform", "verify", "mini", "--json")
    assert verified.returncode == 0, verified.stdout
    assert json.loads(verified.stdout)["partitions"] == len(DAYS)
    models = project.command("batch-platform", "models", "verify")
    assert models.returncode == 0, models.stdout

    server = report_server(project.settings.root / "reports", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/mini/{DAYS[-1]}/drift.html"
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert b"<html" in answer.read()
    finally:
        server.shutdown()
    assert not (project.folder / "root").exists()
