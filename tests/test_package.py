"""What is built holds what it should, and a project of its own can install and use it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOT_PART = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs")


def run(command: list[str], folder: pathlib.Path) -> str:
    """Standard output; in an environment that shows the command nothing of this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def files_of(folder: pathlib.Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> pathlib.Path:
    """A copy of the checkout: building leaves folders behind."""
    folder = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, folder, ignore=NOT_PART)
    return folder


@pytest.fixture(scope="module")
def built(source) -> tuple[pathlib.Path, pathlib.Path]:
    """The wheel and the sdist. The wheel is built from the sdist, as an installer would."""
    before = files_of(source)
    # The build requirements are those of the tests: nothing is downloaded.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir=dist", "."], source)
    (wheel,), (sdist,) = (source / "dist").glob("*.whl"), (source / "dist").glob("*.tar.gz")
    assert before <= files_of(source)
    return wheel, sdist


def test_the_wheel_is_the_package_the_programs_and_nothing_else(source, built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    programs = {name for name in files_of(source / "experiments") if name.endswith(".py")}
    assert "digits.py" in programs
    assert {name for name in names if ".dist-info/" not in name} == {
        *(f"hvae_jax/{name}" for name in files_of(source / "hvae_jax")),
        *(f"experiments/{name}" for name in programs),
    }


def test_the_sdist_holds_what_its_own_tests_need(source, built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for folder in ("hvae_jax", "experiments", "tests"):
        assert {f"{folder}/{name}" for name in files_of(source / folder)} <= names
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "requirements-tpu.txt"} <= names


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """A Python with the wheel, in an environment of its own, and the folder that holds its packages."""
    folder = tmp_path_factory.mktemp("project")
    venv.create(folder / "environment", symlinks=True)
    python = folder / "environment" / "bin" / "python"
    site = pathlib.Path(
        run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    )
    # JAX and the rest come from the environment of the tests. A .pth file appends that folder to the
    # path without following the .pth files in it, so an editable install of the checkout is not seen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        [
            sys.executable,
            "-m",
            "pip",
            f"--python={python}",
            "install",
            "--no-deps",
            "--no-index",
            str(built[0]),
        ],
        folder,
    )
    return python, site


@pytest.fixture(scope="module")
def report(installed, tmp_path_factory) -> dict:
    """What the project in tests/reuse prints after training."""
    python, site = installed
    folder = tmp_path_factory.mktemp("waves")
    shutil.copytree(ROOT / "tests" / "reuse", folder / "waves")
    report = json.loads(run([str(python), "waves.py", str(folder / "log")], folder / "waves"))
    assert report["library"] == str(site / "hvae_jax" / "records.py")
    return report


def test_a_program_and_its_config_work_from_another_folder(installed, tmp_path):
    python, _ = installed
    (tmp_path / "mine.npz").write_bytes(b"no images")
    arguments = ["--config=experiments/digits.py", "--config.data.name=npz:mine.npz"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [str(python), "-m", "experiments.run", *arguments],
        cwd=tmp_path,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    # The config is the installed one; the data are looked for in the folder that we are in.
    assert process.returncode == 1
    assert process.stderr.startswith("error: config.data.name='npz:mine.npz'"), process.stderr
    assert "does not exist" not in process.stderr
    assert files_of(tmp_path) == {"mine.npz"}


@pytest.mark.long
def test_a_model_of_another_project_reaches_the_rates_it_is_asked_for(report):
    errors = np.abs(np.subtract(report["rates_nats"], report["targets_nats"]))
    allowed = 0.01 * np.asarray(report["targets_nats"]) + 5 * np.asarray(report["rates_nats_standard_error"])
    assert (errors < allowed).all(), report
    assert not np.isclose(report["betas"], 1.0, rtol=0.1).any()  # it started with betas of one


@pytest.mark.long
def test_its_rate_log_reads_back(report):
    num_rows = report["log"]["step"][0]
    assert num_rows == 20
    assert report["log"]["rates_nats"] == report["log"]["betas"] == [num_rows, 2]
    np.testing.assert_allclose(report["last_logged_rates_nats"], report["rates_nats"], rtol=0.1)
