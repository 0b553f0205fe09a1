"""Programs that give the same last digits in every process of a machine."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from hvae_jax import compiling

# LLVM's, on CPUs: named here, it does not depend on XLA_FLAGS, which differ between a notebook and a program.
LEVEL = 2


def compiled(static_argnums: int | Sequence[int] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` as a decorator, at one level of optimisation; JAX starts when the function is called."""

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def program() -> Callable[..., Any]:
            return jax.jit(fn, static_argnums=static_argnums, compiler_options=compiling.at_level(LEVEL))

        @functools.wraps(fn)
        def call(*arguments: Any) -> Any:
            return program()(*arguments)

        return call

    return decorate
