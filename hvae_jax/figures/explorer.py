"""explorer.html: one page, which needs nothing but itself, to see what models do at the betas of a grid.

Pure: from numbers and images to the text of the page, which is explorer.html beside this file with the
data written into it as JSON, images as PNG in data URIs.
"""

import base64
import html
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from hvae_jax.data.pixels import to_bytes
from hvae_jax.errors import RunError
from hvae_jax.figures.style import as_colours, channels_note, layer_color

TEMPLATE = pathlib.Path(__file__).with_suffix(".html")
MEGABYTE = 10**6

Better = Literal["higher", "lower", ""]


class Axis(NamedTuple):
    """A slider.

    Attributes:
      name: "β₁", say.
      about: what it does, in a few words.
      labels: of its places, in order.
    """

    name: str
    about: str
    labels: tuple[str, ...]


class Quantity(NamedTuple):
    """A number that models have.

    Attributes:
      name: "R₁", say.
      about: what it is, in words.
      unit: "nats" (shown in bits too), "dB", or "".
      better: whether more of it is better, or less; "" where that is a matter of choice.
      is_rate: not negative, and often near 0: drawn on a square root.
    """

    name: str
    about: str
    unit: str = ""
    better: Better = ""
    is_rate: bool = False


class Number(NamedTuple):
    """A value, and its standard error where one is known."""

    value: float
    standard_error: float | None = None


class Point(NamedTuple):
    """The model, or the place of a model that is missing, at one place of the sliders.

    Attributes:
      sliders: the place of each.
      name: of the model's folder.
      betas: per layer or group, z_1 first; those found where rates were asked for.
      numbers: by the name of their quantity; some may lack.
      sheet: `data_uri` of N images to a row: each row of reconstructions of N test images, then S samples.
        None where there are none.
      missing: why there are none, in words.
    """

    sliders: tuple[int, ...]
    name: str
    betas: tuple[float, ...]
    numbers: Mapping[str, Number]
    sheet: str | None
    missing: str = ""


class Mark(NamedTuple):
    """A button that goes to a point, by its number."""

    label: str
    point: int


class Content(NamedTuple):
    """All that a page says.

    Attributes:
      title: data, and whether there is one model or many.
      lead: paragraphs below it.
      notes: lines at the foot.
      heading: of the sliders.
      axes: sliders; together they say the point.
      beta_names: what the betas of a point are called.
      quantities: in the order of the table.
      plane: names of the quantities along the axes of the plane, at first.
      points: of all places of the grid.
      start: number of the point that is shown at first.
      marks: buttons.
      test_images: `[N, H, W, C]` in [0, 1].
      rows: what each row of reconstructions is made from.
      num_samples: S.
    """

    title: str
    lead: Sequence[str]
    notes: Sequence[str]
    heading: str
    axes: Sequence[Axis]
    beta_names: Sequence[str]
    quantities: Sequence[Quantity]
    plane: tuple[str, str]
    points: Sequence[Point]
    start: int
    marks: Sequence[Mark]
    test_images: np.ndarray
    rows: Sequence[str]
    num_samples: int


def to_html(content: Content, max_bytes: float = math.inf) -> str:
    """The page.

    Args:
      content: what it says.
      max_bytes: that it may have.

    Raises:
      RunError: it has more.
    """
    num, height, width, _ = content.test_images.shape
    num_cells = len(content.rows) * num + content.num_samples
    data = {
        "axes": [
            {**axis._asdict(), "color": layer_color(place)}
            for place, axis in enumerate(content.axes, start=1)
        ],
        "betaNames": content.beta_names,
        "quantities": [
            {"name": q.name, "about": q.about, "unit": q.unit, "better": q.better, "isRate": q.is_rate}
            for q in content.quantities
        ],
        "plane": content.plane,
        "points": [_point(point, content.quantities) for point in content.points],
        "start": content.start,
        "marks": [mark._asdict() for mark in content.marks],
        "testImages": data_uri(content.test_images, num),
        "cell": {
            "columns": num,
            "sheetRows": math.ceil(num_cells / num),
            "height": height,
            "width": width,
            "note": channels_note(content.test_images),
        },
        "rows": content.rows,
        "numSamples": content.num_samples,
    }
    # No tag of HTML may end the script that holds the data.
    text = json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8")
    parts = {
        "TITLE": html.escape(content.title),
        "HEADING": html.escape(content.heading),
        "LEAD": "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in content.lead),
        "NOTES": "".join(f"<li>{html.escape(note)}</li>" for note in content.notes),
        "DATA": text,  # last: nothing in it is taken for a place
    }
    for name, part in parts.items():
        page = page.replace(f"[[{name}]]", part)
    check_size(len(page.encode()), max_bytes, num, content.num_samples)
    return page


def check_size(num_bytes: float, max_bytes: float, num_images: int, num_samples: int) -> None:
    """Raises RunError where a page of so many bytes is too large."""
    if num_bytes > max_bytes:
        raise RunError(
            f"the page would have {num_bytes / MEGABYTE:.3g} MB, and {max_bytes / MEGABYTE:.3g} are allowed: "
            f"lower --num_images={num_images} or --num_samples={num_samples}, or raise --max_megabytes"
        )


def data_uri(images: np.ndarray, columns: int) -> str:
    """Images `[K, H, W, C]` in about [0, 1] as one PNG, so many to a row, each in the place of its number."""
    colours = as_colours(np.clip(images, 0.0, 1.0))
    num, height, width, channels = colours.shape
    rows = math.ceil(num / columns)
    sheet = np.zeros((rows * columns, height, width, channels))
    sheet[:num] = colours
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    pixels = to_bytes(sheet.reshape(rows * height, columns * width, channels))
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def subscript(name: str, number: int) -> str:
    """A letter with a number below it.

    Example:
      >>> subscript("β", 12)
      'β₁₂'
    """
    return name + str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _point(point: Point, quantities: Sequence[Quantity]) -> dict[str, Any]:
    found = [point.numbers.get(quantity.name) for quantity in quantities]
    return {
        "sliders": point.sliders,
        "name": point.name,
        "betas": [_short(beta) for beta in point.betas],
        "values": [None if number is None else _short(number.value) for number in found],
        "errors": [None if number is None else _short(number.standard_error) for number in found],
        "sheet": point.sheet,
        "missing": point.missing,
    }


def _short(value: float | None) -> float | None:
    """Six digits are more than a page shows; JSON has no number for what is not finite."""
    return float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
