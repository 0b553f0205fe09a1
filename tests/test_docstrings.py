"""The public API as its docstrings show it: every example runs, and the reference is made from them."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import hvae_jax

ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(hvae_jax.__path__, "hvae_jax."))


@pytest.mark.parametrize("name", MODULES)
def test_examples_run_and_print_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} examples of {name} fail; see the captured output"


@pytest.mark.parametrize("name", hvae_jax.__all__)
def test_every_public_name_has_an_example(name):
    assert ">>>" in (getattr(hvae_jax, name).__doc__ or "")


def test_the_reference_is_generated_without_a_warning(tmp_path):
    manual = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"python (-m pdoc .*)", manual)
    command = f"'{sys.executable}' {command.replace('build/reference', str(tmp_path))}"
    process = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (process.returncode, process.stdout + process.stderr) == (0, "")
    pages = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.html")}
    assert {f"{name.replace('.', '/')}.html" for name in ("hvae_jax", *MODULES)} <= pages
    page = (tmp_path / "hvae_jax.html").read_text()
    assert all(f'id="{name}"' in page for name in hvae_jax.__all__)
