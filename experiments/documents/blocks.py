"""Blocks of a Markdown file that a program writes, between two comments that name them."""

import csv
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
_BLOCK = re.compile(r"(<!-- from results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
INFERENCE = {"GHVAE": "generalized_top_down", "ladder": "ladder"}

Writer = Callable[[], str]


def read(name: str) -> Any:
    """A file of results: rows of a CSV, or what a JSON holds."""
    file = RESULTS / name
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))
    return json.loads(file.read_text(encoding="utf-8"))


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def names(text: str) -> list[str]:
    """The blocks that a document has, in order."""
    return [name for _, name, _ in _BLOCK.findall(text)]


def fill(text: str, writers: Mapping[str, Writer]) -> str:
    """The document with every block written anew.

    Args:
      text: of the document.
      writers: name of a block → what writes its content.

    Raises:
      ValueError: a block that nobody writes.
    """
    unknown = [name for name in names(text) if name not in writers]
    if unknown:
        raise ValueError(f"nobody writes the blocks {unknown}; there are {sorted(writers)}")
    return _BLOCK.sub(lambda found: found[1] + writers[found[2]]().rstrip("\n") + "\n" + found[3], text)
