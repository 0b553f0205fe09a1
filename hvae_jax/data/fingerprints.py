"""What tells whether a split still holds the images and labels that it held."""

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hvae_jax.data.stored import FileMarks, HostArray, Rows

# Images and labels that stand for a split on disk.
NUM_SAMPLED = 64
# Bytes that are hashed, and of a stored array copied, at a time.
CHUNK_BYTES = 2**24
NUM_THREADS = 4


def fingerprint(images: Rows, labels: Rows, is_sampled: bool = False, marks: FileMarks | None = None) -> str:
    """A split's shapes, types and contents in 16 hexadecimal digits, the first of a SHA-256.

    Another image, another label or another order gives another one. Not so where `is_sampled`: reading a
    split from disk only for this could take hours, so `NUM_SAMPLED` records at even distances stand for
    it, beside its size, and what changes between these is not seen.

    Args:
      images: `[N, ...]`, in memory or stored.
      labels: `[N]`.
      is_sampled: whether a sample stands for all; one of a split is never that of all of it.
      marks: of the files that the images are from: another name then gives another fingerprint, and of a
        sample another size in bytes of any file.
    """
    if is_sampled:
        places = sampled_places(len(images))
        kind, parts = "sample", [images[places], labels[places]]
    else:
        kind, parts = "all", [images, labels]
    digests = [_digest(part) for part in parts]
    described = [kind, *(f"{rows.dtype.str} {list(rows.shape)}" for rows in (images, labels)), *digests]
    if marks is not None:
        described += [marks.names, *([marks.sizes] if is_sampled else [])]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def sampled_places(num: int) -> np.ndarray:
    """At most `NUM_SAMPLED` of `num` places, at even distances, the first and the last among them."""
    return np.unique(np.linspace(0, num - 1, min(num, NUM_SAMPLED)).round().astype(np.int64))


def is_in_memory(rows: Rows) -> bool:
    """Whether all of them are at hand."""
    return isinstance(rows, np.ndarray | HostArray)


def _digest(rows: Rows) -> str:
    """Of all bytes, in chunks of whole rows, side by side: hashing does not hold Python's lock."""
    size = max(1, CHUNK_BYTES // max(1, rows.nbytes // max(1, len(rows))))

    def digest(start: int) -> bytes:
        return hashlib.sha256(np.ascontiguousarray(rows[start : start + size]).data).digest()

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        digests = list(pool.map(digest, range(0, len(rows), size)))
    return hashlib.sha256(b"".join(digests)).hexdigest()
