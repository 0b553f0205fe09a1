"""The file: a header that says what made it, a digest, and the payload.

| bytes | what |
| --- | --- |
| 8 | `MAGIC` |
| 4 | length of the header, little endian |
| … | the header, JSON in UTF-8: the fields of `Header` |
| 16 | digest (blake2b) of all that is before and after it |
| … | `sections`, then the stack's words, little endian |
"""

import dataclasses
import hashlib
import json
import struct
from typing import Any, get_type_hints

import numpy as np

from hvae_jax.errors import RunError

MAGIC = b"HVAEbits"
FORMAT = 1
_DIGEST_BYTES = 16
MAX_BATCH = 4096


class Damaged(RunError):
    """The file is not as it was written."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"the file is damaged ({problem}); nothing was decoded: get it again")


@dataclasses.dataclass(frozen=True)
class Header:
    """What a decoder has to know, and what it refuses to differ from.

    Attributes:
      format: of the file.
      versions: of the packages that decide last digits.
      device: that computed.
      model: hash of config, parameters and betas.
      betas: that a conditioned model was given, z_1 first; of others none.
      probe: hash of what the encoder makes of images that both ends know; another one means other digits.
      image_shape: [H, W, C].
      num_images: in the file.
      images: hash of them.
      batch_size: that all programs are compiled for.
      batches: [number of images in a batch, number of such batches in a row], in the order of encoding.
      top_first: the lowest layer that lies in front of the stack, in a section of its own; 0 for none.
      num_seed_words: random words that lie below all others.
    """

    format: int
    versions: dict
    device: str
    model: str
    betas: list
    probe: str
    image_shape: list
    num_images: int
    images: str
    batch_size: int
    batches: list
    top_first: int
    num_seed_words: int

    @property
    def batch_sizes(self) -> list[int]:
        """Images in each batch."""
        return [size for size, times in self.batches for _ in range(times)]


@dataclasses.dataclass(frozen=True)
class Content:
    """A file's header and payload.

    Attributes:
      header: of it.
      payload: sections and words.
      num_header_bytes: before the payload.
    """

    header: Header
    payload: bytes
    num_header_bytes: int


def pack(header: Header, payload: bytes) -> bytes:
    """The file."""
    text = json.dumps(dataclasses.asdict(header), separators=(",", ":")).encode()
    start = MAGIC + struct.pack("<I", len(text)) + text
    return start + _digest(start, payload) + payload


def unpack(data: bytes) -> Content:
    """The content of a file.

    Raises:
      RunError: the file is none of ours, or another format.
      Damaged: it is not as it was written.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise RunError("this is no file of experiments.compress, or its first bytes are damaged")
    try:
        (length,) = struct.unpack_from("<I", data, len(MAGIC))
    except struct.error as error:
        raise Damaged("it is too short") from error
    end = len(MAGIC) + 4 + length
    start, digest, payload = data[:end], data[end : end + _DIGEST_BYTES], data[end + _DIGEST_BYTES :]
    if digest != _digest(start, payload):
        raise Damaged("its checksum is not that of its bytes")
    try:
        fields = json.loads(start[len(MAGIC) + 4 :].decode("utf-8"))
    except ValueError as error:
        raise Damaged("its header is no JSON") from error
    return Content(_header(fields), payload, end + _DIGEST_BYTES)


def runs(sizes: list[int]) -> list[list[int]]:
    """Equal neighbours together: [size, times]."""
    grouped: list[list[int]] = []
    for size in sizes:
        if grouped and grouped[-1][0] == size:
            grouped[-1][1] += 1
        else:
            grouped.append([size, 1])
    return grouped


def hash_images(images: np.ndarray) -> str:
    """32 hexadecimal digits of uint8 images, `[N, H, W, C]`."""
    return hashlib.blake2b(np.ascontiguousarray(images).tobytes(), digest_size=16).hexdigest()


def pack_numbers(numbers: np.ndarray, num_bits: int) -> bytes:
    """Numbers below 2^num_bits as so many bits each, the last byte filled up with zeros."""
    bits = (numbers.reshape(-1, 1) >> np.arange(num_bits - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).ravel()).tobytes()


def unpack_numbers(data: bytes, num: int, num_bits: int) -> np.ndarray:
    """The inverse, int64 `[num]`.

    Raises:
      Damaged: there are too few bytes.
    """
    if len(data) * 8 < num * num_bits:
        raise Damaged("it is too short")
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=num * num_bits).reshape(num, num_bits)
    return bits.astype(np.int64) @ (1 << np.arange(num_bits - 1, -1, -1, dtype=np.int64))


def _digest(start: bytes, payload: bytes) -> bytes:
    digest = hashlib.blake2b(start, digest_size=_DIGEST_BYTES)
    digest.update(payload)
    return digest.digest()


def _header(fields: Any) -> Header:
    kinds = get_type_hints(Header)
    if not isinstance(fields, dict) or fields.keys() != kinds.keys():
        if isinstance(fields, dict) and fields.get("format") not in (None, FORMAT):
            raise RunError(f"the file has format {fields['format']!r}, this version reads {FORMAT}")
        raise Damaged("its header lacks fields, or has others")
    if any(type(fields[name]) is not kind for name, kind in kinds.items()):
        raise Damaged("its header holds other kinds of values")
    header = Header(**fields)
    if header.format != FORMAT:
        raise RunError(f"the file has format {header.format}, this version reads {FORMAT}")
    pairs = all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and n > 0 for n in pair)
        for pair in header.batches
    )
    is_consistent = (
        pairs
        and 1 <= header.batch_size <= MAX_BATCH
        and all(size <= header.batch_size for size, _ in header.batches)
        and sum(size * times for size, times in header.batches) == header.num_images
        and header.num_images > 0
        and header.num_seed_words >= 0
        and header.top_first >= 0
    )
    if not is_consistent:
        raise Damaged("the numbers of its header contradict each other")
    return header
