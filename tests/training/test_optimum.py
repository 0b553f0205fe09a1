"""What training comes to: the closed-form optimum, and rates that answer to betas."""

import math

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest
from linear_gaussian import identity
from linear_runs import CONFIG

from experiments import digits
from hvae_jax import betas, experiment, training
from hvae_jax.evaluation import rates
from hvae_jax.gaussian import LOG_2PI
from hvae_jax.keys import fold_in
from hvae_jax.training import batches, loop, stacks
from hvae_jax.training.split_evaluator import SplitEvaluator, StackEvaluator
from hvae_jax.training.stacks import Packed


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


@pytest.mark.long
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


@pytest.mark.long
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
