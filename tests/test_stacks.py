"""Stacks of models against the same models trained alone."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity

from hvae_jax import betas, records, training
from hvae_jax.errors import Stopped
from hvae_jax.models import convolution
from hvae_jax.training import batches, stacks
from hvae_jax.training.loop import Trainer
from hvae_jax.training.split_evaluator import SplitEvaluator, StackEvaluator
from hvae_jax.training.stacks import Packed

CONFIG = linear_gaussian.training_config(
    num_epochs=75.0,  # 300 steps over 64 images
    batch_size=16,
    ema_decay=0.99,
    log_every_steps=70,
    eval_every_steps=140,
    checkpoint_every_steps=140,
)
# Betas, seed and order seed of each model.
MODELS = (((1.0, 1.0), 0, 0), ((0.3, 2.0), 1, 0), ((3.0, 0.5), 0, 5), ((1.0, 1.0), 2, 2))
IMAGES, VALID = linear_gaussian.data(64), linear_gaussian.data(100)[64:]
# Its loss overflows float32 as soon as its first rate does not vanish, in the first step.
OVERFLOWS = (3e38, 3e38), 0, 0


def init_state(start_betas, config):
    return training.init_state(linear_gaussian.init_params(), start_betas, betas.constant(), config)


def configs(models):
    return [dataclasses.replace(CONFIG, seed=seed, order_seed=order_seed) for _, seed, order_seed in models]


def train_stack(logs, models, images=IMAGES, config=CONFIG, stack=None, **kwargs):
    """The final stack; one log for each model, a tuple of betas, seed and order seed."""
    layout = Packed(len(models) + 1)
    trainer = Trainer(
        linear_gaussian.terms_fn,
        preprocess_fn=identity,
        control=betas.constant(),
        config=config,
        layout=layout,
    )
    evaluator, seeds = StackEvaluator(VALID, identity, layout), np.array([seed for _, seed, _ in models])
    if stack is None:
        own = [dataclasses.replace(config, seed=seed) for seed in seeds.tolist()]
        stack = stacks.new_stack([init_state(model[0], c) for model, c in zip(models, own, strict=True)])
    return trainer.train(
        stack,
        logs,
        batches.ResidentBatches(images, config, layout).ordered([order for *_, order in models]),
        validate=lambda params: evaluator.map_images(
            linear_gaussian.terms_fn, layout.put(params), seeds, len(seeds)
        ),
        **kwargs,
    )


def train_packed(folder, models, saved, stop_at=None, stack=None, stop_requested=lambda: False):
    """The final stack and the progress that was reported; `saved` gets what was saved, by step."""
    folders = [folder / str(i) for i in range(len(models))]
    for one in folders:
        one.mkdir(parents=True, exist_ok=True)
    resume_step, reported = 0 if stack is None else int(stack.logged), []

    def report(progress):
        reported.append(progress)
        if progress.step == stop_at:
            raise KeyboardInterrupt

    logs = [records.RateLog(one, resume_step=resume_step) for one in folders]
    end = train_stack(
        logs,
        models,
        stack=stack,
        save=saved.__setitem__,
        report=report,
        stop_requested=stop_requested,
    )
    return end, reported


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Four models that differ in everything a model of a stack can differ in."""
    folder = tmp_path_factory.mktemp("packed")
    return folder, train_packed(folder, MODELS, {})[0]


@pytest.mark.parametrize("i", range(len(MODELS)))
def test_a_packed_model_is_the_model_trained_alone(packed, tmp_path, i):
    folder, stack = packed
    config = configs(MODELS)[i]
    evaluator = SplitEvaluator(VALID, identity)
    alone = training.train(
        records.open_run(tmp_path, {}),
        init_state(MODELS[i][0], config),
        linear_gaussian.terms_fn,
        batches.ResidentBatches(IMAGES, config),
        preprocess_fn=identity,
        control=betas.constant(),
        config=config,
        validate=lambda params: evaluator.map_images(
            linear_gaussian.terms_fn, params, jax.random.key(config.seed)
        ),
    )
    for a, b in zip(jax.tree.leaves(stacks.entry(stack.states, i)), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for split in ("train", "valid"):
        log, wanted = records.load(folder / str(i), split), records.load(tmp_path, split)
        assert log.keys() == wanted.keys()
        for name in log.keys() - {"images_per_s", "split"}:
            np.testing.assert_allclose(log[name], wanted[name], rtol=1e-4, atol=1e-6)


def test_packed_models_are_not_one_model(packed):
    _, stack = packed
    leaf = jax.tree.leaves(stack.states.params)[0]
    assert len(np.unique(leaf)) == len(MODELS)


def test_a_model_that_is_not_finite_is_frozen_and_the_others_do_not_notice(packed, tmp_path):
    _, healthy = packed
    models = (MODELS[0], OVERFLOWS, *MODELS[2:])
    saved = {}
    stack, reported = train_packed(tmp_path, models, saved)
    assert stack.failed_at.tolist() == [0, 1, 0, 0]
    start = init_state(*OVERFLOWS[:1], CONFIG)
    for a, b in zip(jax.tree.leaves(stacks.entry(stack.states, 1)), jax.tree.leaves(start), strict=True):
        np.testing.assert_array_equal(a, b)
    for i in (0, 2, 3):
        for a, b in zip(
            jax.tree.leaves(stacks.entry(stack.states, i)),
            jax.tree.leaves(stacks.entry(healthy.states, i)),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    assert not (tmp_path / "1" / records.RATES_FILE).exists()
    assert sum(progress.model_steps for progress in reported) == 3 * 300
    assert sorted(saved) == [140, 280, 300]


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_a_failed_model_takes_no_more_steps_though_later_batches_are_sound(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    images = IMAGES.copy()
    images[0] = np.nan
    config = dataclasses.replace(CONFIG, log_every_steps=1, eval_every_steps=100, checkpoint_every_steps=100)
    order_seeds = np.arange(6)
    seen = [(batches.batch_indices(seed, 64, 16, 0, 4) == 0).any(axis=1).argmax() for seed in range(6)]
    assert min(seen) + 1 < max(seen)  # so some go on for a while after others have failed
    models = [((1.0, 1.0), 0, seed) for seed in order_seeds.tolist()]
    logs = [records.RateLog(tmp_path / str(seed), resume_step=0) for seed in order_seeds]
    stack = train_stack(logs, models, images, config, save=lambda step, stack: None)
    assert stack.failed_at.tolist() == [step + 1 for step in seen]
    assert stack.states.step.tolist() == seen


def test_a_stack_of_failed_models_ends(tmp_path):
    saved = {}
    stack, reported = train_packed(tmp_path, (OVERFLOWS, OVERFLOWS), saved)
    assert stack.failed_at.tolist() == [1, 1]
    assert sorted(saved) == [300]
    assert len(reported) == 1


def test_a_stack_whose_every_step_is_skipped_ends_and_saves(tmp_path):
    config = dataclasses.replace(
        CONFIG, skip_grad_norm=1e-9, log_every_steps=4, eval_every_steps=4, checkpoint_every_steps=4
    )
    saved = {}
    logs = [records.RateLog(tmp_path / str(i), resume_step=0) for i in range(2)]
    stack = train_stack(logs, MODELS[:2], config=config, save=saved.__setitem__)
    assert stack.failed_at.tolist() == [4, 4]  # a whole epoch: the next batch is the first of another
    assert sorted(saved) == [300]
    assert all(records.load(tmp_path / str(i))["step"].tolist() == [4] for i in range(2))


def test_a_stack_resumed_from_what_it_saved_is_the_same_bit_for_bit(packed, tmp_path):
    folder, whole = packed
    saved = {}
    with pytest.raises(KeyboardInterrupt):
        train_packed(tmp_path, MODELS, saved, stop_at=210)
    resumed, _ = train_packed(tmp_path, MODELS, {}, stack=saved[140])
    for a, b in zip(jax.tree.leaves(whole.states), jax.tree.leaves(resumed.states), strict=True):
        np.testing.assert_array_equal(a, b)
    assert resumed.seconds > saved[140].seconds > 0
    for i in range(len(MODELS)):
        log, wanted = records.load(tmp_path / str(i)), records.load(folder / str(i))
        np.testing.assert_array_equal(log["loss_nats"], wanted["loss_nats"])


def test_a_stack_stopped_within_an_interval_goes_on_as_if_it_had_not_been(packed, tmp_path):
    folder, whole = packed
    stack = None
    for at_call in (2, 3):  # the first call is of one step
        asked, saved = iter([False] * (at_call - 1) + [True]), {}
        with pytest.raises(Stopped) as stopped:
            train_packed(tmp_path, MODELS, saved, stack=stack, stop_requested=lambda asked=asked: next(asked))
        stack = saved[stopped.value.step]
        assert int(stack.logged) < int(stack.step) == stopped.value.step
    resumed, _ = train_packed(tmp_path, MODELS, {}, stack=stack)
    for a, b in zip(jax.tree.leaves(whole.states), jax.tree.leaves(resumed.states), strict=True):
        np.testing.assert_array_equal(a, b)
    for split, i in itertools.product(("train", "valid"), range(len(MODELS))):
        log, wanted = (records.load(one / str(i), split) for one in (tmp_path, folder))
        for name in ("step", "loss_nats", "rates_nats", "grad_norm"):
            np.testing.assert_array_equal(log[name], wanted[name])


def test_packed_evaluation_draws_what_a_single_one_draws():
    params = [jax.tree.map(lambda a, i=i: a + 0.1 * i, linear_gaussian.init_params()) for i in range(3)]
    seeds = np.array([4, 0, 4])
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *params)
    layout = Packed(4)
    terms = StackEvaluator(VALID, identity, layout).map_images(
        linear_gaussian.terms_fn, layout.put(stacked), seeds, 3
    )
    single = SplitEvaluator(VALID, identity)
    for i in range(3):
        wanted = single.map_images(linear_gaussian.terms_fn, params[i], jax.random.key(int(seeds[i])))
        np.testing.assert_allclose(terms.distortion[i], wanted.distortion, rtol=1e-5)
        np.testing.assert_allclose(terms.rates[i], wanted.rates, rtol=1e-5, atol=1e-6)


def test_vmap_gives_what_one_model_after_the_other_gives(monkeypatch):
    models = jnp.arange(6.0).reshape(3, 2)
    wanted = stacks.map_models(jnp.sin, models)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_allclose(stacks.map_models(jnp.sin, models), wanted, rtol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("orders", [(3, 3, 3, 3), (0, 0, 5, 2)], ids=["one order", "own orders"])
def test_a_stack_side_by_side_is_that_of_one_model_after_the_other(monkeypatch, orders):
    models = [(betas, seed, order) for (betas, seed, _), order in zip(MODELS, orders, strict=True)]
    models[1] = (*OVERFLOWS[:2], orders[1])
    every = dict.fromkeys(("log_every_steps", "eval_every_steps", "checkpoint_every_steps"), 20)
    config = dataclasses.replace(CONFIG, num_epochs=10.0, **every)  # 40 steps, and calls of many
    logs = {"cpu": [[] for _ in models], "gpu": [[] for _ in models]}
    ends = {}
    for backend, rows in logs.items():
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        ends[backend] = train_stack(rows, models, config=config, save=lambda step, stack: None)
    assert ends["gpu"].failed_at.tolist() == ends["cpu"].failed_at.tolist() == [0, 1, 0, 0]
    assert ends["gpu"].states.step.tolist() == [40, 0, 40, 40]
    for a, b in zip(*(jax.tree.leaves(end.states) for end in ends.values()), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    for row, wanted in zip(*(itertools.chain(*rows) for rows in logs.values()), strict=True):
        assert row["step"] == wanted["step"]
        np.testing.assert_allclose(row["rates_nats"], wanted["rates_nats"], rtol=1e-4, atol=1e-6)


def test_the_order_of_an_epoch_is_drawn_once_for_each_order_seed(monkeypatch):
    drawn, draw = [], batches._epoch_order

    def note(seed, num_images, epoch):
        drawn.append((seed, epoch))
        return draw(seed, num_images, epoch)

    monkeypatch.setattr(batches, "_epoch_order", note)
    every = dict.fromkeys(("log_every_steps", "eval_every_steps", "checkpoint_every_steps"), 3)
    config = dataclasses.replace(CONFIG, **every)  # epochs are of 4 steps
    own = batches.ResidentBatches(IMAGES, config, Packed(6)).ordered([7, 8, 9, 7, 8, 9])
    for step in range(0, 24, 3):
        _, places = own.take(step, 3)
        wanted = [batches.batch_indices(seed, 64, 16, step, 3) for seed in (7, 8, 9, 7, 8, 9)]
        np.testing.assert_array_equal(np.asarray(places)[0], wanted)
    assert sorted(drawn) == [(seed, epoch) for seed in (7, 8, 9) for epoch in range(6)]


@pytest.mark.long
def test_side_by_side_models_have_no_native_convolutions(monkeypatch):
    def gradient(models):
        def one(kernel):
            x = jnp.ones((2, 8, 8, 3))
            return convolution.conv_transpose(
                convolution.conv(x, kernel, stride=2, padding=1), kernel.swapaxes(2, 3), stride=2, padding=1
            ).sum()

        return stacks.map_models(jax.grad(one), models)

    kernels = jax.random.normal(jax.random.key(0), (5, 4, 4, 3, 8))
    wanted = gradient(kernels)
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda k: gradient(k))(kernels))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "conv_general_dilated" not in str(jax.make_jaxpr(lambda k: gradient(k))(kernels))
    scale = float(jnp.abs(wanted).max())  # sums of many terms, some of which cancel
    np.testing.assert_allclose(gradient(kernels), wanted, rtol=1e-4, atol=1e-5 * scale)


def test_put_and_get_are_inverse():
    array = np.arange(10.0).reshape(5, 2)
    layout = Packed(8)
    spread = layout.put(array)
    assert spread.shape == (1, 8, 2)
    np.testing.assert_array_equal(spread[0, 5:], np.stack([array[4]] * 3))
    np.testing.assert_array_equal(layout.get(spread, 5), array)
