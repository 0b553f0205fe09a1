"""Configs of models that are refused, each with the field and the reason."""

import math
from collections.abc import Callable

import pytest

from hvae_jax.errors import RunError
from hvae_jax.models.config import ModelConfig
from hvae_jax.models.hvae import make_hvae

MakeConfig = Callable[..., ModelConfig]


def test_bottom_up_is_refused_with_the_reason(make_config: MakeConfig):
    with pytest.raises(
        RunError, match=r"config\.model\.inference='bottom_up'.*does not split along the layers"
    ):
        make_config(inference="bottom_up")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("inference", "top_up"),
        ("likelihood", "poisson"),
        ("channels", 0),
        ("channels", 2.0),
        ("num_stages", 0),
        ("num_stages", "3"),
        ("num_mixture_components", 0),
        ("num_mixture_components", None),
        ("compute_dtype", "float16"),
        ("compute_dtype", None),
        ("remat", 1),
        ("likelihood_std", 0.0),
        ("likelihood_std", -0.5),
        ("likelihood_std", math.nan),
        ("likelihood_std", math.inf),
        ("latent_shapes", ()),
        ("latent_shapes", (3,)),
        ("latent_shapes", [(3,)]),
        ("latent_shapes", ((),)),
        ("latent_shapes", ((0,),)),
        ("latent_shapes", ((3.0,),)),
        ("latent_shapes", ((4, 4),)),
        ("latent_shapes", ((4, 4, 2), (-3,))),
    ],
    ids=str,
)
def test_a_bad_field_is_named(make_config: MakeConfig, field: str, value: object):
    with pytest.raises(RunError) as caught:
        make_config(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"config.model.{field}=")
    assert str(value) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "image_shape", "field"),
    [
        ({"num_stages": 4}, (8, 8, 1), "num_stages"),
        ({"num_stages": 3, "latent_shapes": ((3,),)}, (12, 12, 1), "num_stages"),
        ({"latent_shapes": ((8, 8, 2), (3,))}, (8, 8, 1), "latent_shapes"),
        ({"latent_shapes": ((4, 2, 2), (3,))}, (8, 8, 1), "latent_shapes.* layer 1 .* maps of 4×4, 2×2"),
        ({}, (8, 10, 1), r"num_stages=2: 4×5 pixels are left .* widths fit: \[8, 12, 16"),
        ({"latent_shapes": ((4, 4, 2), (3,)), "num_stages": 2}, (28, 28, 1), "latent_shapes"),
        ({"latent_shapes": ((3,), (4, 4, 2))}, (8, 8, 1), "latent_shapes"),
        ({"latent_shapes": ((2, 2, 2), (4, 4, 2))}, (8, 8, 1), "latent_shapes"),
    ],
    ids=str,
)
def test_latents_that_do_not_fit_the_image_are_named(
    make_config: MakeConfig, changes: dict[str, object], image_shape: tuple[int, int, int], field: str
):
    with pytest.raises(RunError, match=f"config.model.{field}"):
        make_hvae(make_config(**changes), image_shape)


@pytest.mark.parametrize("image_shape", [(8, 66, 1), (7, 7, 1), (65, 65, 3), (8, 8, 0), (8, 8, 5)], ids=str)
def test_images_that_are_not_supported_are_named(make_config: MakeConfig, image_shape: tuple[int, int, int]):
    with pytest.raises(RunError) as caught:
        make_hvae(make_config(), image_shape)
    assert f"images of shape {image_shape}" in str(caught.value)
