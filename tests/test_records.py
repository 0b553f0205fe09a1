import errno
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


@pytest.mark.parametrize("text", ['{"epoch": 3}\n', "[1, 2]\n", '"a"\n{"step": 1, "split": "train"}\n'])
def test_a_log_of_another_program_is_one_line(tmp_path, text):
    (tmp_path / records.RATES_FILE).write_text(text)
    for read in (lambda: records.load(tmp_path), lambda: records.RateLog(tmp_path, resume_step=0)):
        with pytest.raises(RunError, match=r"rates\.jsonl is not a rate log: line 1 has no step and split"):
            read()
    assert (tmp_path / records.RATES_FILE).read_text() == text


def events_of(folder) -> list:
    """What TensorBoard reads from all files of a folder, in its order."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    events = []
    for file in sorted((folder / "tensorboard").iterdir()):
        content = file.read_bytes()
        while content:  # a record: length, its checksum, the event, its checksum
            size = int.from_bytes(content[:8], "little")
            events.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return events


def test_tensorboard_shows_every_layer_and_every_step_once_after_a_resume(tmp_path):
    for steps in ((5, 10, 15), (15, 20)):  # killed after 15, of which there was no checkpoint yet
        log = records.TensorBoard(tmp_path, interval=5)
        for step in steps:
            log.report(row(step))
            log.report(row(step, "valid"))
        log.close()
    shown: dict[str, list[int]] = {}
    for event in events_of(tmp_path):
        if event.session_log.status:  # START: what was written from this step on is forgotten
            shown = {name: [step for step in steps if step < event.step] for name, steps in shown.items()}
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append(event.step)
    names = ("loss_nats", "distortion_nats", "rates_nats_1", "rates_nats_2", "betas_1", "betas_2")
    assert {f"{split}/{name}" for split in ("train", "valid") for name in names} <= set(shown)
    assert all(steps == [5, 10, 15, 20] for steps in shown.values())


def test_tensorboard_on_a_full_disk_is_one_line(tmp_path, monkeypatch):
    from tensorboardX.record_writer import RecordWriter

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = records.TensorBoard(tmp_path)
    log.report(row(5))
    monkeypatch.setattr(RecordWriter, "flush", full)
    with pytest.raises(RunError, match="tensorboard cannot be written: No space left on device; make room"):
        log.report(row(10))
