"""States as earlier versions saved them, read as those of today.

Up to 0.1.0 a `BetaState` had the betas that a warm-up leads to beside those of the next step, in every
run. Now a warm-up has the whole state of the control that it leads to as its memory, and others have none.
"""

from collections.abc import Set
from typing import Any, NamedTuple, TypeVar

import jax

from hvae_jax.betas import BetaState

T = TypeVar("T")


class OldBetaState(NamedTuple):
    """A `BetaState` of 0.1.0; the memory is that of the control, with a warm-up as well."""

    betas: Any
    step: Any
    final_betas: Any
    memory: Any


def as_saved(like: Any, names: Set[tuple[str, ...]]) -> Any:
    """The form that a state like `like` was saved in.

    Args:
      like: a tree of arrays, or of their shapes.
      names: the path of each array that was saved.
    """

    def convert(path: tuple[Any, ...], part: Any) -> Any:
        there = tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
        if not isinstance(part, BetaState) or (*there, "final_betas") not in names:
            return part
        control = part.memory if _is_beta_state(part.memory) else part
        return OldBetaState(part.betas, part.step, control.betas, control.memory)

    return jax.tree_util.tree_map_with_path(convert, like, is_leaf=_is_beta_state)


def as_now(like: T, saved: Any) -> T:
    """The inverse, for arrays in the form of `as_saved(like, …)`."""

    def convert(part: Any, old: Any) -> Any:
        if not isinstance(old, OldBetaState):
            return old
        state = BetaState(old.betas, old.step, old.memory)
        if _is_beta_state(part.memory):
            return state._replace(memory=state._replace(betas=old.final_betas))
        return state

    return jax.tree.map(convert, like, saved, is_leaf=_is_beta_state)


def _is_beta_state(part: Any) -> bool:
    return isinstance(part, BetaState)
