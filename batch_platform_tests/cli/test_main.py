"""The command itself: exit codes, one line for an error, and a quick start."""

import subprocess
import sys
from pathlib import Path

import pytest

from batch_platform.cli import main as command
from batch_platform_tests.project import BIN


def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["batch-platform", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr()
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return code or 0, said.out, said.err


@pytest.mark.parametrize("words", [("--help",), ("-h",)])
def test_help_lists_the_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    for name in ("models", "status"):
        assert f"\n  {name} " in out
        code, own, _ = run(monkeypatch, capsys, name, "--help")
        assert code == 0
        assert own.startswith(f"Usage: batch-platform {name}")


@pytest.mark.parametrize(
    "words", [("nonsense",), ("--nonsense",), ("status", "--nonsense"), ("models", "promote")]
)
def test_wrong_usage_exits_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, out) == (2, "")
    assert "Usage: batch-platform" in err


def test_an_error_is_one_line_and_debug_shows_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "workspace.yaml").touch()
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, "status")
    assert (code, out) == (2, "")
    assert err.startswith(f"batch-platform: {tmp_path / 'pyproject.toml'}: ")
    assert err.count("\n") == 1
    monkeypatch.setenv("BATCH_PLATFORM_HOURLY_RATE", "cheap")
    code, _, err = run(monkeypatch, capsys, "models", "list")
    assert (code, err) == (2, "batch-platform: BATCH_PLATFORM_HOURLY_RATE='cheap' is not a number\n")
    monkeypatch.setattr(sys, "argv", ["batch-platform", "--debug", "models", "list"])
    with pytest.raises(command.BatchPlatformError, match="HOURLY_RATE"):
        command.main()


def test_the_installed_command_starts_without_libraries() -> None:
    """`--help` answers from the command's own file; no library of data or models is imported for it."""
    done = subprocess.run([BIN / "batch-platform", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("batch-platform, version ")
    program = (
        "import sys; sys.argv = ['batch-platform', '--version']\n"
        "from batch_platform.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('pyarrow', 'deltalake', 'dagster', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
