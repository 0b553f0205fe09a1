"""One model for every beta, beside models that were trained for each."""

from typing import Any

from experiments.documents.blocks import read, table
from hvae_jax.evaluation.excess import Answering, Summary
from hvae_jax.evaluation.plain import from_plain

# Title → file of `experiments.excess`.
EXCESS = {
    "Fashion-MNIST, the study's 49 models": "fashion_excess.json",
    "Fashion-MNIST, 9 models of 30 epochs": "fashion_30_epochs_excess.json",
    "MNIST, 25 models of 10 epochs": "mnist_excess.json",
    "MNIST, 9 models of 20 epochs": "mnist_20_epochs_excess.json",
    "CIFAR-10 (JPEG copies), 9 models of 10 epochs": "cifar_excess.json",
}
# Lines of three betas say nothing of smoothness.
MIN_POINTS = 16


def excess() -> str:
    """D + Σ β R of one model against those that were trained for their betas alone."""
    head = ("data, models", "seeds", "lower at", "each seed", "mean", "median", "best", "worst, at")
    rows = []
    for title, name in EXCESS.items():
        found = from_plain(Summary, read(name)["summary"], name)
        betas = ", ".join(f"{beta:.3g}" for beta in found.worst_betas)
        rows.append(
            [
                title,
                len(found.num_lower_of_seeds),
                f"{found.num_lower} of {found.num_points}",
                ", ".join(map(str, found.num_lower_of_seeds)),
                f"{found.mean_nats:+.2f} ({100 * found.mean_relative:+.1f} %)",
                *(f"{nats:+.2f}" for nats in (found.median_nats, found.best_nats)),
                f"{found.worst_nats:+.2f} ({betas})",
            ]
        )
    return table(head, rows)


def answering() -> str:
    """How smoothly rates answer to betas, on both sides."""
    head = (
        "data, models",
        "layer",
        "rate rises with its beta, one model",
        "trained alone",
        "roughness",
        "alone",
    )
    rows = []
    for title, name in EXCESS.items():
        if read(name)["summary"]["num_points"] < MIN_POINTS:
            continue
        both = read(name)["answering"]
        seeds = [_answers(of_seed, name) for of_seed in both["conditioned"]]
        for layer, alone in enumerate(_answers(both["separate"], name)):
            own = [of_seed[layer] for of_seed in seeds]
            num = sum(one.num_rising for one in own)
            rows.append(
                [
                    title,
                    f"z_{layer + 1}",
                    f"{num} of {sum(one.num_steps for one in own)} steps, by {_most(own):.2f} nats at most",
                    f"{alone.num_rising} of {alone.num_steps}, by {alone.largest_rise_nats:.2f}",
                    f"{sum(one.roughness_nats for one in own) / len(own):.2f}",
                    f"{alone.roughness_nats:.2f}",
                ]
            )
    return table(head, rows)


def cost() -> str:
    """What it costs to tell networks their betas."""
    head = ("network", "conditioning", "parameters", "step (ms)", "of none, wall", "of none, CPU")
    rows = []
    for row in read("conditioning_cost.json"):
        ratios = (f"{row[f'{clock}_ratio']:.2f}" for clock in ("wall", "cpu"))
        count = f"{row['num_parameters']:,}"
        rows.append([row["network"], row["conditioning"], count, f"{row['step_ms']:.0f}", *ratios])
    return table(head, rows)


def _answers(plain: Any, name: str) -> list[Answering]:
    return [from_plain(Answering, one, name) for one in plain]


def _most(answers: list[Answering]) -> float:
    return max(one.largest_rise_nats for one in answers)
