"""guidance.md and the sentences of the report: words for what guidance.json holds, and nothing else."""

from collections.abc import Mapping

from hvae_jax.evaluation.choices import Candidate, Entry, Explained, Guidance, Rival
from hvae_jax.groups import layers_name, runs

# Fewer standard errors than this are called no clear difference.
CLEAR = 2.0
_SHARED = (
    " Betas that only some of the networks were asked at are no candidates. Differences are of the same "
    "networks: what these differ by at all betas is no error of theirs."
)
_MIXED = (
    " There are no betas that all of the networks were asked at, so betas and networks are mixed up: a "
    "difference may be one of the networks."
)
# Of fewer models a monotone function of anything explains a good part.
FEW = 10
# Betas and rates of more layers are said in short.
MANY_LAYERS = 6


def to_markdown(guidance: Guidance) -> str:
    """guidance.md."""
    lines = ["# Which betas for which application", "", introduction(guidance)]
    for application, entry in guidance.applications.items():
        unit = f", {entry.unit}" if entry.unit else ""
        has_units = knows_units(entry)
        names = ["choice", "betas", "rates (nats)", "seeds", "validation", "test", "best is ahead by"]
        if has_units:
            names.insert(3, "active units")
        best = "**best**" if entry.num_candidates > 1 else "this model"
        lines += [
            "",
            f"## {application.capitalize()}: {entry.metric}{unit}",
            "",
            f"| {' | '.join(names)} |",
            "|---" * len(names) + "|",
            _row(best, entry.best, "", entry.unit, has_units),
        ]
        for label, rival in entry.rivals().items():
            ahead = "" if rival is None else _describe(rival)
            lines.append(_row(label, rival, ahead, entry.unit, has_units))
        lines += ["", f"{statement(entry)} {spread_statement(entry)}"]
        if entry.num_candidates > 1:
            few = f" Of {guidance.num_models} models any rate explains much." * (guidance.num_models < FEW)
            lines += ["", _explain(entry.explained_by) + few]
    if guidance.left_out:
        lines += ["", "## Left out", ""]
        lines += [f"- {application}: {reason}" for application, reason in guidance.left_out.items()]
    return "\n".join(lines) + "\n"


def introduction(guidance: Guidance) -> str:
    """What was chosen among, and what the errors are."""
    layers = f"{guidance.num_layers} layer" + "s" * (guidance.num_layers > 1)
    errors = (
        "± one standard error: of images and draws, and of the seeds where their spread is known. "
        f"A difference is counted in its standard errors; below {CLEAR:g} it is called unclear."
    )
    if guidance.num_models == 1:
        return f"One model of {layers}, reported on the test split, {errors}"
    text = (
        f"Chosen among {describe_models(guidance)} of {layers} by the validation split, reported on the "
        f"test split, {errors}"
    )
    if guidance.num_networks and guidance.num_networks > 1:
        entries = [entry for _, entry in guidance.applications.items()]
        shared = all(len(entry.best.models) == guidance.num_networks for entry in entries)
        text += _SHARED if shared else _MIXED
    return text


def describe_models(guidance: Guidance) -> str:
    """What the numbers are of: models that were trained, or betas that few conditioned ones were asked at."""
    count = f"{guidance.num_models} model{'s' * (guidance.num_models > 1)}"
    if guidance.num_networks is None:
        return count
    if guidance.num_networks == 1:
        return f"{count} (one conditioned network, asked at {guidance.num_models} betas)"
    return f"{count} ({guidance.num_networks} conditioned networks, each at betas of its own)"


def statement(entry: Entry) -> str:
    """Whether independent betas won an application, in one sentence, from its entry in guidance.json."""
    rival = entry.equal_betas
    if entry.num_candidates == 1:
        return "There is one choice of betas here, so there is nothing to compare it with."
    if rival is None:
        return "No model has equal betas, so whether independent betas won cannot be said."
    if len(rival.betas) == 1:
        return "With one layer there are no independent betas to compare."
    if rival.is_best and entry.seed_spread is None:
        return "The best model has equal betas; whether it would with other seeds cannot be said."
    if rival.is_best:
        return "Independent betas did not win: the best model has equal betas."
    count = rival.num_standard_errors
    if count is None:
        return "Independent betas were chosen; no standard error is known for the difference."
    size = f"{abs(count):.1f} standard errors"
    if entry.seed_spread is None:
        ahead = "ahead of" if count >= 0 else "behind"
        return (
            f"Independent betas were chosen and are {size} of images and draws {ahead} the best equal betas; "
            "whether they won cannot be said."
        )
    if count >= CLEAR:
        return f"Independent betas won, by {size} over the best equal betas."
    if count <= -CLEAR:
        return f"Independent betas were chosen on the validation split but lost on the test split, by {size}."
    return f"No clear difference between independent and equal betas: {size}."


def spread_statement(entry: Entry) -> str:
    """How far the number is known to vary with the seed."""
    spread = entry.seed_spread
    if spread is None:
        return (
            "The spread over seeds is not known, since no betas were trained with two: errors are those of "
            "images and draws alone."
        )
    source = "" if spread.of == "these models" else " (of other models, since these have one seed each)"
    text = (
        f"Its standard deviation over seeds is {_number(spread.standard_deviation, '')}{source}, with "
        f"{spread.degrees_of_freedom} degrees of freedom."
    )
    if within := entry.difference_spread:
        apart = _number(within.standard_deviation, "")
        text = (
            f"{text[:-1]}; of what betas change within a network, {apart}, with {within.degrees_of_freedom}."
        )
    return text


def knows_units(entry: Entry) -> bool:
    """Whether active units were counted in any of the models that are compared: a column shows them."""
    shown = (entry.best, *entry.rivals().values())
    return any(one is not None and one.active_units is not None for one in shown)


def describe_units(entry: Candidate) -> str:
    """Active units of every layer, z_1 first, in short where there are many; "" if they were not counted."""
    units = entry.active_units
    if units is None:
        return ""
    if len(units) > MANY_LAYERS:
        return f"{sum(units):.4g} in all, {units[-1]:.4g} at the top"
    return ", ".join(f"{number:.4g}" for number in units)


def _explain(explained: Mapping[str, Explained]) -> str:
    parts = []
    for name, found in explained.items():
        rate = "the total rate" if name == "total_rate" else f"R_{name.removeprefix('rate_')}"
        share = "nothing" if found.share is None else f"{100 * found.share:.0f} %"
        parts.append(f"{rate} {share} ({'rising' if found.rises else 'falling'})")
    return f"Of its variance over all models, a monotone function of one rate explains: {', '.join(parts)}."


def _row(label: str, entry: Candidate | None, ahead: str, unit: str, has_units: bool) -> str:
    if entry is None:
        return f"| {label} | absent | | | | | |" + " |" * has_units
    betas, rates = _betas(entry), ", ".join(f"{rate:.2f}" for rate in entry.rates_nats)
    if len(entry.rates_nats) > MANY_LAYERS:
        rates = f"{sum(entry.rates_nats):.2f} in all, {entry.rates_nats[-1]:.2f} at the top"
    test = f"{_number(entry.test, unit)} ± {_number(entry.test_standard_error, unit)}"
    units = f"{describe_units(entry)} | " if has_units else ""
    return (
        f"| {label} | {betas} | {rates} | {units}{len(entry.seeds)} | {_number(entry.valid, unit)} | {test} "
        f"| {ahead} |"
    )


def _betas(entry: Candidate) -> str:
    if len(entry.betas) <= MANY_LAYERS:
        return ", ".join(f"{beta:.3g}" for beta in entry.betas)
    return ", ".join(f"{beta:.3g} ({layers_name(*layers)})" for beta, *layers in runs(entry.betas))


def _number(value: float, unit: str) -> str:
    return f"{value:.2f}" if unit else f"{value:.3f}"


def _describe(rival: Rival) -> str:
    if rival.is_best:
        return "it is the best"
    text = f"{rival.difference:.3f} ± {rival.difference_standard_error:.3f}"
    count = rival.num_standard_errors
    return text if count is None else f"{text} ({count:.1f})"
