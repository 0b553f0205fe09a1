"""What is timed: networks by name, how many operations a step takes, and proof that both sides agree."""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from experiments import cifar, digits, mnist
from hvae_jax.errors import RunError
from hvae_jax.keys import make_key
from hvae_jax.models import blocks
from hvae_jax.models.config import DEEP
from hvae_jax.models.hvae import ModelConfig, make_hvae
from hvae_jax.objective import layerwise_elbo

TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Case:
    """A network that both sides build: a config of `experiments`, on images of one shape."""

    make_config: Callable[[], Any]
    image_shape: tuple[int, int, int]
    num_parameters: int

    @property
    def config(self) -> dict[str, Any]:
        """The config as plain values; its data is still the real data set's."""
        return self.make_config().to_dict()


def deep_config() -> Any:
    """A deep network of 9 layers for binarised 28×28 images, in patches of 2×2; trained by Adam alone."""
    config = mnist.get_config().unlock()
    by_side = ((14, 4), (7, 3), (1, 2))
    shapes = tuple((side, side, 8) for side, num in by_side for _ in range(num))
    model = {"inference": "deep", "latent_shapes": shapes, "channels": 64}
    model["blocks_by_side"] = ((14, 3), (7, 3), (1, 1))
    config.update(
        {"model": model, "objective": {"betas": (1.0,) * len(shapes)}, "training": {"batch_size": 64}}
    )
    return config.lock()


CASES = {
    "cifar_reference": Case(cifar.get_config, (32, 32, 3), 475_811),
    "reference_28": Case(mnist.get_config, (28, 28, 1), 122_713),
    "digits": Case(digits.get_config, (8, 8, 1), 32_113),
    "deep_28": Case(deep_config, (28, 28, 1), 229_444),
}


def describe_network(config: Mapping[str, Any], image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The network of a config in plain values, from which `torch_reference` builds its own.

    It is a two-layer GHVAE, or a deep network, square and with one channel.
    """
    model = config["model"]
    if model["inference"] == DEEP:
        fields = ("latent_shapes", "blocks_by_side", "channels")
        return {"is_deep": True, "image_shape": image_shape, **{name: model[name] for name in fields}}
    z_1, z_2 = model["latent_shapes"]
    stages = blocks.make_stages(image_shape[:2], model["num_stages"])
    return {
        "is_deep": False,
        "image_shape": image_shape,
        "channels": model["channels"],
        "stages": [
            {"side_out": stage.size_out[0], "stride": stage.stride, "padding": stage.padding}
            for stage in stages
        ],
        "z_1": z_1,
        "z_2": z_2,
        "likelihood": model["likelihood"],
        "likelihood_std": model["likelihood_std"],
    }


def torch_spec(
    config: Mapping[str, Any], image_shape: tuple[int, int, int], is_compiled: bool
) -> dict[str, Any]:
    """What `torch_reference` trains: the network, images and objective of a config of `npz:` data."""
    return {
        "kind": "network",
        "network": describe_network(config, image_shape),
        "training": config["training"],
        "betas": config["objective"]["betas"],
        "binarize": config["data"]["binarize"],
        "data": config["data"]["name"].removeprefix("npz:"),
        "compile": is_compiled,
    }


def step_flops(case: Case) -> float:
    """Floating point operations of the products in one training step, from their shapes alone.

    A multiply and an add are two. A product counts three times, forward and for the gradients of both
    factors, except the first convolutions: nobody needs the gradient of the image. Taps on the padding
    count, as in every implementation by matrix products.
    """
    config = case.config
    network = describe_network(config, case.image_shape)
    if network["is_deep"]:
        return config["training"]["batch_size"] * _deep_flops(network)
    stages, c, image_channels = network["stages"], network["channels"], case.image_shape[2]
    (side, _, z_1_channels), (z_2,) = network["z_1"], network["z_2"]
    features, size = stages[-1]["side_out"] ** 2 * c, side * side * z_1_channels

    def conv(stage: Mapping[str, int], c_in: int, c_out: int) -> int:
        # Transposed, it has the same products: every small pixel meets the whole kernel.
        return stage["side_out"] ** 2 * blocks.KERNEL_SIZE**2 * c_in * c_out

    first = conv(stages[0], image_channels, c)
    inner = [conv(stage, c, c) for stage in stages[1:]]
    head = side * side * blocks.HEAD_KERNEL_SIZE**2 * c * 2 * z_1_channels
    products = [
        *inner,  # q(z_2|x)
        features * 2 * z_2,
        *inner[:-1],  # q(z_1|z_2, x)
        z_2 * features,
        conv(stages[-1], c, c),
        conv(stages[-1], 2 * c, c),
        head,
        z_2 * (size // 2),  # p(z_1|z_2)
        (size // 2) * 2 * size,
        *inner[:-1],  # p(x|z_1)
        conv(stages[-1], z_1_channels, c),
        first,
    ]
    return 2.0 * config["training"]["batch_size"] * (3 * sum(products) + 2 * 2 * first)


def _deep_flops(network: Mapping[str, Any]) -> float:
    """Of one image; see `step_flops`."""
    width = network["channels"]
    largest = network["blocks_by_side"][0][0]
    num_pixels = (network["image_shape"][0] // largest) ** 2

    def block(side: int, c_in: int, c_out: int) -> int:
        inner, size = width // 4, 1 if side <= 2 else 3
        return side * side * (c_in * inner + 2 * size * size * inner * inner + inner * c_out)

    products = [num * block(side, width, width) for side, num in network["blocks_by_side"]]
    for side, _, latent in network["latent_shapes"]:
        products += [block(side, 2 * width, 2 * latent), block(side, width, 2 * latent + width)]
        products += [block(side, width, width), side * side * latent * width]
    products.append(largest * largest * width * num_pixels)  # to the likelihood
    first = largest * largest * 9 * num_pixels * width
    return 2.0 * (3 * sum(products) + 2 * first)


def verify(case: Case) -> str:
    """Proves that both sides compute the same, and says how closely.

    Raises:
      RunError: distortion, rates or gradients differ by more than 1e-3, or parameters by number.
    """
    torch_reference = importlib.import_module("experiments.benchmark.torch_reference")
    config = case.config
    betas = tuple(np.linspace(0.7, 1.3, len(config["model"]["latent_shapes"])).tolist())
    model = make_hvae(ModelConfig(**config["model"]), case.image_shape)
    x = np.random.default_rng(0).random((8, *case.image_shape), np.float32).round(1)
    if config["data"]["binarize"] == "round":
        x = x.round()
    key = make_key(1)
    params: Any = jax.jit(model.init)(make_key(0), x, key)
    if model.config.inference == DEEP:  # whose priors begin with weights of zero: most gradients would be
        rng = np.random.default_rng(1)
        params = jax.tree.map(
            lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params
        )
    codes: Any = model.apply(params, x, key, method="encode")
    noises = [np.asarray((code.sample - code.mean) / code.std) for code in codes]

    def loss_fn(params: Any) -> Any:
        terms: Any = model.apply(params, x, key)
        return -layerwise_elbo(terms, betas).mean(), terms

    (_, terms), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    network = describe_network(config, case.image_shape)
    distortion, layer_rates, torch_grads = torch_reference.evaluate_same(network, params, x, noises, betas)
    ours, theirs = {"distortion": terms.distortion}, {"distortion": distortion}
    for index in range(len(betas)):
        name = f"rate R_{index + 1}"
        ours[name], theirs[name] = terms.rates[:, index], layer_rates[:, index]
    for name, grad in torch_reference.from_flax(grads, network).items():
        ours[f"gradient of {name}"], theirs[f"gradient of {name}"] = grad, torch_grads[name]
    num_parameters = sum(grad.size for grad in torch_grads.values())
    return compare(ours, theirs, num_parameters, case.num_parameters)


def compare(ours: Mapping[str, Any], theirs: Mapping[str, Any], num_parameters: int, expected: int) -> str:
    """The largest relative difference |a − b| / |a| of each pair of arrays, in one line; see `verify`."""
    differences = {
        name: float(np.linalg.norm(np.asarray(a) - theirs[name]) / np.linalg.norm(a))
        for name, a in ours.items()
    }
    worst = max(differences, key=lambda name: np.nan_to_num(differences[name], nan=np.inf))
    if not differences[worst] <= TOLERANCE or num_parameters != expected:  # NaN must not pass
        raise RunError(
            f"the PyTorch network is not ours, so there is nothing to compare: {worst} differs by "
            f"{differences[worst]:.1e} (at most {TOLERANCE:g}), {num_parameters} parameters for {expected}"
        )
    return (
        f"the same network, {num_parameters:,} parameters; {worst} differs most, by {differences[worst]:.1e}"
    )


def with_random_images(
    config: dict[str, Any], image_shape: tuple[int, int, int], num_images: int, folder: pathlib.Path
) -> dict[str, Any]:
    """The config with its data replaced by a file of random bytes in `folder`."""
    images = np.random.default_rng(0).integers(0, 256, (num_images, *image_shape), np.uint8)
    file = folder / "images.npz"
    np.savez(file, train_images=images, test_images=images[:1])
    return {**config, "data": {**config["data"], "name": f"npz:{file}", "num_valid": 0}}


SCALING = {
    "batch size": (32, 64, 128, 256, 512),
    "channels": (8, 16, 32, 64),
    "layers": (1, 2, 3, 4),
    "image side": (8, 16, 32, 64),
}


def scaling_config(axis: str, value: int) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """The CIFAR reference with one thing changed, and its image shape.

    Channels are those of the convolutions and of every latent. Layers above two are maps of the larger
    sides, put below the reference's two. Image sides add or drop a stage, so the smallest map stays 4×4.
    """
    config = cifar.get_config().to_dict()
    channels = value if axis == "channels" else 32
    side = value if axis == "image side" else 32
    num_layers = value if axis == "layers" else 2
    num_stages = (side // 4).bit_length() - 1
    maps = tuple((map_side, map_side, channels) for map_side in (16, 8, 4))
    latents = (*maps, (channels,))[-max(num_layers, 2) :][:num_layers]
    config["model"].update(channels=channels, num_stages=num_stages, latent_shapes=latents)
    config["objective"]["betas"] = (1.0,) * num_layers
    if axis == "batch size":
        config["training"]["batch_size"] = value
    return config, (side, side, 3)
