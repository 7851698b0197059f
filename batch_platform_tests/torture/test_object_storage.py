"""The platform's root in object storage: kills, and a network that loses requests and replies."""

from pathlib import Path

import pytest

from batch_platform.core.data.files import SCRATCH_VARIABLE
from batch_platform_tests.s3.fault_proxy import Faults, fault_proxy
from batch_platform_tests.s3.server import environment
from batch_platform_tests.torture.bench import Bench, day, killed_after, random_of, record

# One request in five meets a fault.
_FAULTS = Faults(reset=0.08, busy=0.06, lost=0.06)


@pytest.fixture
def bench(tmp_path: Path, object_storage: str, s3_server: str) -> Bench:
    """Its processes find the server by the standard chain; their shards are small, so that requests are many."""
    settings = environment(s3_server) | {SCRATCH_VARIABLE: str(tmp_path / "scratch")}
    made = Bench(tmp_path / "bench", rows=48, root=object_storage, environment=settings)
    made.make_undisturbed()
    return made


def server_of(request: pytest.FixtureRequest) -> str:
    return "Ceph" if "ceph" in request.node.name else "moto"


@pytest.fixture(
    params=[pytest.param("few", id="few"), pytest.param("many", marks=pytest.mark.torture, id="many")]
)
def is_short(request: pytest.FixtureRequest) -> bool:
    return request.param == "few"


@pytest.mark.timeout(3600)
def test_killed_at_a_random_moment(bench: Bench, is_short: bool, request: pytest.FixtureRequest) -> None:
    duration = bench.seconds_of(day(1))
    random, kills = random_of(11), 3 if is_short else 50
    resumed = died = 0
    for number in range(2, 2 + kills):
        key = day(number)
        bench.write(key)
        with killed_after(bench.start(key), random.uniform(0, duration)) as killed:
            died += killed.code != 0
            resumed += bench.finish(key, killed)
    bench.check_all(2 + kills)
    assert died > kills / 3
    record(
        f"kill -9 at a random moment, S3 ({server_of(request)})",
        died,
        "all values equal the undisturbed run's; 0 rows lost or doubled; {resumed} runs went on from finished shards",
        resumed=resumed,
    )


@pytest.mark.timeout(3600)
def test_one_request_in_five_meets_a_fault(
    bench: Bench, is_short: bool, s3_server: str, request: pytest.FixtureRequest
) -> None:
    enough = 20 if is_short else 1000
    partitions, faults = 1, 0
    with fault_proxy(s3_server, _FAULTS, seed=5) as proxy:
        while faults < enough:
            key = day(partitions)
            bench.write(key)
            made = bench.make(key, AWS_ENDPOINT_URL=proxy.url)
            assert (made.code, made.lines[-1]) == (0, f"done {bench.rows} False"), made.lines
            assert bench.values(key).equals(bench.values(day(0)))
            partitions += 1
            faults = proxy.counts.total() - proxy.counts["passed"]
    bench.check_all(partitions)
    for fate, name in (
        ("reset", "connection reset"),
        ("busy", "503 SlowDown"),
        ("lost", "reply lost after the write"),
    ):
        assert proxy.counts[fate]
        record(
            f"{name}, S3 ({server_of(request)})",
            proxy.counts[fate],
            "every run ended well by itself; all values equal the undisturbed run's; 0 rows lost or doubled",
        )


@pytest.mark.timeout(3600)
def test_killed_while_requests_meet_faults(
    bench: Bench, is_short: bool, s3_server: str, request: pytest.FixtureRequest
) -> None:
    random, kills = random_of(13), 2 if is_short else 25
    with fault_proxy(s3_server, _FAULTS, seed=6) as proxy:
        duration = bench.seconds_of(day(1), AWS_ENDPOINT_URL=proxy.url)
        for number in range(2, 2 + kills):
            key = day(number)
            bench.write(key)
            with killed_after(
                bench.start(key, AWS_ENDPOINT_URL=proxy.url), random.uniform(0, duration)
            ) as killed:
                bench.finish(key, killed)
    bench.check_all(2 + kills)
    record(
        f"kill -9 while one request in five meets a fault, S3 ({server_of(request)})",
        kills,
        "all values equal the undisturbed run's; 0 rows lost or doubled",
    )


@pytest.mark.timeout(3600)
def test_two_runs_on_one_partition(bench: Bench, is_short: bool, request: pytest.FixtureRequest) -> None:
    runs = 2 if is_short else 25
    for number in range(1, 1 + runs):
        key = day(number)
        bench.write(key)
        twins = [bench.start(key), bench.start(key)]
        for twin in twins:
            made = twin.wait()
            assert made.code == 0 and made.lines[-1].startswith(f"done {bench.rows}"), made.lines
        assert bench.values(key).equals(bench.values(day(0)))
    bench.check_all(1 + runs)
    record(
        f"two runs on one partition, S3 ({server_of(request)})", runs, "one result each; both runs ended well"
    )
