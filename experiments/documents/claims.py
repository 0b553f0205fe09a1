"""What theory and the paper say of the applications, set beside what was found on each data set.

By one network per seed that is asked at all betas, and by networks that were trained for each.
"""

import functools
import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from experiments.documents.blocks import RESULTS, UNITS, table, there
from hvae_jax.evaluation import bound_checks, guidance, tables
from hvae_jax.evaluation.choices import Candidate, Entry, Guidance
from hvae_jax.evaluation.guidance_text import CLEAR
from hvae_jax.evaluation.metrics import AnyApplication
from hvae_jax.evaluation.results import Evaluated

# Title → evaluation.csv of a grid of conditioned networks, three seeds.
CONDITIONED = {
    "Fashion-MNIST": "fashion_conditioned_evaluation.csv",
    "MNIST": "mnist_conditioned_evaluation.csv",
    "CIFAR-10 (JPEG copies)": "cifar_conditioned_evaluation.csv",
}
# The same of networks that were trained for one vector of betas each, three seeds; and with one layer.
SEPARATE = {
    "Fashion-MNIST, GHVAE": "fashion_10_epochs_evaluation.csv",
    "MNIST, GHVAE": "mnist_20_epochs_evaluation.csv",
    "MNIST, ladder": "mnist_20_epochs_ladder_evaluation.csv",
    "CIFAR-10, GHVAE": "cifar_10_epochs_evaluation.csv",
}
ONE_LAYER = {
    "Fashion-MNIST, one layer": "fashion_10_epochs_one_layer_evaluation.csv",
    "MNIST, one layer": "mnist_20_epochs_one_layer_evaluation.csv",
}
# Title of networks that were trained for their betas → of conditioned ones that were asked at the same.
ASKED = {
    "Fashion-MNIST, GHVAE": "Fashion-MNIST",
    "MNIST, GHVAE": "MNIST",
    "CIFAR-10, GHVAE": "CIFAR-10 (JPEG copies)",
}
# MNIST, trained for two vectors of betas each as the conditioned network is trained for all.
SAME_RECIPE = {"MNIST, GHVAE, the recipe of the conditioned": "mnist_recipe_evaluation.csv"}

# Samples of some are draws, of others means.
_TITLES: dict[AnyApplication, str] = {**UNITS, "generation": "inception score"}


def claims() -> str:
    """A row for each claim, a column for each data set."""
    return _claims(CONDITIONED)


def claims_separate() -> str:
    """The same of networks that were trained for their betas."""
    return _claims(SEPARATE)


def _claims(titles: Iterable[str]) -> str:
    rows: list[tuple[str, Callable[[str], str]]] = [
        (
            "Reconstruction wants the total rate, wherever it is: of the variance of PSNR it explains",
            _follows_total,
        ),
        ("Accuracy from samples of z_2 stays under its bound", _under_bounds),
        ("and R_2 drives it: of its variance it explains", _follows_top),
        ("Generation is best where every β is 1: −ELBO is lowest at", _best_elbo),
        ("and the inception score is highest at", functools.partial(_best_at, application="generation")),
    ]
    rows += [
        (f"Independent betas beat equal ones: {title}", functools.partial(_ahead, application=application))
        for application, title in _TITLES.items()
    ]
    return table(("claim", *titles), ([claim, *map(measure, titles)] for claim, measure in rows))


def applications() -> str:
    """Which betas serve which application, on each data set."""
    return _applications("data", CONDITIONED)


def applications_separate() -> str:
    """The same of networks that were trained for their betas, beside those of one layer."""
    return _applications("network", {**SEPARATE, **ONE_LAYER})


def objectives_separate() -> str:
    """D + Σ β_l R_l of networks that were trained for their betas, and of conditioned ones that were asked."""
    kinds = ("trained for them", "conditioned", "difference")
    head = ("betas", *(f"{title}: {kind}" for title in ASKED for kind in kinds))
    found = [(_objectives(title), _objectives(asked)) for title, asked in ASKED.items()]
    rows = []
    for betas in sorted(set().union(*(separate for separate, _ in found))):
        row = [_betas(betas)]
        for separate, conditioned in found:
            if betas not in separate:
                row += len(kinds) * [""]
                continue
            (own, own_variance), (asked, asked_variance) = separate[betas], conditioned[betas]
            error = math.sqrt(own_variance + asked_variance)
            row += [f"{own:,.1f}", f"{asked:,.1f}", f"{own - asked:+.1f} ± {error:.1f}"]
        rows.append(row)
    return table(head, rows)


def recipe() -> str:
    """Networks trained for their betas, of both recipes, and the conditioned ones at these betas."""
    (same,) = SAME_RECIPE
    titles = {
        "trained for them": "MNIST, GHVAE",
        "with the recipe of the conditioned": same,
        "conditioned": "MNIST",
    }
    measures = {
        "rates, nats": lambda title, betas: ", ".join(f"{rate:.1f}" for rate in _mean_rates(title, betas)),
        "D + Σ β_l R_l, nats": lambda title, betas: f"{_objectives(title)[betas][0]:.1f}",
        "inception score": _mean_score,
    }
    rows = []
    for betas in sorted(_objectives(same)):
        rows += [
            [_betas(betas), name, *(measure(title, betas) for measure in measures.values())]
            for name, title in titles.items()
        ]
    return table(("betas", "networks", *measures), rows)


def _at(title: str, betas: tuple[float, ...]) -> list[Evaluated]:
    return [model for model in _models(title) if model.betas == betas]


def _mean_rates(title: str, betas: tuple[float, ...]) -> np.ndarray:
    return np.mean([model.metrics.rates.test.rates_nats.value for model in _at(title, betas)], axis=0)


def _mean_score(title: str, betas: tuple[float, ...]) -> str:
    """Over the networks, and in each."""
    scores = [there(model.scored.test("generation")) for model in _at(title, betas)]
    return f"{np.mean(scores):.2f} ({', '.join(f'{score:.2f}' for score in scores)})"


def _objectives(title: str) -> dict[tuple[float, ...], tuple[float, float]]:
    """Betas of several networks → mean of D + Σ β_l R_l on the test split, nats, and its variance."""
    by_betas: dict[tuple[float, ...], list[float]] = {}
    for model in _models(title):
        test = model.metrics.rates.test
        weighted = float(np.dot(model.betas, test.rates_nats.value))
        by_betas.setdefault(model.betas, []).append(test.distortion_nats.value + weighted)
    return {
        betas: (float(np.mean(values)), float(np.var(values, ddof=1)) / len(values))
        for betas, values in by_betas.items()
        if len(values) > 1
    }


def _applications(first: str, titles: Iterable[str]) -> str:
    head = (first, "application", "best betas", "rates, nats", "score", "best equal betas", "β = 1")
    rows = []
    for title in titles:
        units = {**UNITS, "generation": f"inception score of {_guidance(title).pixels}"}
        for application, entry in _guidance(title).applications.items():
            equal, unit, digits = there(entry.equal_betas), there(entry.unit_betas), 2 if entry.unit else 3

            def score(one: Candidate, digits: int = digits) -> str:
                return f"{one.test:.{digits}f} ± {one.test_standard_error:.{digits}f}"

            rates = ", ".join(f"{rate:.1f}" for rate in entry.best.rates_nats)
            rows.append(
                [
                    title,
                    f"{application}, {units[application]}",
                    *(_betas(entry.best.betas), rates, score(entry.best)),
                    *(f"{score(equal)} at {equal.betas[0]:.3g}", score(unit)),
                ]
            )
    return table(head, rows)


@functools.cache
def _models(title: str) -> Sequence[Evaluated]:
    return tables.read_table(RESULTS / {**CONDITIONED, **SEPARATE, **ONE_LAYER, **SAME_RECIPE}[title])


@functools.cache
def _guidance(title: str) -> Guidance:
    return guidance.make_guidance([model.scored for model in _models(title)])


def _entry(title: str, application: AnyApplication) -> Entry:
    return there(_guidance(title).applications.get(application))


def _share(title: str, application: AnyApplication, rate: str) -> str:
    """Over all models."""
    explained = guidance.explained_by_rates([model.scored for model in _models(title)], application)
    return f"{100 * there(explained[rate].share):.0f} %"


def _follows_total(title: str) -> str:
    alone = ", ".join(
        f"R_{layer} alone {_share(title, 'reconstruction', f'rate_{layer}')}" for layer in (1, 2)
    )
    return f"{_share(title, 'reconstruction', 'total_rate')} ({alone})"


def _follows_top(title: str) -> str:
    return f"{_share(title, 'representation', 'rate_2')} (the total rate {_share(title, 'representation', 'total_rate')})"


def _under_bounds(title: str) -> str:
    kinds = bound_checks.worth([model.metrics for model in _models(title)])
    kind = kinds["top_accuracy"]
    broken = sum(kind.num_violations for kind in kinds.values())
    return f"{broken} violations; {kind.num_could_fail} of {kind.num_checked} accuracies could have"


def _best_elbo(title: str) -> str:
    by_betas: dict[tuple[float, ...], list[float]] = {}
    for model in _models(title):
        by_betas.setdefault(model.betas, []).append(model.metrics.rates.test.negative_elbo_nats.value)
    best = min(by_betas, key=lambda betas: float(np.mean(by_betas[betas])))
    return f"{_betas(best)}, {np.mean(by_betas[best]):.1f} nats"


def _best_at(title: str, application: AnyApplication) -> str:
    entry = _entry(title, application)
    unit = there(entry.unit_betas)
    if unit.is_best:
        return f"{_betas(entry.best.betas)}"
    return f"{_betas(entry.best.betas)}; ahead of β = 1 by {unit.difference:.3f} ± {unit.difference_standard_error:.3f}"


def _ahead(title: str, application: AnyApplication) -> str:
    """By how much, with its error, and in each seed, where the networks are the same."""
    entry = _entry(title, application)
    equal, digits = there(entry.equal_betas), 2 if entry.unit else 3
    if equal.is_best:
        return f"no: {_betas(entry.best.betas)} is best, {entry.best.test:.{digits}f}"
    seeds = ", ".join(f"{seed:+.{digits}f}" for seed in _by_seed(title, application, entry.best, equal))
    there(entry.seed_spread)  # without it no difference would be a yes
    verdict = "yes" if there(equal.num_standard_errors) >= CLEAR else "not clearly"
    return (
        f"{verdict}: {_betas(entry.best.betas)} {entry.best.test:.{digits}f}, {_betas(equal.betas)} "
        f"{equal.test:.{digits}f}; {equal.difference:+.{digits}f} ± {equal.difference_standard_error:.{digits}f} "
        f"(seeds {seeds})"
    )


def _by_seed(title: str, application: AnyApplication, best: Candidate, equal: Candidate) -> list[float]:
    """Of each network that was asked at both: they share all but their betas."""
    scores = {model.name: model.scored.test(application) for model in _models(title)}
    first, second = (dict(zip(one.seeds, one.models, strict=True)) for one in (best, equal))
    return [scores[first[seed]] - scores[second[seed]] for seed in sorted(first.keys() & second.keys())]


def _betas(betas: Sequence[float]) -> str:
    return f"({', '.join(f'{beta:.3g}' for beta in betas)})"
