"""What lays a batch of images on a stack of bits, and what takes it off.

An image's latents are popped from the stack with q, z_L first: its bits draw them. Then x is pushed with
p(x|z), and z_1 … z_L with their priors. What a layer has pushed less what it popped is log q(z_l|z_{>l}, x) −
log p(z_l|z_{>l}), whose mean is the rate R_l. A decoder does all of it backwards: that gives the bits back.

What draws an image's latents came onto the stack with the image before it: bits of a layer that says little
would go round and draw the same for all images. So numbers that are popped are mixed with a pad that both
ends know (`_pad`): the draws are then as good as any.

Images share one stack, so that the bits that it begins with are paid once. A batch is popped layer by layer,
all its images together, before it pushes: so batches grow with the stack, from one image on.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from hvae_jax.codec import bins, container
from hvae_jax.codec.bins import BIN_BITS, POSTERIOR_BITS, Gaussians
from hvae_jax.codec.container import Content, Damaged
from hvae_jax.codec.pixels import Pixels
from hvae_jax.codec.programs import Programs, to_numpy
from hvae_jax.codec.stack import Stack


@dataclasses.dataclass(frozen=True)
class Found:
    """One layer of a batch on the way down: its number, prior, bins and values, and the state at it."""

    layer: int
    prior: Any
    p: Gaussians
    index: np.ndarray
    z: np.ndarray
    state: Any


class Encoder:
    """Pushes images, batch by batch."""

    def __init__(self, programs: Programs, pixels: Pixels, num_images: int, top_first: int) -> None:
        layers = programs.model.num_layers
        self.stack, self._programs, self._pixels = Stack(), programs, pixels
        self.pushed, self.popped = (np.zeros((num_images, layers)) for _ in range(2))
        self.pixel_bits = np.zeros(num_images)
        self.sections: dict[int, list[np.ndarray]] = {
            layer: [] for layer in range(top_first or layers + 1, layers + 1)
        }
        self._done, self._is_shrinking = 0, False
        num_latents = sum(map(math.prod, programs.model.config.latent_shapes))
        borrowed = pixels.borrowed_bits(programs.model.image_shape)
        self._need = num_latents * POSTERIOR_BITS + borrowed

    @property
    def room(self) -> int:
        """Images that the next batch has: what the stack has bits for, unless it only gets shorter."""
        room = self._programs.batch_size
        return room if self._is_shrinking else max(1, min(room, int(self.stack.num_bits) // self._need))

    def encode(self, images: np.ndarray) -> None:
        """Pushes at most a batch of images, `[n, H, W, C]`."""
        stack, programs, num = self.stack, self._programs, len(images)
        before = stack.num_bits - 32 * stack.num_seed_words
        rows = slice(self._done, self._done + num)
        features = programs.bottom_up(_padded(images, programs.batch_size))
        state, indices = programs.start(), {}
        for layer in range(programs.model.num_layers, 0, -1):
            prior, state = programs.prior(layer, state)
            q, p = to_numpy(programs.posterior(layer, state, features, prior)), to_numpy(prior)
            index = _middle(p)
            index[:num], self.popped[rows, layer - 1] = self._pop(layer, _rows(q, num), _rows(p, num))
            z = bins.values(index, p).reshape(prior.mean.shape)
            state, indices[layer] = programs.below(layer, state, z), index[:num]
        self.pixel_bits[rows] = self._pixels.push(stack, programs.outputs(state), images)
        for layer, index in reversed(indices.items()):
            self.pushed[rows, layer - 1] = BIN_BITS * index.shape[1]
            if layer in self.sections:
                self.sections[layer].append(index)
            else:
                stack.push_uniform(index.ravel(), BIN_BITS)
        self._is_shrinking = stack.num_bits - 32 * stack.num_seed_words < before
        self._done += num

    def _pop(self, layer: int, q: Gaussians, p: Gaussians) -> tuple[np.ndarray, np.ndarray]:
        """Bins that q draws `[n, D]`, and the bits that they took `[n]`."""
        stack, (num, size) = self.stack, q.mean.shape
        stack.reserve(num * size * POSTERIOR_BITS)
        numbers = stack.pop_uniform(num * size, POSTERIOR_BITS).reshape(num, size)
        numbers ^= _pad(layer, self._done, numbers.shape)
        index = bins.find(numbers, q, p)
        starts, widths = bins.shares(index, q, p)
        popped = np.full(num, float(size * POSTERIOR_BITS))
        for i in range(num):
            before = stack.num_bits
            stack.push_below(numbers[i] - starts[i], widths[i])
            popped[i] -= stack.num_bits - before
        return index, popped


class Decoder:
    """Pops images, the last batch first."""

    def __init__(self, programs: Programs, pixels: Pixels, content: Content) -> None:
        header, payload = content.header, content.payload
        self._programs, self._pixels = programs, pixels
        self._sections: dict[int, np.ndarray] = {}
        shapes = programs.model.config.latent_shapes
        for layer in range(len(shapes), header.top_first - 1, -1) if header.top_first else ():
            size = math.prod(shapes[layer - 1])
            numbers = container.unpack_numbers(payload, header.num_images * size, BIN_BITS)
            self._sections[layer] = numbers.reshape(header.num_images, size)
            payload = payload[-(-numbers.size * BIN_BITS // 8) :]
        if len(payload) % 4:
            raise Damaged("its last word is cut")
        try:
            self.stack = Stack(np.frombuffer(payload, "<u4"))
        except ValueError as error:
            raise Damaged("its last word is zero") from error

    def descend(self, start: int, num: int, lowest: int = 1) -> Iterator[Found]:
        """The layers of images start … start + num − 1, from z_L down to `lowest`."""
        programs = self._programs
        state = programs.start()
        for layer in range(programs.model.num_layers, lowest - 1, -1):
            prior, state = programs.prior(layer, state)
            p = to_numpy(prior)
            index, size = _middle(p), p.mean.shape[1]
            if layer in self._sections:
                index[:num] = self._sections[layer][start : start + num]
            else:
                index[:num] = self.stack.pop_uniform(num * size, BIN_BITS).reshape(num, size)
            z = bins.values(index, p).reshape(prior.mean.shape)
            yield Found(layer, prior, p, index[:num], z, state)
            state = programs.below(layer, state, z)
        self._below = state

    def decode(self, start: int, num: int) -> np.ndarray:
        """The images start … start + num − 1."""
        programs = self._programs
        found = list(self.descend(start, num))
        images = self._pixels.pop(self.stack, programs.outputs(self._below), num)
        features = programs.bottom_up(_padded(images, programs.batch_size))
        for at in reversed(found):
            q = to_numpy(programs.posterior(at.layer, at.state, features, at.prior))
            self._push(at.layer, start, at.index, _rows(q, num), _rows(at.p, num))
        return images

    def _push(self, layer: int, start: int, index: np.ndarray, q: Gaussians, p: Gaussians) -> None:
        starts, widths = bins.shares(index, q, p)
        if (widths < 1).any():
            raise Damaged("it holds a latent that no encoder draws")
        numbers = starts.copy()
        for i in range(len(index) - 1, -1, -1):
            numbers[i] += self.stack.pop_below(widths[i])
        numbers ^= _pad(layer, start, numbers.shape)
        self.stack.push_uniform(numbers.ravel(), POSTERIOR_BITS)


def _pad(layer: int, start: int, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers below 2^POSTERIOR_BITS, int64, for a layer of the batch that begins with image `start`."""
    raw = np.random.Philox(key=[layer, start]).random_raw(math.prod(shape))
    return (raw >> (64 - POSTERIOR_BITS)).astype(np.int64).reshape(shape)


def _padded(images: np.ndarray, batch_size: int) -> np.ndarray:
    """x, float32 `[B, H, W, C]`; rows past the images are black, at both ends."""
    x = np.zeros((batch_size, *images.shape[1:]), np.float32)
    x[: len(images)] = images.astype(np.float32) / np.float32(255.0)
    return x


def _middle(p: Gaussians) -> np.ndarray:
    """Bins for rows that hold no image."""
    return np.full(p.mean.shape, 2 ** (BIN_BITS - 1), np.int64)


def _rows(of: Gaussians, num: int) -> Gaussians:
    return Gaussians(of.mean[:num], of.std[:num])
