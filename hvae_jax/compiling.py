"""What XLA is told of single programs, whatever XLA_FLAGS tell it of all."""

from typing import Any

import jax


def at_level(level: int) -> dict[str, Any]:
    """Compiler options for one of LLVM's levels of optimisation, 0 to 3; on CPUs alone. JAX starts."""
    return {"xla_backend_optimization_level": level} if jax.default_backend() == "cpu" else {}
