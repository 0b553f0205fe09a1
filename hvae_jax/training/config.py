"""What a config's `training` group says."""

import dataclasses

import optax

from hvae_jax.errors import RunError
from hvae_jax.training.optimizer import make_optimizer
from hvae_jax.values import MAX_SIZE, is_integer, is_number, shorten

# A step's number is an int32 on the devices.
MAX_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What a config's `training` group says; every field is checked before any work starts.

    Attributes:
      seed: of parameters and noise.
      order_seed: of the order in which images are seen; runs that share it see the same batches.
      num_epochs: passes over the training split; the number of steps is ⌊num_epochs · N / batch_size⌋.
      batch_size: images per step over all devices.
      micro_batch: images that a device takes at a time; gradients are accumulated over as many such parts
        as its share of the batch has. 0 takes what is fastest on the platform.
      learning_rate, b1, b2, eps: of Adam.
      learning_rate_decay_fraction: share of the steps, at the end, over which the learning rate falls
        to 0, as the cube of the steps left; 0 keeps it constant.
      max_grad_norm: global norm to clip gradients to; 0 turns clipping off.
      ema_decay: of the averaged parameters that evaluation then uses, Σ_s d^{t−s} θ_s / Σ_s d^{t−s} over
        the parameters θ_s after steps s = 1 … t; 0 turns averaging off.
      log_every_steps: steps per compiled call and per logged interval.
      eval_every_steps: steps between passes over the validation split; a multiple of the former.
      checkpoint_every_steps: likewise.
      num_checkpoints: the newest that are kept.
      weight_decay: of AdamW, times the learning rate; 0 is Adam.
      learning_rate_warmup_steps: over which the learning rate rises linearly; 0 begins with all of it.
      skip_grad_norm: steps whose gradient has a larger global norm, before clipping, are left out and counted
        in the log; a run that leaves out all steps of an interval stops. 0 leaves out none.
    """

    seed: int
    order_seed: int
    num_epochs: float
    batch_size: int
    micro_batch: int
    learning_rate: float
    learning_rate_decay_fraction: float
    b1: float
    b2: float
    eps: float
    max_grad_norm: float
    ema_decay: float
    log_every_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int
    num_checkpoints: int
    weight_decay: float = 0.0
    learning_rate_warmup_steps: int = 0
    skip_grad_norm: float = 0.0

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every_steps", "num_checkpoints"):
            is_size = is_integer(getattr(self, name), 1, MAX_SIZE)
            _require(self, name, is_size, f"an integer of at least 1 and at most {MAX_SIZE}")
        for name in ("eval_every_steps", "checkpoint_every_steps"):
            value = getattr(self, name)
            is_multiple = is_integer(value, 1) and value % self.log_every_steps == 0
            _require(self, name, is_multiple, f"a multiple of log_every_steps={self.log_every_steps}")
        for name in ("num_epochs", "learning_rate", "eps"):
            value = getattr(self, name)
            _require(self, name, is_number(value) and value > 0, "a number, positive and finite")
        for name in ("b1", "b2", "ema_decay"):
            value = getattr(self, name)
            _require(self, name, is_number(value) and 0.0 <= value < 1.0, "a number in [0, 1)")
        decay, norm = self.learning_rate_decay_fraction, self.max_grad_norm
        is_share = is_number(decay) and 0.0 <= decay <= 1.0
        _require(self, "learning_rate_decay_fraction", is_share, "a number in [0, 1]")
        is_norm = is_number(norm) and norm >= 0
        _require(self, "max_grad_norm", is_norm, "a number, finite and not negative; 0 turns clipping off")
        for name, off in (("weight_decay", "weight decay"), ("skip_grad_norm", "leaving out steps")):
            value = getattr(self, name)
            is_size = is_number(value) and value >= 0
            _require(self, name, is_size, f"a number, finite and not negative; 0 turns {off} off")
        is_count = is_integer(self.learning_rate_warmup_steps, 0, MAX_STEPS)
        _require(
            self, "learning_rate_warmup_steps", is_count, f"an integer of at least 0 and at most {MAX_STEPS}"
        )
        is_size = is_integer(self.micro_batch, 0, MAX_SIZE)
        _require(self, "micro_batch", is_size, "a number of images; 0 chooses for the platform")
        for name in ("seed", "order_seed"):
            is_seed = is_integer(getattr(self, name), 0, 2**32 - 1)
            _require(self, name, is_seed, "in [0, 2**32), an integer")

    def num_steps(self, num_images: int) -> int:
        """Optimiser steps of the whole run.

        Raises:
          RunError: there are none, or more than an int32 counts.
        """
        num_steps = int(self.num_epochs * num_images / self.batch_size + 1e-6)
        if num_steps > MAX_STEPS:
            raise RunError(
                f"config.training.num_epochs={self.num_epochs} over {num_images} images is {num_steps} steps "
                f"of config.training.batch_size={self.batch_size}, more than {MAX_STEPS} that can be "
                "counted; lower the one or raise the other"
            )
        if num_steps < 1:
            raise RunError(
                f"config.training.num_epochs={self.num_epochs} over {num_images} images is less than one "
                f"batch of config.training.batch_size={self.batch_size}; raise the one or lower the other"
            )
        return num_steps

    def check_devices(self, num_devices: int) -> None:
        """Raises RunError unless the devices divide the batch, and micro-batches a device's share."""
        if self.batch_size % num_devices:
            raise RunError(
                f"config.training.batch_size={self.batch_size} cannot be divided over {num_devices} devices; "
                f"use a multiple of {num_devices}"
            )
        share = self.batch_size // num_devices
        if self.micro_batch and share % self.micro_batch:
            raise RunError(
                f"config.training.micro_batch={self.micro_batch} does not divide the {share} images of a "
                f"batch that each device takes (config.training.batch_size={self.batch_size}, {num_devices} "
                "devices); use a divisor, or 0"
            )

    def make_optimizer(self) -> optax.GradientTransformation:
        """Adam or AdamW, after clipping where that is on."""
        return make_optimizer(
            learning_rate=self.learning_rate,
            b1=self.b1,
            b2=self.b2,
            eps=self.eps,
            max_grad_norm=self.max_grad_norm,
            weight_decay=self.weight_decay,
            warmup_steps=self.learning_rate_warmup_steps,
            skip_grad_norm=self.skip_grad_norm,
        )


def _require(config: TrainingConfig, name: str, ok: bool, allowed: str) -> None:
    if not ok:
        raise RunError(f"config.training.{name}={shorten(getattr(config, name))} must be {allowed}")
