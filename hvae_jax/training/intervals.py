"""Many training steps of every model of a device as one compiled loop."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hvae_jax.training import devices, stacks
from hvae_jax.training.batches import PickFn
from hvae_jax.training.step import StepFn, is_finite


def compile_interval(step_fn: StepFn, pick_fn: PickFn) -> Callable[..., Any]:
    """Many steps of every model of every device; what the models were is donated.

    Args:
      step_fn: from `make_train_step`.
      pick_fn: of the batches.

    Returns:
      `(models, together, own, counts) → (models, done)`, every array led by the devices:
        models: (`TrainState`, totals) of each model of a device. `totals` are sums of the metrics over the
          steps of the logged interval that other calls did. They go through the loop, so that a mean does
          not depend on how the steps are dealt to calls.
        together, own: as `Batches.take` gives them.
        counts: how many steps each model takes. Not static, so a short call compiles nothing new.
        done: a model stops at its first step that is not finite; the steps before it are counted, and
          `totals` grow by those alone.
    """
    interval = make_interval(step_fn, pick_fn)
    return devices.over_devices(interval, (True, True, True, True), donated=(0,), all_processes=True)


def make_interval(step_fn: StepFn, pick_fn: PickFn) -> Callable[[Any, Any, Any, jax.Array], Any]:
    """The program of one device for `compile_interval`, without the leading axis of devices."""

    def advance(model: Any, images: jax.Array) -> tuple[Any, jax.Array]:
        state, totals = model
        state, metrics = step_fn(state, images)
        ok = is_finite(metrics)
        totals = jax.tree.map(lambda total, m: total + jnp.where(ok, m, 0.0), totals, metrics)
        return (state, totals), ok

    def one_by_one(models: Any, together: Any, own: Any, counts: jax.Array) -> Any:
        def one(model: Any) -> Any:
            model, own, count = model

            def body(carry: Any) -> Any:
                model, done, _ = carry
                model, ok = advance(model, pick_fn(together, own, done))
                return model, done + ok, ok

            carry = model, jnp.zeros((), jnp.int32), jnp.array(True)
            model, done, _ = jax.lax.while_loop(lambda c: (c[1] < count) & c[2], body, carry)
            return model, done

        return stacks.map_models(one, (models, own, counts))

    def at_once(models: Any, together: Any, own: Any, counts: jax.Array) -> Any:
        """All models take a step, then all the next: those that stand still keep what they were."""

        def body(carry: Any) -> Any:
            models, done, is_going, index = carry

            def step(model: Any, own: Any, is_going: jax.Array) -> Any:
                # The step's place is one number for all. Where models have nothing of their own to read, so
                # is the batch: it is fetched once, and whatever depends on nothing else, as the patches that
                # a first convolution reads, is computed once.
                new, ok = advance(model, pick_fn(together, own, index))
                return jax.tree.map(lambda a, b: jnp.where(is_going, a, b), new, model), ok & is_going

            models, ok = stacks.side_by_side(step)(models, own, is_going)
            return models, done + ok, ok & (index + 1 < counts), index + 1

        begin = models, jnp.zeros_like(counts), counts > 0, jnp.zeros((), jnp.int32)
        models, done, *_ = jax.lax.while_loop(lambda carry: carry[2].any(), body, begin)
        return models, done

    def interval(models: Any, together: Any, own: Any, counts: jax.Array) -> Any:
        run = at_once if stacks.are_side_by_side(models) else one_by_one
        return run(models, together, own, counts)

    return interval
