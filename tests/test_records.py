import json

import numpy as np
import pytest

from hvae_jax import records
from hvae_jax.errors import RunError

CONFIG = {"objective": {"betas": (1.0, 2.0)}, "training": {"seed": 0}}


def row(step: int, split: str = "train") -> dict:
    return records.rate_row(
        step=step,
        epoch=step / 10,
        split=split,
        loss=7.0,
        distortion=5.0,
        rates=[1.0, 0.5],
        betas=[1.0, 2.0],
        num_dims=64,
        grad_norm=None if split == "valid" else 0.25,
        images_per_s=123.45,
    )


def test_a_row_has_the_documented_fields_and_bits_at_beta_one():
    assert list(row(1)) == [
        "step",
        "epoch",
        "split",
        "loss_nats",
        "distortion_nats",
        "rates_nats",
        "betas",
        "bits_per_dim",
        "grad_norm",
        "images_per_s",
    ]
    assert row(1)["bits_per_dim"] == pytest.approx(6.5 / (64 * np.log(2)))


def test_load_gives_arrays_with_a_column_per_layer(tmp_path):
    log = records.RateLog(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        log.append(row(step))
    log.append(row(3, "valid"))
    loaded = records.load(tmp_path)
    assert loaded["step"].tolist() == [1, 2, 3]
    assert loaded["rates_nats"].shape == loaded["betas"].shape == (3, 2)
    assert np.isnan(records.load(tmp_path, "valid")["grad_norm"]).all()
    with pytest.raises(RunError, match="no row of split 'test'"):
        records.load(tmp_path, "test")


def test_a_row_that_was_cut_off_by_a_kill_is_dropped_and_later_rows_are_written_again(tmp_path):
    log = records.RateLog(tmp_path, resume_step=0)
    for step in (1, 2, 3):
        log.append(row(step))
    file = tmp_path / records.RATES_FILE
    file.write_text(file.read_text() + '{"step": 4, "spl')
    assert records.load(tmp_path)["step"].tolist() == [1, 2, 3]
    log = records.RateLog(tmp_path, resume_step=2)
    log.append(row(9))
    assert records.load(tmp_path)["step"].tolist() == [1, 2, 9]


def test_damage_inside_the_log_names_the_line(tmp_path):
    (tmp_path / records.RATES_FILE).write_text("nonsense\n" + json.dumps(row(2)) + "\n")
    with pytest.raises(RunError, match=r"rates\.jsonl is damaged in line 1"):
        records.load(tmp_path)


def test_the_same_config_opens_a_run_again_and_another_is_refused(tmp_path):
    records.open_run(tmp_path / "run", CONFIG)
    assert records.open_run(tmp_path / "run", CONFIG) == tmp_path / "run"
    other = {**CONFIG, "objective": {"betas": (1.0, 3.0)}}
    message = r"config\.objective\.betas is \[1\.0, 2\.0\] there and \[1\.0, 3\.0\] here"
    with pytest.raises(RunError, match=message):
        records.open_run(tmp_path / "run", other)
    assert records.read_json(tmp_path / "run" / "config.json")["objective"]["betas"] == [1.0, 2.0]
    assert records.read_json(tmp_path / "run" / "versions.json")["jax"]


def test_a_file_where_the_folder_should_be(tmp_path):
    file = tmp_path / "run"
    file.write_text("mine")
    with pytest.raises(RunError, match="must be a folder"):
        records.open_run(file, CONFIG)
    with pytest.raises(RunError, match="must be a folder"):
        records.open_run(file / "below", CONFIG)
    assert file.read_text() == "mine"


def test_a_damaged_config_file_is_named(tmp_path):
    records.open_run(tmp_path, CONFIG)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        records.open_run(tmp_path, CONFIG)


def test_tensorboard_events_carry_every_layer(tmp_path):
    log = records.TensorBoard(tmp_path)
    log.report(row(5))
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"train/rates_nats_1" in content
    assert b"train/rates_nats_2" in content
    assert b"train/distortion_nats" in content
