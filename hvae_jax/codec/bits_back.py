"""Files of images, coded with a hierarchical VAE by bits-back coding.

A file is a header that says what it was made with, then what `coders` lay on a stack, batch by batch. Here
is what goes into a file, what of one is refused, and where its bits are.

Sources: Townsend et al., Practical Lossless Compression with Latent Variables using Bits Back Coding, 2019;
Townsend et al., HiLLoC, 2020.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from hvae_jax.codec import container, machine
from hvae_jax.codec.bins import BIN_BITS
from hvae_jax.codec.coders import Decoder, Encoder
from hvae_jax.codec.container import Content, Damaged, Header
from hvae_jax.codec.pixels import Pixels, make_pixels
from hvae_jax.codec.programs import Programs, check_layers
from hvae_jax.codec.stack import require_constriction
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
    encoder = Encoder(programs, pixels, len(images), top_first)
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
    decoder = Decoder(programs, pixels, content)
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
    decoder = Decoder(programs, pixels, content)
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
    encoder = Encoder(programs, pixels, programs.batch_size, 0)
    encoder.encode((255 * random).astype(np.uint8).reshape(shape))
    return container.hash_images(encoder.stack.words().view(np.uint8))
