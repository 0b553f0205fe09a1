"""Deep networks against VDVAE in NumPy float64, with weights under the names of its PyTorch code."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.special
import scipy.stats

from hvae_jax import gaussian
from hvae_jax.errors import RunError
from hvae_jax.gaussian import Gaussian
from hvae_jax.keys import fold_in, per_image_keys
from hvae_jax.models import blocks, convolution
from hvae_jax.models.config import DEEP, INFERENCE, ModelConfig
from hvae_jax.models.hvae import HVAE, make_hvae
from hvae_jax.models.walk import GIVEN, Layer, Source, walk

# What is compiled here runs once or twice: most of LLVM's optimisation would not pay.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MakeConfig = Callable[..., ModelConfig]
State = dict[str, np.ndarray]
# As VDVAE's flags would say it: "1x1,4m1,4x1,8m4,8x2" and "8x2,8d2,4x1,4d4,1x2".
DECODER = ((1, None), (4, 1), (4, None), (8, 4), (8, None), (8, None))
ENCODER = ((8, None), (8, None), (8, 2), (4, None), (4, 4), (1, None), (1, None))
SMALL = {
    "inference": DEEP,
    "latent_shapes": ((8, 8, 2),) * 3 + ((4, 4, 2),) * 2 + ((1, 1, 2),),
    "blocks_by_side": ((8, 3), (4, 2), (1, 2)),
    "channels": 8,
    "likelihood": "logistic_mixture",
    "num_mixture_components": 3,
}


def shapes_of(model: HVAE) -> Any:
    x = jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, jax.random.key(1))


def random_like(shapes: Any) -> Any:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), shapes)


class VDVAE:
    """Its `vae.py` in float64 for one image, `[C, H, W]`, weights by their names there."""

    def __init__(self, state: State):
        self.state = state

    def conv(self, name: str, x: np.ndarray) -> np.ndarray:
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        out = [
            sum(scipy.signal.correlate2d(x[i], w[i], "same") for i in range(len(x))) + b
            for w, b in zip(weight, bias, strict=True)
        ]
        return np.stack(out)

    def block(self, name: str, x: np.ndarray) -> np.ndarray:
        for conv in ("c1", "c2", "c3", "c4"):
            x = self.conv(f"{name}.{conv}", x * 0.5 * (1.0 + scipy.special.erf(x / math.sqrt(2.0))))
        return x

    def encoder(self, x: np.ndarray) -> dict[int, np.ndarray]:
        x = self.conv("encoder.in_conv", x)
        activations = {x.shape[1]: x}
        for number, (_, rate) in enumerate(ENCODER):
            x = x + self.block(f"encoder.enc_blocks.{number}", x)
            if rate is not None:
                c, h, w = x.shape
                x = x.reshape(c, h // rate, rate, w // rate, rate).mean(axis=(2, 4))
            activations[x.shape[1]] = x
        return activations

    def forward(self, x: np.ndarray, noise: list[np.ndarray]) -> tuple[np.ndarray, list[float]]:
        """What `out_conv` gives, and the KL of each layer, the top one first, as the noise is."""
        activations = self.encoder(x)
        sides = sorted({side for side, _ in DECODER})
        xs = {side: self.state[f"decoder.bias_xs.{number}"][0] for number, side in enumerate(sides)}
        divergences = []
        for number, ((side, mixin), epsilon) in enumerate(zip(DECODER, noise, strict=True)):
            name, x = f"decoder.dec_blocks.{number}", xs[side]
            if mixin is not None:
                x = x + np.kron(xs[mixin], np.ones((1, side // mixin, side // mixin)))
            qm, qv = np.split(self.block(f"{name}.enc", np.concatenate([x, activations[side]])), 2)
            pm, pv, rest = np.split(self.block(f"{name}.prior", x), [len(qm), 2 * len(qm)])
            ratio = np.exp(2 * (qv - pv)) + ((qm - pm) / np.exp(pv)) ** 2
            divergences.append(float((-0.5 + pv - qv + 0.5 * ratio).sum()))
            x = x + rest + self.conv(f"{name}.z_proj", qm + np.exp(qv) * epsilon)
            xs[side] = x + self.block(f"{name}.resnet", x)
        final = xs[sides[-1]] * self.state["decoder.gain"][0] + self.state["decoder.bias"][0]
        return self.conv("decoder.out_net.out_conv", final), divergences


def dmol_log_prob(outputs: np.ndarray, x: np.ndarray, num: int) -> float:
    """`discretized_mix_logistic_loss` with its own order of channels; x in [−1, 1], `[3, H, W]`."""
    logits, rest = outputs[:num], outputs[num:].reshape(3, 3, num, *x.shape[1:])  # colour, kind, component
    coefficients = np.tanh(rest[:, 2])
    means = [
        rest[0, 0],
        rest[1, 0] + coefficients[0] * x[0],
        rest[2, 0] + coefficients[1] * x[0] + coefficients[2] * x[1],
    ]
    log_probs = scipy.special.log_softmax(logits, axis=0)
    for c in range(3):
        scale = np.exp(np.maximum(rest[c, 1], -7.0))
        upper, lower = ((x[c] + sign / 255 - means[c]) / scale for sign in (1, -1))
        first, last = scipy.special.log_expit(upper), scipy.special.log_expit(-lower)
        inside = first + last + np.log(-np.expm1(lower - upper))  # log(σ(upper) − σ(lower))
        log_probs = log_probs + np.where(x[c] < -0.999, first, np.where(x[c] > 0.999, last, inside))
    return float(scipy.special.logsumexp(log_probs, axis=0).sum())


def random_state(width: int, latent: int, num_outputs: int) -> State:
    """Weights as `VAE.state_dict()` names and shapes them."""
    rng, state = np.random.default_rng(1), {}

    def conv(name: str, num_in: int, num_out: int, size: int) -> None:
        state[f"{name}.weight"] = rng.normal(size=(num_out, num_in, size, size)) / math.sqrt(num_in) / size
        state[f"{name}.bias"] = 0.1 * rng.normal(size=num_out)

    def block(name: str, side: int, num_in: int, num_out: int) -> None:
        size, inner = (3 if side > 2 else 1), width // 4
        for part, (a, b, k) in enumerate(
            ((num_in, inner, 1), (inner, inner, size), (inner, inner, size), (inner, num_out, 1)), start=1
        ):
            conv(f"{name}.c{part}", a, b, k)

    conv("encoder.in_conv", 3, width, 3)
    for number, (side, _) in enumerate(ENCODER):
        block(f"encoder.enc_blocks.{number}", side, width, width)
    for number, (side, _) in enumerate(DECODER):
        name = f"decoder.dec_blocks.{number}"
        block(f"{name}.enc", side, 2 * width, 2 * latent)
        block(f"{name}.prior", side, width, 2 * latent + width)
        block(f"{name}.resnet", side, width, width)
        conv(f"{name}.z_proj", latent, width, 1)
    for number, side in enumerate(sorted({side for side, _ in DECODER})):
        state[f"decoder.bias_xs.{number}"] = 0.5 * rng.normal(size=(1, width, side, side))
    # Small, since our likelihood does not go beyond log scales of 7.
    state["decoder.gain"] = 0.05 * rng.normal(size=(1, width, 1, 1))
    state["decoder.bias"] = rng.normal(size=(1, width, 1, 1))
    conv("decoder.out_net.out_conv", width, num_outputs, 1)
    return state


def from_vdvae(state: State, num_components: int) -> Any:
    """VDVAE's weights as `params` of a deep network with a logistic mixture of colours."""

    def conv(*names: str) -> Any:
        kernels = [state[f"{name}.weight"].transpose(2, 3, 1, 0) for name in names]
        kernels = [kernel[0, 0] if kernel.shape[:2] == (1, 1) else kernel for kernel in kernels]
        stacked = np.stack(kernels), np.stack([state[f"{name}.bias"] for name in names])
        return dict(zip(("kernel", "bias"), stacked, strict=True))

    def block(*names: str) -> Any:
        return {f"conv_{i}": conv(*[f"{name}.c{i}" for name in names]) for i in (1, 2, 3, 4)}

    params = {}
    for side in {side for side, _ in ENCODER}:
        numbers = [number for number, (own, _) in enumerate(ENCODER) if own == side]
        params[f"bottom_up_{side}"] = block(*[f"encoder.enc_blocks.{number}" for number in numbers])
    sides = sorted({side for side, _ in DECODER})
    for place, side in enumerate(sides):
        names = [f"decoder.dec_blocks.{i}" for i, (own, _) in enumerate(DECODER) if own == side]
        params[f"top_down_{side}"] = {
            "posterior": block(*[f"{name}.enc" for name in names]),
            "prior": block(*[f"{name}.prior" for name in names]),
            "residual": block(*[f"{name}.resnet" for name in names]),
            "project": conv(*[f"{name}.z_proj" for name in names]),
        }
        params[f"start_{side}"] = state[f"decoder.bias_xs.{place}"][0].transpose(1, 2, 0)
    params["input"] = jax.tree.map(lambda leaf: leaf[0], conv("encoder.in_conv"))
    # Its outputs after the logits go by colour, then kind (mean, log scale, coefficient); ours by kind first.
    k = num_components
    order = np.arange(9 * k).reshape(3, 3, k).transpose(1, 0, 2).ravel() + k
    order = np.concatenate([np.arange(k), order])
    out = jax.tree.map(lambda leaf: leaf[0][..., order], conv("decoder.out_net.out_conv"))
    gain, bias = (state[f"decoder.{name}"].ravel() for name in ("gain", "bias"))
    params["output"] = {"gain": gain, "bias": bias, "conv": out}
    return {"params": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)}


def test_a_deep_network_is_vdvae(make_config: MakeConfig):
    model = make_hvae(make_config(**SMALL), (8, 8, 3))
    state = random_state(width=8, latent=2, num_outputs=30)
    params = from_vdvae(state, num_components=3)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes_of(model))
    pixels = np.random.default_rng(2).integers(0, 256, size=(1, 8, 8, 3))

    keys = per_image_keys(jax.random.key(3), 1)
    terms: Any = quick_jit(model.apply)(params, jnp.asarray(pixels / 255, jnp.float32), keys)
    noise = []  # of the layers' draws, the top one first
    for index, (side, *_) in reversed(list(enumerate(SMALL["latent_shapes"]))):
        zero = jnp.zeros((1, side, side, 2))
        draw = gaussian.sample(fold_in(keys, index), Gaussian(zero, zero + 1.0))
        noise.append(np.asarray(draw[0], np.float64).transpose(2, 0, 1))
    x = 2.0 * (pixels[0] / 255).transpose(2, 0, 1) - 1.0
    outputs, divergences = VDVAE(state).forward(x, noise)
    assert min(divergences) > 0.01
    np.testing.assert_allclose(terms.rates[0], divergences[::-1], rtol=1e-4)
    np.testing.assert_allclose(terms.distortion[0], -dmol_log_prob(outputs, x, 3), rtol=1e-4)


@pytest.mark.parametrize(
    ("image_shape", "sides", "likelihood"),
    [
        ((28, 28, 1), (14, 7, 1), "logistic_mixture"),
        ((64, 64, 3), (64, 16, 4), "gaussian_learned_std"),
        ((256, 256, 3), (128, 32, 1), "gaussian_fixed_std"),
    ],
    ids=str,
)
def test_images_of_other_sides(
    make_config: MakeConfig, image_shape: tuple[int, int, int], sides: Any, likelihood: str
):
    model = make_hvae(make_config(**of_sides(sides), likelihood=likelihood), image_shape)
    x = jnp.zeros((3, *image_shape))
    terms, params = jax.eval_shape(model.init_with_output, jax.random.key(0), x, jax.random.key(1))
    assert (terms.distortion.shape, terms.rates.shape) == ((3,), (3, model.num_layers))
    starts = [name for name in params["params"] if name.startswith("start")]
    assert len(starts) == sum(side <= 64 for side in sides)


def of_sides(sides: tuple[int, ...]) -> dict[str, Any]:
    """Two layers and a block of each."""
    latent_shapes = tuple((side, side, 2) for side in sides for _ in range(2))
    one_each = tuple((side, 1) for side in sides)
    return {"inference": DEEP, "latent_shapes": latent_shapes, "blocks_by_side": one_each}


def test_rows_are_as_columns(make_config: MakeConfig):
    """Transposed images and kernels give transposed pictures: heights and widths are nowhere confused."""
    tall = {"latent_shapes": ((8, 8, 2), (4, 2, 2), (1, 1, 2)), "blocks_by_side": ((8, 1), (4, 1), (1, 1))}
    wide = {"latent_shapes": ((8, 8, 2), (2, 4, 2), (1, 1, 2)), "blocks_by_side": ((8, 1), (2, 1), (1, 1))}
    shared = {"inference": DEEP, "likelihood": "bernoulli"}
    model = make_hvae(make_config(**shared, **tall), (16, 8, 2))
    transposed = make_hvae(make_config(**shared, **wide), (8, 16, 2))
    # Large, so that the picture shows what x is.
    params = jax.tree.map(lambda leaf: 4.0 * leaf, random_like(shapes_of(model)))

    def transpose(path: Any, leaf: jax.Array) -> jax.Array:
        if path[-1].key.startswith("start_") or (path[-1].key == "kernel" and leaf.ndim > 3):
            return jnp.swapaxes(leaf, leaf.ndim - 4, leaf.ndim - 3) if leaf.ndim > 3 else leaf.swapaxes(0, 1)
        return leaf

    of_transposed = jax.tree_util.tree_map_with_path(transpose, params)["params"]
    of_transposed = {"params": {name.replace("_4", "_2"): leaf for name, leaf in of_transposed.items()}}
    assert jax.tree.map(jnp.shape, of_transposed) == jax.tree.map(jnp.shape, shapes_of(transposed))
    x = jnp.asarray(np.random.default_rng(0).random((2, 16, 8, 2)), jnp.float32)
    pictures = [
        quick_jit(functools.partial(one.apply, method="reconstruct"))(weights, images)
        for one, weights, images in ((model, params, x), (transposed, of_transposed, x.swapaxes(1, 2)))
    ]
    assert np.ptp(np.asarray(pictures[0]), axis=0).max() > 0.01
    np.testing.assert_allclose(pictures[0], pictures[1].swapaxes(1, 2), rtol=1e-4, atol=1e-5)


def test_all_that_is_asked_of_a_deep_network(make_config: MakeConfig):
    model = make_hvae(make_config(**of_sides((28, 14, 1)), likelihood="bernoulli"), (28, 28, 1))
    x, params, key = jnp.zeros((3, 28, 28, 1)), shapes_of(model), jax.random.key(0)
    apply: Callable[..., Any] = model.apply

    def everything(params: Any) -> Any:
        latents = [code.sample for code in apply(params, x, key, method="encode")]
        pictures = [
            apply(params, x, 2, method="reconstruct"),
            apply(params, latents, method="decode"),
            apply(params, key, 3, method="draw"),
            apply(params, key, 3, latents={2: latents[1]}, method="generate").mean,
            apply(params, x[:1], x[:1], [0.1, 0.5, 0.9], method="interpolate")[:, 0],
        ]
        return latents, pictures

    latents, pictures = jax.eval_shape(everything, params)
    assert [z.shape[1:] for z in latents] == list(model.config.latent_shapes)
    assert [picture.shape for picture in pictures] == [x.shape] * 5
    with pytest.raises(ValueError, match="give z_1 … z_6"):
        jax.eval_shape(lambda params: apply(params, jnp.zeros((3, 28, 28, 2)), method="decode"), params)


def test_a_network_starts_with_equal_priors_and_small_steps(make_config: MakeConfig):
    """Last weights of priors are zero; those that add to a running map are √(1 / number) of PyTorch's."""
    model = make_hvae(make_config(**{**SMALL, "channels": 32}), (8, 8, 3))
    x = jnp.zeros((2, 8, 8, 3))
    params = quick_jit(model.init)(jax.random.key(0), x, jax.random.key(1))["params"]
    for side in (1, 4, 8):
        own = params[f"top_down_{side}"]
        assert not any(np.any(leaf) for leaf in own["prior"]["conv_4"].values())
        layers_and_blocks = 1 / math.sqrt(6), 1 / math.sqrt(7)
        for (kernel, fan_in), scale in zip(
            [(own["residual"]["conv_4"], 8), (params[f"bottom_up_{side}"]["conv_4"], 8)],
            layers_and_blocks,
            strict=True,
        ):
            largest = float(jnp.abs(kernel["kernel"]).max()) * math.sqrt(fan_in) / scale
            assert 0.95 < largest <= 1.0
        assert 0.8 < float(jnp.abs(own["project"]["kernel"]).max()) * math.sqrt(2 * 6) <= 1.0
        assert not np.any(own["posterior"]["conv_1"]["bias"])


def test_gelu_and_its_derivative():
    x = jnp.linspace(-6.0, 6.0, 101)
    value, slope = jax.jvp(blocks.gelu, (x,), (jnp.ones(101),))
    np.testing.assert_allclose(value, x * scipy.stats.norm.cdf(x), atol=1e-6)
    np.testing.assert_allclose(slope, scipy.stats.norm.cdf(x) + x * scipy.stats.norm.pdf(x), atol=1e-6)


def test_stacks_of_models_have_no_convolutions(make_config: MakeConfig):
    """Under `vmap`, as accelerators train packed models, a convolution would become a grouped one."""
    model = make_hvae(make_config(inference=DEEP), (8, 8, 1))
    x, key = jnp.zeros((2, 8, 8, 1)), jax.random.key(0)
    stack = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((3, *leaf.shape), leaf.dtype), shapes_of(model))
    with convolution.as_products():
        program = str(jax.make_jaxpr(jax.vmap(lambda params: model.apply(params, x, key)))(stack))
    assert "dot_general[" in program
    assert "conv_general_dilated[" not in program


def test_twice_the_layers_are_no_more_products_to_compile(make_config: MakeConfig):
    counts = []
    for num in (2, 20):
        shapes = ((8, 8, 2),) * num + ((1, 1, 2),)
        layers = {"latent_shapes": shapes, "blocks_by_side": ((8, num), (1, 2))}
        model = make_hvae(make_config(**{**SMALL, **layers}), (8, 8, 3))
        x, key = jnp.zeros((1, 8, 8, 3)), jax.random.key(0)
        program = str(jax.make_jaxpr(model.apply)(shapes_of(model), x, key))
        counts.append(program.count("dot_general[") + program.count("conv_general_dilated["))
    assert counts[0] == counts[1] > 10


@pytest.mark.parametrize("inference", INFERENCE)
def test_a_layers_prior_sees_only_what_is_above_it(make_config: MakeConfig, inference: str):
    """And all of it: derivatives of every prior by every latent."""
    shapes = ((4, 4, 2), (4, 4, 2), (1, 1, 2)) if inference == DEEP else ((4, 4, 2), (3,), (2,))
    config = make_config(inference=inference, latent_shapes=shapes)
    model = make_hvae(config, (8, 8, 1))
    params = random_like(shapes_of(model))
    rng = np.random.default_rng(3)
    latents = {i: jnp.asarray(rng.normal(size=(1, *s)), jnp.float32) for i, s in enumerate(shapes, start=1)}

    @quick_jit
    def derivatives(params: Any, latents: Any) -> Any:
        def of_prior(found: Layer) -> jax.Array:
            p: Any = found.p
            return (jnp.sin(p.mean) + p.std).sum()

        def of_priors(latents: Any) -> jax.Array:
            def inside(model: HVAE) -> list[jax.Array]:
                sources = [Source(GIVEN, shape=(1, *shape)) for shape in shapes]
                return walk(model.networks, 1, sources, of_prior, given=latents)[1]

            weighed: Any = model.apply(params, method=inside)
            return jnp.stack(weighed)

        return jax.jacrev(of_priors)(latents)

    found = derivatives(params, latents)
    for layer in (1, 2, 3):
        for above in (1, 2, 3):
            assert np.any(np.asarray(found[above])[layer - 1]) == (above > layer), (layer, above)


@pytest.mark.parametrize(
    ("changes", "image_shape", "field"),
    [
        ({"latent_shapes": ((8, 8, 2), (3,))}, (8, 8, 3), "latent_shapes"),
        ({"latent_shapes": ((8, 8, 2), (3, 3, 2))}, (8, 8, 3), "latent_shapes"),
        ({"latent_shapes": ((4, 4, 2), (8, 8, 2))}, (8, 8, 3), "latent_shapes"),
        ({"latent_shapes": ((8, 8, 2), (8, 8, 3))}, (8, 8, 3), "latent_shapes"),
        ({"latent_shapes": ((8, 8, 2), (4, 4, 2), (8, 8, 2))}, (8, 8, 3), "latent_shapes"),
        ({}, (12, 12, 3), "latent_shapes"),
        ({}, (8, 12, 3), "latent_shapes: .* maps of 8×8, 4×4, 1×1; .* the image's, 8×12"),
        ({"blocks_by_side": ((8, 3), (4, 2))}, (8, 8, 3), "blocks_by_side"),
        ({"blocks_by_side": ()}, (8, 8, 3), "blocks_by_side"),
        ({"blocks_by_side": (8, 4, 1)}, (8, 8, 3), "blocks_by_side"),
        ({"blocks_by_side": ((8, 0), (4, 2), (1, 2))}, (8, 8, 3), "blocks_by_side"),
        ({"inference": "ladder"}, (8, 8, 3), "blocks_by_side"),
    ],
    ids=str,
)
def test_layers_that_do_not_fit_are_named(
    make_config: MakeConfig, changes: dict[str, Any], image_shape: tuple[int, int, int], field: str
):
    with pytest.raises(RunError, match=f"config.model.{field}") as caught:
        make_hvae(make_config(**{**SMALL, **changes}), image_shape)
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match="images of shape"):
        make_hvae(make_config(**SMALL), (8, 260, 3))
