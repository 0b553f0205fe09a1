"""Which betas serve which application: chosen on the validation split, reported on the test split."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from hvae_jax.evaluation.results import Evaluated

# Application → what its number is called, and its unit.
APPLICATIONS: Mapping[str, tuple[str, str]] = {
    "reconstruction": ("PSNR of reconstructions from all layers", "dB"),
    "representation": ("accuracy from samples of the top layer", ""),
    "generation": ("inception score by the data set's classifier", ""),
}
RIVALS: Mapping[str, str] = {
    "equal_betas": "best with equal betas",
    "unit_betas": "all betas 1 (the ELBO)",
    "baseline": "one layer (β-VAE)",
}
# Fewer standard errors than this are called no clear difference.
CLEAR = 2.0


def make_guidance(models: Sequence[Evaluated], baseline: Sequence[Evaluated] = ()) -> dict[str, Any]:
    """For each application the best betas by validation, beside what it competes with.

    Seeds of the same betas are one candidate, judged by their mean. Its standard error joins the spread
    over seeds and that of one model over images and draws: the test images are the same for all seeds,
    so their part does not shrink with more seeds. Models that are compared share these images too, which
    makes the error of a difference rather too large.

    Args:
      models: evaluated, all of the same L.
      baseline: models of one layer.

    Returns:
      plain values for guidance.json.
    """
    out: dict[str, Any] = {"num_models": len(models), "num_layers": models[0].num_layers, "applications": {}}
    for application, (metric, unit) in APPLICATIONS.items():
        candidates = _candidates(models, application)
        equal = [c for c in candidates if np.allclose(c["betas"], c["betas"][0], rtol=1e-6)]
        rivals = {
            "equal_betas": _best(equal),
            "unit_betas": _best([c for c in equal if np.isclose(c["betas"][0], 1.0)]),
            "baseline": _best(_candidates(baseline, application)),
        }
        best = _best(candidates)
        assert best is not None
        out["applications"][application] = {
            "metric": metric,
            "unit": unit,
            "best": best,
            **{
                name: None if rival is None else {**rival, **_compare(best, rival)}
                for name, rival in rivals.items()
            },
            "explained_by": explained_by_rates(models, application),
        }
    return out


def explained_by_rates(models: Sequence[Evaluated], application: str) -> dict[str, dict[str, Any]]:
    """Which rate an application follows, over all models and on the test split.

    Args:
      models: evaluated, all of the same L.
      application: one of APPLICATIONS.

    Returns:
      for "total_rate" and each of "rate_1" … "rate_L": `share`, the part of the variance over models that
      the best monotone function of that rate alone explains, in [0, 1], None where all models score the
      same; and `rises`, whether it increases. A few models are explained by anything: of M unrelated
      numbers such a function still explains about log(M) / M.
    """
    rates = np.asarray([model.rates() for model in models], np.float64)
    values = np.asarray([model.value(application) for model in models], np.float64)
    variance = values.var()
    out = {}
    for name, rate in {
        "total_rate": rates.sum(axis=1),
        **{f"rate_{layer}": rates[:, layer - 1] for layer in range(1, rates.shape[1] + 1)},
    }.items():
        fits = {
            rises: IsotonicRegression(increasing=rises).fit_transform(rate, values) for rises in (True, False)
        }
        left = {rises: float(np.mean(np.square(values - fit))) for rises, fit in fits.items()}
        rises = left[True] <= left[False]
        out[name] = {"share": 1.0 - left[rises] / variance if variance > 0 else None, "rises": rises}
    return out


def to_markdown(guidance: Mapping[str, Any]) -> str:
    """guidance.md from the content of guidance.json, and from nothing else."""
    lines = [
        "# Which betas for which application",
        "",
        f"Chosen among {guidance['num_models']} models of {guidance['num_layers']} layers by the validation "
        "split, reported on the test split, ± one standard error. A difference is counted in its standard "
        f"errors; below {CLEAR:g} it is called unclear.",
    ]
    for application, entry in guidance["applications"].items():
        unit = f", {entry['unit']}" if entry["unit"] else ""
        lines += [
            "",
            f"## {application.capitalize()}: {entry['metric']}{unit}",
            "",
            "| choice | betas | rates (nats) | seeds | validation | test | best is ahead by |",
            "|---|---|---|---|---|---|---|",
            _row("**best**", entry["best"], "", entry["unit"]),
        ]
        for name, label in RIVALS.items():
            rival = entry[name]
            ahead = "" if rival is None else _describe(rival)
            lines.append(_row(label, rival, ahead, entry["unit"]))
        lines += ["", statement(entry), "", _explain(entry["explained_by"])]
    return "\n".join(lines) + "\n"


def _explain(explained: Mapping[str, Mapping[str, Any]]) -> str:
    parts = []
    for name, found in explained.items():
        rate = "the total rate" if name == "total_rate" else f"R_{name.removeprefix('rate_')}"
        share = "nothing" if found["share"] is None else f"{100 * found['share']:.0f} %"
        parts.append(f"{rate} {share} ({'rising' if found['rises'] else 'falling'})")
    return f"Of its variance over all models, a monotone function of one rate explains: {', '.join(parts)}."


def _candidates(models: Sequence[Evaluated], application: str) -> list[dict[str, Any]]:
    groups: dict[tuple[float, ...], list[Evaluated]] = collections.defaultdict(list)
    for model in models:
        groups[model.betas].append(model)
    return [_candidate(betas, group, application) for betas, group in sorted(groups.items())]


def _candidate(betas: tuple[float, ...], group: Sequence[Evaluated], application: str) -> dict[str, Any]:
    test = np.asarray([model.value(application) for model in group])
    own = [model.metrics["applications"]["test"][application]["standard_error"] for model in group]
    variance = float(np.mean(np.square(own)))
    if len(test) > 1:
        variance += float(test.var(ddof=1)) / len(test)
    return {
        "betas": list(betas),
        "rates_nats": np.mean([model.rates() for model in group], axis=0).tolist(),
        "models": [model.name for model in group],
        "seeds": [model.seed for model in group],
        "valid": float(np.mean([model.value(application, "valid") for model in group])),
        "test": float(test.mean()),
        "test_standard_error": math.sqrt(variance),
    }


def _best(candidates: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return max(candidates, key=lambda candidate: candidate["valid"], default=None)


def _compare(best: Mapping[str, Any], rival: Mapping[str, Any]) -> dict[str, Any]:
    # Models of a baseline are in another folder, where they may have the same names.
    is_same = all(best[name] == rival[name] for name in ("betas", "models"))
    difference = best["test"] - rival["test"]
    error = 0.0 if is_same else math.hypot(best["test_standard_error"], rival["test_standard_error"])
    return {
        "is_best": is_same,
        "difference": difference,
        "difference_standard_error": error,
        "num_standard_errors": difference / error if error > 0 else None,
    }


def _row(label: str, entry: Mapping[str, Any] | None, ahead: str, unit: str) -> str:
    if entry is None:
        return f"| {label} | absent | | | | | |"
    betas = ", ".join(f"{beta:.3g}" for beta in entry["betas"])
    rates = ", ".join(f"{rate:.2f}" for rate in entry["rates_nats"])
    test = f"{_number(entry['test'], unit)} ± {_number(entry['test_standard_error'], unit)}"
    return (
        f"| {label} | {betas} | {rates} | {len(entry['seeds'])} | {_number(entry['valid'], unit)} | {test} "
        f"| {ahead} |"
    )


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit else f"{value:.3f}"


def _describe(rival: Mapping[str, Any]) -> str:
    if rival["is_best"]:
        return "it is the best"
    text = f"{rival['difference']:.3f} ± {rival['difference_standard_error']:.3f}"
    count = rival["num_standard_errors"]
    return text if count is None else f"{text} ({count:.1f})"


def statement(entry: Mapping[str, Any]) -> str:
    """Whether independent betas won an application, in one sentence, from its entry in guidance.json."""
    rival = entry["equal_betas"]
    if rival is None:
        return "No model has equal betas, so whether independent betas won cannot be said."
    if len(rival["betas"]) == 1:
        return "With one layer there are no independent betas to compare."
    if rival["is_best"]:
        return "Independent betas did not win: the best model has equal betas."
    count = rival["num_standard_errors"]
    if count is None:
        return "Independent betas were chosen; no standard error is known for the difference."
    size = f"{abs(count):.1f} standard errors"
    if count >= CLEAR:
        return f"Independent betas won, by {size} over the best equal betas."
    if count <= -CLEAR:
        return f"Independent betas were chosen on the validation split but lost on the test split, by {size}."
    return f"No clear difference between independent and equal betas: {size}."
