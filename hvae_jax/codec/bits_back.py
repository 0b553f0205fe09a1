"""Bits-back coding of images with a hierarchical VAE.

An image's latents are popped from the stack with q, z_L first: its bits draw them. Then x is pushed with
p(x|z), and z_1 … z_L with their priors. What a layer has pushed less what it popped is log q(z_l|z_{>l}, x) −
log p(z_l|z_{>l}), whose mean is the rate R_l. A decoder does all of it backwards: that gives the bits back.

What draws an image's latents came onto the stack with the image before it: bits of a layer that says little
would go round and draw the same for all images. So numbers that are popped are mixed with a pad that both
ends know (`_pad`): the draws are then as good as any.

Images share one stack, so that the bits that it begins with are paid once. A batch is popped layer by layer,
all its images together, before it pushes: so batches grow with the stack, from one image on.

Sources: Townsend et al., Practical Lossless Compression with Latent Variables using Bits Back Coding, 2019;
Townsend et al., HiLLoC, 2020.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from hvae_jax.codec import bins, container, machine
from hvae_jax.codec.bins import BIN_BITS, POSTERIOR_BITS, Gaussians
from hvae_jax.codec.container import Content, Damaged, Header
from hvae_jax.codec.pixels import Pixels, make_pixels
from hvae_jax.codec.programs import Programs, check_layers, to_numpy
from hvae_jax.codec.stack import Stack, require_constriction
from hvae_jax.errors import RunError
from hvae_jax.keys import make_key
from hvae_jax.models.hvae import HVAE

BATCH_SIZE = 64
Report = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Bits:
    """Where the bits of a file are; arrays over layers z_1 first.

    Attributes:
      pushed: onto the stack, or into sections, `[N, L]`.
      popped: from the stack, `[N, L]`.
      pixels: `[N]`.
      initial: that the stack began with.
      header: before the payload.
      total: of the file.
    """

    pushed: np.ndarray
    popped: np.ndarray
    pixels: np.ndarray
    initial: int
    header: int
    total: int

    @property
    def net(self) -> np.ndarray:
        """What each layer of each image took, `[N, L]`."""
        return self.pushed - self.popped


@dataclasses.dataclass(frozen=True)
class Top:
    """The picture that the top layers make.

    Attributes:
      images: E[x|z], the layers below at the prior's means, float32 `[M, H, W, C]` in [0, 1].
      places: which images of the file they are of, `[M]`.
      num_bits: read for them, the header left out.
    """

    images: np.ndarray
    places: np.ndarray
    num_bits: int


def encode(
    model: HVAE,
    params: Any,
    images: np.ndarray,
    *,
    batch_size: int = BATCH_SIZE,
    top_first: int = 0,
    report: Report = lambda num: None,
) -> bytes:
    """Images as bits.

    Args:
      model: with a Bernoulli or logistic-mixture likelihood.
      params: of it, as `model.apply` takes them; those of a conditioned model with the betas in them
        (`models.conditioning.at`).
      images: uint8 `[N, H, W, C]`, 0 to 255; black and white (0 and 255) for a Bernoulli likelihood.
      batch_size: of all programs, at both ends.
      top_first: puts the layers from this one up in front, where `decode_top` finds those of all images.
        Bits that they borrow are then not given back to later images: where pixels do not bring as many,
        a file grows by the rest. 0 puts all on one stack.
      report: called with the number of images that are done.

    Returns:
      the content of a file; `decode` gives the images back.

    Raises:
      RunError: the likelihood is a density, a layer is not Gaussian, or `constriction` is not installed.
      ValueError: images of another shape or type, or none, or no such layer.

    Example:
      data = codec.encode(model, params, images)
      assert (codec.decode(model, params, data) == images).all()
    """
    return encode_measured(model, params, images, batch_size=batch_size, top_first=top_first, report=report)[
        0
    ]


def encode_measured(
    model: HVAE,
    params: Any,
    images: np.ndarray,
    *,
    batch_size: int = BATCH_SIZE,
    top_first: int = 0,
    report: Report = lambda num: None,
) -> tuple[bytes, Bits]:
    """What `encode` gives, and where its bits are."""
    require_constriction()
    check_layers(model)
    pixels = make_pixels(model)
    if images.dtype != np.uint8 or images.shape[1:] != model.image_shape or not len(images):
        raise ValueError(f"images must be uint8 [N, *{model.image_shape}], got {images.dtype} {images.shape}")
    if not 0 <= top_first <= model.num_layers:
        raise ValueError(f"top_first must be in 0 … {model.num_layers}, got {top_first}")
    if not 1 <= batch_size <= container.MAX_BATCH:
        raise ValueError(f"batch_size must be in 1 … {container.MAX_BATCH}, got {batch_size}")
    pixels.check(images)
    programs = Programs(model, params, batch_size)
    probe = _probe(programs, pixels)
    encoder = _Encoder(programs, pixels, len(images), top_first)
    sizes: list[int] = []
    while (done := sum(sizes)) < len(images):
        sizes.append(min(encoder.room, len(images) - done))
        encoder.encode(images[done : done + sizes[-1]])
        report(sum(sizes))
    stack = encoder.stack
    header = Header(
        format=container.FORMAT,
        versions=machine.versions(),
        device=machine.device(),
        model=machine.model_hash(model, params),
        betas=machine.betas_of(params),
        probe=probe,
        image_shape=list(model.image_shape),
        num_images=len(images),
        images=container.hash_images(images),
        batch_size=batch_size,
        batches=container.runs(sizes),
        top_first=top_first,
        num_seed_words=stack.num_seed_words,
    )
    sections = [
        container.pack_numbers(np.concatenate(encoder.sections[layer]), BIN_BITS)
        for layer in sorted(encoder.sections, reverse=True)
    ]
    payload = b"".join(sections) + stack.words().astype("<u4").tobytes()
    data = container.pack(header, payload)
    bits = Bits(
        pushed=encoder.pushed,
        popped=encoder.popped,
        pixels=encoder.pixel_bits,
        initial=32 * stack.num_seed_words,
        header=8 * (len(data) - len(payload)),
        total=8 * len(data),
    )
    return data, bits


def decode(model: HVAE, params: Any, data: bytes, *, report: Report = lambda num: None) -> np.ndarray:
    """The images that `encode` was given, uint8 `[N, H, W, C]`.

    Args:
      model, params: as they were for `encode`.
      data: what it gave.
      report: called with the number of images that are done.

    Raises:
      RunError: the file is of another model, version, device or batch shape, or damaged.
    """
    content, programs, pixels = _open(model, params, data)
    header = content.header
    decoder = _Decoder(programs, pixels, content)
    images = np.zeros((header.num_images, *model.image_shape), np.uint8)
    end = header.num_images
    for size in reversed(header.batch_sizes):
        images[end - size : end] = decoder.decode(end - size, size)
        end -= size
        report(header.num_images - end)
    if not decoder.stack.is_seed(header.num_seed_words):
        raise Damaged("the bits that it began with are not what is left")
    if container.hash_images(images) != header.images:
        raise Damaged("the images are not those that were encoded")
    return images


def decode_top(
    model: HVAE, params: Any, data: bytes, layer: int, *, report: Report = lambda num: None
) -> Top:
    """What the layers from `layer` up say, as far as it can be read before all else.

    Of a file that has them in front (`top_first`), of all images. Of another, of the images that were encoded
    last: theirs lie on top of the stack, and what is below them has to be decoded first.

    Args:
      model, params, data, report: as for `decode`.
      layer: the lowest to read, 1 … L.

    Raises:
      RunError: as for `decode`.
      ValueError: no such layer.
    """
    if not 1 <= layer <= model.num_layers:
        raise ValueError(f"layer must be in 1 … {model.num_layers}, got {layer}")
    content, programs, pixels = _open(model, params, data)
    header = content.header
    decoder = _Decoder(programs, pixels, content)
    starts = [0, *np.cumsum(header.batch_sizes).tolist()[:-1]]
    batches = list(zip(starts, header.batch_sizes, strict=True))
    if not 1 <= header.top_first <= layer:
        batches = batches[-1:]

    @jax.jit
    def picture(latents: dict[int, jax.Array]) -> Any:
        key = make_key(0)  # nothing is drawn
        return model.apply(
            params, key, programs.batch_size, temperature=0.0, latents=latents, method="sample"
        )

    images, num_bits, done = [], 0, 0
    for start, size in batches:
        latents = {}
        for found in decoder.descend(start, size, layer):
            latents[found.layer] = found.z
            num_bits += size * BIN_BITS * found.p.mean[0].size
        images.append(np.asarray(picture(latents))[:size])
        done += size
        report(done)
    places = np.concatenate([np.arange(start, start + size) for start, size in batches])
    return Top(np.clip(np.concatenate(images), 0.0, 1.0), places, num_bits)


@dataclasses.dataclass(frozen=True)
class _Found:
    """One layer of a batch on the way down: its number, prior, bins and values, and the state at it."""

    layer: int
    prior: Any
    p: Gaussians
    index: np.ndarray
    z: np.ndarray
    state: Any


class _Encoder:
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
        self._need = num_latents * POSTERIOR_BITS

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


class _Decoder:
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

    def descend(self, start: int, num: int, lowest: int = 1) -> Iterator[_Found]:
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
            yield _Found(layer, prior, p, index[:num], z, state)
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


def _open(model: HVAE, params: Any, data: bytes) -> tuple[Content, Programs, Pixels]:
    """Refuses what this model, on this machine, cannot decode; dear questions last."""
    require_constriction()
    content = container.unpack(data)
    header, pixels = content.header, make_pixels(model)
    if header.model != machine.model_hash(model, params):
        raise RunError("the file was written with another model: another config, or other parameters")
    for package, version in machine.versions().items():
        if (was := header.versions.get(package)) != version:
            raise RunError(f"the file was written with {package} {was}, here is {version}: install that one")
    if header.device != machine.device():
        raise RunError(
            f"the file was written on {header.device}, here is {machine.device()}: decode it there"
        )
    if tuple(header.image_shape) != model.image_shape or header.top_first > model.num_layers:
        raise Damaged("the numbers of its header contradict each other")
    programs = Programs(model, params, header.batch_size)
    if header.probe != _probe(programs, pixels):
        raise RunError(
            "programs give other last digits here than where the file was written, in spite of equal "
            "versions and devices: set XLA_FLAGS and cores as they were there"
        )
    return content, programs, pixels


def _probe(programs: Programs, pixels: Pixels) -> str:
    """A hash of a batch of random images, encoded: all programs and all arithmetic of a codec are in it."""
    shape = (programs.batch_size, *programs.model.image_shape)
    random = np.random.PCG64(1).random_raw(math.prod(shape)) >> 63
    encoder = _Encoder(programs, pixels, programs.batch_size, 0)
    encoder.encode((255 * random).astype(np.uint8).reshape(shape))
    return container.hash_images(encoder.stack.words().view(np.uint8))


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
