"""Bits on disk: lossless files of images, whose bits per layer are the rates of a model."""

from hvae_jax.codec.bits_back import Bits as Bits
from hvae_jax.codec.bits_back import Top as Top
from hvae_jax.codec.bits_back import decode as decode
from hvae_jax.codec.bits_back import decode_top as decode_top
from hvae_jax.codec.bits_back import encode as encode
from hvae_jax.codec.bits_back import encode_measured as encode_measured
