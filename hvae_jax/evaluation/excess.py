"""What a conditioned model costs at each betas against models trained for those betas alone.

The measure is the excess of D + Σ β_l R_l, the objective that both minimise. D at equal betas would be no
comparison, since rates differ there; D at equal rates is one. See METHOD, "One network for every β".
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

# Rates are not asked for where a layer is as good as empty: there is no beta of it to be found.
MIN_ASKED_NATS = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One vector of betas; all in nats, means over the images of a split.

    Attributes:
      separate_objective_nats: mean of the separately trained models' D + Σ β_l R_l over their seeds.
      num_separate: how many of them there are.
      separate_rates_nats: `[L]`, their mean.
      objective_nats: of the conditioned model, one for each of its seeds.
      rates_nats: `[S, L]` of it.
      excess_nats: mean over its seeds, minus the separate one; negative is better.
      distortion_excess_nats: of its first seed, D at the mean rates of the separate models, minus their D;
        None where those rates were not asked for, or are out of its reach.
    """

    betas: tuple[float, ...]
    separate_objective_nats: float
    num_separate: int
    separate_rates_nats: tuple[float, ...]
    objective_nats: tuple[float, ...]
    rates_nats: tuple[tuple[float, ...], ...]
    excess_nats: float
    distortion_excess_nats: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """Over all points, nats.

    Attributes:
      num_lower: points with a lower objective than the separate models, by the mean over seeds.
      num_lower_of_seeds: the same of each seed alone.
      mean_relative: mean of excess over the separate objective.
      num_distortions: points with a `distortion_excess_nats`.
    """

    num_points: int
    num_lower: int
    num_lower_of_seeds: tuple[int, ...]
    mean_nats: float
    median_nats: float
    best_nats: float
    worst_nats: float
    worst_betas: tuple[float, ...]
    mean_relative: float
    num_distortions: int
    median_distortion_nats: float | None
    worst_distortion_nats: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answering:
    """How the rate of one layer answers to its own beta, along the lines of a grid on which only it moves.

    Attributes:
      num_steps: neighbours on those lines.
      num_rising: of them, where the rate rises with its beta.
      largest_rise_nats: the most that it does; 0 where it never does.
      roughness_nats: mean |second difference| of the rate over neighbours in a row.
    """

    layer: int
    num_steps: int
    num_rising: int
    largest_rise_nats: float
    roughness_nats: float


def objective(
    betas: Sequence[float] | np.ndarray, distortion: float, rates: Sequence[float] | np.ndarray
) -> float:
    """D + Σ β_l R_l, nats.

    Example:
      >>> objective((0.5, 2.0), 10.0, (4.0, 1.0))
      14.0
    """
    return float(distortion + np.dot(betas, rates))


def summarize(points: Sequence[Point]) -> Summary:
    """All points in short; at least one."""
    excess = np.asarray([point.excess_nats for point in points])
    separate = np.asarray([point.separate_objective_nats for point in points])
    of_seeds = np.asarray([point.objective_nats for point in points]) - separate[:, None]
    distortions = [d for point in points if (d := point.distortion_excess_nats) is not None]
    return Summary(
        num_points=len(points),
        num_lower=int((excess < 0).sum()),
        num_lower_of_seeds=tuple((of_seeds < 0).sum(axis=0).tolist()),
        mean_nats=float(excess.mean()),
        median_nats=float(np.median(excess)),
        best_nats=float(excess.min()),
        worst_nats=float(excess.max()),
        worst_betas=points[int(excess.argmax())].betas,
        mean_relative=float((excess / separate).mean()),
        num_distortions=len(distortions),
        median_distortion_nats=float(np.median(distortions)) if distortions else None,
        worst_distortion_nats=max(distortions) if distortions else None,
    )


def answering(rates: Mapping[tuple[float, ...], Sequence[float]]) -> tuple[Answering, ...]:
    """How each layer's rate answers to its own beta.

    Args:
      rates: betas → rates `[L]`, nats, of one set of models.

    Example:
      >>> found = answering({(0.1,): (9.0,), (1.0,): (5.0,), (10.0,): (6.0,)})
      >>> found[0].num_rising, found[0].largest_rise_nats, found[0].roughness_nats
      (1, 1.0, 5.0)
    """
    num_layers = len(next(iter(rates)))
    out = []
    for layer in range(num_layers):
        lines: dict[tuple[float, ...], list[tuple[float, float]]] = {}
        for betas, of_layers in rates.items():
            others = betas[:layer] + betas[layer + 1 :]
            lines.setdefault(others, []).append((betas[layer], of_layers[layer]))
        ordered = [np.asarray([rate for _, rate in sorted(line)]) for line in lines.values()]
        steps = np.concatenate([np.diff(line) for line in ordered])
        bends = np.concatenate([np.diff(line, 2) for line in ordered])
        out.append(
            Answering(
                layer=layer + 1,
                num_steps=len(steps),
                num_rising=int((steps > 0).sum()),
                largest_rise_nats=max(float(steps.max(initial=0.0)), 0.0),
                roughness_nats=float(np.abs(bends).mean()) if len(bends) else 0.0,
            )
        )
    return tuple(out)
