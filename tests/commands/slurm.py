"""A SLURM cluster of one node on this machine, in a folder of its own: Debian's slurm-wlm and munge."""

from __future__ import annotations

import getpass
import os
import platform
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

PATH = os.pathsep.join((os.environ["PATH"], "/usr/sbin"))
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel")
CONFIG = """\
ClusterName=rewarm
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge,cred_expire=5
SlurmctldPort={controller}
SlurmdPort={node}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmdSpoolDir={folder}/spool
StateSaveLocation={folder}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES State=UP
"""


def _ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextmanager
def _daemon(environment: Mapping[str, str], log: Path, ready: str, *command: str) -> Iterator[None]:
    """Run a daemon in the foreground; skip the test where it ends before it has said that it is `ready`."""
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        for line in process.stderr:
            said += line
            if ready in line:
                break
        else:
            pytest.skip(f"{command[0]} does not start here: {said[-500:]}")
        with log.open("w") as file:  # a full pipe would stop it
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=file)
            try:
                yield
            finally:
                process.terminate()
                process.wait()
                drain.wait()


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Yield the environment in which SLURM's commands, and what they start, find a cluster of their own."""
    missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    if missing:
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)} (Debian: slurm-wlm and munge)")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path may have no more than 107 bytes
    for name in ("spool", "state"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(secrets.token_bytes(1024))
    (folder / "key").chmod(0o600)
    controller, node = _ports(2)
    host = platform.node().partition(".")[0]
    facts = {"host": host, "user": getpass.getuser(), "folder": folder, "controller": controller, "node": node}
    (folder / "slurm.conf").write_text(CONFIG.format(**facts))
    environment = os.environ | {"PATH": PATH, "SLURM_CONF": str(folder / "slurm.conf")}
    munged = ["munged", "--foreground", "--force"]
    munged += [f"--{name}-file={folder / name}" for name in ("key", "pid", "seed")]
    munged += [f"--socket={folder / 'munge'}", "--log-file=/dev/stderr"]
    try:
        with (
            _daemon(environment, folder / "munged.log", "Created 2 work threads", *munged),
            _daemon(environment, folder / "slurmctld.log", "Running as primary controller", "slurmctld", "-D"),
            _daemon(environment, folder / "slurmd.log", "slurmd started", "slurmd", "-D"),
        ):
            try:
                yield environment
            finally:
                cancel = ("scancel", "--full", "--signal=KILL", "--user", getpass.getuser())
                subprocess.run(cancel, env=environment, check=False)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
