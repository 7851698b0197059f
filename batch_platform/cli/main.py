"""The command `batch-platform`. What Dagster's own `dg` does is not repeated here.

Exit codes: 0 fine; 1 the answer is bad; 2 wrong usage or input, with one line on stderr (`--debug` shows where).
"""

import sys
from importlib import import_module

import click

from batch_platform.errors import BatchPlatformError

# Loaded when asked for, so that `--help` does not wait for libraries that one command needs.
_COMMANDS = {
    "affected": ("batch_platform.cli.affected", "affected"),
    "chain": ("batch_platform.cli.chain", "chain"),
    "drift": ("batch_platform.cli.drift", "drift"),
    "audit-bundle": ("batch_platform.cli.audit_bundle", "audit_bundle"),
    "explain": ("batch_platform.cli.explain", "explain"),
    "models": ("batch_platform.cli.models", "models"),
    "plan": ("batch_platform.cli.plan", "plan"),
    "quarantine": ("batch_platform.cli.quarantine", "quarantine"),
    "replay": ("batch_platform.cli.explain", "replay"),
    "status": ("batch_platform.cli.status", "status"),
    "verify": ("batch_platform.cli.verify", "verify"),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute = _COMMANDS[cmd_name]
        return getattr(import_module(module), attribute)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show where an error comes from.")
@click.version_option(package_name="batch_platform")
def cli(debug: bool) -> None:
    """Batch inference pipelines: what is there, what is missing, and which model made it."""


def main() -> None:
    """Run the command; errors of the platform become one line and exit code 2."""
    try:
        cli(prog_name="batch-platform")
    except BatchPlatformError as error:
        if "--debug" in sys.argv:
            raise
        click.echo(f"batch-platform: {' '.join(str(error).split())}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
