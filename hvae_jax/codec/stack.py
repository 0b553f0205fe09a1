"""A stack of bits: `constriction`'s asymmetric numeral systems, with what bits-back coding asks of it.

Pushing a number under a distribution makes the stack longer by its information content, popping one makes it
shorter; popping is the inverse of pushing, number for number. So popping draws from a distribution, with what
lies on the stack for randomness, and a push of what was drawn gives that back.

An interval [start, start + width) of a range of 2^P is pushed as two uniform numbers, of which `constriction`
makes any: pop one below `width`, push `start` plus it below 2^P. That is what the method itself does.
"""

import importlib
import importlib.util
import math
from typing import Any

import numpy as np

from hvae_jax.errors import RunError

# Bits that always stay below what is popped: the state's 64, and a word.
SLACK_BITS = 96


def require_constriction() -> None:
    """Raises RunError where the entropy coder is not installed, before any work."""
    if importlib.util.find_spec("constriction") is None:
        raise RunError('bits on disk need constriction; pip install -e ".[codec]"')


def seed_words(num: int) -> np.ndarray:
    """The words that lie on a stack before anything is pushed, uint32 `[num]`, the lowest first.

    A longer stack has more of them below, and the same ones on top. They only have to look random.
    """
    return np.asarray(np.random.PCG64(0).random_raw(num) >> 32, np.uint32)[::-1].copy()


class Stack:
    """Of numbers below 2^31. Arrays are pushed from their end, so that they are popped in their order."""

    def __init__(self, words: np.ndarray | None = None) -> None:
        """One that begins with random bits, or one that is read.

        Args:
          words: uint32 `[N]`, of `words`.

        Raises:
          ValueError: no stack has these words.
        """
        package: Any = importlib.import_module("constriction")  # an extra, and without types
        self._models, self._make = package.stream.model, package.stream.stack.AnsCoder
        self._below, self._binary = self._models.Uniform(), self._models.Bernoulli(perfect=False)
        self._whole: dict[int, Any] = {}
        self.num_seed_words = 0
        if words is None:
            self.num_seed_words = 2
            self._coder = self._make(seed_words(2), seal=True)
        else:
            self._coder = self._make(np.asarray(words, np.uint32))

    @property
    def num_bits(self) -> float:
        """The information that lies on it; not a whole number."""
        num_words, state = self._coder.pos()
        return 32.0 * num_words + math.log2(state) if state else 32.0 * num_words

    def words(self) -> np.ndarray:
        """All of it, uint32 `[N]`."""
        return self._coder.get_compressed()

    def is_seed(self, num: int) -> bool:
        """Whether `num` random words are all that is left."""
        try:
            words = self._coder.get_compressed(unseal=True)
            return len(words) == num and np.array_equal(words, seed_words(num))
        except AssertionError:  # of another number of bits
            return False

    def reserve(self, num_bits: float) -> None:
        """Sees to it that so many bits can be popped: else puts random words below all others."""
        missing = num_bits + SLACK_BITS - self.num_bits
        if missing <= 0:
            return
        more = math.ceil(missing / 32)
        below = seed_words(self.num_seed_words + more)[:more]
        self._coder = self._make(np.concatenate([below, self._coder.get_compressed()]))
        self.num_seed_words += more

    def push_uniform(self, numbers: np.ndarray, precision: int) -> None:
        """Numbers below 2^precision, `[N]`: adds N · precision bits."""
        self._coder.encode_reverse(_int32(numbers), self._uniform(precision))

    def pop_uniform(self, num: int, precision: int) -> np.ndarray:
        """int64 `[num]`."""
        return np.asarray(self._coder.decode(self._uniform(precision), num), np.int64)

    def push_below(self, numbers: np.ndarray, widths: np.ndarray) -> None:
        """Numbers each below a width of its own, both `[N]`: adds Σ log2 width bits."""
        is_open = widths > 1  # of one possible number there is nothing to say
        if is_open.any():
            self._coder.encode_reverse(_int32(numbers[is_open]), self._below, _int32(widths[is_open]))

    def pop_below(self, widths: np.ndarray) -> np.ndarray:
        """int64 `[N]`."""
        numbers, is_open = np.zeros(len(widths), np.int64), widths > 1
        if is_open.any():
            numbers[is_open] = self._coder.decode(self._below, _int32(widths[is_open]))
        return numbers

    def push_binary(self, numbers: np.ndarray, probabilities: np.ndarray) -> None:
        """Zeros and ones, and each one's probability of being one, float64, both `[N]`."""
        self._coder.encode_reverse(_int32(numbers), self._binary, probabilities)

    def pop_binary(self, probabilities: np.ndarray) -> np.ndarray:
        """int64 `[N]`."""
        return np.asarray(self._coder.decode(self._binary, probabilities), np.int64)

    def _uniform(self, precision: int) -> Any:
        if precision not in self._whole:
            self._whole[precision] = self._models.Uniform(2**precision)
        return self._whole[precision]


def _int32(numbers: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(numbers, np.int32)
