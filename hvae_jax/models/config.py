"""What a config's `model` group says."""

import dataclasses
import itertools

from hvae_jax import likelihoods
from hvae_jax.errors import RunError
from hvae_jax.values import MAX_SIZE, is_integer, is_number, shorten

# Of Xiao and Bamler (2023): every prior and posterior reads all latents above it.
PUBLISHED = ("generalized_top_down", "ladder")
DEEP = "deep"
INFERENCE = (*PUBLISHED, DEEP)
COMPUTE_DTYPES = ("float32", "bfloat16")
# Kinds of latents, and of the top layer's prior.
GAUSSIAN, CATEGORICAL = LATENT_KINDS = ("gaussian", "categorical")
STANDARD, MIXTURE = TOP_PRIORS = ("standard", "mixture")
# How networks are told the betas; see `conditioning`.
CONDITIONING = ("none", "scale_shift", "gates")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a config's `model` group says; every field is checked before any work starts.

    Attributes:
      inference: "generalized_top_down" (every q(z_l|z_{>l}, x) a network of its own), "ladder"
        (precision-weighted product of the prior and what a shared bottom-up pass proposes), or "deep" (the
        networks of VDVAE, for many layers; see `deep`).
      latent_shapes: one shape per layer, z_1 first; `(d,)` is a vector, `(height, width, c)` a map of a
        size that the stages pass through. Sides do not grow towards the top. Deep networks have maps
        alone, and their sides divide each other and the image's. A categorical layer is `(K,)`, one variable
        with K values, or `(N, K)`, N of them; its z are one-hot along the last axis.
      channels: of every convolution; of a deep network's maps.
      num_stages: convolutions between the image and the smallest feature map. Deep networks ignore it.
      likelihood: one of `likelihoods.LIKELIHOODS`.
      likelihood_std: σ of "gaussian_fixed_std"; "gaussian_learned_std" starts from it, within 1 %.
      num_mixture_components: of "logistic_mixture".
      compute_dtype: of the networks' products and activations. Parameters, draws, rates and likelihood
        are float32 whatever it is.
      remat: whether gradients compute the networks' activations a second time instead of keeping them:
        the same numbers in less memory, for about a third more time.
      blocks_by_side: of a deep network, (side, number of residual blocks) on the way from the image to the
        top layer, for each side of `latent_shapes` (the height, where it is not square). Others have none.
      latent_kinds: "gaussian" or "categorical" for each layer, z_1 first; () makes all Gaussian. Of the
        published networks the top layer may be categorical: its prior is uniform, and gradients come through
        the Gumbel-softmax relaxation, in training alone. Rates, bounds and samples are of exact draws.
      gumbel_hard: whether training, too, draws one-hot values, with the gradient of the relaxed ones.
      gumbel_schedule: (rate, lowest) of the relaxation's temperature max(exp(−rate · epoch), lowest).
      top_prior: of Gaussian z_L: "standard", N(0, I), or "mixture", Gaussians and weights that are learned.
        There is no closed form then: R_L is a Monte Carlo rate, log q(z_L|x) − log p(z_L) at the draw.
      num_prior_components: of the mixture.
      conditioning: "none": a model is of its own betas. "scale_shift" or "gates": the networks are told the
        betas, and one model is of all betas in `config.objective.beta_range`; see `conditioning`.

    Example:
      >>> config = ModelConfig(
      ...     inference="ladder",
      ...     latent_shapes=((2, 2, 16), (8,)),
      ...     channels=16,
      ...     num_stages=2,
      ...     likelihood="bernoulli",
      ...     likelihood_std=1.0,  # of the Gaussian likelihoods; every field is given
      ...     num_mixture_components=10,
      ...     compute_dtype="float32",
      ...     remat=False,
      ... )
      >>> len(config.latent_shapes)
      2
    """

    inference: str
    latent_shapes: tuple[tuple[int, ...], ...]
    channels: int
    num_stages: int
    likelihood: str
    likelihood_std: float
    num_mixture_components: int
    compute_dtype: str
    remat: bool
    blocks_by_side: tuple[tuple[int, int], ...] = ()
    latent_kinds: tuple[str, ...] = ()
    gumbel_hard: bool = False
    gumbel_schedule: tuple[float, float] = (0.007, 0.4)
    top_prior: str = STANDARD
    num_prior_components: int = 10
    conditioning: str = "none"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of every layer."""
        return self.latent_kinds or (GAUSSIAN,) * len(self.latent_shapes)

    @property
    def monte_carlo_rates(self) -> tuple[int, ...]:
        """Layers whose rate has no closed form."""
        return (len(self.latent_shapes),) if self.top_prior == MIXTURE else ()

    @property
    def is_conditioned(self) -> bool:
        """Whether the networks are told the betas."""
        return self.conditioning != "none"

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """The lowest and the highest layer of each side of a deep network, z_1's first; else layers alone."""
        if self.inference != DEEP:
            return tuple((layer, layer) for layer in range(1, len(self.latent_shapes) + 1))
        groups, lowest = [], 1
        for _, layers in itertools.groupby(self.latent_shapes):
            highest = lowest + len(list(layers)) - 1
            groups.append((lowest, highest))
            lowest = highest + 1
        return tuple(groups)

    def __post_init__(self) -> None:
        if self.inference == "bottom_up":
            raise RunError(
                "config.model.inference='bottom_up' is refused: q(z_1|x) q(z_2|z_1) has no rate per layer, "
                "since its KL divergence does not split along the layers of a top-down prior; "
                f"choose one of {INFERENCE}"
            )
        if self.inference not in INFERENCE:
            raise RunError(
                f"config.model.inference={shorten(self.inference)} is unknown; choose one of {INFERENCE}"
            )
        if self.likelihood not in likelihoods.LIKELIHOODS:
            raise RunError(
                f"config.model.likelihood={shorten(self.likelihood)} is unknown; "
                f"choose one of {likelihoods.LIKELIHOODS}"
            )
        for name, allowed in (("compute_dtype", COMPUTE_DTYPES), ("conditioning", CONDITIONING)):
            if getattr(self, name) not in allowed:
                raise RunError(
                    f"config.model.{name}={shorten(getattr(self, name))} is unknown; choose one of {allowed}"
                )
        if not isinstance(self.remat, bool):
            raise RunError(f"config.model.remat={shorten(self.remat)} must be True or False")
        for name in ("channels", "num_stages", "num_mixture_components", "num_prior_components"):
            value = getattr(self, name)
            if not is_integer(value, 1, MAX_SIZE):
                raise RunError(
                    f"config.model.{name}={shorten(value)} must be an integer of at least 1 and at most "
                    f"{MAX_SIZE}"
                )
        std = self.likelihood_std
        if not is_number(std) or std <= 0:
            raise RunError(
                f"config.model.likelihood_std={shorten(std)} must be a number, positive and finite"
            )
        self._check_kinds()
        shapes = self.latent_shapes
        if not isinstance(shapes, tuple) or not shapes or not all(map(_is_latent_shape, shapes, self.kinds)):
            raise RunError(
                f"config.model.latent_shapes={shorten(shapes)} must hold one shape per layer, z_1 first, "
                "each (dims,) or (height, width, channels), for example ((4, 4, 32), (32,)); a categorical "
                "one (values,) or (variables, values), with 2 values or more"
            )
        is_deep, pairs = self.inference == DEEP, self.blocks_by_side
        if not isinstance(pairs, tuple) or bool(pairs) != is_deep or not all(map(_is_pair, pairs)):
            needs = "hold (side, number of blocks), as ((8, 4), (4, 2), (1, 1))" if is_deep else "be ()"
            raise RunError(
                f"config.model.blocks_by_side={shorten(pairs)} must {needs} where "
                f"config.model.inference={self.inference!r}"
            )

    def _check_kinds(self) -> None:
        kinds, shapes = self.latent_kinds, self.latent_shapes
        if not isinstance(kinds, tuple) or not all(kind in LATENT_KINDS for kind in kinds):
            raise RunError(
                f"config.model.latent_kinds={shorten(kinds)} must hold one of {LATENT_KINDS} for each layer, "
                "z_1 first, or be (), which makes all Gaussian"
            )
        if kinds and isinstance(shapes, tuple) and len(kinds) != len(shapes):
            raise RunError(
                f"config.model.latent_kinds={shorten(kinds)} has {len(kinds)} entries for the {len(shapes)} "
                "layers of config.model.latent_shapes; give one for each layer, z_1 first"
            )
        if CATEGORICAL in kinds and (self.inference == DEEP or CATEGORICAL in kinds[:-1]):
            raise RunError(
                f"config.model.latent_kinds={shorten(kinds)}: only the top layer, the last entry, of the "
                f"networks {PUBLISHED} can be categorical (config.model.inference={self.inference!r})"
            )
        if not isinstance(self.gumbel_hard, bool):
            raise RunError(f"config.model.gumbel_hard={shorten(self.gumbel_hard)} must be True or False")
        schedule = self.gumbel_schedule
        is_pair = isinstance(schedule, tuple) and len(schedule) == 2 and all(map(is_number, schedule))
        if not is_pair or schedule[0] < 0 or schedule[1] <= 0:
            raise RunError(
                f"config.model.gumbel_schedule={shorten(schedule)} must be (rate per epoch, lowest "
                "temperature), the former not negative, the latter positive, as (0.007, 0.4)"
            )
        if self.top_prior not in TOP_PRIORS:
            raise RunError(
                f"config.model.top_prior={shorten(self.top_prior)} is unknown; choose one of {TOP_PRIORS}"
            )
        if self.top_prior == MIXTURE and CATEGORICAL in kinds:
            raise RunError(
                f"config.model.top_prior={MIXTURE!r} is of a Gaussian top layer, not of "
                f"latent_kinds={shorten(kinds)}"
            )


def check_image_shape(shape: tuple[int, int, int], min_side: int, max_side: int) -> None:
    """Raises RunError unless a family of networks takes images of this height, width and channels."""
    height, width, channels = shape
    are_sides = all(min_side <= side <= max_side for side in (height, width))
    if not are_sides or not 1 <= channels <= likelihoods.MAX_CHANNELS:
        raise RunError(
            f"images of shape {shape} are not supported: they must be {min_side} to {max_side} pixels high "
            f"and wide, with 1 to {likelihoods.MAX_CHANNELS} channels"
        )


def _is_latent_shape(shape: object, kind: str) -> bool:
    if kind == CATEGORICAL:  # one value is none
        return (
            isinstance(shape, tuple)
            and len(shape) in (1, 2)
            and is_integer(shape[-1], 2, MAX_SIZE)
            and is_integer(shape[0], 1, MAX_SIZE)
        )
    return (
        isinstance(shape, tuple)
        and all(is_integer(size, 1, MAX_SIZE) for size in shape)
        and len(shape) in (1, 3)
    )


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(is_integer(size, 1, MAX_SIZE) for size in pair)
