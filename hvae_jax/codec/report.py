"""A file's bits beside the rates of its images: for JSON, and as a table to read."""

import math
from typing import Any

import numpy as np

from hvae_jax.codec.bits_back import Bits
from hvae_jax.objective import LayerwiseTerms

NATS_PER_BIT = math.log(2.0)
OTHERS = {"png": "PNG, one picture", "webp": "WebP lossless, one picture", "xz": "xz of the raw pixels"}


def make_report(
    bits: Bits, terms: LayerwiseTerms, image_shape: tuple[int, ...], others: dict[str, int | None]
) -> dict[str, Any]:
    """Bits of a file, ready for JSON.

    Args:
      bits: of the file.
      terms: of the same images, `[N]` and `[N, L]`, nats, at other draws of the latents.
      image_shape: (H, W, C).
      others: `bits_of_others` of the same images.

    Returns:
      per image, layers z_1 first: `net_bits`, `pushed_bits`, `popped_bits`, `rates_bits`, `pixel_bits`,
      `distortion_bits`, `initial_bits`, `header_bits`, `total_bits`, `negative_elbo_bits`, and `other_bits`
      by name; `images` has those of every image that are its own, `totals` those of the whole file.
    """
    num = len(bits.pixels)
    distortion, rates = (np.asarray(part, np.float64) / NATS_PER_BIT for part in terms)
    own = {
        "net_bits": bits.net,
        "pixel_bits": bits.pixels,
        "rates_bits": rates,
        "distortion_bits": distortion,
        "negative_elbo_bits": distortion + rates.sum(axis=1),
    }
    whole = {"initial_bits": bits.initial, "header_bits": bits.header, "total_bits": bits.total}
    sums = {name: values.sum(axis=0).tolist() for name, values in own.items()} | whole
    means = {"pushed_bits": bits.pushed, "popped_bits": bits.popped, **own}
    return {
        "num_images": num,
        "image_shape": list(image_shape),
        **{name: values.mean(axis=0).tolist() for name, values in means.items()},
        **{name: value / num for name, value in whole.items()},
        "other_bits": {name: None if value is None else value / num for name, value in others.items()},
        "totals": sums | {"other_bits": others},
        "images": {name: values.tolist() for name, values in own.items()},
    }


def to_text(report: dict[str, Any]) -> str:
    """The table."""
    num_dims = math.prod(report["image_shape"])
    lines = [
        f"bits per image, {report['num_images']} images of {num_dims} dimensions",
        _line("", "pushed", "popped", "net", "net / dim", "by the log"),
    ]
    for i, net in reversed(list(enumerate(report["net_bits"]))):
        pushed, popped, rate = (report[name][i] for name in ("pushed_bits", "popped_bits", "rates_bits"))
        lines.append(_row(f"z_{i + 1}", num_dims, net, rate, pushed, popped))
    lines.append(_row("pixels", num_dims, report["pixel_bits"], report["distortion_bits"]))
    lines += [_row(name, num_dims, report[f"{name}_bits"]) for name in ("initial", "header")]
    lines.append(_row("the file", num_dims, report["total_bits"], report["negative_elbo_bits"]))
    for name, bits in report["other_bits"].items():
        if bits is not None:
            lines.append(_row(OTHERS[name], num_dims, bits))
    lines.append("by the log: rates, distortion and −ELBO of the same images, at other draws of the latents")
    return "\n".join(lines)


def _row(
    name: str,
    num_dims: int,
    net: float,
    logged: float | None = None,
    pushed: float | None = None,
    popped: float | None = None,
) -> str:
    numbers = ["" if value is None else f"{value:,.2f}" for value in (pushed, popped, net)]
    return _line(name, *numbers, f"{net / num_dims:.5f}", "" if logged is None else f"{logged:,.2f}")


def _line(name: str, *columns: str) -> str:
    return f"{name:<27}" + "".join(f"{column:>12}" for column in columns)
