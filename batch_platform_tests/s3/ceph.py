"""A Ceph object gateway on loopback: a real S3 server that keeps its data on a disk, for `make torture`.

One monitor, one manager, one object store daemon and one gateway, from Debian's packages, made from an empty folder in
about half a minute and ended with the block. Nothing on the machine beside that folder is touched.
"""

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batch_platform_tests.project import free_port, wait_for
from batch_platform_tests.s3.server import KEY, SECRET, client

PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-mgr", "ceph-common")
_PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "ceph-mgr", "ceph")
_SECONDS = 120  # for each command

# `ms_mon_client_mode` and its like: without them the daemons hang on loopback in containers with few privileges.
_CONFIGURATION = """\
[global]
fsid={fsid}
mon_initial_members=a
mon_host=[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]
public_addr=127.0.0.1
cluster_addr=127.0.0.1
auth_cluster_required=none
auth_service_required=none
auth_client_required=none
ms_mon_client_mode=crc
ms_cluster_mode=crc
ms_service_mode=crc
ms_client_mode=crc
run_dir={folder}/run
admin_socket={folder}/run/$name.asok
pid_file={folder}/run/$name.pid
log_file={folder}/log/$name.log
crash_dir={folder}/log
osd_pool_default_size=1
osd_pool_default_min_size=1
osd_pool_default_pg_num=8
osd_pool_default_pg_autoscale_mode=off
osd_crush_chooseleaf_type=0
osd_class_load_list=*
osd_class_default_list=*
osd_memory_target=939524096
mon_allow_pool_size_one=true
mon_warn_on_pool_no_redundancy=false
mon_data={folder}/mon
mon_data_avail_warn=2
mon_data_avail_crit=1
mgr_data={folder}/mgr
osd_data={folder}/osd
osd_objectstore=bluestore
bluestore_block_size=8589934592
bluestore_block_create=true
rgw_data={folder}/rgw
rgw_frontends=beast endpoint=127.0.0.1:{ports[2]}
rgw_dns_name=localhost
rgw_enable_usage_log=false
"""


def is_installed() -> bool:
    """Whether Ceph's programs are there."""
    return all(shutil.which(program) for program in _PROGRAMS)


@contextmanager
def ceph_s3(folder: Path) -> Iterator[str]:
    """Ceph's S3 server; yields its address. It keeps its data in the folder, which must not be there yet."""
    for name in ("mon", "osd", "mgr", "run", "log", "rgw"):
        (folder / name).mkdir(parents=True)
    ports = [free_port() for _ in range(3)]
    cluster = str(uuid.uuid4())
    configuration = folder / "ceph.conf"
    configuration.write_text(_CONFIGURATION.format(fsid=cluster, folder=folder, ports=ports))
    ceph = _Ceph(folder)
    try:
        addresses = f"[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]"
        monitors = str(folder / "monmap")
        ceph.run("monmaptool", "--create", "--fsid", cluster, "--addv", "a", addresses, monitors)
        ceph.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
        ceph.run("ceph-mon", "-i", "a")
        ceph.run("ceph-mgr", "-i", "x")
        disk = str(uuid.uuid4())
        ceph.run("ceph", "osd", "create", disk)
        ceph.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        ceph.run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=h", "root=default")
        ceph.run("ceph-osd", "-i", "0")
        ceph.run("radosgw", "-n", "client.rgw.a")
        names = ("--uid=tests", "--display-name=tests", f"--access-key={KEY}", f"--secret-key={SECRET}")
        ceph.run("radosgw-admin", "user", "create", *names)
        endpoint = f"http://127.0.0.1:{ports[2]}"
        wait_for(lambda: _answers(endpoint), "the Ceph gateway")
        yield endpoint
    finally:
        ceph.stop()


class _Ceph:
    """The programs of one cluster."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, program: str, *words: str) -> None:
        """Run a program to its end; the daemons detach themselves."""
        setting = [] if program == "monmaptool" else ["-c", str(self._folder / "ceph.conf")]
        with (self._folder / "log" / "commands.log").open("ab") as log:
            # Not a pipe: a daemon would keep it open.
            subprocess.run([program, *setting, *words], stdout=log, stderr=log, timeout=_SECONDS, check=True)

    def stop(self) -> None:
        """End the daemons, by force: the data is not needed any more."""
        for path in (self._folder / "run").glob("*.pid"):
            number = int(path.read_text())
            try:
                os.kill(number, signal.SIGKILL)
                while Path(f"/proc/{number}").exists():
                    time.sleep(0.05)
            except ProcessLookupError:
                continue


def _answers(endpoint: str) -> bool:
    try:
        client(endpoint).list_buckets()
    except Exception:  # noqa: BLE001 - not up yet: whatever the client says
        return False
    return True
