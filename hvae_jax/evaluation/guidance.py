"""Which betas serve which application: chosen on the validation split, reported on the test split."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from hvae_jax.errors import RunError
from hvae_jax.evaluation import seeds
from hvae_jax.evaluation.choices import Candidate, Entry, Explained, Guidance, KnownSpread, Rival, Scored
from hvae_jax.evaluation.metrics import (
    AnyApplication,
    Application,
    PerApplication,
    PerSplit,
    Pixels,
    Score,
)
from hvae_jax.evaluation.plain import from_plain
from hvae_jax.evaluation.seeds import SeedSpread

# Application → what its number is called, and its unit. {pixels}: what samples are made of.
APPLICATIONS: Mapping[Application, tuple[str, str]] = {
    "reconstruction": ("PSNR of reconstructions from all layers", "dB"),
    "representation": ("accuracy from samples of the top layer", ""),
    "generation": ("inception score of {pixels} by the data set's classifier", ""),
}
# Where images from elsewhere are looked at. {outside}: the sets of them.
DETECTION: tuple[str, str] = ("mean AUROC against {outside}, by the score that validation chose", "")
PIXELS: Mapping[Pixels | None, str] = {
    "draws": "draws from p(x|z)",
    "means": "means E[x|z]",
    None: "samples",
}


def make_guidance(
    models: Sequence[Scored],
    baseline: Sequence[Scored] = (),
    seeds_from: Sequence[Scored] = (),
) -> Guidance:
    """For each application the best betas by validation, beside what it competes with.

    Seeds of the same betas are one candidate, judged by their mean. Its standard error has two parts:
    that of one model over images and draws, which does not shrink with more seeds since the test images
    are the same for all; and the spread over seeds, pooled over all betas that have several, divided by
    the root of this candidate's number of seeds. Models that are compared share their images, which makes
    the error of a difference rather too large; choosing by validation does not help against the spread
    over seeds, since both splits see the same trained model.

    Of several conditioned networks, one for each seed, betas are candidates that all of them were asked at,
    if there are such betas: a better network would win for those that only it was asked at. Two candidates
    then share their networks, and what differs between these at all betas is no error of their difference.

    Args:
      models: evaluated, all of the same L.
      baseline: models of one layer. They are given their own spread over seeds where they have several of
        some beta, else that of `models`.
      seeds_from: where `models` have one seed of each betas: others, whose spread over seeds stands in.
    Returns:
      for guidance.json. An application that some model lacks a number for is chosen among the others.

    Raises:
      RunError: samples are draws in some models and means in others, which are not to be compared.
    """
    kinds: set[Pixels] = {model.pixels for model in (*models, *baseline) if model.pixels is not None}
    if len(kinds) > 1:
        raise RunError(
            "generation is scored with draws from p(x|z) for some of these models and with means for others; "
            "evaluate them again, all with one version, or compare models of one likelihood"
        )
    pixels = next(iter(kinds), None)
    networks = {model.network for model in models}
    num_networks = None if "" in networks else len(networks)
    found, left_out = {}, {}
    for application, (metric, unit) in _measured(models).items():
        served = [model for model in models if model.serves(application)]
        if not served:
            left_out[application] = models[0].reason(application)
            continue
        rivals = [model for model in baseline if model.serves(application)]
        own, borrowed = _pool(served, application), _pool(seeds_from, application)
        spread = own or borrowed
        compared, within = served, None
        if num_networks and num_networks > 1:
            compared = _of_all_networks(served)
            groups = _by_betas(compared).values()
            if len({len(group) for group in groups}) == 1:
                within = seeds.pool_within([[model.test(application) for model in g] for g in groups])
            # Networks that differ at one betas do so at all: these are no further evidence.
            if own:
                spread = own = dataclasses.replace(own, degrees_of_freedom=num_networks - 1)
        candidates = _candidates(compared, application, spread)
        equal = [c for c in candidates if np.allclose(c.betas, c.betas[0], rtol=1e-6)]
        best = _best(candidates)
        assert best is not None
        found[application] = Entry(
            metric=metric.format(pixels=PIXELS[pixels], outside=_outside(served)),
            unit=unit,
            num_candidates=len(candidates),
            seed_spread=None
            if spread is None
            else KnownSpread(
                spread.standard_deviation,
                spread.degrees_of_freedom,
                "these models" if own else "other models",
            ),
            best=best,
            equal_betas=_compare(best, _best(equal), within),
            unit_betas=_compare(best, _best([c for c in equal if np.isclose(c.betas[0], 1.0)]), within),
            baseline=_compare(
                best, _best(_candidates(rivals, application, _pool(rivals, application) or spread))
            ),
            explained_by=explained_by_rates(served, application),
            difference_spread=within,
        )
    num_layers = len(models[0].betas)
    return Guidance(len(models), num_layers, pixels, PerApplication(**found), left_out, num_networks)


def explained_by_rates(models: Sequence[Scored], application: AnyApplication) -> dict[str, Explained]:
    """Which rate an application follows, over all models and on the test split.

    Args:
      models: evaluated, all of the same L.
      application: one of APPLICATIONS, or "detection".

    Returns:
      for "total_rate" and each of "rate_1" … "rate_L". A few models are explained by anything: of M
      unrelated numbers such a function still explains about log(M) / M.
    """
    rates = np.asarray([model.rates_nats for model in models], np.float64)
    values = np.asarray([model.test(application) for model in models], np.float64)
    variance = float(values.var())
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
        out[name] = Explained(1.0 - left[rises] / variance if variance > 0 else None, rises)
    return out


def baseline_of(plain: Any, source: object) -> list[Scored]:
    """The models of one layer that a guidance.json compared with, as far as it tells of them.

    That is the best one for each application, with the number of that application alone: enough to make the
    guidance of the same models again.

    Args:
      plain: content of guidance.json, also of one of version 0.1.0.
      source: of it, for errors.

    Raises:
      RunError: something else, or a mean over several seeds, whose numbers it does not hold one by one.
    """
    found: dict[Any, tuple[dict[AnyApplication, Score], dict[AnyApplication, Score]]] = {}
    for application in (*APPLICATIONS, "detection"):
        try:
            entry = plain["applications"].get(application, {}).get("baseline")
            # Version 0.1.0 gave one model the error of images and draws alone.
            old = (
                {} if entry is None else {"standard_error_of_images_and_draws": entry["test_standard_error"]}
            )
        except (AttributeError, KeyError, TypeError) as error:
            raise RunError(f"{source} is not a guidance.json of experiments.evaluate") from error
        if entry is None:
            continue
        rival = from_plain(Rival, {**old, "standard_error_of_seeds": None, **entry}, source)
        if len(rival.models) != 1:
            raise RunError(
                f"the one-layer model of {application} is a mean over seeds {list(rival.seeds)}, whose "
                "numbers are not there one by one; give their table"
            )
        key = rival.models[0], rival.seeds[0], rival.betas, rival.rates_nats
        valid, test = found.setdefault(key, ({}, {}))
        valid[application] = Score(rival.valid, rival.standard_error_of_images_and_draws)
        test[application] = Score(rival.test, rival.standard_error_of_images_and_draws)
    return [
        Scored(name, betas, seed, rates, PerSplit(valid=PerApplication(**valid), test=PerApplication(**test)))
        for (name, seed, betas, rates), (valid, test) in found.items()
    ]


def _measured(models: Sequence[Scored]) -> dict[AnyApplication, tuple[str, str]]:
    """What was looked at; detection only where there is a number for it, or a reason that there is none."""
    asked = any(model.scores.test.detection or "applications.detection" in model.left_out for model in models)
    return {**APPLICATIONS, **({"detection": DETECTION} if asked else {})}


def _outside(models: Sequence[Scored]) -> str:
    """The sets that models tell, in words; a table does not say which they were."""
    names = list(dict.fromkeys(name for model in models for name in model.outside))
    return ", ".join(names) or "images from elsewhere"


def _pool(models: Sequence[Scored], application: AnyApplication) -> SeedSpread | None:
    served = [model for model in models if model.serves(application)]
    groups = _by_betas(served).values()
    return seeds.pool([[model.test(application) for model in group] for group in groups])


def _by_betas(models: Sequence[Scored]) -> dict[tuple[float, ...], list[Scored]]:
    groups: dict[tuple[float, ...], list[Scored]] = collections.defaultdict(list)
    for model in models:
        groups[model.betas].append(model)
    return dict(sorted(groups.items()))


def _of_all_networks(models: Sequence[Scored]) -> list[Scored]:
    """Those at betas that every network was asked at, or all if there are no such betas; in one order."""
    networks, groups = {model.network for model in models}, _by_betas(models).values()
    shared = [m for group in groups if {m.network for m in group} == networks for m in group]
    return sorted(shared or models, key=lambda model: (model.seed, model.network))


def _candidates(
    models: Sequence[Scored], application: AnyApplication, spread: SeedSpread | None
) -> list[Candidate]:
    return [_candidate(betas, group, application, spread) for betas, group in _by_betas(models).items()]


def _candidate(
    betas: tuple[float, ...], group: Sequence[Scored], application: AnyApplication, spread: SeedSpread | None
) -> Candidate:
    own = [score.standard_error for model in group if (score := model.scores.test.get(application))]
    of_images = math.sqrt(float(np.mean(np.square([error or 0.0 for error in own]))))
    of_seeds = None if spread is None else spread.standard_deviation / math.sqrt(len(group))
    counts = [model.active_units for model in group if model.active_units is not None]
    is_counted = len(counts) == len(group)
    return Candidate(
        betas=betas,
        rates_nats=tuple(np.mean([model.rates_nats for model in group], axis=0).tolist()),
        models=tuple(model.name for model in group),
        seeds=tuple(model.seed for model in group),
        valid=float(np.mean([model.valid(application) for model in group])),
        test=float(np.mean([model.test(application) for model in group])),
        test_standard_error=math.hypot(of_images, of_seeds or 0.0),
        standard_error_of_images_and_draws=of_images,
        standard_error_of_seeds=of_seeds,
        active_units=tuple(np.mean(counts, axis=0).tolist()) if is_counted else None,
    )


def _best(candidates: Sequence[Candidate]) -> Candidate | None:
    return max(candidates, key=lambda candidate: candidate.valid, default=None)


def _compare(best: Candidate, rival: Candidate | None, within: SeedSpread | None = None) -> Rival | None:
    """`within`: of networks that both are of; None where each model is a training of its own."""
    if rival is None:
        return None
    # Models of a baseline are in another folder, where they may have the same names.
    is_same = (best.betas, best.models) == (rival.betas, rival.models)
    difference = best.test - rival.test
    error = math.hypot(best.test_standard_error, rival.test_standard_error)
    if within is not None and best.seeds == rival.seeds:
        of_images = best.standard_error_of_images_and_draws, rival.standard_error_of_images_and_draws
        error = math.hypot(*of_images, within.standard_deviation * math.sqrt(2 / len(best.seeds)))
    if is_same:
        error = 0.0
    return Rival(
        **vars(rival),
        is_best=is_same,
        difference=difference,
        difference_standard_error=error,
        num_standard_errors=difference / error if error > 0 else None,
    )
