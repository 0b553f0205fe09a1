"""Classifiers of images, against which samples and reconstructions are judged.

`ConvNet` for images of one or two channels, `ResNet18` for colour. Both return the features that lie before
the last layer beside the logits.
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
    batch normalisation.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images `[B, H, W, C]` in [0, 1] to features `[B, 512]` and logits `[B, M]`."""
        check_pixels(x)
        h = nn.relu(_norm(_Conv3(64)(2 * x - 1)))
        for channels, stride in (
            (64, 1),
            (64, 1),
            (128, 2),
            (128, 1),
            (256, 2),
            (256, 1),
            (512, 2),
            (512, 1),
        ):
            h = _Residual(channels, stride)(h)
        features = h.mean(axis=(1, 2))
        return features, blocks.Dense(self.num_classes)(features)


def make_classifier(image_shape: tuple[int, int, int], num_classes: int) -> ConvNet | ResNet18:
    """The classifier for images of this shape: `ResNet18` from three channels on, else `ConvNet`."""
    return ResNet18(num_classes) if image_shape[-1] >= 3 else ConvNet(num_classes)


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
