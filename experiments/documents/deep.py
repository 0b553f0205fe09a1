"""Results of deep networks whose layers are grouped."""

import math

from experiments.documents.blocks import read, read_runs, table, there
from hvae_jax.evaluation.metrics import RunEvaluation
from hvae_jax.evaluation.plain import from_plain

TARGETS, GRID, MNIST = "digits_deep_targets.json", "digits_deep_grid.csv", "mnist.json"
DEPTH = "depth.json"
# Of the network: what the groups of digits_deep are called, and their layers.
SIDES = {"8×8": (1, 2), "4×4": (3, 4), "1×1": (5, 6)}


def target_groups() -> str:
    """What three groups of layers were asked for and came to."""
    targets = there(from_plain(RunEvaluation, read(TARGETS), TARGETS).targets)
    head = ("layers", "asked", "training split", "off by", "test split", "β found")
    rows = []
    train, test = (zip(*reached.rates_nats, strict=True) for reached in (targets.train, there(targets.test)))
    columns = (there(targets.target_groups), there(targets.targets_nats), train, test, targets.betas)
    for name, asked, (reached, _), (on_test, error), beta in zip(*columns, strict=True):
        off = f"{100 * abs(reached / (asked or math.nan) - 1):.2f} %"
        test_rate = f"{on_test:.3f} ± {error:.3f}"
        rows.append([name.replace("x", "×"), f"{asked:g}", f"{reached:.3f}", off, test_rate, f"{beta:.3g}"])
    return table(head, rows)


def grid() -> str:
    """Rates of the groups over a grid of two groups' betas."""
    head = ("β of 8×8, 4×4", *(f"R of {side}" for side in SIDES), "D", "−ELBO")
    rows = []
    for row in read(GRID):
        rates = [
            sum(float(row[f"test_rate_{layer}_nats"]) for layer in range(low, high + 1))
            for low, high in SIDES.values()
        ]
        numbers = [*rates, float(row["test_distortion_nats"]), -float(row["test_elbo_nats"])]
        betas = f"{float(row['beta_1']):g}, {float(row['beta_2']):g}"
        rows.append([betas, *(f"{number:.2f}" for number in numbers)])
    return table(head, rows)


def mnist() -> str:
    """Two layers, their ladder and a deep network on MNIST."""
    head = ("model", "parameters", "epochs", "−ELBO", "−log p(x) ≤", "D", "rates, z_1 first")
    rows = []
    for row, test in read_runs(MNIST):
        bound = there(test.bound).negative_importance_weighted_bound_nats
        rows.append(
            [
                row["model"],
                f"{row['num_params']:,}",
                f"{row['num_epochs']:g}",
                f"{test.negative_elbo_nats.value:.2f} ± {test.negative_elbo_nats.standard_error:.2f}",
                f"{bound.value:.2f}",
                f"{test.distortion_nats.value:.2f}",
                ", ".join(f"{rate:.2f}" for rate in test.rates_nats.value),
            ]
        )
    return table(head, rows)


def depth() -> str:
    """What a layer costs."""
    head = (
        "layers",
        "parameters",
        "tracing (CPU s)",
        "compiling (CPU s)",
        "both (s)",
        "step (ms)",
        "of 5 layers",
    )
    rows = []
    for row in read(DEPTH):
        step = (f"{row['step_ms']:.0f}", f"{row['step_ratio']:.2f}") if "step_ms" in row else ("", "")
        seconds = (row[f"{name}_s"] for name in ("trace_cpu", "compile_cpu", "trace_and_compile_wall"))
        rows.append([row["num_layers"], f"{row['num_parameters']:,}", *(f"{s:.1f}" for s in seconds), *step])
    return table(head, rows)
