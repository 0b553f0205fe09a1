"""Programs that give the same last digits in every process of a machine."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

# LLVM's, on CPUs: named here, it does not depend on XLA_FLAGS, which differ between a notebook and a program.
LEVEL = 2


def compiled(static_argnums: int | Sequence[int] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`jax.jit` as a decorator, at one level of optimisation; JAX starts when the function is called."""

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.cache
        def program() -> Callable[..., Any]:
            options: Any = (
                {"xla_backend_optimization_level": LEVEL} if jax.default_backend() == "cpu" else None
            )
            return jax.jit(fn, static_argnums=static_argnums, compiler_options=options)

        @functools.wraps(fn)
        def call(*arguments: Any) -> Any:
            return program()(*arguments)

        return call

    return decorate
