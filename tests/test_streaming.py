"""Images that are streamed: the same numbers as images on the devices, and nothing left behind."""

import dataclasses
import multiprocessing
import pathlib
import time
from typing import Any

import jax
import linear_gaussian
import numpy as np
import pytest

from experiments import made_images
from hvae_jax import betas, data, records, training
from hvae_jax.data import DataConfig, sources
from hvae_jax.data.stored import HostArray, Rows, StoredArray
from hvae_jax.errors import RunError
from hvae_jax.keys import fold_in
from hvae_jax.training import loop, split_evaluator, stacks, streaming
from hvae_jax.training.split_evaluator import SplitEvaluator, StackEvaluator
from hvae_jax.training.stacks import Packed

NUM_TRAIN, NUM_TEST, SIDE = 200, 70, 8
CONFIG = training.TrainingConfig(
    seed=0,
    order_seed=3,
    num_epochs=2.0,
    batch_size=16,
    micro_batch=0,
    learning_rate=1e-2,
    learning_rate_decay_fraction=0.0,
    b1=0.9,
    b2=0.999,
    eps=1e-8,
    max_grad_norm=0.0,
    ema_decay=0.0,
    log_every_steps=5,
    eval_every_steps=5,
    checkpoint_every_steps=5,
    num_checkpoints=2,
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A TFDS folder with `made_images`."""
    data_dir = tmp_path_factory.mktemp("tfds")
    made_images.prepare(data_dir, NUM_TRAIN, NUM_TEST, SIDE)
    return data_dir


def load(data_dir: pathlib.Path, streaming: str, num_workers: int = 0) -> data.Dataset:
    name = "tfds:made_images"
    return data.load(DataConfig(name, str(data_dir), "none", 40, 0, streaming, num_workers))


def identity(keys: jax.Array, images: jax.Array) -> jax.Array:
    del keys
    return images


# Which splits


def test_always_never_and_what_is_too_large(prepared: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    def are_stored(mode: str) -> list[bool]:
        return [isinstance(split.images, StoredArray) for split in load(prepared, mode).splits.values()]

    assert are_stored("always") == [True] * 3
    assert are_stored("never") == are_stored("auto") == [False] * 3
    # Train has 160 images, valid 40, test 70.
    monkeypatch.setattr(sources, "STREAM_BYTES", 100 * SIDE * SIDE * 3)
    assert are_stored("auto") == [True, False, False]
    assert are_stored("never") == [False] * 3


def test_what_is_in_memory_is_streamed_from_there(tmp_path: pathlib.Path):
    images = np.arange(5 * 8 * 8, dtype=np.uint8).reshape(5, 8, 8)
    np.savez(tmp_path / "a.npz", train_images=images, test_images=images)
    config = DataConfig(f"npz:{tmp_path}/a.npz", "", "none", 2, 0, "always", 2)
    train = data.load(config).train.images
    assert isinstance(train, HostArray)
    assert train.num_workers == 0  # nothing to read
    kept = data.load(dataclasses.replace(config, streaming="never")).train.images
    np.testing.assert_array_equal(train, kept)


def test_stored_splits_hold_what_the_splits_in_memory_do(prepared: pathlib.Path):
    stored, kept = load(prepared, "always"), load(prepared, "never")
    assert stored.image_shape == kept.image_shape
    assert stored.num_classes == kept.num_classes == made_images.NUM_CLASSES
    for split, wanted in zip(stored.splits.values(), kept.splits.values(), strict=True):
        assert split.images.nbytes == wanted.images.nbytes
        for rows, array in zip(split, wanted, strict=True):
            assert (rows.shape, rows.dtype, len(rows)) == (array.shape, array.dtype, len(array))
            for key in (3, -1, slice(2, 9, 3), np.array([5, 0, 5]), np.array([[1, 2], [3, 4]])):
                np.testing.assert_array_equal(rows[key], array[key])
            np.testing.assert_array_equal(np.asarray(rows), array)
    # The pixels are those that were made; TFDS writes them in an order of its own.
    made = {made_images.make_image("test", i, SIDE).tobytes() for i in range(NUM_TEST)}
    assert {image.tobytes() for image in kept.test.images} == made


# The same numbers


def batches_of(images: Rows) -> list[np.ndarray]:
    """Every batch of a run, taken three steps at a time, `[B, ...]`."""
    batches = streaming.make_batches(images, CONFIG)
    batches.steps_per_call = min(batches.steps_per_call, 3)
    found = []
    for step in range(0, 20, 3):
        count = min(3, 20 - step)
        taken = batches.take(step, count)
        for index in range(count):
            picked = jax.pmap(batches.pick, in_axes=(0, 0, None))(*taken, index)
            found.append(np.asarray(picked).reshape(CONFIG.batch_size, *batches.image_shape))
    batches.close()
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_images_on_the_devices(prepared: pathlib.Path, num_workers: int):
    stored, kept = load(prepared, "always", num_workers), load(prepared, "never")
    np.testing.assert_array_equal(batches_of(stored.train.images), batches_of(kept.train.images))
    assert not multiprocessing.active_children()


def test_a_stream_can_start_at_any_step(prepared: pathlib.Path):
    images = load(prepared, "always").train.images
    batches = streaming.StreamedBatches(images, CONFIG)
    late, _ = batches.take(7, 2)
    early, _ = batches.take(2, 1)  # as after a checkpoint that is older
    again, _ = batches.take(7, 1)
    np.testing.assert_array_equal(late[0], again[0])
    assert np.any(np.asarray(early[0]) != np.asarray(again[0]))
    batches.close()


def train_linear(folder: pathlib.Path, images: np.ndarray, is_streamed: bool) -> training.TrainState:
    control = betas.constant()
    batches = streaming.make_batches(HostArray(images) if is_streamed else images, CONFIG)
    state = training.train(
        records.open_run(folder, {}),
        training.init_state(linear_gaussian.init_params(), (0.7, 1.3), control, CONFIG),
        linear_gaussian.terms_fn,
        batches,
        preprocess_fn=identity,
        control=control,
        config=CONFIG,
    )
    batches.close()
    return state


def test_a_streamed_run_equals_one_with_images_on_the_devices_bit_for_bit(tmp_path: pathlib.Path):
    images = linear_gaussian.data(136)
    runs = [train_linear(tmp_path / str(streamed), images, streamed) for streamed in (False, True)]
    for a, b in zip(*map(jax.tree.leaves, runs), strict=True):
        np.testing.assert_array_equal(a, b)
    logs = [records.load(tmp_path / str(streamed)) for streamed in (False, True)]
    assert logs[0]["step"].tolist() == [5, 10, 15, 17]
    for name in ("loss_nats", "distortion_nats", "rates_nats", "grad_norm"):
        np.testing.assert_array_equal(logs[0][name], logs[1][name])


def train_stack(images: Rows, order_seeds: list[int]) -> tuple[Any, Any]:
    """The states of two models, and their terms over the images."""
    layout, control = Packed(2), betas.constant()
    trainer = loop.Trainer(
        linear_gaussian.terms_fn, preprocess_fn=identity, control=control, config=CONFIG, layout=layout
    )
    states = [
        training.init_state(linear_gaussian.init_params(), start, control, CONFIG)
        for start in ((0.7, 1.3), (1.0, 0.2))
    ]
    batches = streaming.make_batches(images, CONFIG, layout).ordered(order_seeds)
    logs: list[Any] = [[], []]
    stack = trainer.train(stacks.new_stack(states), logs, batches, save=lambda step, stack: None)
    batches.close()
    params, seeds = layout.put(stack.states.params), np.array([4, 5])
    evaluator = StackEvaluator(images, identity, layout)
    return stack.states, evaluator.map_images(linear_gaussian.terms_fn, params, seeds, 2)


def test_a_streamed_stack_equals_one_with_images_on_the_devices_bit_for_bit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(split_evaluator, "CHUNK_BYTES", 64 * 4)
    images = linear_gaussian.data(136)
    found = [train_stack(rows, [9, 9]) for rows in (images, HostArray(images))]
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_stream_has_one_order():
    with pytest.raises(RunError, match=r"2 values of config.training.order_seed .*data.streaming=never"):
        train_stack(HostArray(linear_gaussian.data(136)), [9, 8])


def test_evaluation_of_a_streamed_split_is_that_of_images_on_the_devices(
    prepared: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(split_evaluator, "EVAL_BATCH", 8)
    monkeypatch.setattr(
        split_evaluator,
        "CHUNK_BYTES",
        16 * SIDE * SIDE * 3,  # so that 70 images are five chunks
    )

    def fn(params: jax.Array, x: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        noise = jax.vmap(jax.random.normal)(fold_in(keys, 3))
        return x * params, noise

    preprocess_fn, key = data.make_preprocess("sample"), jax.random.key(5)
    found = [
        SplitEvaluator(load(prepared, mode).test.images, preprocess_fn).map_images(fn, 2.0, key)
        for mode in ("never", "always")
    ]
    assert found[0][0].shape == (NUM_TEST, SIDE, SIDE, 3)
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


# What goes wrong


def test_a_worker_that_is_killed_ends_the_run_with_one_error(prepared: pathlib.Path):
    batches = streaming.StreamedBatches(load(prepared, "always", 1).train.images, CONFIG)
    batches.take(0, 1)
    (worker,) = multiprocessing.active_children()
    worker.kill()
    with pytest.raises(RunError, match="the same command resumes"):
        batches.take(1, 20)  # some lie ready
    batches.close()


def test_a_damaged_file_is_said_by_name(prepared: pathlib.Path, tmp_path: pathlib.Path):
    made_images.prepare(tmp_path, NUM_TRAIN, NUM_TEST, SIDE)
    images = load(tmp_path, "always").train.images
    (file,) = tmp_path.rglob("*train.array_record*")
    file.write_bytes(file.read_bytes()[:1000])
    batches = streaming.StreamedBatches(images, CONFIG)
    with pytest.raises(RunError, match=r"config\.data\.name='tfds:made_images': cannot read .*move it away"):
        batches.take(0, 1)
    batches.close()


@pytest.mark.long
def test_a_worker_ends_when_the_process_that_started_it_is_killed(prepared: pathlib.Path):
    context = multiprocessing.get_context("spawn")
    told, tell = context.Pipe()
    owner = context.Process(target=_read_and_tell, args=(prepared, tell))
    owner.start()
    tell.close()
    worker = told.recv()
    assert _is_running(worker)
    owner.kill()
    owner.join()
    deadline = time.monotonic() + 30
    while _is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _read_and_tell(prepared: pathlib.Path, tell) -> None:
    batches = streaming.StreamedBatches(load(prepared, "always", 1).train.images, CONFIG)
    batches.take(0, 1)
    tell.send(multiprocessing.active_children()[0].pid)
    time.sleep(600)


def _is_running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
