"""`make ui`: Dagster's web server and daemon on loopback, and the drift reports beside them."""

import argparse
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from batch_platform.core.monitoring.report_server import report_server
from batch_platform.errors import BatchPlatformError
from batch_platform.settings import REPORTS_URL_VARIABLE, Settings, project_root


def main() -> int:
    """Run both until interrupted."""
    arguments = _arguments()
    try:
        settings = Settings.from_env()
        workspace = project_root() / "workspace.yaml"
    except BatchPlatformError as error:
        print(f"make ui: {error}", file=sys.stderr)
        return 2
    try:
        server = report_server(settings.root / "reports", arguments.reports_port)
    except OSError as error:
        print(
            f"make ui: port {arguments.reports_port} for the reports: {error}; choose another: "
            "make ui REPORTS_PORT=3101",
            file=sys.stderr,
        )
        return 2
    reports_url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"Dagster: http://127.0.0.1:{arguments.port}    drift reports: {reports_url}", flush=True)
    try:
        return _dagster(workspace, arguments.port, reports_url)
    finally:
        server.shutdown()


def _dagster(workspace: Path, port: int, reports_url: str) -> int:
    command = [
        str(Path(sys.executable).with_name("dagster")),
        *("dev", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(port)),
    ]
    process = subprocess.Popen(
        command, env={**os.environ, REPORTS_URL_VARIABLE: reports_url}, cwd=workspace.parent
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: process.send_signal(signal.SIGINT))
    return process.wait()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=3000, help="port of the Dagster UI")
    parser.add_argument("--reports-port", type=int, default=3001, help="port of the drift reports")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
