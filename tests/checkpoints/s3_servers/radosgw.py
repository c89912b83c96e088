"""Ceph's S3 gateway as Debian packages it: one monitor, one OSD that keeps its objects in memory, one gateway.

Ceph's own authentication is off (everything listens on 127.0.0.1 only); the gateway's, which is S3's, is on.
"""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from s3_server import S3Server, free_port, program, running, wait_until_it_answers

_CONF = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}/0]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
# Without authentication there is no key to encrypt with, and the gateway would ask for that.
ms_mon_client_mode = crc
run_dir = {folder}
crash_dir = {folder}
admin_socket =
pid_file =
log_file = {folder}/$name.log
mon_cluster_log_file = {folder}/cluster.log
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
# One monitor need not collect what others say: each of the pools below would cost two seconds.
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
[mon]
mon_data = {folder}/mon
mon_data_avail_crit = 1
mon_allow_pool_size_one = true
mon_osd_crush_smoke_test = false
[osd]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
[client]
rgw_frontends = beast endpoint=127.0.0.1:{port}
"""


@contextmanager
def radosgw(folder: Path) -> Iterator[S3Server]:
    """The gateway with one user and the bucket `bucket`; the test is skipped where Ceph is not installed.

    Args:
        folder: empty; configuration, logs and the monitor's data go there.
    """
    monitor, osd, gateway = (program(name) for name in ("ceph-mon", "ceph-osd", "radosgw"))
    server = S3Server(f"http://127.0.0.1:{free_port()}")
    fsid, mon_port = str(uuid.uuid4()), free_port()
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    conf = folder / "ceph.conf"
    port = server.endpoint.rpartition(":")[2]
    conf.write_text(_CONF.format(fsid=fsid, mon_port=mon_port, port=port, folder=folder))

    def call(*command: str) -> None:
        done = subprocess.run(
            [command[0], "--conf", str(conf), *command[1:]], cwd=folder, capture_output=True, text=True, timeout=90
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")

    with ExitStack() as stack:
        call("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{mon_port}/0]", "monmap")
        call(monitor, "--mkfs", "--id", "a", "--monmap", "monmap")
        stack.enter_context(running([monitor, "--conf", str(conf), "-f", "--id", "a"], folder))
        osd_id = str(uuid.uuid4())
        call("ceph", "osd", "new", osd_id)
        call(osd, "--mkfs", "--id", "0", "--osd-uuid", osd_id)
        stack.enter_context(running([osd, "--conf", str(conf), "-f", "--id", "0"], folder))
        keys = ("--access-key", server.key, "--secret-key", server.secret)
        call("radosgw-admin", "user", "create", "--uid", "tests", "--display-name", "tests", *keys)
        process = stack.enter_context(running([gateway, "--conf", str(conf), "-f", "--name", "client.rgw"], folder))
        wait_until_it_answers(server.endpoint, process, folder)
        server.create_bucket()
        yield server
