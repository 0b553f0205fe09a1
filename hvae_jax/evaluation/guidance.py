"""Which betas serve which application: chosen on the validation split, reported on the test split."""

import collections
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from hvae_jax.errors import RunError
from hvae_jax.evaluation import seeds
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.evaluation.seeds import SeedSpread

# Application → what its number is called, and its unit. {pixels}: what samples are made of.
APPLICATIONS: Mapping[str, tuple[str, str]] = {
    "reconstruction": ("PSNR of reconstructions from all layers", "dB"),
    "representation": ("accuracy from samples of the top layer", ""),
    "generation": ("inception score of {pixels} by the data set's classifier", ""),
}
PIXELS: Mapping[str | None, str] = {
    "draws": "draws from p(x|z)",
    "means": "means E[x|z]",
    None: "samples",
}
RIVALS: Mapping[str, str] = {
    "equal_betas": "best with equal betas",
    "unit_betas": "all betas 1 (the ELBO)",
    "baseline": "one layer (β-VAE)",
}
# Fewer standard errors than this are called no clear difference.
CLEAR = 2.0


def make_guidance(
    models: Sequence[Evaluated],
    baseline: Sequence[Evaluated] = (),
    seeds_from: Sequence[Evaluated] = (),
) -> dict[str, Any]:
    """For each application the best betas by validation, beside what it competes with.

    Seeds of the same betas are one candidate, judged by their mean. Its standard error has two parts:
    that of one model over images and draws, which does not shrink with more seeds since the test images
    are the same for all; and the spread over seeds, pooled over all betas that have several, divided by
    the root of this candidate's number of seeds. Models that are compared share their images, which makes
    the error of a difference rather too large; choosing by validation does not help against the spread
    over seeds, since both splits see the same trained model.

    Args:
      models: evaluated, all of the same L.
      baseline: models of one layer. They are given their own spread over seeds where they have several of
        some beta, else that of `models`.
      seeds_from: where `models` have one seed of each betas: others, whose spread over seeds stands in.

    Returns:
      plain values for guidance.json. An application that some model lacks a number for is chosen among
      the others; one that all lack is in `left_out`, with the reason.

    Raises:
      RunError: samples are draws in some models and means in others, which are not to be compared.
    """
    kinds = {model.pixels for model in (*models, *baseline) if model.pixels is not None}
    if len(kinds) > 1:
        raise RunError(
            "generation is scored with draws from p(x|z) for some of these models and with means for others; "
            "evaluate them again, all with one version, or compare models of one likelihood"
        )
    out: dict[str, Any] = {
        "num_models": len(models),
        "num_layers": models[0].num_layers,
        "pixels": next(iter(kinds), None),
        "applications": {},
        "left_out": {},
    }
    for application, (metric, unit) in APPLICATIONS.items():
        served = [model for model in models if model.serves(application)]
        if not served:
            out["left_out"][application] = models[0].reason(application)
            continue
        rivals = [model for model in baseline if model.serves(application)]
        own, borrowed = _pool(served, application), _pool(seeds_from, application)
        spread = own or borrowed
        candidates = _candidates(served, application, spread)
        equal = [c for c in candidates if np.allclose(c["betas"], c["betas"][0], rtol=1e-6)]
        best = _best(candidates)
        assert best is not None
        found = {
            "equal_betas": _best(equal),
            "unit_betas": _best([c for c in equal if np.isclose(c["betas"][0], 1.0)]),
            "baseline": _best(_candidates(rivals, application, _pool(rivals, application) or spread)),
        }
        out["applications"][application] = {
            "metric": metric.format(pixels=PIXELS[out["pixels"]]),
            "unit": unit,
            "num_candidates": len(candidates),
            "seed_spread": None
            if spread is None
            else {**spread.describe(), "of": "these models" if own else "other models"},
            "best": best,
            **{
                name: None if rival is None else {**rival, **_compare(best, rival)}
                for name, rival in found.items()
            },
            "explained_by": explained_by_rates(served, application),
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


def baseline_of(guidance: Mapping[str, Any]) -> list[Evaluated]:
    """The models of one layer that a guidance.json compared with, as far as it tells of them.

    That is the best one for each application, with the number of that application alone: enough to make the
    guidance of the same models again.

    Args:
      guidance: content of guidance.json, also one of version 0.1.0.

    Raises:
      RunError: a mean over several seeds, whose numbers it does not hold one by one.
    """
    found: dict[str, Evaluated] = {}
    for application, entry in guidance["applications"].items():
        rival = entry["baseline"]
        if rival is None:
            continue
        if len(rival["models"]) > 1:
            raise RunError(
                f"the one-layer model of {application} is a mean over seeds {rival['seeds']}, whose numbers "
                "are not there one by one; give their table"
            )
        (name,), (seed,) = rival["models"], rival["seeds"]
        empty = {
            "rates": {"test": {"rates_nats": rival["rates_nats"]}},
            "applications": {"valid": {}, "test": {}},
        }
        model = found.setdefault(
            name, Evaluated(name, pathlib.Path(name), tuple(rival["betas"]), seed, empty)
        )
        # Version 0.1.0 gave one model the error of images and draws alone.
        error = rival.get("standard_error_of_images_and_draws", rival["test_standard_error"])
        for split in ("valid", "test"):
            model.metrics["applications"][split][application] = {
                "value": rival[split],
                "standard_error": error,
            }
    return list(found.values())


def _pool(models: Sequence[Evaluated], application: str) -> SeedSpread | None:
    served = [model for model in models if model.serves(application)]
    groups = _by_betas(served).values()
    return seeds.pool([[model.value(application) for model in group] for group in groups])


def _by_betas(models: Sequence[Evaluated]) -> dict[tuple[float, ...], list[Evaluated]]:
    groups: dict[tuple[float, ...], list[Evaluated]] = collections.defaultdict(list)
    for model in models:
        groups[model.betas].append(model)
    return dict(sorted(groups.items()))


def _candidates(
    models: Sequence[Evaluated], application: str, spread: SeedSpread | None
) -> list[dict[str, Any]]:
    return [_candidate(betas, group, application, spread) for betas, group in _by_betas(models).items()]


def _candidate(
    betas: tuple[float, ...], group: Sequence[Evaluated], application: str, spread: SeedSpread | None
) -> dict[str, Any]:
    own = [model.metrics["applications"]["test"][application]["standard_error"] for model in group]
    of_images = math.sqrt(float(np.mean(np.square(own))))
    of_seeds = None if spread is None else spread.standard_deviation / math.sqrt(len(group))
    return {
        "betas": list(betas),
        "rates_nats": np.mean([model.rates() for model in group], axis=0).tolist(),
        "models": [model.name for model in group],
        "seeds": [model.seed for model in group],
        "valid": float(np.mean([model.value(application, "valid") for model in group])),
        "test": float(np.mean([model.value(application) for model in group])),
        "test_standard_error": math.hypot(of_images, of_seeds or 0.0),
        "standard_error_of_images_and_draws": of_images,
        "standard_error_of_seeds": of_seeds,
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
