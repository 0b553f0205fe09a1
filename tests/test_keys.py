"""Random keys: of one kind under every setting of JAX, and none that is drawn with twice."""

import jax
import jax.numpy as jnp
import linear_gaussian
import numpy as np
import pytest

from hvae_jax import betas, keys, training
from hvae_jax.models.hvae import make_hvae
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training.split_evaluator import SplitEvaluator

CONFIG = linear_gaussian.training_config(batch_size=4, micro_batch=2, num_epochs=1.0)
NUM_STEPS, NUM_IMAGES = 40, 60


def as_rows(data) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.asarray(data).reshape(-1, np.shape(data)[-1]).tolist()]


def training_keys(num_steps: int) -> list[tuple[int, ...]]:
    """Every key that the steps of a run hand to preprocessing and to the model."""
    seen = []

    def note(image_keys):
        jax.debug.callback(lambda data: seen.extend(as_rows(data)), jax.random.key_data(image_keys))

    def preprocess(image_keys, images):
        note(image_keys)
        return images

    def terms(params, x, image_keys):
        note(image_keys)
        return LayerwiseTerms(params["a"] * x[:, 0], jnp.zeros((len(x), 2)))

    control = betas.constant()
    state = training.init_state({"a": jnp.ones(())}, (1.0, 1.0), control, CONFIG)
    step_fn = jax.jit(training.make_train_step(terms, preprocess, control, CONFIG))
    for _ in range(num_steps):
        state, _ = step_fn(state, jnp.ones((CONFIG.batch_size, 1)))
    jax.effects_barrier()
    return seen


def test_evaluation_draws_with_no_key_of_training():
    trained = training_keys(NUM_STEPS)
    assert len(set(trained)) == len(trained) == 2 * NUM_STEPS * CONFIG.batch_size

    def terms(params, x, image_keys):
        del params
        samples = jax.vmap(lambda i: jax.random.key_data(keys.fold_in(image_keys, i)))(jnp.arange(3))
        return x, jax.random.key_data(image_keys), samples.swapaxes(0, 1)

    evaluator = SplitEvaluator(
        np.zeros((NUM_IMAGES, 1), np.float32), lambda image_keys, _: jax.random.key_data(image_keys)
    )
    # The validation pass, the test pass and the pass of the bound, each with the run's own seed.
    key = keys.make_key(CONFIG.seed)
    passes = [evaluator.map_images(terms, {}, k) for k in (key, jax.random.fold_in(key, 1))]
    evaluated = [row for one in passes for data in one for row in as_rows(data)]
    assert len(set(evaluated)) == len(evaluated) == 2 * 5 * NUM_IMAGES
    assert not set(evaluated) & set(trained)


@pytest.fixture
def another_default():
    """What a user may have set."""
    jax.config.update("jax_default_prng_impl", "rbg")
    yield
    jax.config.update("jax_default_prng_impl", "threefry2x32")


def a_small_run(make_config) -> list[np.ndarray]:
    """Everything that draws: steps with preprocessing, an evaluation, parameters, samples and pixels."""
    key, control, images = keys.make_key(3), betas.constant(), linear_gaussian.data(4)

    def preprocess(image_keys, stored):
        return stored + jax.vmap(lambda k: jax.random.uniform(k, (1,)))(image_keys)

    step_fn = training.make_train_step(linear_gaussian.terms_fn, preprocess, control, CONFIG)

    def train(images):
        state = training.init_state(linear_gaussian.init_params(), (1.0, 1.0), control, CONFIG)
        return jax.lax.scan(step_fn, state, jnp.stack([images, images]))

    options = {"xla_backend_optimization_level": 0}
    state, metrics = jax.jit(train, compiler_options=options)(images)
    evaluator = SplitEvaluator(images, preprocess)
    terms = evaluator.map_images(linear_gaussian.terms_fn, state.params, key)

    config = make_config(likelihood="bernoulli", latent_shapes=((3,),), channels=1)
    model = make_hvae(config, (8, 8, 1))

    def draw(key):
        params = model.init(key, jnp.zeros((1, 8, 8, 1)), key)
        return params, *(model.apply(params, key, num=2, method=method) for method in ("sample", "draw"))

    drawn = jax.jit(draw, compiler_options=options)(key)
    everything = state.params, state.key, metrics, terms, drawn
    return [np.asarray(leaf) for leaf in jax.tree.leaves(everything)]


def test_a_runs_numbers_do_not_depend_on_the_kind_of_keys_that_is_jaxs_default(make_config, request):
    plain = a_small_run(make_config)
    request.getfixturevalue("another_default")
    assert jax.random.key(3).dtype != keys.make_key(3).dtype
    for a, b in zip(plain, a_small_run(make_config), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_key_survives_being_data_under_another_default(another_default):
    del another_default
    key = keys.from_data(keys.to_data(keys.make_key(5)))
    assert key == keys.make_key(5)
    assert str(jax.random.key_impl(key)) == keys.IMPLEMENTATION


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_would_be_another_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be in"):
        keys.make_key(seed)


@pytest.mark.parametrize("num", [0, -1, 1.5, True])
def test_no_images_have_no_keys(num):
    with pytest.raises(ValueError, match="integer of at least 1"):
        keys.per_image_keys(keys.make_key(0), num)
