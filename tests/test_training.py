import dataclasses
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity

from experiments import digits
from hvae_jax import betas, experiment, records, training
from hvae_jax.errors import RunError, Stopped
from hvae_jax.evaluation import rates
from hvae_jax.gaussian import LOG_2PI
from hvae_jax.keys import fold_in
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import batches, checkpoints, loop, stacks
from hvae_jax.training.checkpoints import Checkpoints
from hvae_jax.training.split_evaluator import SplitEvaluator, StackEvaluator
from hvae_jax.training.stacks import Packed

CONFIG = linear_gaussian.training_config()


def train_linear(
    folder, config=CONFIG, images=None, start_betas=(1.0, 1.0), reports=(), stop_requested=lambda: False
):
    control = betas.constant()
    state = training.init_state(linear_gaussian.init_params(), start_betas, control, config)
    return training.train(
        records.open_run(folder, {"betas": list(start_betas)}),
        state,
        linear_gaussian.terms_fn,
        batches.ResidentBatches(linear_gaussian.data(8192) if images is None else images, config),
        preprocess_fn=identity,
        control=control,
        config=config,
        reports=reports,
        stop_requested=stop_requested,
    )


def short(num_steps: int, **changes) -> training.TrainingConfig:
    """`num_steps` steps over 64 images in batches of 16, a log row and a checkpoint every 5."""
    defaults = {
        "num_epochs": num_steps / 4,
        "batch_size": 16,
        "log_every_steps": 5,
        "eval_every_steps": 5,
        "checkpoint_every_steps": 5,
    }
    return dataclasses.replace(CONFIG, **{**defaults, **changes})


def train_side_by_side(
    terms_fn, preprocess_fn, images, params, betas_of_models, config
) -> tuple[training.Params, Packed]:
    """The averaged parameters, on the devices, of models that differ in their betas alone."""
    layout, control = Packed(len(betas_of_models)), betas.constant()
    trainer = loop.Trainer(
        terms_fn, preprocess_fn=preprocess_fn, control=control, config=config, layout=layout
    )
    stack = trainer.train(
        stacks.new_stack([training.init_state(params, b, control, config) for b in betas_of_models]),
        [[] for _ in betas_of_models],
        batches.ResidentBatches(images, config, layout),
        save=lambda step, stack: None,
    )
    return layout.put(stack.states.eval_params), layout


def test_training_reaches_the_closed_form_optimum():
    models = ((1.0, 1.0), (0.3, 2.0), (3.0, 0.5))
    args = linear_gaussian.terms_fn, identity, linear_gaussian.data(8192), linear_gaussian.init_params()
    params, layout = train_side_by_side(*args, models, CONFIG)
    evaluator = StackEvaluator(linear_gaussian.data(4096), identity, layout)
    terms_fn = rates.make_repeated_terms(linear_gaussian.terms_fn, 200)
    terms = evaluator.map_images(terms_fn, params, np.array([7, 7, 7]), 3)
    wanted = [linear_gaussian.optimum(start_betas) for start_betas in models]
    distortions, of_layers = (np.array([optimum[i] for optimum in wanted]) for i in range(2))
    np.testing.assert_allclose(terms.distortion.mean(axis=1, dtype=np.float64), distortions, rtol=0.01)
    np.testing.assert_allclose(terms.rates.mean(axis=1, dtype=np.float64), of_layers, rtol=0.01)


def test_the_closed_form_is_tight_at_beta_one():
    optimum = linear_gaussian.optimum((1.0, 1.0))
    log_prob = -0.5 * (LOG_2PI + math.log(linear_gaussian.MATCHED_V) + 1.0)
    assert -(optimum.distortion + sum(optimum.rates)) == pytest.approx(log_prob, abs=1e-12)


def test_importance_bound_lies_between_the_elbo_and_log_p():
    # With q = prior the ELBO is loose; log w = log p(x|z_1), and log p(x) is known.
    images = linear_gaussian.data(1024)
    params = linear_gaussian.init_params()

    def log_weight(params, x, keys):
        # q(z_2) = p(z_2), and for z_1 the posterior is N(0, 1), its prior N(a z_2, s²).
        from hvae_jax import gaussian
        from hvae_jax.gaussian import Gaussian

        one = jnp.ones_like(x)
        z_2 = gaussian.sample(fold_in(keys, 2), Gaussian(0 * x, one))
        z_1 = gaussian.sample(fold_in(keys, 1), Gaussian(0 * x, one))
        return (
            gaussian.log_prob(Gaussian(linear_gaussian.B * z_1, linear_gaussian.SIGMA * one), x)
            + gaussian.log_prob(Gaussian(linear_gaussian.A * z_2, linear_gaussian.S * one), z_1)
            - gaussian.log_prob(Gaussian(0 * x, one), z_1)
        )

    evaluator = SplitEvaluator(images, identity)
    means = [
        evaluator.map_images(rates.make_importance_bound(log_weight, num), params, jax.random.key(0)).mean()
        for num in (1, 10, 2000)
    ]
    log_prob = -0.5 * (LOG_2PI + math.log(linear_gaussian.MATCHED_V) + 1.0)
    assert means[0] < means[1] < means[2] <= log_prob + 0.01
    assert means[2] == pytest.approx(log_prob, abs=0.02)


def test_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    images, config = linear_gaussian.data(64), short(17)
    whole = train_linear(tmp_path / "whole", config, images)

    def stop(row):
        if row["step"] == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_linear(tmp_path / "cut", config, images, reports=[stop])
    resumed = train_linear(tmp_path / "cut", config, images)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows_without_speed(tmp_path / "cut") == rows_without_speed(tmp_path / "whole")
    assert [row["step"] for row in rows_without_speed(tmp_path / "cut")] == [5, 10, 15, 17]


def test_a_run_stopped_on_request_goes_on_bit_for_bit(tmp_path, monkeypatch):
    # No time is short enough for two steps, so every call is one step.
    monkeypatch.setattr(loop, "CALL_SECONDS", 0.0)
    images, config = linear_gaussian.data(64), short(17)
    whole = train_linear(tmp_path / "whole", config, images)
    # Between two rows; where a row is due, a checkpoint too; after the last step.
    for at_step, after in ((3, 3), (10, 7), (17, 7)):
        calls = iter(range(1, 18))
        with pytest.raises(Stopped) as stopped:
            train_linear(
                tmp_path / "cut", config, images, stop_requested=lambda a=after, c=calls: next(c) == a
            )
        assert stopped.value.step == Checkpoints(tmp_path / "cut" / "checkpoints", 2).latest_step() == at_step
    resumed = train_linear(tmp_path / "cut", config, images)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows_without_speed(tmp_path / "cut") == rows_without_speed(tmp_path / "whole")


def validated(folder, num_steps: int, stop_requested=lambda: False, **changes):
    """A run that validates; every 10 steps, and at its end."""
    images, config = linear_gaussian.data(64), short(num_steps, eval_every_steps=10, **changes)
    control = betas.constant()
    terms = jax.device_get(LayerwiseTerms(jnp.full(8, 2.0), jnp.ones((8, 2))))
    return training.train(
        folder,
        training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config),
        linear_gaussian.terms_fn,
        batches.ResidentBatches(images, config),
        preprocess_fn=identity,
        control=control,
        config=config,
        validate=lambda params: terms,
        stop_requested=stop_requested,
    )


def test_a_run_that_goes_on_equals_one_that_was_planned_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CALL_SECONDS", 0.0)
    whole = validated(tmp_path / "whole", 33, checkpoint_every_steps=10, num_checkpoints=9)
    # It ends between two rows; where a row is due, but no validation and no checkpoint; it is stopped.
    cut = tmp_path / "cut"
    for num_steps in (3, 15, 17):
        validated(cut, num_steps, checkpoint_every_steps=10, num_checkpoints=9)
        assert records.load(cut)["step"][-1] == records.load(cut, "valid")["step"][-1] == num_steps
    calls = iter(range(99))
    with pytest.raises(Stopped):
        validated(cut, 33, lambda: next(calls) == 2, checkpoint_every_steps=10, num_checkpoints=9)
    gone_on = validated(cut, 33, checkpoint_every_steps=10, num_checkpoints=9)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(gone_on), strict=True):
        np.testing.assert_array_equal(a, b)
    assert rows_without_speed(cut) == rows_without_speed(tmp_path / "whole")
    steps = [Checkpoints(folder / "checkpoints", 9).folder for folder in (cut, tmp_path / "whole")]
    assert [checkpoints.steps_of(folder) for folder in steps] == [[10, 20, 30, 33]] * 2
    with pytest.raises(RunError, match=r"num_epochs=4.0 is 16 steps, and .* has a checkpoint of step 33"):
        validated(cut, 16)


@pytest.mark.parametrize("content", ["half", "", None])
def test_a_rate_log_that_lacks_rows_is_not_gone_on_with(tmp_path, content):
    images, file = linear_gaussian.data(64), tmp_path / records.RATES_FILE
    train_linear(tmp_path, short(17), images)
    text = file.read_text()
    if content is None:
        file.unlink()
    else:
        file.write_text(text[: len(text) // 2] if content else "")
    for num_steps in (17, 25):
        with pytest.raises(
            RunError, match=r"rates\.jsonl .* the run had logged step 1[57]: rows are missing"
        ):
            train_linear(tmp_path, short(num_steps), images)
    file.write_text(text)
    train_linear(tmp_path, short(17), images)
    assert file.read_text() == text


def test_progress_of_a_newer_version_is_refused(tmp_path):
    images = linear_gaussian.data(64)
    state = train_linear(tmp_path, short(5), images)
    newer = Checkpoints(tmp_path / "checkpoints", 2)
    newer.save(6, state, {"logged": 5, "added": 1})
    newer.wait()
    with pytest.raises(RunError, match="holds added, which this version of hvae_jax does not know"):
        train_linear(tmp_path, short(17), images)


def rows_without_speed(folder) -> list[dict]:
    rows = [json.loads(line) for line in (folder / records.RATES_FILE).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_s"} for row in rows]


def test_a_run_compiles_the_step_once(tmp_path):
    traces = []

    def terms_fn(params, x, key):
        traces.append(1)
        return linear_gaussian.terms_fn(params, x, key)

    config, control = short(17), betas.constant()

    def trained(config, folder):
        traces.clear()
        state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config)
        training.train(
            records.open_run(folder, {}),
            state,
            terms_fn,
            batches.ResidentBatches(linear_gaussian.data(64), config),
            preprocess_fn=identity,
            control=control,
            config=config,
        )
        return len(traces)

    # A run of one interval and a run of four, the last of them short, trace equally often.
    assert trained(config, tmp_path / "four") == trained(short(5), tmp_path / "one") > 0


def test_micro_batches_give_the_gradient_of_the_whole_batch():
    control = betas.constant()
    state = training.init_state(linear_gaussian.init_params(), (0.7, 1.3), control, short(5))
    images = jnp.asarray(linear_gaussian.data(16))
    results = [
        training.make_train_step(linear_gaussian.terms_fn, identity, control, short(5, micro_batch=size))(
            state, images
        )
        for size in (16, 4)
    ]
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_loss_gradient_with_respect_to_betas_is_the_mean_rates():
    x = jnp.asarray(linear_gaussian.data(16))
    terms = linear_gaussian.terms_fn(linear_gaussian.init_params(), x, jax.random.key(0))
    from hvae_jax.objective import layerwise_elbo

    gradient = jax.grad(lambda b: -layerwise_elbo(terms, b).mean())(jnp.array([0.3, 2.0]))
    np.testing.assert_allclose(gradient, terms.rates.mean(axis=0), rtol=1e-6)


def test_not_a_number_in_the_data_names_the_step_and_keeps_the_checkpoint(tmp_path):
    images, config = linear_gaussian.data(64), short(40)
    order = batches.batch_indices(config.seed, 64, 16, 0, 12)
    first_seen = order[11, 0]  # the first epoch ends at step 4, so poison an image only from then on
    assert first_seen in order[:4]
    train_linear(tmp_path, dataclasses.replace(config, num_epochs=10 / 4), images)
    images[first_seen] = np.nan
    seen_at = 10 + int(
        np.argmax((batches.batch_indices(config.seed, 64, 16, 10, 4) == first_seen).any(axis=1))
    )
    with pytest.raises(RunError, match=f"not finite at step {seen_at + 1}; checkpoint 10 is kept"):
        train_linear(tmp_path, config, images)
    assert Checkpoints(tmp_path / "checkpoints", 2).latest_step() == 10
    assert records.load(tmp_path)["step"].tolist() == [5, 10]


def test_a_learning_rate_that_diverges_stops_the_run(tmp_path):
    with pytest.raises(RunError, match=r"not finite at step \d+; .*learning_rate"):
        train_linear(tmp_path, short(200, learning_rate=1e3), linear_gaussian.data(64))


def test_a_step_that_is_not_finite_leaves_the_state_alone():
    config, control = short(5), betas.constant()
    state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config)
    step_fn = training.make_train_step(linear_gaussian.terms_fn, identity, control, config)
    after, metrics = step_fn(state, jnp.full((16, 1), jnp.nan))
    assert not training.is_finite(metrics)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


def test_averaged_parameters_and_clipping_follow_their_definition():
    config, control = short(5, ema_decay=0.9, max_grad_norm=1e-3, eps=1.0), betas.constant()
    state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config)
    images = jnp.asarray(linear_gaussian.data(16))
    after, metrics = training.make_train_step(linear_gaussian.terms_fn, identity, control, config)(
        state, images
    )
    # The first step replaces the random start, which then never counts.
    jax.tree.map(np.testing.assert_array_equal, after.ema_params, after.params)
    # With eps = 1 the first Adam step is lr · g / (|g| + 1), so it shows the clipped gradient.
    moved = np.array([float(p) for p in jax.tree.leaves(after.params)]) / config.learning_rate
    clipped = moved / (1 - np.abs(moved))
    assert float(metrics.grad_norm) > 1e-3
    assert np.linalg.norm(clipped) == pytest.approx(1e-3, rel=1e-3)


def test_averaged_parameters_are_the_weighted_mean_of_those_after_each_step():
    config, control, decay = short(5, ema_decay=0.9), betas.constant(), 0.9
    state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config)
    state = state._replace(ema_params=jax.tree.map(lambda p: p + 1e6, state.params))
    step_fn = jax.jit(training.make_train_step(linear_gaussian.terms_fn, identity, control, config))
    images, seen = jnp.asarray(linear_gaussian.data(16)), []
    for _ in range(7):
        state, _ = step_fn(state, images)
        seen.append([float(leaf) for leaf in jax.tree.leaves(state.params)])
        weights = decay ** np.arange(len(seen))[::-1]
        average = [float(leaf) for leaf in jax.tree.leaves(state.ema_params)]
        np.testing.assert_allclose(average, weights @ np.array(seen) / weights.sum(), rtol=1e-4, atol=1e-8)


def test_warm_up_and_weight_decay_are_those_of_adamw():
    config = short(2, weight_decay=0.1, learning_rate_warmup_steps=4, learning_rate=0.01)
    tx: Any = config.make_optimizer()
    params = {"w": jnp.asarray([2.0, -3.0])}
    state, grads = tx.init(params), {"w": jnp.asarray([5.0, -1.0])}
    for step in (1, 2, 3, 4, 5):
        updates, state = tx.update(grads, state, params)
        # Constant gradients: Adam's step is the sign; then the decay, times the learning rate.
        expected = -0.01 * min(step / 4, 1.0) * (np.sign(grads["w"]) + 0.1 * params["w"])
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-5)


def test_steps_of_large_gradients_are_left_out_and_counted(tmp_path):
    """As if they had not been: state and parameters of the steps between them."""
    config = short(8, skip_grad_norm=10.0)
    tx: Any = config.make_optimizer()
    plain: Any = dataclasses.replace(config, skip_grad_norm=0.0).make_optimizer()
    params = {"w": jnp.zeros(2)}
    state, expected = tx.init(params), plain.init(params)
    for norm in (1.0, 11.0, 3.0, 12.0, 13.0):
        grads = {"w": jnp.asarray([norm, 0.0])}
        updates, state = tx.update(grads, state, params)
        if norm > 10.0:
            np.testing.assert_array_equal(updates["w"], 0.0)
        else:
            wanted, expected = plain.update(grads, expected, params)
            np.testing.assert_array_equal(updates["w"], wanted["w"])
    assert (int(state.num_skipped), int(state.num_in_a_row)) == (3, 2)
    jax.tree.map(np.testing.assert_array_equal, state.inner, expected)
    # In a run, whose log counts them.
    train_linear(tmp_path / "taken", short(8, skip_grad_norm=1e6), linear_gaussian.data(64))
    assert records.load(tmp_path / "taken")["num_skipped"].tolist() == [0, 0]
    with pytest.raises(
        RunError, match=r"skip_grad_norm=0\.001 in each of the last 5 steps, up to step 5; no .*Raise config"
    ):
        train_linear(tmp_path / "left", short(8, skip_grad_norm=1e-3), linear_gaussian.data(64))
    assert records.load(tmp_path / "left")["num_skipped"].tolist() == [5]


def test_batches_see_every_image_once_per_epoch_in_an_order_of_their_own():
    order = batches.batch_indices(3, num_images=10, batch_size=4, start=0, num_steps=5).ravel()
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10].tolist() != order[10:].tolist()
    late = batches.batch_indices(3, num_images=10, batch_size=4, start=2, num_steps=3)
    np.testing.assert_array_equal(late.ravel(), order[8:])
    assert batches.batch_indices(4, 10, 4, 0, 5).ravel().tolist() != order.tolist()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch_size", 0),
        ("micro_batch", -1),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("num_epochs", 0.0),
        ("b1", 1.0),
        ("ema_decay", 1.5),
        ("max_grad_norm", -1.0),
        ("weight_decay", -1.0),
        ("learning_rate_warmup_steps", 0.5),
        ("skip_grad_norm", -1.0),
        ("eval_every_steps", 7),
        ("checkpoint_every_steps", 0),
        ("seed", -1),
        ("order_seed", -1),
    ],
)
def test_a_training_field_out_of_range_is_named(field, value):
    with pytest.raises(RunError, match=f"config.training.{field}={value}"):
        short(5, **{field: value})


def test_devices_must_divide_the_batch():
    with pytest.raises(RunError, match=r"batch_size=16 cannot be divided over 3 devices"):
        short(5).check_devices(3)


def test_micro_batches_must_divide_what_a_device_takes():
    short(5, micro_batch=4).check_devices(4)
    with pytest.raises(
        RunError, match=r"micro_batch=8 does not divide the 4 images .*batch_size=16, 4 devices"
    ):
        short(5, micro_batch=8).check_devices(4)


def test_less_than_one_batch_is_refused():
    with pytest.raises(RunError, match=r"num_epochs=0\.25 over 32 images is less than one batch"):
        short(1).num_steps(32)


def test_warm_up_scales_all_betas_linearly():
    control = betas.linear_warmup(4)
    state = control.init(jnp.array([2.0, 0.5]))
    seen = []
    for _ in range(6):
        seen.append(state.betas.tolist())
        state = control.update(state, jnp.zeros(()), jnp.zeros(2))
    np.testing.assert_allclose(seen, np.outer([0, 0.25, 0.5, 0.75, 1, 1], [2.0, 0.5]), rtol=1e-6)


def test_raising_the_beta_of_one_layer_lowers_its_rate():
    config = digits.get_config().to_dict()
    config["model"].update(channels=2, num_stages=1, latent_shapes=((4, 4, 1), (2,)))
    config["training"].update(num_epochs=120 * 64 / 1257, learning_rate=0.01)
    built = experiment.from_config(config)
    args = built.terms_fn, built.preprocess_fn, built.dataset.train.images, built.init_params(0)
    params, layout = train_side_by_side(*args, ((1.0, 1.0), (1.0, 4.0), (4.0, 1.0)), built.training)
    evaluator = StackEvaluator(built.dataset.test.images, built.preprocess_fn, layout)
    terms = evaluator.map_images(built.terms_fn, params, np.zeros(3, int), 3)
    even, dear_2, dear_1 = terms.rates.mean(axis=1)
    assert dear_1[0] < 0.7 * even[0]
    assert dear_2[1] < 0.7 * even[1]
