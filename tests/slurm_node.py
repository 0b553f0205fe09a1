"""A real Slurm of one node, this machine, without systemd or accounting: for tests, and for trying things."""

import contextlib
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "srun")
START_SECONDS = 30.0


def missing() -> str | None:
    """Why no node can be started here; None where one can."""
    absent = [name for name in PROGRAMS if _find(name) is None]
    if absent:
        return f"{', '.join(absent)} not found: Debian's slurm-wlm and munge are not installed"
    if os.getuid() != 0:
        return "slurmd and munged start as root only"
    return None


@contextlib.contextmanager
def start(folder: pathlib.Path, outer: Mapping[str, str], num_cpus: int = 2) -> Iterator[dict[str, str]]:
    """Starts the daemons, yields `outer` with what Slurm's commands need to reach them, and stops them.

    Everything they write is in `folder`; its path must be short, since sockets are in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    for private in (folder, key):
        private.chmod(0o700)
    _write_config(folder, num_cpus)
    environment = {**outer, "SLURM_CONF": str(folder / "slurm.conf")}
    environment["PATH"] += os.pathsep + "/usr/sbin"
    for name in list(environment):  # of a job that we may be in ourselves
        if name.startswith("SLURM_") and name != "SLURM_CONF":
            del environment[name]
    daemons = []

    def launch(*command: object) -> None:
        program = _find(str(command[0]))
        arguments = [str(program), *map(str, command[1:])]
        with (folder / f"{command[0]}.out").open("w") as out:
            daemons.append(subprocess.Popen(arguments, env=environment, stdout=out, stderr=out))

    try:
        munge = [f"--{name}={folder / file}" for name, file in _MUNGE_FILES.items()]
        launch("munged", "--foreground", "--force", "--num-threads=2", f"--key-file={key}", *munge)
        _wait_for(lambda: (folder / "munge.socket").exists(), folder, "munged")
        launch("slurmctld", "-D", "-i")
        launch("slurmd", "-D")
        _wait_for(lambda: "idle" in _node_state(environment), folder, "slurmctld", "slurmd")
        yield environment
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):  # interrupted by Ctrl-C, the daemon may be gone
            subprocess.run(["scancel", "--quiet", "--user=root"], env=environment, timeout=10, check=False)
        for daemon in reversed(daemons):
            _stop(daemon)
        _stop_left_over(folder)


_MUNGE_FILES = {
    "socket": "munge.socket",
    "pid-file": "munge.pid",
    "log-file": "munge.log",
    "seed-file": "munge.seed",
}


def _find(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + os.pathsep + "/usr/sbin")


def _write_config(folder: pathlib.Path, num_cpus: int) -> None:
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    ports = _free_ports(2)
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={host}(127.0.0.1)",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        # A requeued job waits as long as credentials last.
        f"AuthInfo=socket={folder / 'munge.socket'},cred_expire=5",
        f"SlurmctldPort={ports[0]}",
        f"SlurmdPort={ports[1]}",
        f"StateSaveLocation={folder / 'state'}",
        f"SlurmdSpoolDir={folder / 'spool'}",
        f"SlurmctldPidFile={folder / 'slurmctld.pid'}",
        f"SlurmdPidFile={folder / 'slurmd.pid'}",
        f"SlurmctldLogFile={folder / 'slurmctld.log'}",
        f"SlurmdLogFile={folder / 'slurmd.log'}",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "JobAcctGatherType=jobacct_gather/none",
        "AccountingStorageType=accounting_storage/none",
        "JobCompType=jobcomp/none",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_CPU",
        "KillWait=30",
        "MinJobAge=300",
        "ReturnToService=2",
        # More processors than the machine has are all right.
        "SlurmdParameters=config_overrides",
        f"NodeName={host} NodeAddr=127.0.0.1 CPUs={num_cpus} State=UNKNOWN",
        f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")


def _free_ports(num: int) -> list[int]:
    sockets = [socket.socket() for _ in range(num)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _node_state(environment: dict[str, str]) -> str:
    command = ["sinfo", "--noheader", "--format=%T"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _wait_for(ready, folder: pathlib.Path, *names: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        if time.monotonic() > deadline:
            logs = [path for name in names for path in (folder / f"{name}.out", folder / f"{name}.log")]
            texts = [f"{path.name}:\n{path.read_text()[-2000:]}" for path in logs if path.exists()]
            raise TimeoutError(f"{' and '.join(names)} did not start\n" + "\n".join(texts))
        time.sleep(0.1)


def _stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _stop_left_over(folder: pathlib.Path) -> None:
    """Ends the job steps that outlived slurmd: their managers have the folder in their environment."""
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ProcessLookupError):
            if str(folder).encode() in (entry / "environ").read_bytes() and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)
