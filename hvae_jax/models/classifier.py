"""Classifiers of images, against which samples and reconstructions are judged.

Unless another is asked for, `ConvNet` for images of one or two channels, `ResNet18` for colour. Both return
the features that lie before the last layer beside the logits.
"""

import jax
from flax import linen as nn

from hvae_jax.likelihoods import check_pixels
from hvae_jax.models import blocks
from hvae_jax.models import convolution_products as products

GROUP_SIZE = 16


class ConvNet(nn.Module):
    """Three convolutions that quarter the side, a hidden layer of features, logits."""

    num_classes: int
    channels: int = 16
    num_features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images `[B, H, W, C]` in [0, 1] to features `[B, F]` and logits `[B, M]`."""
        check_pixels(x)
        h = nn.relu(blocks.Conv(self.channels, kernel_size=3, stride=1, padding=1)(x - 0.5))
        h = nn.relu(blocks.Conv(2 * self.channels, kernel_size=4, stride=2, padding=1)(h))
        h = nn.relu(blocks.Conv(4 * self.channels, kernel_size=4, stride=2, padding=1)(h))
        features = nn.relu(blocks.Dense(self.num_features)(blocks.flatten(h)))
        return features, blocks.Dense(self.num_classes)(features)


class ResNet18(nn.Module):
    """He et al., Deep residual learning, 2016: eight residual blocks, here on images of 32 × 32.

    As usual at this size the first convolution has kernel 3 and stride 1 and no pooling follows. Groups
    of channels are normalised instead of batches: there is then no state beside the parameters, and an
    image's features do not depend on its batch. 11,173,962 parameters for ten classes, as many as with
    batch normalisation; a quarter of the channels is a sixteenth of the work.
    """

    num_classes: int
    channels: int = 64

    @property
    def num_features(self) -> int:
        """F."""
        return 8 * self.channels

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images `[B, H, W, C]` in [0, 1] to features `[B, F]` and logits `[B, M]`."""
        check_pixels(x)
        h = nn.relu(_norm(_Conv3(self.channels)(2 * x - 1)))
        for times, stride in ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1)):
            h = _Residual(times * self.channels, stride)(h)
        features = h.mean(axis=(1, 2))
        return features, blocks.Dense(self.num_classes)(features)


# By the names that they are chosen with.
NETWORKS: dict[str, type[ConvNet] | type[ResNet18]] = {"convnet": ConvNet, "resnet18": ResNet18}


def usual_network(image_shape: tuple[int, int, int]) -> str:
    """Of `NETWORKS`: the residual one for images of three channels on."""
    return "resnet18" if image_shape[-1] >= 3 else "convnet"


class _Residual(nn.Module):
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(_norm(_Conv3(self.channels, self.stride)(x)))
        h = _norm(_Conv3(self.channels)(h))
        if x.shape != h.shape:
            size, precision = (1, 1), products.precision(x.dtype)
            x = _norm(nn.Conv(self.channels, size, self.stride, use_bias=False, precision=precision)(x))
        return nn.relu(h + x)


class _Conv3(nn.Module):
    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, precision = (3, 3), products.precision(x.dtype)
        return nn.Conv(self.channels, size, self.stride, padding=1, use_bias=False, precision=precision)(x)


def _norm(x: jax.Array) -> jax.Array:
    return nn.GroupNorm(num_groups=None, group_size=GROUP_SIZE)(x)
