"""Results on bits on disk."""

from collections.abc import Mapping
from typing import Any

from experiments.documents.blocks import read, table

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
                f"{row['data']}, {row['split']}, {row['num_images']:,}",
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
    """How far the layers of a grid of betas are from their rates."""
    layers = [
        (net / rate - 1, error / rate, rate)
        for row in _rows(is_grid=True)
        for net, rate, error in zip(
            row["net_bits"], row["rates_bits"], row["difference_error_bits"], strict=True
        )
    ]
    large = [layer for layer in layers if layer[2] >= 1.0]
    beyond = [layer for layer in large if abs(layer[0]) > 0.01 + 2 * layer[1]]
    worst = max(large, key=lambda layer: abs(layer[0]) / layer[1])
    return (
        f"Of {len(layers)} layers {len(large)} have a rate of a bit or more. Of these "
        f"{sum(abs(layer[0]) <= 0.01 for layer in large)} are within 1 % of it, and {len(large) - len(beyond)} "
        f"within 1 % and two standard errors over the images; the furthest in standard errors is "
        f"{abs(worst[0]) / worst[1]:.1f} of them away."
    )


def speed() -> str:
    """Images per second, and where the time goes."""
    sentences = []
    for row in read("codec_speed.json")["rows"]:
        for work in ("encode", "decode"):
            shares = ", ".join(f"{name} {share:.0%}" for name, share in row[work]["shares"].items())
            sentences.append(
                f"{row['data']}: {work} {row[work]['images_per_cpu_s']:,.0f} images per second of one core's "
                f"time ({shares})."
            )
    return "- " + "\n- ".join(sentences)


def _rows(is_grid: bool) -> list[dict[str, Any]]:
    """Of single models, or of the grid: its reports are called grid_0000 and so on."""
    return [row for row in read("codec.json")["rows"] if row["name"].startswith("grid_") == is_grid]


def _model(row: Mapping[str, Any]) -> str:
    betas = ", ".join(f"{beta:.3g}" for beta in row["betas"])
    return f"{INFERENCE[row['inference']]}, β {betas}"
