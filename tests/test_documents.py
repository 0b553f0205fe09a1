"""The documents: their numbers are those of the files, their commands and code exist and run."""

import ast
import importlib.util
import pathlib
import re
import shlex

import jax
import pytest

from experiments.documents import blocks
from experiments.documents.__main__ import DOCUMENTS, WRITERS

ROOT = pathlib.Path(__file__).parents[1]
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_numbers_are_those_of_the_files(name):
    assert TEXTS[name] == blocks.fill(TEXTS[name], WRITERS), "run python -m experiments.documents"


def test_every_block_that_can_be_written_is_in_a_document():
    assert {block for text in TEXTS.values() for block in blocks.names(text)} == set(WRITERS)


def test_only_what_stands_between_the_comments_changes():
    text = "a\n<!-- from results: one -->\nold 1\n<!-- end -->\nb <!-- end -->\n"
    assert blocks.names(text) == ["one"]
    assert blocks.fill(text, {"one": lambda: "| new |\n"}) == text.replace("old 1", "| new |")
    long = "- " + 40 * "word " + "\n\nend"
    filled = blocks.fill(text, {"one": lambda: long})
    assert filled.split() == text.replace("old 1", long).split()
    assert max(map(len, filled.splitlines())) <= 118
    with pytest.raises(ValueError, match="nobody writes the blocks"):
        blocks.fill(text, {"two": str})


def test_the_front_door_stays_short():
    assert len(TEXTS["README.md"].splitlines()) <= 150
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 40


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    for link in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
        if "://" not in link:
            assert ((ROOT / name).parent / link).exists(), link


def commands(text: str) -> list[list[str]]:
    """The words of every `python -m experiments...` in an indented line or between backticks."""
    lines = re.sub(r" \\\n\s*", " ", text).splitlines()
    pieces = [
        piece for line in lines if line.startswith("    ") for piece in re.split(r"\s*&&\s*|;|\s&\s", line)
    ]
    pieces += re.findall(r"`([^`]+)`", " ".join(text.split()))
    found = [re.sub(r'^\w+="(.*)"$', r"\1", piece.strip()) for piece in pieces]
    return [shlex.split(piece, comments=True) for piece in found if piece.startswith("python -m experiments")]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_name_programs_configs_and_fields_that_exist(name):
    found = commands(TEXTS[name])
    assert found
    for _, _, program, *arguments in found:
        assert importlib.util.find_spec(program), program
        config = None
        for argument in arguments:
            flag, _, value = argument.partition("=")
            if flag == "--config" and value.endswith(".py"):
                assert (ROOT / value).exists(), value
                module = value.removesuffix(".py").replace("/", ".")
                config = importlib.import_module(module).get_config()
            elif flag.startswith("--config.") and config is not None:
                group, field = flag.removeprefix("--config.").split(".")
                assert field in config[group], argument


@pytest.mark.parametrize("number", [0, 1])
def test_the_code_of_the_front_door_runs(number, capsys):
    code = re.findall(r"```python\n(.*?)```", TEXTS["README.md"], re.DOTALL)[number]
    names: dict = {}
    if number == 0:  # at β_2 = 0.5, z_2 is the cheap layer
        # Operation by operation, as printed, its last line would compile sixty programs.
        assert code.count("print(terms(") == 1
        run = code.replace("print(terms(", "print(jax.jit(terms)(")
        exec(compile(run, f"README.md, block {number}", "exec"), names)
        assert len([line for line in code.splitlines() if line]) <= 25
        rates = [float(rate) for rate in capsys.readouterr().out.strip(" []\n").split()]
        assert 0 < rates[0] < rates[1]
    else:  # a published model, so that only its shapes are worked out
        jax.eval_shape(lambda: exec(compile(code, f"README.md, block {number}", "exec"), names))
        assert names["terms"].rates.shape == (8, 2)
        assert sum(leaf.size for leaf in jax.tree.leaves(names["params"])) == 475_811
        assert names["pixels"].shape == names["means"].shape == (16, 32, 32, 3)


def test_imports_run_one_way():
    """The order that CONTRIBUTING.md gives holds, and names every module and package of the library."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    order = re.findall(r"in this order: `([^`]+)`", text)[0].split()
    library = ROOT / "hvae_jax"

    def room(parts: tuple[str, ...]) -> str:
        return parts[0].removesuffix(".py")

    files = {file: room(file.relative_to(library).parts) for file in library.rglob("*.py")}
    files = {file: name for file, name in files.items() if name != "__init__"}
    assert set(files.values()) == set(order)
    for file, own in files.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("hvae_jax"):
                continue
            parts = (node.module or "").split(".")[1:]
            for name in parts[:1] or [alias.name for alias in node.names]:
                assert order.index(name) <= order.index(own), f"{file} imports {name}"
