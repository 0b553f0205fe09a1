"""Betas that images draw in training, and what the log has of marked ones."""

import dataclasses

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity

from experiments import digits_conditioned, fashion_conditioned
from hvae_jax import beta_range, betas, experiment, records, training
from hvae_jax.beta_range import BetaRange
from hvae_jax.errors import RunError, Stopped
from hvae_jax.training import batches

RANGE = BetaRange((0.1, 0.5), (10.0, 2.0), ((1.0, 1.0), (0.1, 2.0)))
OPEN = jnp.ones(2)
FIELDS = {"beta_range": (0.1, 10.0), "marked_betas": (), "betas": (1.0, 1.0), "control": "constant"}


def terms_fn(params, x, keys, betas):
    """The linear-Gaussian model's terms, from which the betas that it was told can be read."""
    terms = linear_gaussian.terms_fn(params, x, keys)
    betas = betas if betas.ndim == 2 else betas[None]
    return terms._replace(rates=terms.rates + jnp.broadcast_to(jnp.log(betas), terms.rates.shape))


def test_a_draw_is_the_images_own_and_uniform_in_log_beta():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = np.asarray(RANGE.draw(keys, OPEN))
    np.testing.assert_array_equal(RANGE.draw(keys[7:9], OPEN), drawn[7:9])
    shares = (np.log(drawn) - np.log(RANGE.lows)) / np.log(np.divide(RANGE.highs, RANGE.lows))
    assert shares.min() > -1e-6
    assert shares.max() < 1.0 + 1e-6
    error = 5.0 / np.sqrt(12.0 * len(keys))
    np.testing.assert_allclose(shares.mean(axis=0), 0.5, atol=error)
    standardised = (shares - shares.mean(axis=0)) / shares.std(axis=0)
    assert abs(standardised.prod(axis=1).mean()) < 5.0 / np.sqrt(len(keys))
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - RANGE.means()), 5.0 * drawn.std(axis=0) / 60.0)


def test_a_warm_up_opens_the_range_of_the_upper_layers_from_its_cheap_end():
    keys = jax.random.split(jax.random.key(1), 100)
    whole, half = (np.log(np.asarray(RANGE.draw(keys, jnp.full(2, share)))) for share in (1.0, 0.5))
    np.testing.assert_array_equal(half[:, 0], whole[:, 0])
    low = np.log(0.5)
    np.testing.assert_allclose(half[:, 1] - low, 0.5 * (whole[:, 1] - low), atol=1e-5)
    control = betas.linear_warmup(4)
    state = control.init(jnp.array([1.0, 2.0]))
    for expected in (0.0, 0.25, 0.5):
        np.testing.assert_allclose(betas.warmup_share(state), [expected] * 2)
        state = control.update(state, jnp.zeros(()), jnp.zeros(2))
    np.testing.assert_array_equal(betas.warmup_share(betas.constant().init(jnp.array([0.3, 7.0]))), OPEN)


@pytest.mark.long
def test_what_an_image_draws_depends_neither_on_micro_batches_nor_on_a_stop(tmp_path):
    config = linear_gaussian.training_config(
        num_epochs=2.0,
        batch_size=16,
        log_every_steps=4,
        eval_every_steps=4,
        checkpoint_every_steps=4,
        micro_batch=4,
    )

    def train(name, config=config, stop_after=None):
        control, rows = betas.constant(), []
        calls = iter(range(100))
        state = training.train(
            records.open_run(tmp_path / name, {}),
            training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, config),
            terms_fn,
            batches.ResidentBatches(linear_gaussian.data(64), config),
            preprocess_fn=identity,
            control=control,
            config=config,
            beta_range=RANGE,
            reports=[rows.append],
            stop_requested=lambda: stop_after is not None and next(calls) == stop_after,
        )
        return state, [{**row, "images_per_s": None} for row in rows]

    state, rows = train("whole")
    assert all(row["betas"] == RANGE.means().tolist() for row in rows)
    with pytest.raises(Stopped):
        train("stopped", stop_after=1)
    resumed, _ = train("stopped")
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    _, others = train("wide", dataclasses.replace(config, micro_batch=16))
    for row, other in zip(rows, others, strict=True):
        np.testing.assert_allclose(row["rates_nats"], other["rates_nats"], rtol=1e-5)
        np.testing.assert_allclose(row["loss_nats"], other["loss_nats"], rtol=1e-5)


def test_the_log_has_the_terms_at_marked_betas():
    params, x = linear_gaussian.init_params(), jnp.asarray(linear_gaussian.data(8))
    keys = jax.random.split(jax.random.key(0), 8)
    terms = jax.tree.map(np.asarray, RANGE.make_terms(terms_fn)(params, x, keys))
    found, fields = RANGE.split(terms)
    plain = linear_gaussian.terms_fn(params, x, keys)
    np.testing.assert_allclose(found.rates, plain.rates, rtol=1e-6)
    assert fields["marked_betas"] == [[0.1, 2.0]]
    expected = plain.rates.mean(axis=0) + np.log([0.1, 2.0])
    np.testing.assert_allclose(fields["marked_rates_nats"], expected[None], rtol=1e-5)
    np.testing.assert_allclose(fields["marked_distortion_nats"], [plain.distortion.mean()], rtol=1e-5)


def test_unless_they_are_given_marked_betas_are_equal_ones_and_each_layer_alone():
    found = beta_range.read(FIELDS, 2)
    assert found is not None
    assert found.lows == (0.1, 0.1)
    low, middle, high = found.lows, (1.0, 1.0), found.highs
    alone = ((0.1, 1.0), (10.0, 1.0), (1.0, 0.1), (1.0, 10.0))
    np.testing.assert_allclose(found.marked, ((1.0, 1.0), low, middle, high, *alone))
    assert beta_range.read({**FIELDS, "beta_range": ()}, 2) is None
    pairs = {**FIELDS, "beta_range": ((0.1, 2.0), (1.0, 3.0)), "marked_betas": ((0.5, 3.0),)}
    assert beta_range.read(pairs, 2) == BetaRange((0.1, 1.0), (2.0, 3.0), ((1.0, 1.0), (0.5, 3.0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_range": (10.0, 0.1)}, r"beta_range=\(10\.0, 0\.1\) must be two numbers, 0 < smallest"),
        ({"beta_range": ((0.1, 1.0),)}, "such a pair for each of 2 layers"),
        ({"beta_range": 1.0}, "must be two numbers"),
        ({"control": "pi"}, "control='pi' moves the betas"),
        ({"free_nats": (0.5,)}, r"free_nats=\(0\.5,\) cannot be with"),
        ({"betas": (1.0, 20.0)}, r"betas=\(1\.0, 20\.0\) must have one beta .* within"),
        ({"marked_betas": ((1.0,),)}, "marked_betas=.* must have one beta for each of 2 layers"),
        ({"beta_range": (), "marked_betas": ((1.0, 1.0),)}, "no effect without config.objective.beta_range"),
    ],
)
def test_what_is_no_range_is_refused(changes, message):
    with pytest.raises(RunError, match=message):
        beta_range.read({**FIELDS, **changes}, 2)


def test_a_range_and_conditioning_go_together():
    config = digits_conditioned.get_config().to_dict()
    for group, name, value, message in (
        ("objective", "beta_range", (), r"beta_range=\(\) must be two numbers, as .*'scale_shift'"),
        ("model", "conditioning", "none", r"no effect with config\.model\.conditioning='none'"),
        ("model", "conditioning", "yes", "conditioning='yes' is unknown"),
    ):
        with pytest.raises(RunError, match=message):
            experiment.from_config({**config, group: {**config[group], name: value}})


@pytest.mark.parametrize("config", [digits_conditioned, fashion_conditioned])
def test_the_shipped_recipes_guard_the_top_layer(config):
    """What lost it when it was left out: see the configs."""
    shipped = config.get_config()
    assert shipped.objective.warmup_fraction > 0
    assert shipped.training.learning_rate_decay_fraction > 0
    assert shipped.training.learning_rate_warmup_steps > 0


def test_during_a_warm_up_layers_above_z_1_cost_less_than_they_are_told():
    drawn = jnp.array([[0.1, 0.5], [10.0, 2.0]])
    np.testing.assert_array_equal(RANGE.paid(drawn, OPEN), drawn)
    np.testing.assert_allclose(RANGE.paid(drawn, 0.25 * OPEN), [[0.1, 0.125], [10.0, 0.5]])
    np.testing.assert_allclose(RANGE.paid(drawn, 0.0 * OPEN), [[0.1, 0.0], [10.0, 0.0]])


@pytest.mark.long
@pytest.mark.parametrize(("warmup_fraction", "is_used"), [(0.8, True), (0.0, False)])
def test_the_warm_up_brings_z_2_into_use(warmup_fraction, is_used):
    """The first 50 steps on digits: a layer that has no use in them never gets one."""
    config = digits_conditioned.get_config().to_dict()
    config["objective"] |= {
        "beta_range": ((0.01, 0.1), (0.01, 10.0)),
        "betas": (0.1, 0.1),
        "warmup_fraction": warmup_fraction,
    }
    config["training"] |= {"num_epochs": 20.4, "learning_rate_warmup_steps": 0}
    built = experiment.from_config(config)
    control = built.make_control()
    state = training.init_state(built.init_params(0), built.objective.betas, control, built.training)
    step_fn = training.make_train_step(
        built.train_terms_fn, built.preprocess_fn, control, built.training, beta_range=built.beta_range
    )
    images = jnp.asarray(built.dataset.train.images)
    steps = batches.batch_indices(0, len(images), built.training.batch_size, 0, 50)

    @jax.jit
    def all_steps(state, steps):
        return jax.lax.scan(lambda state, index: step_fn(state, images[index]), state, steps)

    _, metrics = all_steps(state, steps)
    rates = np.asarray(metrics.rates[-10:]).mean(axis=0)
    assert rates[0] > 5.0
    assert rates[1] > 1.0 if is_used else rates[1] < 0.1
