"""The notebook, run from top to bottom, and as it was committed."""

import itertools
import pathlib
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.long

NOTEBOOK = pathlib.Path(__file__).parents[1] / "experiments" / "colab.ipynb"


def outputs(notebook: Any) -> list[Any]:
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return list(itertools.chain.from_iterable(cells))


def texts(notebook: Any) -> str:
    return "".join(output.text for output in outputs(notebook) if output.output_type == "stream")


def pictures(notebook: Any) -> list[str]:
    return [output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]


def pages(notebook: Any) -> list[str]:
    return [output.data["text/html"] for output in outputs(notebook) if "text/html" in output.get("data", {})]


def list_files() -> set[pathlib.Path]:
    return {file for file in NOTEBOOK.parent.rglob("*") if "__pycache__" not in file.parts}


@pytest.fixture(scope="module")
def executed(environment, tmp_path_factory) -> Any:
    """Run with a fiftieth of the training, in the folder where it lies."""
    scratch = str(tmp_path_factory.mktemp("notebook"))
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    before = list_files()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "TMPDIR"):
            patch.setenv(name, scratch)
        for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PLATFORMS", "XLA_FLAGS"):
            patch.setenv(name, environment[name])
        patch.setenv("HVAE_JAX_NOTEBOOK_AMOUNT", "0.02")
        NotebookClient(
            notebook,
            timeout=240,
            kernel_name="python3",
            resources={"metadata": {"path": str(NOTEBOOK.parent)}},
        ).execute()  # a cell that fails raises
    assert list_files() == before
    return notebook


def test_it_runs_from_top_to_bottom_and_draws(executed):
    assert len(pictures(executed)) == 4
    (page,) = pages(executed)
    assert "one generalized top down model, asked at 25 choices of betas" in page
    assert "rates_nats is (2, 2)" in texts(executed)  # 39 steps, a row every 20
    assert texts(executed).count("betas (") == 10  # the untrained model, and the nine that move information


def test_where_the_library_is_installed_the_first_cell_does_nothing(executed):
    assert "checkout" in executed.cells[1].source
    assert executed.cells[1].outputs == []


def test_it_is_committed_as_it_ran(executed):
    committed: Any = nbformat.read(NOTEBOOK, as_version=4)
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert len(pictures(committed)) == len(pictures(executed))
    assert len(pages(committed)) == 1
    assert "error" not in {output.output_type for output in outputs(committed)}
    assert NOTEBOOK.stat().st_size < 500_000
