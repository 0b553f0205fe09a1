"""The table of targets: the models it makes and what it says of them. Their training is tested elsewhere."""

import pathlib
from typing import Any

import numpy as np
import pytest

from experiments import digits_targets, fashion_targets, targets_rows, targets_table
from experiments.targets_rows import Row, Setting
from hvae_jax.errors import RunError
from hvae_jax.evaluation.plain import Estimates

SETTING = Setting("ladder", 3, "target_rates")
WANTED = (4.0, 8.0, 12.0)


def make_row(**changes: Any) -> Row:
    fields = {
        **SETTING._asdict(),
        "seed": 0,
        "targets_nats": WANTED,
        "betas": (1.0, 1.0, 1.0),
        **{f"{split}_rates_nats": Estimates(WANTED, (0.1, 0.1, 0.1)) for split in ("test", "train")},
        **{f"{split}_distortion_nats": 20.0 for split in ("test", "train")},
        "settled_at_step": None,
        "num_steps": 9,
    }
    return Row(**{**fields, **changes})


@pytest.mark.parametrize("name", ["digits_targets", "digits_frontier", "fashion_targets"])
def test_rows_of_0_1_0_are_written_as_they_were_read(tmp_path, name):
    file = pathlib.Path(targets_table.__file__).parent / "results" / f"{name}.json"
    targets_rows.write(tmp_path / "rows.json", targets_rows.read(file))
    assert (tmp_path / "rows.json").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("module", [digits_targets, fashion_targets])
def test_a_model_is_the_configs_with_its_layers_targets_and_seed(module):
    config = module.get_config().to_dict()
    model = targets_table.make_model(config, SETTING, WANTED, 5, None)
    first, top = config["model"]["latent_shapes"]
    changed = model.member.config
    assert changed["model"]["latent_shapes"] == (first, (2 * top[0],), top)
    assert changed["model"]["inference"] == "ladder"
    assert (model.member.targets, model.member.betas, model.seed) == (WANTED, (1.0, 1.0, 1.0), 5)
    assert (model.member.seed, model.member.order_seed) == (5, 5)
    model.member.objective.check_layers(3)


@pytest.mark.parametrize(
    ("control", "step"), [("found_betas", targets_table.REFIT_SEED), ("found_betas_same_seed", 0)]
)
def test_a_model_trained_anew_has_the_betas_found_and_the_seed_it_should(control, step):
    config = digits_targets.get_config().to_dict()
    anew = SETTING._replace(control=control)
    with pytest.raises(RunError, match="needs the rows of target_rates"):
        targets_table.make_model(config, anew, WANTED, 5, None)
    rows = [make_row(seed=seed, targets_nats=WANTED, betas=(seed, 2, 3)) for seed in (4, 5)]
    found = targets_rows.betas_found(rows, anew, WANTED, 5)
    model = targets_table.make_model(config, anew, WANTED, 5, found)
    assert (model.seed, model.member.seed) == (5, 5 + step)
    assert (model.member.betas, model.member.targets) == ((5, 2, 3), ())
    assert model.member.objective.control == "constant"


@pytest.mark.parametrize(
    ("measured", "step"), [([5, 1, 1.01], 200), ([1, 5, 1.019], 300), ([1, 1, 1], 100), ([1, 1, 1.03], None)]
)
def test_settled_is_when_all_rates_stay_within_two_percent(measured, step):
    rates = np.stack([np.asarray(measured, float), np.full(3, 2.0)], axis=1)
    assert targets_table.settled_at(np.array([100, 200, 300]), rates, (1.0, 2.0)) == step


def test_the_table_counts_what_is_near_enough_on_each_split():
    rows = [
        make_row(
            control=control,
            targets_nats=(10.0,),
            train_rates_nats=Estimates((10.0 * (1 + train),), (0.1,)),
            test_rates_nats=Estimates((10.0 * (1 + test),), (0.1,)),
            settled_at_step=step,
            target_status=(status,),
        )
        for control, train, test, step, status in (
            ("target_rates", 0.009, 0.029, 100, "reached"),
            ("target_rates", -0.011, 0.031, 300, "not_reached_beta_at_lower_bound"),
            ("found_betas", -0.029, 0.0, None, "free"),
        )
    ]
    _, asked, anew = targets_table.describe(rows).splitlines()
    assert asked.split()[2:7] == ["target_rates", "2", "1", "%", "1"]
    assert asked.endswith("1.10 %   1.00 %  2/2, median step 200; 1 with a beta at its bound")
    assert anew.split()[2:8] == ["found_betas", "1", "3", "%", "1", "1"]
