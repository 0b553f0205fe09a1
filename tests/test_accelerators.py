"""What GPUs and TPUs are asked to compute, read off the programs that they would get; none is needed.

How exact each product is, that nothing waits for the host or exists on CPUs alone, that models which train
side by side share what they can, and how large the largest arrays are at the published sizes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import linear_gaussian
import lowered
import pytest
from lowered import EXACT, FAST, MIB, check, interval_arguments, lower, params_of, shape, stacked

from experiments import cifar, mnist
from hvae_jax import betas, controls, data, training
from hvae_jax.beta_range import BetaRange
from hvae_jax.categorical import anneal
from hvae_jax.codec import pixels, programs
from hvae_jax.evaluation import information, measuring, neighbours, rates, similarity
from hvae_jax.evaluation.classifier import Classifier
from hvae_jax.groups import Groups
from hvae_jax.keys import make_key
from hvae_jax.likelihoods import LogisticMixture
from hvae_jax.models import conditioning
from hvae_jax.models.classifier import ConvNet, ResNet18
from hvae_jax.models.config import DEEP, PUBLISHED, ModelConfig
from hvae_jax.models.hvae import HVAE, make_hvae
from hvae_jax.objective import LayerwiseTerms, layerwise_elbo
from hvae_jax.training import intervals, stacks
from hvae_jax.training.split_evaluator import EVAL_BATCH, make_over_batches

MakeConfig = Callable[..., ModelConfig]
CONFIG = linear_gaussian.training_config(batch_size=4, max_grad_norm=1.0)
RANGE = BetaRange((0.1, 0.1), (10.0, 10.0), ((1.0, 1.0), (0.1, 10.0)))
NUM_MODELS, BATCH = 64, 256  # of a packed grid of the published size
KEYS = shape(4, 2, dtype=jnp.uint32)


@pytest.fixture(autouse=True)
def on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library asks JAX what it runs on in order to choose between forms of the same."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def interval(
    model: HVAE,
    num_models: int = 1,
    kind: str = "alike",
    config: training.TrainingConfig = CONFIG,
    terms_fn: Any = None,
    beta_range: BetaRange | None = None,
    binarize: str = "none",
) -> str:
    """The training loop of a device's models, of stored bytes."""
    control = betas.constant()
    if beta_range is None:
        control = controls.target_distortion(80.0, (1e-3,) * model.num_layers, (1e3,) * model.num_layers)
    step_fn = training.make_train_step(
        terms_fn or model.apply, data.make_preprocess(binarize), control, config, beta_range=beta_range
    )
    state = lowered.init(model, control, config)
    pick, arguments = interval_arguments(state, model.image_shape, config.batch_size, num_models, kind)
    return lower(intervals.make_interval(step_fn, pick), *arguments)


def published(module: Any, **changes: Any) -> tuple[HVAE, training.TrainingConfig]:
    """A reference model and its training at their full size."""
    config, image_shape = module.get_config().to_dict(), (28, 28, 1)
    if module is cifar:
        image_shape = 32, 32, 3
    model = make_hvae(ModelConfig(**{**config["model"], **changes}), image_shape)
    return model, training.TrainingConfig(**config["training"])


def exactness(compute_dtype: str) -> list[tuple[str, ...]]:
    return [EXACT if compute_dtype == "float32" else FAST]


# Training.


@pytest.mark.parametrize(
    ("module", "compute_dtype"),
    [(mnist, "float32"), (cifar, "float32"), (cifar, "bfloat16")],
    ids=["28 x 28", "32 x 32", "32 x 32 in bfloat16"],
)
def test_a_step_of_a_published_model(module: Any, compute_dtype: str):
    model, config = published(module, compute_dtype=compute_dtype)
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(params_of(model)))
    assert num_parameters == {mnist: 122_713, cifar: 475_811}[module]
    program = interval(model, config=config)
    check(program, exactness(compute_dtype), min_products=40)  # forward and two backward ones a layer
    # Of the images that stay on the device one batch is taken; nothing is larger than the widest map of all
    # channels, 256 images of half their side (and the images themselves, 1000 here).
    (gathered,) = lowered.gathers(program, "ui8")
    assert gathered == (BATCH, *model.image_shape)
    side, channels = model.image_shape[0] // 2, model.config.channels
    assert lowered.largest_mib(program) <= BATCH * side * side * channels * 4 / MIB


@pytest.mark.parametrize(
    ("fields", "num_models"),
    [
        ({"inference": PUBLISHED[1]}, 3),
        ({"inference": DEEP, "likelihood": "bernoulli"}, 1),
        ({"inference": DEEP, "compute_dtype": "bfloat16", "remat": True}, 3),
        ({"likelihood": "logistic_mixture"}, 1),
        ({"top_prior": "mixture"}, 3),
        ({"latent_kinds": ("gaussian", "categorical")}, 3),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else None,
)
def test_a_step_of_other_networks(make_config: MakeConfig, fields: dict[str, Any], num_models: int):
    model = make_hvae(make_config(**fields), (8, 8, 1))

    def at(step: jax.Array) -> Any:
        return functools.partial(model.apply, gumbel_temperature=anneal(step * 0.1, 0.007, 0.4))

    terms_fn = training.TermsOfStep(at) if "latent_kinds" in fields else None
    program = interval(model, num_models, terms_fn=terms_fn)
    check(program, exactness(model.config.compute_dtype), min_products=20)


@pytest.mark.parametrize(
    ("kind", "inference", "num_models"),
    [
        ("scale_shift", PUBLISHED[0], 1),
        ("scale_shift", DEEP, 3),
        ("gates", PUBLISHED[1], 3),
    ],
)
def test_a_step_of_a_conditioned_model(make_config: MakeConfig, kind: str, inference: str, num_models: int):
    model = make_hvae(make_config(conditioning=kind, inference=inference), (8, 8, 1))
    program = interval(model, num_models, beta_range=RANGE)
    check(program, [EXACT], min_products=20)


# A packed grid.


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_packed_models_of_one_order_read_and_prepare_their_batch_once(compute_dtype: str):
    model, config = published(cifar, compute_dtype=compute_dtype)
    program = interval(model, NUM_MODELS, config=config)
    check(program, exactness(compute_dtype), min_products=40)
    # No convolution but as a product: kernels of many models would make grouped ones.
    assert "stablehlo.convolution" not in program
    assert lowered.gathers(program, "ui8") == [(BATCH, 32, 32, 3)]
    assert lowered.results(program, "convert", "ui8") == [(BATCH, 32, 32, 3)]
    # 4 × 4 × 3 numbers around each pixel, which the first convolutions of both inference networks read.
    dtype = {"float32": "f32", "bfloat16": "bf16"}[compute_dtype]
    patches = (BATCH, 16, 16, 48)
    made = lowered.results(program, "concatenate", dtype)
    assert made.count(patches) == 2
    # The largest arrays are what the last transposed convolution adds up, 4 × 4 × 3 numbers for each of
    # 16 × 16 places. In bfloat16 they are maps of 32 channels, whose gradients are summed in float32.
    numbers, most = {"float32": (48, 768), "bfloat16": (32, 512)}[compute_dtype]
    assert NUM_MODELS * BATCH * 16 * 16 * numbers * 4 == most * MIB
    assert lowered.largest_mib(program) <= most


def test_packed_models_of_orders_of_their_own_read_a_batch_each():
    model, config = published(mnist)
    program = interval(model, NUM_MODELS, "own", config)
    check(program, [EXACT], min_products=40)
    assert lowered.gathers(program, "ui8") == [(NUM_MODELS, BATCH, 28, 28, 1)]


@pytest.mark.parametrize("binarize", ["round", "sample"])
def test_packed_models_share_pixels_that_are_rounded_but_not_those_that_are_drawn(
    make_config: MakeConfig, binarize: str
):
    model = make_hvae(make_config(likelihood="bernoulli"), (8, 8, 1))
    program = interval(model, 3, binarize=binarize)
    check(program, [EXACT])
    assert lowered.gathers(program, "ui8") == [(4, 8, 8, 1)]
    patches = (4, 4, 4, 16)
    made = lowered.results(program, "concatenate", "f32")
    assert patches in made if binarize == "round" else (3, *patches) in made


def test_packed_models_share_a_streamed_batch():
    model, config = published(cifar)
    program = interval(model, NUM_MODELS, "streamed", config)
    check(program, [EXACT], min_products=40)
    assert not lowered.gathers(program, "ui8")
    # A branch for each of the batches that lie ready, of which one is taken: none is selected model by model.
    bytes_in_it = {sides for sides, dtype in lowered.shapes(program) if dtype == "ui8"}
    assert bytes_in_it == {(BATCH, 32, 32, 3), (1, BATCH, 32, 32, 3)}
    assert lowered.largest_mib(program) <= 768


# Evaluation.


@pytest.mark.parametrize(
    ("what", "num_models"),
    [("terms", 1), ("terms", 3), ("bound", 1), ("measure", 1), ("measure", 3), ("read", 3), ("marked", 3)],
)
def test_a_pass_over_the_images(make_config: MakeConfig, what: str, num_models: int):
    is_conditioned = what == "marked"
    config = make_config(likelihood="bernoulli", conditioning="scale_shift" if is_conditioned else "none")
    model = make_hvae(config, (8, 8, 1))
    params: Any = params_of(model)
    network = ConvNet(10)
    judge = jax.eval_shape(network.init, make_key(0), jnp.zeros((1, 8, 8, 1)))
    fn: Any = {
        "terms": rates.make_repeated_terms(model.apply, 3),
        "bound": rates.make_importance_bound(functools.partial(model.apply, method="log_weight"), 3),
        "measure": measuring.make_measure_fn(model, 1, 2),
        "read": measuring.make_read_fn(model, Classifier(network, (), {}), 2),
        "marked": RANGE.make_terms(model.apply),
    }[what]
    if what in ("measure", "read"):
        params = params, judge
    over_batches = make_over_batches(fn, data.make_preprocess("round"))

    def of_models(params: Any, images: jax.Array, places: jax.Array, keys: jax.Array) -> Any:
        return stacks.map_models(lambda one: over_batches(one[0], images, places, one[1]), (params, keys))

    images = shape(2, EVAL_BATCH, 8, 8, 1, dtype=jnp.uint8)
    places, keys = shape(2, EVAL_BATCH, dtype=jnp.int32), shape(num_models, 2, dtype=jnp.uint32)
    program = lower(of_models, stacked(params, num_models), images, places, keys)
    check(program, [EXACT], min_products=10)
    # However many models, the images are there once.
    assert set(lowered.results(program, "compare", "ui8")) == {(EVAL_BATCH, 8, 8, 1)}


@pytest.mark.parametrize(
    ("network", "image_shape"),
    [(ConvNet(10), (28, 28, 1)), (ResNet18(10), (32, 32, 3))],
    ids=["grey", "colour"],
)
def test_training_a_classifier(network: ConvNet | ResNet18, image_shape: tuple[int, int, int]):
    x = shape(2, *image_shape)
    params = jax.eval_shape(network.init, make_key(0), x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        out: Any = network.apply(params, x)
        return out[1].sum()

    check(lower(jax.grad(loss), params, x), [EXACT], min_products=10)


def test_what_is_computed_from_images_and_latents():
    scalar, images = shape(), shape(8, 64)
    find = lower(neighbours._find, images, shape(2, neighbours.ROWS, 64), shape(64), scalar)
    check(find, [EXACT])
    check(lower(similarity.ssim, shape(4, 32, 32, 3), shape(4, 32, 32, 3)), [EXACT], min_products=2)
    latents, labels = shape(8, 40), shape(8, dtype=jnp.int32)
    drawn, places = shape(6, 40), shape(6, dtype=jnp.int32)
    program = lower(
        functools.partial(information._log_ratios, rows=4), drawn, places, latents, latents, labels
    )
    assert not lowered.products(program)  # squares of differences: products would lose the digits
    assert lowered.calls(program) <= lowered.KNOWN_CALLS


# Models by themselves, and bits on disk.


@pytest.mark.parametrize(
    ("method", "inference"),
    [
        *[(method, PUBLISHED[0]) for method in ("reconstruct", "draw", "log_weight", "interpolate")],
        *[(method, DEEP) for method in ("sample", "encode", "generate")],
    ],
)
def test_direct_use_of_a_model(make_config: MakeConfig, method: str, inference: str):
    model = make_hvae(make_config(likelihood="bernoulli", inference=inference), (8, 8, 1))
    key, x = make_key(0), shape(2, 8, 8, 1)
    arguments = {
        "reconstruct": (x,),
        "log_weight": (x, key),
        "encode": (x, key),
        "interpolate": (x, x, shape(3)),
    }.get(method, (key,))
    kwargs = {"num": 2} if method in ("sample", "draw", "generate") else {}
    fn = functools.partial(model.apply, method=method, **kwargs)
    check(lower(fn, params_of(model), *arguments), [EXACT])


@pytest.mark.parametrize(
    ("inference", "kind"), [(PUBLISHED[0], "none"), (PUBLISHED[1], "scale_shift"), (DEEP, "none")]
)
def test_every_program_of_a_codec(make_config: MakeConfig, inference: str, kind: str):
    config = make_config(likelihood="logistic_mixture", inference=inference, conditioning=kind)
    model = make_hvae(config, (8, 8, 1))

    def encode(params: Any, images: jax.Array, latents: list[jax.Array]) -> Any:
        if kind != "none":
            params = conditioning.at(params, (1.0, 1.0))
        networks: Any = programs.Programs(model, params, len(images))
        features, state, found = networks.bottom_up(images / 255.0), networks.start(), []
        for layer in range(model.num_layers, 0, -1):
            prior, state = networks.prior(layer, state)
            found.append((prior, networks.posterior(layer, state, features, prior)))
            state = networks.below(layer, state, latents[layer - 1])
        outputs = networks.outputs(state)
        mixture = pixels._conditional(
            LogisticMixture(2), outputs, jnp.zeros((*images.shape[:3], 0), jnp.uint8)
        )
        return found, pixels._begin(*mixture, jnp.zeros(images.shape[:3], jnp.int32))

    latents = [shape(4, *sides) for sides in config.latent_shapes]
    program = lower(encode, params_of(model), shape(4, 8, 8, 1), latents)
    check(program, [EXACT], min_products=10)


# The objective.


def test_no_product_weighs_rates_or_moves_betas():
    terms = LayerwiseTerms(shape(4), shape(4, 3))
    for weights in (shape(3), shape(4, 3)):
        found = lower(jax.grad(lambda t, w: layerwise_elbo(t, w).sum(), argnums=(0, 1)), terms, weights)
        assert not lowered.products(found)
    lows, highs = (1e-3,) * 3, (1e3,) * 3
    made = {
        "rates": controls.target_rates((1.0, 2.0, 3.0), lows, highs),
        "distortion": controls.target_distortion(80.0, lows, highs),
        "pi": controls.pi_rates((1.0, 2.0, 3.0), lows, highs),
        "warm-up": betas.linear_warmup(10),
        "free nats": betas.free_rates((1.0, 2.0, 3.0)),
        "groups": betas.share_betas(
            Groups(((1, 2), (3, 3))), controls.target_rates((3.0, 1.0), lows[:2], highs[:2])
        ),
    }
    for name, control in made.items():
        state = jax.eval_shape(control.init, jnp.ones(2 if name == "groups" else 3))
        program = lower(control.update, state, shape(), shape(3))
        assert not lowered.products(program), name
        assert not lowered.calls(program), name

    def paid(data: jax.Array, opened: jax.Array) -> jax.Array:
        keys = jax.random.wrap_key_data(data, impl="threefry2x32")
        return RANGE.paid(RANGE.draw(keys, opened), opened)

    assert not lowered.products(lower(paid, KEYS, shape(2)))


# What a user may set, and whether these tests would see it.


def test_a_users_setting_of_jax_changes_nothing(make_config: MakeConfig):
    for compute_dtype, setting in (("float32", "bfloat16"), ("bfloat16", "highest")):
        model = make_hvae(make_config(compute_dtype=compute_dtype), (8, 8, 1))
        loss: Any = functools.partial(model.apply, method="log_weight")
        with jax.default_matmul_precision(setting):
            program = lower(
                jax.grad(lambda params, x, key, loss=loss: loss(params, x, key).sum()),
                params_of(model),
                shape(2, 8, 8, 1),
                make_key(0),
            )
        check(program, exactness(compute_dtype), min_products=20)


def test_a_product_that_does_not_say_how_exact_it_is_would_be_found():
    x = jnp.zeros((2, 2))
    assert set(lowered.products(lower(lambda x: x @ x, x))) == {("f32", "f32", "DEFAULT", "DEFAULT")}
    with jax.default_matmul_precision("high"):
        assert set(lowered.products(lower(lambda x: x @ x, x))) == {("f32", "f32", "HIGH", "HIGH")}


def test_what_waits_for_the_host_would_be_found():
    def waits(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: None, x)
        return x

    for fn, arguments in ((waits, shape(2)), (jnp.linalg.eigh, shape(2, 2))):
        on_cpu = lower(fn, arguments, platforms=("cpu",))
        assert not lowered.calls(on_cpu) <= lowered.KNOWN_CALLS
    # Of a machine without the device, JAX does not lower it at all.
    with pytest.raises((TypeError, ValueError)):
        lower(waits, shape(2))


def test_an_array_is_as_large_as_its_numbers():
    program = lower(lambda x: jnp.broadcast_to(x[None], (512, 1024)) * 2.0, shape(1024))
    assert lowered.largest_mib(program) == 2.0
