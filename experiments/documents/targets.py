"""Results of asking for rates."""

import collections

import numpy as np

from experiments import targets_rows
from experiments.documents import study
from experiments.documents.blocks import INFERENCE, RESULTS, table
from experiments.targets_rows import Row

FILES = {"digits": "digits_targets.json", "Fashion-MNIST": "fashion_targets.json"}
CONTROLS = {
    "target_rates": "target rates",
    "pi": "PI, tuned",
    "found_betas": "betas found, another seed",
    "found_betas_same_seed": "betas found, same seed",
}
WITHIN, WITHIN_REFIT = 0.01, 0.03


def runs() -> str:
    """How many runs of each setting came near their targets."""
    head = ("data", "control", "model", "L", "runs", "every layer within 1 % (anew: 3 %)", "on test")
    groups: dict[tuple[str, str, str, int], list[Row]] = collections.defaultdict(list)
    for data, file in FILES.items():
        for control in CONTROLS:
            for row in targets_rows.read(RESULTS / file):
                if row.control == control:
                    groups[data, control, row.inference, row.num_layers].append(row)
    models = {inference: model for model, inference in INFERENCE.items()}
    rows = []
    for (data, control, inference, num_layers), own in groups.items():
        within = WITHIN if control in ("target_rates", "pi") else WITHIN_REFIT
        errors, on_test = _errors(own, within)
        steps = [row.settled_at_step for row in own if row.settled_at_step is not None]
        settled = f"{len(steps)}, median step {np.median(steps):.0f}" if steps else "0"
        near = sum(error < within for error in errors)
        row = [data, CONTROLS[control], models[inference], num_layers, len(own), near, on_test]
        rows.append([*row, f"{100 * max(errors):.1f} %", settled])
    return table([*head, "worst layer", "settled within 2 %"], rows)


def missed() -> str:
    """The runs that missed."""
    every = [row for file in FILES.values() for row in targets_rows.read(RESULTS / file)]
    rows = [row for row in every if row.control == "target_rates"]
    errors, _ = _errors(rows, WITHIN)
    late = [f"{100 * error:.2f} %" for error in errors if error >= WITHIN]
    on_test = []
    for row in rows:
        error = np.abs(np.divide(row.test_rates_nats.value, row.targets_nats) - 1.0)
        deviation = np.divide(row.test_rates_nats.standard_error, row.targets_nats)
        on_test += [
            f"{100 * error[index]:.1f} % (standard error {100 * deviation[index]:.1f} %)"
            for index in np.flatnonzero(error > WITHIN + 2 * deviation)
        ]
    return (
        f"Of {len(rows)} models {len(late)} missed, by {', '.join(late)}. On the test split "
        f"{len(on_test)} layers are further off than 1 % and two standard errors: {', '.join(on_test)}."
    )


def digits_map() -> str:
    """How near a grid of target rates came."""
    return f"All {study.near('digits_targets_grid.csv')} (training split, fresh noise, seed 0)."


def frontier() -> str:
    """The distortion along a line of constant total rate."""
    distortions = {
        round(row.targets_nats[1]): row.test_distortion_nats
        for row in targets_rows.read(RESULTS / "digits_frontier.json")
    }
    near = [distortion for rate, distortion in distortions.items() if rate <= 6]
    most = max(distortions)
    return (
        f"D is {min(near):.1f} to {max(near):.1f} nats with up to 6 nats in z_2, and rises from there to "
        f"{distortions[most]:.1f} with {most}."
    )


def _errors(rows: list[Row], within: float) -> tuple[list[float], int]:
    """The largest relative error of each run, and the runs that are within it on test, give or take 2 errors."""
    errors, on_test = [], 0
    for row in rows:
        asked, test = np.asarray(row.targets_nats), np.asarray(row.test_rates_nats.value)
        errors.append(float(np.abs(np.asarray(row.train_rates_nats.value) / asked - 1.0).max()))
        slack = 2.0 * np.asarray(row.test_rates_nats.standard_error)
        on_test += bool((np.abs(test - asked) < within * asked + slack).all())
    return errors, on_test
