"""Deliveries to PostgreSQL that are killed at random moments: what the table holds after each kill, and after the retry.

    python -m benchmarks.delivery_kills --kills 50

After a kill the table must hold the rows of the commit before or of this one, whole; after the retry those of this one,
each once. Exit code 1 where it does not.
"""

import argparse
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from batch_platform_tests.core.deliveries import Shop
from batch_platform_tests.mini import DAYS
from batch_platform_tests.postgres import execute, server

ROWS = 20_000


def deliver(folder: str) -> None:
    """One delivery, in a process of its own."""
    Shop(Path(folder)).deliver()


def held(url: str) -> dict[str, float]:
    """What the table holds; a row key that is there twice is an error."""
    rows = execute(url, f"SELECT row_key, score FROM scores WHERE partition_key = '{DAYS[0]}'")
    assert len(dict(rows)) == len(rows)
    return dict(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    asked = parser.parse_args()
    chance, found = random.Random(1), Counter[str]()
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["batch_platform_tests.core.deliveries"])
    with tempfile.TemporaryDirectory(prefix="batch_platform-kills-") as folder, server() as running:
        url = os.environ["SCORES_DB"] = running.database()
        shop, before = Shop(Path(folder)), dict[str, float]()
        shop.commit(before, "f")
        shop.deliver()
        longest = 1.0
        for kill in range(asked.kills):
            wanted = {f"k{row}": (row % 97 + kill) / 1000 for row in range(kill * 50, ROWS + kill * 50)}
            shop.commit(wanted, f"f{kill}")
            child = processes.Process(target=deliver, args=(folder,))
            began = time.monotonic()
            child.start()
            child.join(chance.uniform(0, longest))
            found["killed" if child.is_alive() else "ended before"] += 1
            child.kill()
            child.join()
            after = held(url)
            found["new" if after == wanted else "old" if after == before else "NEITHER"] += 1
            began = time.monotonic()
            shop.deliver()
            longest = 1.5 * max(time.monotonic() - began, 0.2)
            found["right after the retry" if held(url) == wanted else "WRONG AFTER THE RETRY"] += 1
            before = wanted
    print(dict(found))
    sys.exit(1 if found["NEITHER"] or found["WRONG AFTER THE RETRY"] else 0)


if __name__ == "__main__":
    main()
