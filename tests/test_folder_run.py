"""Runs on a folder of images, as a user starts them: stopped, resumed, on images that changed, streamed."""

import multiprocessing
import pathlib
import shutil
import signal

import jax
import numpy as np
import picture_folders
import programs as started
import pytest
import tiny
from data_files import make_config
from PIL import Image
from programs import Stop

from hvae_jax import data, experiment, records, training
from hvae_jax.training import streaming

pytestmark = pytest.mark.long


@pytest.fixture
def images(tiny_data: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The images of tiny runs in their order, as PNGs: as wide and higher, or the other way round."""
    rng, files = np.random.default_rng(0), {}
    with np.load(tiny_data) as arrays:
        for split in ("train", "test"):
            for i, pixels in enumerate(arrays[f"{split}_images"]):
                frame = rng.integers(0, 256, (8 + 3 * (i % 2), 8 + 5 * (1 - i % 2)), np.uint8)
                top, left = (frame.shape[0] - 8) // 2, (frame.shape[1] - 8) // 2
                frame[top : top + 8, left : left + 8] = pixels
                files[f"{split}/{i:03d}.png"] = frame
    return picture_folders.write(tmp_path / "images", files)


def flags(images: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Of the run that `finished_run` is, on the squares in the middle of the files."""
    found = [flag for flag in tiny.run_flags(images, folder) if "data.name" not in flag]
    return [*found, f"--config.data.name=folder:{images}", "--config.data.side=8"]


def test_a_run_on_a_folder_is_that_on_the_same_arrays_also_when_it_resumes(
    programs: started.Server, finished_run: pathlib.Path, images: pathlib.Path, tmp_path: pathlib.Path
):
    folder, wanted = tmp_path / "run", tiny.rows(finished_run)
    stop = Stop(folder / "rates.jsonl", num_rows=6)
    process = programs.start("run", *flags(images, folder), stop=stop)
    assert stop.pid() == process.pid
    process.send_signal(signal.SIGKILL)
    assert process.wait().status == -signal.SIGKILL
    assert tiny.rows(folder) == wanted[:6]

    # Neither with another pixel nor with another name are they the data that the run began with.
    changed = images / "train" / "005.png"
    content = changed.read_bytes()
    pixels = np.asarray(Image.open(changed)).copy()
    pixels[4, 4] ^= 1
    Image.fromarray(pixels).save(changed)
    refused = f"is not the data that {folder} is of"
    tiny.assert_one_error(programs.run("run", *flags(images, folder)), refused)
    changed.write_bytes(content)
    changed.rename(changed.with_name("005a.png"))
    tiny.assert_one_error(programs.run("run", *flags(images, folder)), refused)
    changed.with_name("005a.png").rename(changed)
    without = [flag for flag in flags(images, folder) if "data.side" not in flag]
    tiny.assert_one_error(programs.run("run", *without), "001.png has 11 × 8 pixels")

    # Elsewhere, and put there in another order, they are the same.
    moved = tmp_path / "moved"
    for file in sorted(images.rglob("*.png"), reverse=True):
        (moved / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.move(file, moved / file.parent.name)
    ended = programs.run("run", *flags(moved, folder))
    assert ended.status == 0, ended.err
    assert tiny.rows(folder) == wanted
    results = [records.read_json(one / records.EVALUATION_FILE) for one in (folder, finished_run)]
    assert results[0] == results[1]


def test_the_data_of_a_run_may_lie_elsewhere_but_not_as_other_files(
    programs: started.Server, images: pathlib.Path, tiny_data: pathlib.Path, tmp_path: pathlib.Path
):
    folder = tmp_path / "run"
    ended = programs.run("run", *flags(images, folder))
    assert ended.status == 0, ended.err
    shutil.copytree(images, tmp_path / "copy")
    built = experiment.from_folder(folder, data=f"folder:{tmp_path / 'copy'}")
    assert built.dataset.image_shape == (8, 8, 1)
    built = experiment.from_folder(folder, data=f"npz:{tiny_data}")  # has labels, and no names of files
    with pytest.raises(experiment.RunError, match="is not the data that"):
        built.dataset  # noqa: B018


def test_processes_read_the_batches_that_stay_on_the_devices_otherwise(images: pathlib.Path):
    config = training.TrainingConfig(
        seed=0, order_seed=3, num_epochs=1.0, batch_size=16, micro_batch=0, learning_rate=1e-2,
        learning_rate_decay_fraction=0.0, b1=0.9, b2=0.999, eps=1e-8, max_grad_norm=0.0, ema_decay=0.0,
        log_every_steps=2, eval_every_steps=2, checkpoint_every_steps=2, num_checkpoints=2,
    )  # fmt: skip

    def first(mode: str) -> np.ndarray:
        fields = {"streaming": mode, "num_workers": 1, "side": 8}
        batches = streaming.make_batches(
            data.load(make_config(f"folder:{images}", **fields)).train.images, config
        )
        picked = jax.pmap(batches.pick, in_axes=(0, 0, None))(*batches.take(1, 1), 0)
        batches.close()
        return np.asarray(picked)

    np.testing.assert_array_equal(first("always"), first("never"))
    assert not multiprocessing.active_children()
