"""One run over several processes, as a user starts them."""

import pathlib
import shutil
import signal
import socket

import numpy as np
import programs as started
import pytest
import tiny
from programs import Ended, Started, Stop
from tiny import rows

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.training import devices, processes

pytestmark = pytest.mark.long

# Twice `processes.HEARTBEAT_SECONDS`, after which a lost process is given up.
SOON_S = 60.0


def with_devices(number: int, implementation: str = "pmap") -> dict[str, str]:
    flags = f"{started.XLA_FLAGS} --xla_force_host_platform_device_count={number}"
    return {"XLA_FLAGS": flags, devices.VARIABLE: implementation}


def start_two(
    programs: started.Server, flags: tuple[str, ...], stop: Stop | None = None, implementation: str = "pmap"
) -> list[Started]:
    """Two processes with two devices each; the first stops where it is to."""
    environment = with_devices(2, implementation)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = (*flags, f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    return [
        programs.start("run", *common, f"--process_id={i}", environment=environment, stop=None if i else stop)
        for i in range(2)
    ]


def ended(*processes: Started) -> list[Ended]:
    """What became of each, having gone well."""
    all_ended = [process.wait() for process in processes]
    assert [one.status for one in all_ended] == [0] * len(processes), all_ended
    return all_ended


@pytest.fixture(scope="module")
def two(programs, tiny_data, tmp_path_factory) -> pathlib.Path:
    """The folder of two processes with two devices each."""
    folder = tmp_path_factory.mktemp("two") / "run"
    main, other = ended(*start_two(programs, tiny.run_flags(tiny_data, folder)))
    assert "Test split" in main.out
    assert "Test split" not in other.out
    return folder


def assert_alike(folder: pathlib.Path, wanted: pathlib.Path) -> None:
    """Sums in another order: the difference grows with the steps, from the last float digit on."""
    for split in ("train", "valid"):
        log, log_wanted = records.load(folder, split), records.load(wanted, split)
        assert log["step"].tolist() == log_wanted["step"].tolist()
        for name in ("distortion_nats", "rates_nats"):
            np.testing.assert_allclose(log[name], log_wanted[name], rtol=2e-3, atol=2e-4)
    test, test_wanted = (records.read_json(f / "evaluation.json")["test"] for f in (folder, wanted))
    assert test["num_images"] == test_wanted["num_images"]
    np.testing.assert_allclose(test["rates_nats"], test_wanted["rates_nats"], rtol=2e-3, atol=2e-4)


def test_two_processes_give_the_rates_of_one(two, finished_run):
    assert_alike(two, finished_run)
    assert {entry.name for entry in two.iterdir()} == {entry.name for entry in finished_run.iterdir()}


def test_one_process_with_four_devices_and_two_go_on_where_the_other_stopped(
    programs, two, finished_run, tiny_data, tmp_path
):
    # Four devices begin, which is four devices with the rates of one; two processes go on.
    folder = tmp_path / "four"
    flags, stop = tiny.run_flags(tiny_data, folder), Stop(folder / "rates.jsonl", num_rows=6)
    four = programs.start("run", *flags, environment=with_devices(4), stop=stop)
    assert stop.pid() == four.pid
    four.send_signal(signal.SIGTERM)
    tiny.assert_one_error(four.wait(), "stopped at step ")
    ended(*start_two(programs, flags, implementation="mesh"))
    assert_alike(folder, finished_run)

    # A copy of what two processes did as it was at step 20; four devices go on.
    folder = tmp_path / "two"
    shutil.copytree(two, folder)
    for step in (24, 25):
        shutil.rmtree(folder / "checkpoints" / str(step))
    (folder / "evaluation.json").unlink()
    flags = tiny.run_flags(tiny_data, folder)
    ended(programs.start("run", *flags, environment=with_devices(4)))
    assert rows(folder)[:7] == rows(two)[:7]
    assert_alike(folder, finished_run)


def test_a_process_that_is_killed_ends_the_others_and_the_run_resumes(programs, two, tiny_data, tmp_path):
    folder = tmp_path / "run"
    log = folder / "rates.jsonl"
    # Each goes on where the one before was cut short, bit for bit.
    for victim, num_rows in ((1, 5), (0, 8)):
        stop = Stop(log, num_rows)
        pair = start_two(programs, tiny.run_flags(tiny_data, folder), stop)
        assert stop.pid() == pair[0].pid
        assert not pair[1].is_over()
        pair[victim].send_signal(signal.SIGKILL)
        pair[0].send_signal(signal.SIGCONT)
        survivor = pair[1 - victim].wait(SOON_S)
        assert pair[victim].wait().status == -signal.SIGKILL
        tiny.assert_one_error(survivor, "lost another process of this run")
        assert not (folder / "evaluation.json").exists()
        assert len(rows(folder)) >= num_rows
        assert rows(folder) == rows(two)[: len(rows(folder))]


def test_what_one_process_finds_wrong_ends_all(programs, tiny_data, tmp_path):
    flags = (*tiny.run_flags(tiny_data, tmp_path / "run"), "--config.training.batch_size=18")
    for process in start_two(programs, flags):
        tiny.assert_one_error(process.wait(SOON_S), "batch_size=18 cannot be divided over 4 devices")
    assert not (tmp_path / "run").exists()


def test_a_coordinator_that_is_not_there(programs, tiny_data, tmp_path):
    flags = ("--coordinator=127.0.0.1:9", "--num_processes=2", "--process_id=1", "--start_timeout_s=3")
    process = programs.start("run", *tiny.run_flags(tiny_data, tmp_path / "run"), *flags)
    tiny.assert_one_error(process.wait(SOON_S), "not all processes came together within 3 s")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", 2, 2), "--process_id=2 must be 0 to 1"),
        (("host:1", 2, -1), "--process_id=-1 must be 0 to 1"),
        (("host:1", 0, 0), "--num_processes=0 must be at least 1"),
        (("host:1", 2, None), "also needs --process_id"),
        (("host:1", None, 0), "also needs --num_processes"),
        (("host", 2, 0), "--coordinator=host must be HOST:PORT"),
        ((None, 2, None), "--num_processes=2 needs --coordinator"),
        (("auto", None, 1), "--process_id=1 needs --coordinator"),
    ],
)
def test_flags_that_do_not_fit_together(arguments, message):
    with pytest.raises(RunError, match=message):
        processes.start(*arguments)


def test_one_process_is_left_alone(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS", raising=False)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    assert processes.start(None, None, None) == processes.start("host:1", 1, 0) == processes.count() == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "only-one")
    assert processes.start(None, None, None) == 1
