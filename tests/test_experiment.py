import importlib
import math

import jax
import jax.numpy as jnp
import pytest

from experiments import digits, digits_deep, digits_targets, mnist
from hvae_jax import data, experiment, run_config, training
from hvae_jax.errors import RunError
from hvae_jax.models.hvae import ModelConfig, make_hvae
from hvae_jax.objective_config import ObjectiveConfig

DEEP = ("digits_deep", "mnist_deep", "cifar_deep")
CONDITIONED = ("digits_conditioned", "fashion_conditioned", "mnist_conditioned", "cifar_conditioned")
CONFIGS = (
    "digits",
    "digits_categorical",
    "digits_targets",
    "mnist",
    "fashion",
    "svhn",
    "cifar",
    *DEEP,
    *CONDITIONED,
)
PARAMETERS = {
    "mnist": 122_713,
    "fashion": 122_713,
    "svhn": 475_811,
    "cifar": 475_811,
    "cifar_deep": 39_145_700,  # as VDVAE's own code counts them
    "fashion_conditioned": 271_625,
    "mnist_conditioned": 271_625,
}
SHAPES = {
    "digits": (8, 8, 1),
    "digits_categorical": (8, 8, 1),
    "digits_targets": (8, 8, 1),
    "digits_deep": (8, 8, 1),
    "mnist_deep": (28, 28, 1),
    "mnist": (28, 28, 1),
    "fashion": (28, 28, 1),
    "digits_conditioned": (8, 8, 1),
    "fashion_conditioned": (28, 28, 1),
    "mnist_conditioned": (28, 28, 1),
    "svhn": (32, 32, 3),
}


def train_step(config, shape):
    """A whole training step of a config: parameters, state and metrics."""
    model = make_hvae(ModelConfig(**config.model), shape)
    size = config.training.batch_size
    training_config = training.TrainingConfig(**{**config.training, "micro_batch": size})
    decay = training_config.learning_rate_decay_fraction
    objective = ObjectiveConfig(**config.objective)
    control = objective.make_control(100, math.prod(shape), decay)
    beta_range = objective.read_range(model.num_layers, model.config.conditioning)
    params = model.init(jax.random.key(0), jnp.zeros((1, *shape)), jax.random.key(0))
    state = training.init_state(params, config.objective.betas, control, training_config)
    preprocess_fn = data.make_preprocess(config.data.binarize)
    step_fn = training.make_train_step(
        model.apply, preprocess_fn, control, training_config, beta_range=beta_range
    )
    return params, step_fn(state, jnp.zeros((size, *shape), jnp.uint8))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_builds_and_has_the_published_size(name):
    config = importlib.import_module(f"experiments.{name}").get_config()
    assert config.is_locked
    for group, cls in run_config.GROUPS.items():
        run_config.build_group(group, cls, config.to_dict())
    shape = SHAPES.get(name, (32, 32, 3))
    model = make_hvae(ModelConfig(**config.model), shape)
    key, x = jax.random.key(0), jnp.zeros((2, *shape))
    terms, params = jax.eval_shape(lambda: model.init_with_output(key, x, key))
    assert terms.rates.shape == (2, len(config.model.latent_shapes))
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert size == PARAMETERS.get(name, size)


@pytest.mark.parametrize("module", [digits_deep, digits_targets])
def test_a_deep_config_and_one_with_targets_make_a_step(module):
    config = module.get_config()
    _, (_, metrics) = jax.eval_shape(lambda: train_step(config, SHAPES["digits"]))
    assert metrics.rates.shape == (len(config.model.latent_shapes),)


def test_a_reference_model_takes_a_step():
    """The one whose stages are not all alike: 28, 14, 7, 4."""
    config = mnist.get_config().unlock()
    config.training.update(batch_size=2)  # type: ignore[union-attr]
    _, (state, metrics) = jax.jit(
        lambda: train_step(config, SHAPES["mnist"]), compiler_options={"xla_backend_optimization_level": 0}
    )()
    assert int(state.step) == 1
    assert training.is_finite(metrics)


def changed(group: str, field: str, value: object) -> dict:
    config = digits.get_config().to_dict()
    config[group][field] = value
    return config


@pytest.mark.parametrize(
    ("group", "field", "value", "message"),
    [
        ("objective", "betas", (1.0, 1.0, 1.0), r"betas=\(1.0, 1.0, 1.0\) has 3 entries but the model has 2"),
        ("objective", "betas", (1.0, -0.5), r"beta_2=-0\.5 must be finite and not negative"),
        ("objective", "betas", (float("nan"), 1.0), r"beta_1=nan must be finite"),
        ("objective", "betas", (1.0, "2"), r"must be a tuple of numbers"),
        ("objective", "warmup_fraction", 1.5, r"config\.objective\.warmup_fraction=1\.5"),
        ("data", "name", "cifar11", r"config\.data\.name='cifar11'.*cifar10"),
        ("model", "inference", "bottom_up", r"does not split along the layers"),
        ("model", "chanels", 3, r"config\.model\.chanels is not a field"),
        ("training", "batch_size", -1, r"config\.training\.batch_size=-1"),
        ("evaluation", "num_samples", 0, r"config\.evaluation\.num_samples=0"),
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(group, field, value, message):
    with pytest.raises(RunError, match=message):
        experiment.from_config(changed(group, field, value))


def test_a_missing_field_and_a_missing_group_are_named():
    config = digits.get_config().to_dict()
    del config["model"]["channels"]
    with pytest.raises(RunError, match=r"config\.model\.channels is missing"):
        experiment.from_config(config)
    del config["model"]
    with pytest.raises(RunError, match="must have the groups"):
        experiment.from_config(config)


ODD = (
    None, True, "x", "", b"x", float("nan"), float("inf"), -1, 10**400, 1.5, 1 + 2j, (), (1, (2,)), ((),),
    [1.0, 1.0], {"a": 1}, (None, None), (True, True), (10**400, 1), (1,) * 1000, "a\nb",
)  # fmt: skip


@pytest.mark.parametrize("module", [digits, digits_targets])
@pytest.mark.parametrize("group", list(run_config.GROUPS))
def test_no_value_of_a_field_ends_in_another_error_than_one_line_that_names_it(module, group):
    messages = []
    for field in module.get_config()[group]:
        for value in ODD:
            config = module.get_config().to_dict()
            config[group][field] = value
            try:
                run_config.build_group(group, run_config.GROUPS[group], config)
            except RunError as error:
                messages.append((f"config.{group}.", field, str(error)))
    for place, field, message in messages:
        assert place in message
        assert field in message
        assert "\n" not in message
        assert len(message) < 700
    assert len(messages) >= len(module.get_config()[group]) * len(ODD) // 2


@pytest.mark.parametrize("config", [None, 3, [], {}, {"data": 3}])
def test_what_is_no_config_is_named(config):
    with pytest.raises(RunError, match="must have the groups"):
        experiment.from_config(config)


@pytest.mark.parametrize("shape", [8, None, (8, 8), (8.0, 8.0, 1), (True, True, True), "abc"])
def test_what_is_no_shape_of_images_is_named(shape):
    config = ModelConfig(**digits.get_config().to_dict()["model"])
    with pytest.raises(RunError, match="give \\(height, width, channels\\)"):
        make_hvae(config, shape)
