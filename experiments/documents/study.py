"""The study on Fashion-MNIST."""

from typing import Any

import numpy as np

from experiments.documents.blocks import INFERENCE, read, table

UNITS = {"reconstruction": "PSNR, dB", "representation": "accuracy from samples of z_L"}
UNITS["generation"] = "inception score of means, own classifier"
# A model has nats in both layers from these rates on.
IN_BOTH = (2.0, 1.0)
TOTALS = (64.0, 72.0)


def guidance_rows(model: str, applications: dict[str, Any], labels: dict[str, str]) -> list[list[str]]:
    """For each application the best betas by validation and its rivals."""
    rows = []
    for application, entry in applications.items():
        best, equal, one_layer = entry["best"], entry["equal_betas"], entry["baseline"]
        digits = 2 if entry["unit"] else 3

        def score(one: dict[str, Any], digits: int = digits) -> str:
            return f"{one['test']:.{digits}f} ± {one['test_standard_error']:.{digits}f}"

        betas = ", ".join(f"{beta:.4g}" for beta in best["betas"])
        row = [model, f"{application}, {labels[application]}", betas, score(best)]
        row += [f"{score(equal)} at {equal['betas'][0]:.4g}", score(entry["unit_betas"])]
        rows.append([*row, f"{score(one_layer)} at {one_layer['betas'][0]:.4g}"])
    return rows


GUIDANCE_HEAD = (
    "model",
    "application",
    "best betas",
    "score",
    "best equal betas",
    "β = 1",
    "one layer, best β",
)


def guidance() -> str:
    """Which betas serve which application."""
    rows = []
    for model, inference in INFERENCE.items():
        rows += guidance_rows(model, read(f"fashion_{inference}_guidance.json")["applications"], UNITS)
    return table(GUIDANCE_HEAD, rows)


def reference() -> str:
    """Single models of the reference network at a few betas."""
    head = ("inference", "β_1, β_2", "seed", "D", "R_1", "R_2", "−ELBO", "−log p(x) ≤")
    rows = []
    for row in read("fashion_reference.json")["rows"]:
        test = row["test"]
        measured = (
            test["distortion_nats"],
            *test["rates_nats"],
            test["negative_elbo_nats"],
            test["negative_importance_weighted_bound_nats"],
        )
        model = next(name for name, inference in INFERENCE.items() if inference == row["inference"])
        betas = ", ".join(f"{beta:g}" for beta in row["betas"])
        rows.append([model, betas, row["seed"], *(f"{value:.2f}" for value in measured)])
    return table(head, rows)


def answers() -> str:
    """What theory says, and what was measured."""
    grid, entries = (
        _grid(),
        {m: read(f"fashion_{i}_guidance.json")["applications"] for m, i in INFERENCE.items()},
    )

    def share(model: str, application: str, rate: str) -> str:
        return f"{100 * entries[model][application]['explained_by'][rate]['share']:.3g} %"

    own = np.flatnonzero((grid["total"] >= TOTALS[0]) & (grid["total"] <= TOTALS[1]))
    low, high = own[np.argsort(grid["distortion_nats"][own])][[0, -1]]
    num_models = sum(read(f"fashion_{i}_guidance.json")["num_models"] for i in INFERENCE.values())
    num_spanned, num_above = _above_equal_betas(grid)
    elbos = " and ".join(f"{value:.2f}" for value in _best_elbos())
    both, others = _scores()
    best = {m: ", ".join(f"{b:.4g}" for b in e["generation"]["best"]["betas"]) for m, e in entries.items()}
    nats = {n: sum(entries["GHVAE"]["reconstruction"][n]["rates_nats"]) for n in ("baseline", "best")}
    classifier = 100 * read("fashion_study.json")["classifier"]["test_accuracy"]
    return f"""
- **Does only the total rate matter for reconstruction?** For the bound, yes; for what models reach, no. Of the
  GHVAE's grid, {len(own)} models have {TOTALS[0]:g} to {TOTALS[1]:g} nats in all, and their D runs from
  {grid["distortion_nats"][low]:.1f} nats ({grid["rate_1_nats"][low]:.1f} of the rate in z_1) to
  {grid["distortion_nats"][high]:.1f} nats ({grid["rate_1_nats"][high]:.1f} in z_1). A monotone function of the
  total rate explains {share("GHVAE", "reconstruction", "total_rate")} of the variance of PSNR, one of R_1 alone
  {share("GHVAE", "reconstruction", "rate_1")}; for the ladder the total rate explains
  {share("ladder", "reconstruction", "total_rate")}.
- **Is accuracy under its bound, and driven by R_L?** Yes: none of {num_models} models breaks a bound, and a
  monotone function of R_2 alone explains {share("GHVAE", "representation", "rate_2")} (GHVAE) and
  {share("ladder", "representation", "rate_2")} (ladder) of the variance of accuracy from samples of z_2. The bound
  is 1 from 2.3 nats on, so it could be broken by few of them. Posterior means, of which it does not speak, lie
  above it at small rates.
- **Is generation best near β = 1?** The ELBO is: −ELBO is lowest at (1, 1) for both, {elbos} nats. The inception
  score *of the means of p(x|z)* is highest at ({best["GHVAE"]}) for the GHVAE and ({best["ladder"]}) for the
  ladder; the GHVAE's {both[0]} models with at least {IN_BOTH[0]:g} nats in z_1 and {IN_BOTH[1]:g} in z_2 score
  {both[1]:.2f} to {both[2]:.2f}, the others {others[1]:.2f} to {others[2]:.2f}. The judge is a classifier of
  binarised images, right on {classifier:.2f} % of the test split, and these means are grey: scores of draws,
  which are measured now, were not measured for these models.
- **Do independent betas beat equal ones?** Not so that one could be sure. {_wins(entries)}
  As a trade of rate for distortion they lose: of {num_spanned} GHVAE models with unequal betas whose total rate
  the equal ones span, {num_above} have more distortion than these.
- **One layer** reconstructs better with more nats ({nats["baseline"]:.1f}, against {nats["best"]:.1f}), classifies
  as well and has a far lower inception score.
"""


def speed() -> str:
    """What the study took."""
    study = read("fashion_study.json")
    speeds = study["model_steps_per_s_undisturbed"]
    minutes = 49 * 2148 / speeds["generalized_top_down"] / 60
    return (
        f"A CPU of two cores trains about {speeds['generalized_top_down']:.0f} model-steps/s of the GHVAE and "
        f"{speeds['ladder']:.0f} of the ladder when it has nothing else to do, and evaluates a ladder in "
        f"{study['evaluation_s_per_model_of_one_core']:.1f} seconds of one core (median); 49 models take "
        f"{minutes:.0f} minutes."
    )


def target_map() -> str:
    """How near a grid of target rates came."""
    return f"All {near('fashion_targets_grid.csv')} (training split, fresh noise, seed 0)."


def near(name: str) -> str:
    """How many models of a grid of targets there are, and the largest error of a rate."""
    errors = []
    for row in read(name):
        for layer in (1, 2):
            reached, asked = (float(row[f"{n}_{layer}_nats"]) for n in ("train_rate", "target"))
            errors.append(abs(reached / asked - 1.0))
    return f"{len(errors) // 2} models have both rates within {100 * max(errors):.1f} % of what they were asked for"


def _wins(entries: dict[str, Any]) -> str:
    parts = []
    for model, applications in entries.items():
        for application, entry in applications.items():
            equal = entry["equal_betas"]
            if equal["is_best"]:
                parts.append(f"{model}, {application}: the best has equal betas")
                continue
            difference, error = equal["difference"], equal["difference_standard_error"]
            parts.append(
                f"{model}, {application}: {difference:.3f} ± {error:.3f} ({difference / error:.1f} errors)"
            )
    return (
        f"By how much the best betas are ahead of the best equal ones: {'; '.join(parts)}. The errors of the GHVAE "
        "know the spread over two seeds, pooled over nine betas; the ladder has one seed, its errors are those of "
        f"images and draws alone. {_ladder_with_seeds(entries)}"
    )


def _ladder_with_seeds(entries: dict[str, Any]) -> str:
    """The ladder's reconstruction with the GHVAE's spread over seeds."""
    spread = entries["GHVAE"]["reconstruction"]["seed_standard_deviation"]
    equal = entries["ladder"]["reconstruction"]["equal_betas"]
    error = np.sqrt(equal["difference_standard_error"] ** 2 + 2 * spread**2)
    return (
        f"With the GHVAE's spread over seeds its win in reconstruction would be {equal['difference'] / error:.1f} "
        "errors."
    )


def _grid() -> dict[str, np.ndarray]:
    rows = read("fashion_generalized_top_down_grid.csv")
    columns = ("beta_1", "beta_2", "test_distortion_nats", "test_rate_1_nats", "test_rate_2_nats")
    grid = {name.removeprefix("test_"): np.asarray([float(row[name]) for row in rows]) for name in columns}
    return {**grid, "total": grid["rate_1_nats"] + grid["rate_2_nats"]}


def _above_equal_betas(grid: dict[str, np.ndarray]) -> tuple[int, int]:
    """Models of unequal betas where the line through the equal ones goes, and those above it."""
    total, distortion = grid["total"], grid["distortion_nats"]
    is_equal = grid["beta_1"] == grid["beta_2"]
    order = np.argsort(total[is_equal])
    line = total[is_equal][order], distortion[is_equal][order]
    spanned = ~is_equal & (total >= line[0][0]) & (total <= line[0][-1])
    return int(spanned.sum()), int((distortion > np.interp(total, *line))[spanned].sum())


def _best_elbos() -> list[float]:
    best = []
    for inference in INFERENCE.values():
        row = max(read(f"fashion_{inference}_grid.csv"), key=lambda row: float(row["test_elbo_nats"]))
        if (float(row["beta_1"]), float(row["beta_2"])) != (1.0, 1.0):
            raise ValueError("the best ELBO is no longer at (1, 1): rewrite the answer")
        best.append(-float(row["test_elbo_nats"]))
    return best


def _scores() -> list[tuple[int, float, float]]:
    """Inception scores of the models with nats in both layers, and of the others: number, least, most."""
    rows = read("fashion_generalized_top_down_evaluation.csv")
    columns = (
        "rates.test.rates_nats.1",
        "rates.test.rates_nats.2",
        "generation.test.inception_score_classifier",
    )
    rate_1, rate_2, score = (np.asarray([float(row[name]) for row in rows]) for name in columns)
    has_both = (rate_1 >= IN_BOTH[0]) & (rate_2 >= IN_BOTH[1])
    return [(len(group), group.min(), group.max()) for group in (score[has_both], score[~has_both])]
