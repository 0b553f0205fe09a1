"""Results on bits on disk."""

from collections.abc import Mapping
from typing import Any

from experiments.documents.blocks import read, table

DATA = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar": "CIFAR-10 (JPEG copies)"}
INFERENCE = {"generalized_top_down": "GHVAE", "ladder": "ladder", "deep": "deep"}


def files() -> str:
    """Each file's bits per image beside the rates of its images, and other coders."""
    rows = []
    for row in _rows(is_grid=False):
        layers = [
            f"{net:.2f} of {rate:.2f} ({net / rate - 1:+.1%})"
            for net, rate in zip(row["net_bits"], row["rates_bits"], strict=True)
        ]
        coded = sum(row["net_bits"]) + row["pixel_bits"]
        elbo = row["negative_elbo_bits"]
        rows.append(
            [
                f"{_named(row)}, {row['split']}, {row['num_images']:,}",
                _model(row),
                "; ".join(layers),
                f"{coded:,.1f} of {elbo:,.1f} ({coded / elbo - 1:+.2%})",
                f"{row['initial_bits'] + row['header_bits']:.1f}",
                *(f"{row['other_bits'][name]:,.1f}" for name in ("png", "webp", "xz")),
            ]
        )
    head = [
        "images",
        "model",
        "z_1; z_2",
        "layers and pixels, of −ELBO",
        "initial, header",
        "PNG",
        "WebP",
        "xz",
    ]
    return table(head, rows)


def grid() -> str:
    """How far the layers of the grids of betas are from their rates."""
    sentences = []
    for data in sorted({row["data"] for row in _rows(is_grid=True)}):
        rows = [row for row in _rows(is_grid=True) if row["data"] == data]
        layers = [
            (net / rate - 1, error / rate)
            for row in rows
            for net, rate, error in zip(
                row["net_bits"], row["rates_bits"], row["difference_error_bits"], strict=True
            )
            if rate >= 1.0
        ]
        furthest = max(abs(off) / error for off, error in layers)
        totals = [
            (sum(row["net_bits"]) + row["pixel_bits"]) / row["negative_elbo_bits"] - 1.0 for row in rows
        ]
        sentences.append(
            f"{_named(rows[0])}, {len(rows)} models, {rows[0]['num_images']:,} images: of {len(layers)} layers with a rate of "
            f"a bit or more {sum(abs(off) <= 0.01 for off, _ in layers)} are within 1 % of it, "
            f"{sum(abs(off) <= 0.01 + 2 * error for off, error in layers)} within 1 % and two standard errors; "
            f"the furthest is {furthest:.1f} standard errors off. Layers and pixels together are within "
            f"{max(map(abs, totals)):.1%} of −ELBO."
        )
    return "- " + "\n- ".join(sentences)


def speed() -> str:
    """Images per second, and where the time goes."""
    sentences = []
    for row in read("codec_speed.json")["rows"]:
        for work in ("encode", "decode"):
            shares = ", ".join(f"{name} {share:.0%}" for name, share in row[work]["shares"].items())
            sentences.append(
                f"{_named(row)}: {work} {row[work]['images_per_cpu_s']:,.0f} images per second of one core's "
                f"time ({shares})."
            )
    return "- " + "\n- ".join(sentences)


def _rows(is_grid: bool) -> list[dict[str, Any]]:
    """Of single models, or of the grid: its reports are called grid_0000 and so on."""
    return [row for row in read("codec.json")["rows"] if row["name"].startswith("grid_") == is_grid]


def _named(row: Mapping[str, Any]) -> str:
    return DATA.get(row["data"]) or str(row["data"])


def _model(row: Mapping[str, Any]) -> str:
    betas = ", ".join(f"{beta:.3g}" for beta in row["betas"])
    return f"{INFERENCE[row['inference']]}, β {betas}"
