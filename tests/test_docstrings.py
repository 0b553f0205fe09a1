"""The public API as its docstrings show it: every example runs, and the reference is made from them."""

import doctest
import glob
import importlib
import pathlib
import pkgutil
import re
import warnings

import pdoc.__main__
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


@pytest.mark.long
def test_the_reference_is_generated_without_a_warning(tmp_path, monkeypatch, capsys):
    manual = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"python (-m pdoc .*)", manual)
    _, _, *words = command.replace("build/reference", str(tmp_path)).split()
    monkeypatch.chdir(ROOT)
    words.append("--no-show-source")  # whose colours would take most of the time
    with warnings.catch_warnings(record=True) as said:
        pdoc.__main__.cli([name for word in words for name in sorted(glob.glob(word)) or [word]])
    assert [str(warning.message) for warning in said] == []
    assert capsys.readouterr() == ("", "")
    pages = {str(page.relative_to(tmp_path)) for page in tmp_path.rglob("*.html")}
    assert {f"{name.replace('.', '/')}.html" for name in ("hvae_jax", *MODULES)} <= pages
    page = (tmp_path / "hvae_jax.html").read_text()
    assert all(f'id="{name}"' in page for name in hvae_jax.__all__)
