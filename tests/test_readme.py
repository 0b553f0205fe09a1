"""Every number in the README's results comes from a file under experiments/results.

Numbers are compared at the precision they are printed with. A table is known by its first row; a new one
needs its numbers' origin here, or a place among the tables without results.
"""

import collections
import csv
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "experiments" / "results"
README = (ROOT / "README.md").read_text()
# A number as the README prints it. Digits that belong to a name, as in β_1, z_2 or 32×32, are none.
NUMBER = re.compile(r"(?<![\w.×,-])\d[\d,]*(?:\.\d+)?(?![\w×])")
WITHOUT_RESULTS = {("config", "what", "data"), ("file", "what"), ("field", "what"), ("flag", "what")}
WITHOUT_RESULTS.add(("application", "measured", "bound"))
INFERENCE = {"GHVAE": "generalized_top_down", "ladder": "ladder"}

Table = list[list[str]]
# The numbers of each cell, row by row; None for a cell that only names what stands in its row.
Expected = Iterable[Sequence[Sequence[float] | None]]


def read(name: str) -> Any:
    file = RESULTS / name
    if file.suffix == ".csv":
        with file.open(newline="") as lines:
            return list(csv.DictReader(lines))
    return json.loads(file.read_text())


def tables() -> list[Table]:
    """Cells of every table of the README, the first row on top, the line below it left out."""
    blocks = re.findall(r"(?:^\|.*\n)+", README, flags=re.MULTILINE)
    cells = [[line.strip()[1:-1].split("|") for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for i, row in enumerate(table) if i != 1] for table in cells]


def numbers(text: str) -> list[str]:
    return [found.rstrip(",") for found in NUMBER.findall(text)]


def agree(printed: str, value: float) -> bool:
    """Whether `printed` is `value`, rounded to as many digits."""
    decimals = len(printed.partition(".")[2])
    return f"{value:.{decimals}f}" == printed.replace(",", "")


def digits_betas(table: Table) -> Expected:
    """Rows are a layer whose beta changes, columns its values."""
    rates = {tuple(row["betas"]): row["test"]["rates_nats"] for row in read("digits_betas.json")["rows"]}
    for layer in (1, 2):
        assert table[layer][0] == f"R_1, R_2 at β_{layer} = β"
        values = [float(beta) for beta in table[0][1:]]
        yield [None, *(rates[(beta, 1.0) if layer == 1 else (1.0, beta)] for beta in values)]


def digits_guidance(table: Table) -> Expected:
    applications = read("digits_guidance.json")["applications"]
    for row in table[1:]:
        yield [None, *guidance_cells(applications[row[0].partition(",")[0]])]


def fashion_guidance(table: Table) -> Expected:
    for model, application, *_ in table[1:]:
        applications = read(f"fashion_{INFERENCE[model]}_guidance.json")["applications"]
        yield [None, None, *guidance_cells(applications[application.partition(",")[0]])]


def guidance_cells(entry: dict[str, Any]) -> list[list[float]]:
    """Best betas, score ± error; then rivals: score ± error, and betas where they were chosen."""
    scores = {
        name: [entry[name]["test"], entry[name]["test_standard_error"]]
        for name in ("best", "equal_betas", "unit_betas", "baseline")
    }
    return [
        entry["best"]["betas"],
        scores["best"],
        [*scores["equal_betas"], entry["equal_betas"]["betas"][0]],
        scores["unit_betas"],
        [*scores["baseline"], *entry["baseline"]["betas"]],
    ]


def fashion_reference(table: Table) -> Expected:
    rows = {
        (row["inference"], *row["betas"], row["seed"]): row for row in read("fashion_reference.json")["rows"]
    }
    assert len(table) - 1 == len(rows)
    for inference, betas, seed, *_ in table[1:]:
        row = rows[(INFERENCE[inference], *map(float, numbers(betas)), int(seed))]
        test = row["test"]
        measured = (
            test["distortion_nats"],
            *test["rates_nats"],
            test["negative_elbo_nats"],
            test["negative_importance_weighted_bound_nats"],
        )
        yield [None, row["betas"], [row["seed"]], *([value] for value in measured)]


def targets(table: Table) -> Expected:
    """Settings that have rows in the files of both data sets, one control after the other."""
    files = {"digits": "digits_targets.json", "Fashion-MNIST": "fashion_targets.json"}
    names = {
        "target rates": "target_rates",
        "PI, tuned": "pi",
        "betas found, another seed": "found_betas",
        "betas found, same seed": "found_betas_same_seed",
    }
    groups: dict[tuple[str, str, str, int], list[dict[str, Any]]] = collections.defaultdict(list)
    for data, file in files.items():
        for row in read(file):
            groups[(data, row["control"], row["inference"], row["num_layers"])].append(row)
    assert len(table) - 1 == len(groups)
    for data, control, model, num_layers, *_ in table[1:]:
        key = (data, names[control], INFERENCE[model], int(num_layers))
        own, within = groups[key], 0.03 if control.startswith("betas found") else 0.01
        errors, on_test = [], []
        for row in own:
            asked, test = np.asarray(row["targets_nats"]), np.asarray(row["test_rates_nats"])
            errors.append(np.abs(np.asarray(row["train_rates_nats"]) / asked - 1.0).max())
            slack = 2.0 * np.asarray(row["test_rates_nats_standard_error"])
            on_test.append((np.abs(test - asked) < within * asked + slack).all())
        steps = [row["settled_at_step"] for row in own if row["settled_at_step"] is not None]
        settled = [len(steps), float(np.median(steps))] if steps else [0]
        near = sum(error < within for error in errors)
        yield [
            None,
            None,
            None,
            [int(num_layers)],
            [len(own)],
            [near],
            [sum(on_test)],
            [100 * max(errors)],
            settled,
        ]


def benchmark(table: Table) -> Expected:
    """A column a case, and a row each for what the benchmark writes under these names."""
    names = {
        "training step, ours (ms)": "ours_ms",
        "training step, PyTorch (ms)": "torch_ms",
        "ours / PyTorch": "ratio",
        "epoch with data, ours / PyTorch": "epoch_ratio",
        "packed grid, model-steps/s": "grid_model_steps_per_s",
        "packed grid, times PyTorch one at a time": "grid_speedup_over_torch",
        "part of the best matrix product's speed": "roofline_fraction",
        "peak memory, compiling (MiB)": "ours_peak_mib",
        "peak memory, from the compile cache (MiB)": "ours_warm_peak_mib",
        "peak memory, PyTorch (MiB)": "torch_peak_mib",
        "start to first step, compiling (s)": "first_step_cold_s",
        "start to first step, from the compile cache (s)": "first_step_warm_s",
    }
    cases = {"32×32 reference": "cifar_reference", "28×28 reference": "reference_28", "digits": "digits"}
    measured = {(row["case"], row["cores"]): row for row in read("benchmark.json")}
    columns = [
        measured[cases[title.partition(",")[0]], "one" if "one core" in title else "all"]
        for title in table[0][1:]
    ]
    for label, *cells in table[1:]:
        scale = 100.0 if cells[0].endswith("%") else 1.0
        yield [None, *([scale * column[names[label]]] for column in columns)]


def scaling_devices(table: Table) -> Expected:
    rows = read("scaling_devices.json")
    assert len(table) - 1 == len(rows)
    for row in rows:
        yield [
            None,
            [row["processes"], row["devices_per_process"]],
            [row["batch_size"]],
            [row["step_ms"]],
            [row["images_per_s"]],
            [100 * row["efficiency"]],
        ]


# The first cells of a table's first row → where its numbers come from.
ORIGINS: dict[tuple[str, ...], Callable[[Table], Expected]] = {
    ("β", "0.1"): digits_betas,
    ("application", "best betas"): digits_guidance,
    ("model", "application"): fashion_guidance,
    ("inference", "β_1, β_2"): fashion_reference,
    ("data", "control"): targets,
    ("", "32×32 reference, batch 256"): benchmark,
    ("scaling", "processes × devices"): scaling_devices,
}


def test_every_table_has_an_origin_and_no_origin_is_left_over():
    found = [tuple(table[0]) for table in tables() if tuple(table[0]) not in WITHOUT_RESULTS]
    assert sorted(title[:2] for title in found) == sorted(ORIGINS)


@pytest.mark.parametrize("title", ORIGINS, ids=lambda title: ORIGINS[title].__name__)
def test_the_numbers_of_a_table_are_those_of_its_file(title):
    (table,) = [table for table in tables() if tuple(table[0][:2]) == title]
    expected = list(ORIGINS[title](table))
    assert len(expected) == len(table) - 1
    for row, values_of_row in zip(table[1:], expected, strict=True):
        assert len(row) == len(values_of_row)
        for cell, values in zip(row, values_of_row, strict=True):
            if values is None:
                continue
            printed = numbers(cell)
            is_same = len(printed) == len(values) and all(map(agree, printed, values))
            assert is_same, f"the README has {cell!r} in the row {row}; its file says {values}"


def elbo_at_one() -> list[float]:
    (row,) = [row for row in read("digits_betas.json")["rows"] if row["betas"] == [1.0, 1.0]]
    return [row["test"]["distortion_nats"], row["test"]["negative_elbo_nats"]]


def wins() -> list[float]:
    entries = read("digits_guidance.json")["applications"]
    names = ("representation", "reconstruction", "generation")
    return [entries[name]["equal_betas"]["num_standard_errors"] for name in names]


def nats_of_the_best_reconstructions() -> list[float]:
    entry = read("digits_guidance.json")["applications"]["reconstruction"]
    return [sum(entry[name]["rates_nats"]) for name in ("baseline", "best")]


def size_of_the_grid() -> list[float]:
    rows = read("digits_grid.csv")
    values = [len({row[f"beta_{layer}"] for row in rows}) for layer in (1, 2)]
    return [len(rows), *values, len({row["seed"] for row in rows})]


def fashion_grid() -> dict[str, np.ndarray]:
    """Betas, distortion and rates of the models of the study's GHVAE, seed 0."""
    rows = read("fashion_generalized_top_down_grid.csv")
    names = (
        "beta_1",
        "beta_2",
        "test_distortion_nats",
        "test_rate_1_nats",
        "test_rate_2_nats",
        "test_elbo_nats",
    )
    grid = {name.removeprefix("test_"): np.asarray([float(row[name]) for row in rows]) for name in names}
    return {**grid, "total": grid["rate_1_nats"] + grid["rate_2_nats"]}


def distortion_at_one_total() -> list[float]:
    grid = fashion_grid()
    own = np.flatnonzero((grid["total"] >= 64) & (grid["total"] <= 72))
    ends = own[np.argsort(grid["distortion_nats"][own])][[0, -1]]
    best, worst = zip(grid["distortion_nats"][ends], grid["rate_1_nats"][ends], strict=True)
    return [len(own), 64, 72, *best, *worst]


def above_equal_betas() -> list[float]:
    """Models of unequal betas, and those above the line through the equal ones, where this line goes."""
    grid = fashion_grid()
    total, distortion = grid["total"], grid["distortion_nats"]
    is_equal = grid["beta_1"] == grid["beta_2"]
    order = np.argsort(total[is_equal])
    line = total[is_equal][order], distortion[is_equal][order]
    spanned = ~is_equal & (total >= line[0][0]) & (total <= line[0][-1])
    return [spanned.sum(), (distortion > np.interp(total, *line))[spanned].sum()]


def best_elbos() -> list[float]:
    best = []
    for model in INFERENCE.values():
        row = max(read(f"fashion_{model}_grid.csv"), key=lambda row: float(row["test_elbo_nats"]))
        assert (float(row["beta_1"]), float(row["beta_2"])) == (1.0, 1.0)
        best.append(-float(row["test_elbo_nats"]))
    return best


def study_entry(model: str, application: str) -> dict[str, Any]:
    return read(f"fashion_{INFERENCE[model]}_guidance.json")["applications"][application]


def share(model: str, application: str, rate: str) -> float:
    return 100 * study_entry(model, application)["explained_by"][rate]["share"]


def shares_of_psnr() -> list[float]:
    ghvae = [share("GHVAE", "reconstruction", rate) for rate in ("total_rate", "rate_1")]
    return [*ghvae, share("ladder", "reconstruction", "total_rate")]


def shares_of_accuracy() -> list[float]:
    num = sum(read(f"fashion_{model}_guidance.json")["num_models"] for model in INFERENCE.values())
    return [num, *(share(model, "representation", "rate_2") for model in INFERENCE)]


def best_generation() -> list[float]:
    return [beta for model in INFERENCE for beta in study_entry(model, "generation")["best"]["betas"]]


def generation_of_the_study() -> list[float]:
    """Inception scores of the models with nats in both layers, and of the others."""
    rows = read("fashion_generalized_top_down_evaluation.csv")
    names = (
        "rates.test.rates_nats.1",
        "rates.test.rates_nats.2",
        "generation.test.inception_score_classifier",
    )
    rate_1, rate_2, score = (np.asarray([float(row[name]) for row in rows]) for name in names)
    has_both = (rate_1 >= 2) & (rate_2 >= 1)
    ends = [end for group in (score[has_both], score[~has_both]) for end in (group.min(), group.max())]
    return [has_both.sum(), 2, 1, *ends]


def wins_of_the_study() -> list[float]:
    wanted = [("GHVAE", name) for name in ("generation", "reconstruction", "representation")]
    wanted += [("ladder", name) for name in ("reconstruction", "representation")]
    assert study_entry("ladder", "generation")["equal_betas"]["is_best"]
    return [study_entry(*one)["equal_betas"]["num_standard_errors"] for one in wanted]


def nats_of_the_studys_best_reconstructions() -> list[float]:
    entry = study_entry("GHVAE", "reconstruction")
    return [sum(entry[name]["rates_nats"]) for name in ("baseline", "best")]


def errors_of_a_map(name: str) -> np.ndarray:
    """Of each model the larger relative error of its two rates over the training split."""
    rows = read(name)
    pairs = [
        [(float(row[f"train_rate_{layer}_nats"]), float(row[f"target_{layer}_nats"])) for layer in (1, 2)]
        for row in rows
    ]
    reached, asked = np.moveaxis(np.asarray(pairs), -1, 0)
    return np.abs(reached / asked - 1.0).max(axis=1)


def fashion_map() -> list[float]:
    errors = errors_of_a_map("fashion_targets_grid.csv")
    return [len(errors), 100 * errors.max()]


def digits_map() -> list[float]:
    errors = errors_of_a_map("digits_targets_grid.csv")
    return [len(errors), 100 * errors.max()]


def missed_targets() -> list[float]:
    """Runs of `target_rates`; the error of the one that missed; errors and standard errors on test."""
    rows = [
        row
        for name in ("digits_targets.json", "fashion_targets.json")
        for row in read(name)
        if row["control"] == "target_rates"
    ]
    errors = np.asarray([np.abs(np.divide(r["train_rates_nats"], r["targets_nats"]) - 1).max() for r in rows])
    assert (errors > 0.01).sum() == 1
    on_test = []
    for row in rows:
        error = np.abs(np.divide(row["test_rates_nats"], row["targets_nats"]) - 1.0)
        deviation = np.divide(row["test_rates_nats_standard_error"], row["targets_nats"])
        on_test += [
            (100 * error[i], 100 * deviation[i]) for i in np.flatnonzero(error > 0.01 + 2 * deviation)
        ]
    off, deviations = zip(*on_test, strict=True)
    return [len(rows), 100 * errors.max(), *off, *deviations]


def spread_over_seeds() -> list[float]:
    """At the same betas: medians of the relative standard deviations, and where both are below 3 %."""
    rates = collections.defaultdict(list)
    for row in read("digits_grid.csv"):
        own = [float(row[f"test_rate_{layer}_nats"]) for layer in (1, 2)]
        rates[row["beta_1"], row["beta_2"]].append(own)
    stacked = np.asarray(list(rates.values()))
    spread = stacked.std(axis=1, ddof=1) / stacked.mean(axis=1)
    return [*(100 * np.median(spread, axis=0)), (spread < 0.03).all(axis=1).sum(), len(spread)]


def frontier() -> list[float]:
    """The range of D up to 6 nats in z_2, and the end of the line."""
    rows = {
        round(row["targets_nats"][1]): row["test_distortion_nats"] for row in read("digits_frontier.json")
    }
    near = [distortion for rate, distortion in rows.items() if rate <= 6]
    return [min(near), max(near), 6, rows[max(rows)], max(rows)]


def speed_of_the_study() -> list[float]:
    study = read("fashion_study.json")
    speed = study["model_steps_per_s_undisturbed"]
    minutes = 49 * 2148 / speed["generalized_top_down"] / 60
    return [*speed.values(), study["evaluation_s_per_model_of_one_core"], minutes]


def accuracy_of_the_studys_classifier() -> list[float]:
    return [100 * read("fashion_study.json")["classifier"]["test_accuracy"]]


def cost_of_streaming() -> list[float]:
    (row,) = read("streaming.json")
    low, high = min(row["ratios"]), max(row["ratios"])
    return [row["streamed_cpu_ms_per_image"], row["resident_cpu_ms_per_image"], row["ratio"], low, high]


def kept_mib() -> list[float]:
    rows = [row for row in read("memory.json") if row["inference"] == "generalized_top_down"]
    kept = {(row["compute_dtype"], row["remat"]): row["kept_mib"] for row in rows}
    return [kept["float32", False], kept["float32", True], kept["bfloat16", False]]


def difference_of_bfloat16() -> list[float]:
    rows = read("precision.json")["same_parameters"]
    return [100 * max(max(row["relative_rate_differences"]) for row in rows)]


def difference_of_trainings() -> list[float]:
    return [100 * value for value in read("precision.json")["two_trainings"]["relative_rate_differences"]]


@pytest.mark.parametrize(
    ("sentence", "values"),
    [
        (r"At \(1, 1\): D (\S+), −ELBO (\S+) nats", elbo_at_one),
        (
            r"for representation, by (\S+) standard errors; .* no clear difference \((\S+) and (\S+)\)",
            wins,
        ),
        (r"best reconstructions spend more nats \((\S+) against (\S+)\)", nats_of_the_best_reconstructions),
        (
            r"(\d+) models have (\d+) to (\d+) nats in all, and their D runs from (\S+) nats "
            r"\((\S+) of them in z_1\) to (\S+) nats \((\S+) in",
            distortion_at_one_total,
        ),
        (
            r"explained to (\S+) % by the total rate and to (\S+) % by R_1 alone; for the ladder, to (\S+) %",
            shares_of_psnr,
        ),
        (
            r"none of (\d+) models breaks a bound, .* R_2 alone explains (\S+) % \(GHVAE\) and (\S+) %",
            shares_of_accuracy,
        ),
        (r"lowest at \(1, 1\) for both, (\S+) and (\S+) nats", best_elbos),
        (
            r"highest at \((\S+), (\S+)\) for the GHVAE and at \((\S+), (\S+)\) for the ladder",
            best_generation,
        ),
        (
            r"in generation, by (\S+) standard errors; .* no clear difference \((\S+) and (\S+)\)\. For the "
            r"ladder in reconstruction, by (\S+); not in representation \((\S+)\)",
            wins_of_the_study,
        ),
        (r"of (\d+) GHVAE models with unequal betas .*?, (\d+) have more distortion", above_equal_betas),
        (
            r"(\d+) models with at least (\d+) nats in z_1 and (\d+) in z_2 score (\S+) to (\S+), "
            r"the others (\S+) to (\S+);",
            generation_of_the_study,
        ),
        (r"classifier of binarised images that is right on (\S+) % of", accuracy_of_the_studys_classifier),
        (
            r"trains about (\d+) model-steps/s of the GHVAE and (\d+) of the ladder, .* (\S+) seconds of one "
            r"core .* 49 models take (\d+) minutes",
            speed_of_the_study,
        ),
        (r"All (\d+) models have both rates within (\S+) % of what they were asked for", fashion_map),
        (
            r"One model of (\d+) missed, .*? nats: (\S+) % in z_1\. .* two others have a layer outside, "
            r"(\S+) and (\S+) % off with standard errors of (\S+) and (\S+) %",
            missed_targets,
        ),
        (
            r"three seeds is (\S+) % of R_1 and (\S+) % of R_2 .* only (\d+) of (\d+) pairs of betas",
            spread_over_seeds,
        ),
        (r"Its (\d+) models come within (\S+) % in both layers", digits_map),
        (
            r"D is (\S+) to (\S+) nats with up to (\d+) nats in z_2, and rises .* to (\S+) with (\d+) \(rows",
            frontier,
        ),
        (r"reconstructs better \((\S+) nats, against (\S+)\)", nats_of_the_studys_best_reconstructions),
        (r"The grid of (\d+) models above \(75 epochs, (\d) × (\d) betas, (\d) seeds\)", size_of_the_grid),
        (
            r"took (\S+) ms of CPU time, .* took (\S+) ms, and throughput was (\S+) of that from the "
            r"devices, between (\S+) and (\S+) from turn",
            cost_of_streaming,
        ),
        (r"keeps (\S+) MiB of activations, with `remat` (\S+) MiB, in bfloat16 (\S+) MiB", kept_mib),
        (r"test rates in bfloat16 are within (\S+) % of those", difference_of_bfloat16),
        (r"rates of the layers differed by (\S+) % and (\S+) %", difference_of_trainings),
    ],
)
def test_the_numbers_of_a_sentence_are_those_of_its_file(sentence, values):
    found = re.findall(sentence, " ".join(README.split()))
    assert len(found) == 1, f"the README should say once: {sentence}"
    printed = [found[0]] if isinstance(found[0], str) else found[0]
    is_same = len(printed) == len(values()) and all(map(agree, printed, values()))
    assert is_same, f"the README says {printed}, its file {values()}"


@pytest.mark.parametrize(
    ("printed", "value", "same"),
    [("1,152", 1152.48, True), ("0.98", 0.9807, True), ("0.98", 0.9851, False), ("35", 34.5, False)],
)
def test_numbers_are_compared_at_their_own_precision(printed, value, same):
    assert numbers(f"| {printed}%, β_1 32×32 |") == [printed]
    assert agree(printed, value) == same
