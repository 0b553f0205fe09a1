"""Results of deep networks whose layers are grouped."""

import math

from experiments.documents.blocks import read, table, there
from hvae_jax.evaluation.metrics import RunEvaluation
from hvae_jax.evaluation.plain import from_plain

TARGETS = "digits_deep_targets.json"


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
