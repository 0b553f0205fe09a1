"""What a config says of the objective: the betas, or the rates that they are to be solved for."""

import dataclasses
import math

from hvae_jax import beta_range, controls
from hvae_jax.beta_range import BetaRange
from hvae_jax.betas import (
    BetaControl,
    constant,
    constant_scale,
    cubic_decay,
    free_rates,
    linear_warmup,
    share_betas,
)
from hvae_jax.errors import RunError
from hvae_jax.groups import Groups, Ranges
from hvae_jax.values import are_numbers, is_integer, is_number, shorten

CONTROLS = ("constant", "target_rates", "pi", "target_distortion")
TARGET_KINDS = ("equal", "at_most", "free")
SIDES = "sides"


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What a config's `objective` group says.

    Targets are given in one of three units. One number per layer, or one number for all: the total rate
    that `target_shares` splits, or the distortion. Where layers are grouped by `beta_groups`, whatever is
    said here per layer is per group, and a group's rate is the sum of its layers' rates.

    Attributes:
      betas: one multiplier per layer, z_1 first, finite and not negative. Where a control solves for
        the betas it starts from these.
      warmup_fraction: share of the training steps over which all betas rise linearly from 0.
      control: "constant", "target_rates" (dual ascent), "pi" (the ControlVAE baseline) or
        "target_distortion" (all betas by one factor).
      targets_nats, targets_bits, targets_bits_per_dim: at most one of them is not empty. Rates per
        layer, z_1 first; or the total rate alone; or the distortion alone.
      target_kinds: per layer "equal", "at_most" (beta never falls below the layer's entry in `betas`;
        it rises where the rate would be larger) or "free" (beta stays at that entry; the layer's
        target is not looked at, give 0). Empty: all equal.
      target_shares: per layer, sum 1: how a total rate is split. Empty: targets are per layer.
      beta_bounds: (smallest, largest) beta that a control may choose.
      pi_gains: (K_p, K_i) of the control "pi"; others do not look at them.
      beta_groups: layers that share a beta. "": none do; "sides": those of a side of a deep network's maps;
        or (lowest, highest) layer of each group, z_1's first, all of 1 … L, as ((1, 4), (5, 7)).
      free_nats: rates up to which a layer costs nothing (free bits, see `betas.free_rates`): one number per
        layer, or one for all; with control="constant". Empty: none is free.
      beta_range: of a conditioned model (`config.model.conditioning`), between which each image draws the
        betas that it trains at, uniform in log β: (smallest, largest), or one such pair per layer. () of
        others. `betas` are then those that the model is evaluated at, and a warm-up opens the range of the
        layers above z_1, from its low end up.
      marked_betas: vectors at which the log has a conditioned model's distortion and rates as often as those
        of the validation split. Empty: all layers at an end of the range or in its middle, and each layer
        alone at its ends.
    """

    betas: tuple[float, ...]
    warmup_fraction: float
    control: str
    targets_nats: tuple[float, ...]
    targets_bits: tuple[float, ...]
    targets_bits_per_dim: tuple[float, ...]
    target_kinds: tuple[str, ...]
    target_shares: tuple[float, ...]
    beta_bounds: tuple[float, float]
    pi_gains: tuple[float, float]
    beta_groups: str | Ranges = ""
    free_nats: tuple[float, ...] = ()
    beta_range: tuple[float, float] | tuple[tuple[float, float], ...] | tuple[()] = ()
    marked_betas: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self) -> None:
        self._check_betas()
        if not (self.beta_groups in ("", SIDES) if isinstance(self.beta_groups, str) else self._has_ranges()):
            self._refuse(
                "beta_groups",
                "must be '' (a beta per layer), 'sides' (a beta per side of a deep network's maps) or the "
                "lowest and the highest layer of each group, from 1 on without a gap, as ((1, 4), (5, 7))",
            )
        if not are_numbers(self.free_nats) or any(nats < 0 for nats in self.free_nats):
            self._refuse("free_nats", "must be a tuple of numbers, finite and not negative; () for none")
        if self.free_nats and self.control != "constant":
            self._refuse(
                "free_nats",
                f"cannot be with control={self.control!r}, which moves the betas by rates that free nats "
                "hide; set control='constant', or free_nats=()",
            )
        if not is_number(self.warmup_fraction) or not 0.0 <= self.warmup_fraction <= 1.0:
            self._refuse("warmup_fraction", "must lie in [0, 1]")
        if self.control not in CONTROLS:
            self._refuse("control", f"is unknown; choose one of {CONTROLS}")
        if not are_numbers(self.beta_bounds, 2) or not 0.0 < self.beta_bounds[0] < self.beta_bounds[1]:
            self._refuse("beta_bounds", "must be two numbers, 0 < smallest < largest")
        if not are_numbers(self.pi_gains, 2) or not (self.pi_gains[0] >= 0.0 and self.pi_gains[1] > 0.0):
            self._refuse("pi_gains", "must be two numbers (K_p, K_i), K_p at least 0 and K_i positive")
        for name in (*self._target_fields(), "target_kinds", "target_shares"):
            if not isinstance(getattr(self, name), tuple):
                self._refuse(name, "must be a tuple; () where there is none")
        given = [name for name in self._target_fields() if getattr(self, name)]
        if self.control == "constant":
            for name in (*given, *(n for n in ("target_kinds", "target_shares") if getattr(self, n))):
                self._refuse(name, "has no effect with control='constant'; set control='target_rates'")
            return
        if len(given) != 1:
            raise RunError(
                f"config.objective.control={self.control!r} needs targets in one unit: give one of "
                f"config.objective.{', '.join(self._target_fields())}"
                + (f", not {' and '.join(given)}" if given else "")
            )
        self._check_targets(given[0])

    def groups(self, num_layers: int, sides: Ranges = ()) -> Groups:
        """The layers of each beta.

        Args:
          num_layers: of the model.
          sides: the layers of each side of its maps, see `ModelConfig.groups`; () is every layer alone.

        Raises:
          RunError: `beta_groups` ends below or above the top layer.
        """
        alone = Groups.of_layers(num_layers)
        if isinstance(self.beta_groups, str):
            return Groups(sides) if self.beta_groups and sides else alone
        groups = Groups(self.beta_groups)
        if groups.num_layers != num_layers:
            raise RunError(
                f"config.objective.beta_groups={shorten(self.beta_groups)} ends at layer {groups.num_layers} "
                f"but the model has {num_layers} layers (config.model.latent_shapes); let the last group end "
                f"at {num_layers}"
            )
        return groups

    def check_layers(self, num_layers: int, sides: Ranges = ()) -> None:
        """Raises RunError unless there is one beta, and where they are given one target, per layer or group.

        Args:
          num_layers, sides: as in `groups`.
        """
        groups = self.groups(num_layers, sides)
        has_one_target = self.control == "target_distortion" or bool(self.target_shares)
        per_layer = {"betas": "beta", "target_kinds": "kind", "target_shares": "share"}
        if not has_one_target:
            per_layer.update(dict.fromkeys(self._target_fields(), "target"))
        if len(self.free_nats) > 1:
            per_layer["free_nats"] = "number"
        why, each = f"the model has {num_layers} layers (config.model.latent_shapes)", "per layer, z_1 first"
        if not groups.are_layers:
            why = f"config.objective.beta_groups={shorten(self.beta_groups)} has {len(groups)} groups"
            each = "per group, z_1's first"
        for name, entry in per_layer.items():
            values = getattr(self, name)
            if len(values) != len(groups) and (values or name == "betas"):
                advice = " or the total with config.objective.target_shares" if entry == "target" else ""
                advice = " or one for all" if name == "free_nats" else advice
                raise RunError(
                    f"config.objective.{name}={shorten(values)} has {len(values)} entries but {why}; give "
                    f"one {entry} {each}{advice}"
                )
        self.read_range(num_layers)

    def read_range(self, num_layers: int, conditioning: str | None = None) -> BetaRange | None:
        """What a conditioned model of so many layers is trained for; None of another.

        Raises:
          RunError: see `beta_range.read`; or, where `conditioning` is given (`config.model.conditioning`),
            there is a range and the model is not told the betas, or the other way round.
        """
        found = beta_range.read(vars(self), num_layers)
        if conditioning == "none" and found:
            self._refuse(
                "beta_range",
                "has no effect with config.model.conditioning='none'; set 'scale_shift', or this to ()",
            )
        if conditioning not in (None, "none") and not found:
            self._refuse(
                "beta_range",
                f"must be two numbers, as (0.08, 12.6), with config.model.conditioning={conditioning!r}: "
                "each image draws its betas between them",
            )
        return found

    def resolve_targets(self, num_dims: int) -> tuple[float, ...]:
        """The targets in nats: per layer, or the distortion alone; empty where there are none.

        Args:
          num_dims: H · W · C.
        """
        units = (1.0, math.log(2.0), num_dims * math.log(2.0))
        for name, nats in zip(self._target_fields(), units, strict=True):
            if targets := getattr(self, name):
                return tuple(nats * entry for entry in self._split(targets))
        return ()

    def kinds(self) -> tuple[str, ...]:
        """The kind of each layer's target, one per layer."""
        return self.target_kinds or ("equal",) * len(self.betas)

    def bounds(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The smallest and the largest beta of each layer that the control may choose."""
        smallest, largest = self.beta_bounds
        if self.control == "target_distortion":  # all betas reach a bound together: their ratios stay
            low, high = smallest / min(self.betas), largest / max(self.betas)
            return tuple(beta * low for beta in self.betas), tuple(beta * high for beta in self.betas)
        lower, upper = [], []
        for kind, beta in zip(self.kinds(), self.betas, strict=True):
            lower.append(smallest if kind == "equal" else beta)
            upper.append(beta if kind == "free" else largest)
        return tuple(lower), tuple(upper)

    def make_control(
        self,
        num_steps: int,
        num_dims: int,
        learning_rate_decay_fraction: float,
        groups: Groups | None = None,
    ) -> BetaControl:
        """The control of a run; its `init` takes `betas`.

        Args:
          num_steps: training steps of the run.
          num_dims: H · W · C, of targets in bits per dimension.
          learning_rate_decay_fraction: share of the steps, at the end, over which the learning rate
            falls to 0, and with it the gains of `target_rates`.
          groups: the layers of each beta; None is one each.
        """
        decay = constant_scale
        if learning_rate_decay_fraction:
            decay = cubic_decay(round((1.0 - learning_rate_decay_fraction) * num_steps), num_steps)
        warmup = round(self.warmup_fraction * num_steps)
        groups = groups or Groups.of_layers(len(self.betas))
        if self.control == "constant":
            control = linear_warmup(warmup, constant(decay))
            if self.free_nats:
                all_free = self.free_nats * (len(self.betas) if len(self.free_nats) == 1 else 1)
                control = free_rates(all_free, control)
            return share_betas(groups, control)
        targets, bounds = self.resolve_targets(num_dims), self.bounds()
        if self.control == "target_distortion":
            control = controls.target_distortion(targets[0], *bounds, decay)
        elif self.control == "pi":
            control = controls.pi_rates(targets, *bounds, decay, self.pi_gains)
        else:
            control = controls.target_rates(targets, *bounds, decay)
        return share_betas(groups, linear_warmup(warmup, control))

    def _has_ranges(self) -> bool:
        """Whether `beta_groups` are ranges from layer 1 on, one after the other."""
        next_layer, ranges = 1, self.beta_groups
        if not isinstance(ranges, tuple) or not ranges:
            return False
        for pair in ranges:
            is_pair = isinstance(pair, tuple) and len(pair) == 2 and all(map(is_integer, pair))
            if not is_pair or not next_layer == pair[0] <= pair[1]:
                return False
            next_layer = pair[1] + 1
        return True

    def _check_betas(self) -> None:
        betas = self.betas
        if not isinstance(betas, tuple) or any(
            isinstance(b, bool) or not isinstance(b, int | float) for b in betas
        ):
            self._refuse("betas", "must be a tuple of numbers, one per layer")
        for layer, beta in enumerate(betas, start=1):
            if not is_number(beta) or beta < 0:
                raise RunError(
                    f"config.objective.betas={shorten(betas)}: beta_{layer}={shorten(beta)} must be finite "
                    "and not negative"
                )

    def _check_targets(self, name: str) -> None:
        targets, kinds, shares = getattr(self, name), self.target_kinds, self.target_shares
        if not are_numbers(targets):
            self._refuse(name, "must be a tuple of finite numbers")
        if any(kind not in TARGET_KINDS for kind in kinds):
            self._refuse("target_kinds", f"must be a tuple with one of {TARGET_KINDS} per layer")
        if kinds and set(kinds) == {"free"}:
            self._refuse("target_kinds", "leaves nothing to control; set control='constant'")
        if shares and (not are_numbers(shares) or min(shares) <= 0 or abs(sum(shares) - 1.0) > 1e-6):
            self._refuse("target_shares", "must be positive numbers that sum to 1, one per layer")
        if (shares or self.control == "target_distortion") and len(targets) != 1:
            what = "the total rate that target_shares splits" if shares else "the distortion"
            self._refuse(name, f"must have one entry, {what}")
        if self.control == "target_distortion":
            for other in ("target_kinds", "target_shares"):
                if getattr(self, other):
                    self._refuse(other, "has no effect with control='target_distortion'; leave it empty")
        else:
            for layer, target in enumerate(targets, start=1):
                if target <= 0 and not (kinds[layer - 1 : layer] == ("free",) and target == 0):
                    self._refuse(name, f"asks for {target} in z_{layer}; a target rate must be positive")
        for layer, beta in enumerate(self.betas, start=1):
            is_free = kinds[layer - 1 : layer] == ("free",)
            if not is_free and not self.beta_bounds[0] <= beta <= self.beta_bounds[1]:
                raise RunError(
                    f"config.objective.betas={self.betas}: beta_{layer}={beta}, where the control starts, "
                    f"must lie in config.objective.beta_bounds={self.beta_bounds}"
                )

    def _split(self, targets: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(share * targets[0] for share in self.target_shares) if self.target_shares else targets

    @staticmethod
    def _target_fields() -> tuple[str, str, str]:
        return "targets_nats", "targets_bits", "targets_bits_per_dim"

    def _refuse(self, name: str, reason: str) -> None:
        raise RunError(f"config.objective.{name}={shorten(getattr(self, name))} {reason}")
