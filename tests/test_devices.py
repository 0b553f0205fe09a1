"""pmap and the mesh behind one adapter, on one device and on four."""

import json
import os
import pathlib
import subprocess
import sys

import four_devices
import jax
import numpy as np
import programs as started
import pytest

from hvae_jax.errors import RunError
from hvae_jax.training import devices

pytestmark = pytest.mark.long

IMPLEMENTATIONS = ("pmap", "mesh")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], dict[str, np.ndarray]]:
    """What four_devices.py gives, by implementation and number of devices."""
    folder, results = tmp_path_factory.mktemp("devices"), {}
    running = {}
    for name in IMPLEMENTATIONS:
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XLA_FLAGS": started.XLA_FLAGS,
            devices.VARIABLE: name,
        }
        command = [sys.executable, four_devices.__file__, str(folder / f"{name}.npz")]
        running[name] = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    results["pmap", 1] = four_devices.results()
    for name, process in running.items():
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        results[name, 4] = dict(np.load(folder / f"{name}.npz"))
    return results


def assert_alike(a: dict[str, np.ndarray], b: dict[str, np.ndarray], rtol: float) -> None:
    assert a.keys() == b.keys()
    for name in a.keys() - {"own", "mean"}:
        if name != "rates.jsonl":
            np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=1e-7 if rtol else 0, err_msg=name)
            continue
        for row, other in zip(str(a[name]).splitlines(), str(b[name]).splitlines(), strict=True):
            row, other = json.loads(row), json.loads(other)
            assert (row["step"], row["split"]) == (other["step"], other["split"])
            np.testing.assert_allclose(row["rates_nats"], other["rates_nats"], rtol=rtol)
            np.testing.assert_allclose(row["loss_nats"], other["loss_nats"], rtol=rtol)


def test_both_give_the_same_numbers(found):
    assert_alike(found["pmap", 4], found["mesh", 4], rtol=0)


def test_four_devices_give_the_numbers_of_one(found):
    assert_alike(found["pmap", 4], found["pmap", 1], rtol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_device_gets_its_entry_of_what_is_split_and_all_of_the_rest(found, implementation: str):
    result = found[implementation, 4]
    wanted = np.arange(8.0).reshape(4, 2)
    np.testing.assert_array_equal(result["own"], wanted + 10.0 * np.arange(4)[:, None])
    np.testing.assert_array_equal(result["mean"], np.broadcast_to(wanted.mean(axis=0), (4, 2)))


def test_another_implementation_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(devices.VARIABLE, "pjit")
    with pytest.raises(RunError, match="HVAE_JAX_DEVICES=pjit must be pmap or mesh"):
        devices.over_devices(jax.numpy.sin, (True,))


def test_pmap_is_called_in_one_place():
    library = pathlib.Path(devices.__file__).parents[1]
    callers = [file.name for file in library.rglob("*.py") if "jax.pmap(" in file.read_text(encoding="utf-8")]
    assert callers == ["devices.py"]
