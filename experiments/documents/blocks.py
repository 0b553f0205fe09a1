"""Blocks of a Markdown file that a program writes, between two comments that name them."""

import csv
import json
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from hvae_jax.evaluation import tables
from hvae_jax.evaluation.choices import Guidance
from hvae_jax.evaluation.metrics import AnyApplication, Rates
from hvae_jax.evaluation.plain import from_plain
from hvae_jax.evaluation.results import Evaluated

T = TypeVar("T")
ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"
_BLOCK = re.compile(r"(<!-- from results: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# What an application is scored by, in words; samples are draws from p(x|z) unless a writer says otherwise.
UNITS: dict[AnyApplication, str] = {
    "reconstruction": "PSNR, dB",
    "representation": "accuracy from samples of z_L",
    "generation": "inception score of draws",
    "detection": "AUROC of images from elsewhere",
}
INFERENCE = {"GHVAE": "generalized_top_down", "ladder": "ladder"}

Writer = Callable[[], str]


def read(name: str) -> Any:
    """A file of results: rows of a CSV, or what a JSON holds."""
    file = RESULTS / name
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))
    return json.loads(file.read_text(encoding="utf-8"))


def read_guidance(inference: str) -> Guidance:
    """Of the study's models with this inference."""
    name = f"fashion_{inference}_guidance.json"
    return from_plain(Guidance, read(name), name)


def read_models(inference: str) -> list[Evaluated]:
    """The study's evaluated models with this inference."""
    return tables.read_table(RESULTS / f"fashion_{inference}_evaluation.csv")


def read_runs(name: str) -> list[tuple[dict[str, Any], Rates]]:
    """Rows of a JSON of single runs: what describes each, and its rates on the test split."""
    return [(row, from_plain(Rates, row["test"], name)) for row in read(name)["rows"]]


def there(found: T | None) -> T:
    """What a sentence is about.

    Raises:
      ValueError: it is no longer in the results.
    """
    if found is None:
        raise ValueError("the results lack what a sentence is about: rewrite it")
    return found


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def prose(text: str) -> str:
    """Paragraphs and points (`- `) broken into lines anew."""
    parts = [" ".join(part.split()) for part in re.split(r"\n\n|\n(?=- )", text.strip())]
    return "\n".join(textwrap.fill(p, 118, subsequent_indent="  " * p.startswith("- ")) for p in parts) + "\n"


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

    def write(block: re.Match[str]) -> str:
        content = writers[block[2]]()
        return block[1] + (content if content.startswith("|") else prose(content)) + block[3]

    return _BLOCK.sub(write, text)
