"""A deep network, VDVAE's, in plain PyTorch: what `torch_reference` times for a case with `inference="deep"`.

Like that file it is only for the benchmark, and must not import JAX. A *network* is a plain dict, see
`cases.describe_network`; images have one channel and are Bernoulli.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

torch: Any = importlib.import_module("torch")  # Any: types must also check where PyTorch is absent
nn: Any = torch.nn
functional: Any = torch.nn.functional

PARTS = ("posterior", "prior", "residual")


class Block(nn.Module):
    """A residual bottleneck block's branch."""

    def __init__(self, side: int, c_in: int, inner: int, c_out: int) -> None:
        super().__init__()
        size = 1 if side <= 2 else 3
        self.conv_1, self.conv_4 = nn.Conv2d(c_in, inner, 1), nn.Conv2d(inner, c_out, 1)
        self.conv_2, self.conv_3 = (nn.Conv2d(inner, inner, size, padding=size // 2) for _ in range(2))

    def forward(self, x: Any) -> Any:
        """`[B, C_in, H, W]` → `[B, C_out, H, W]`."""
        for conv in (self.conv_1, self.conv_2, self.conv_3, self.conv_4):
            x = conv(functional.gelu(x))
        return x


class Deep(nn.Module):
    """The networks of Child (2021) as `hvae_jax.models.deep` has them; images are `[B, 1, H, W]`."""

    def __init__(self, network: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        width, inner = network["channels"], network["channels"] // 4
        self.patch = network["image_shape"][0] // network["blocks_by_side"][0][0]
        self.input = nn.Conv2d(self.patch**2, width, 3, padding=1)
        self.bottom_up, self.top_down = nn.ModuleDict(), nn.ModuleDict()
        self.start = nn.ParameterDict()
        for side, num in network["blocks_by_side"]:
            blocks = [Block(side, width, inner, width) for _ in range(num)]
            self.bottom_up[str(side)] = nn.ModuleList(blocks)
            self.start[str(side)] = nn.Parameter(torch.zeros(width, side, side))
            layers = [
                nn.ModuleDict(
                    {
                        "posterior": Block(side, 2 * width, inner, 2 * latent),
                        "prior": Block(side, width, inner, 2 * latent + width),
                        "project": nn.Conv2d(latent, width, 1),
                        "residual": Block(side, width, inner, width),
                    }
                )
                for own, _, latent in network["latent_shapes"]
                if own == side
            ]
            self.top_down[str(side)] = nn.ModuleList(layers)
        self.gain, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.output = nn.Conv2d(width, self.patch**2, 1)

    def forward(self, x: Any, noises: Sequence[Any] | None = None) -> tuple[Any, Any]:
        """Distortion `[B]` and rates `[B, L]`, z_1 first, nats; `noises` of z_1 … z_L, else drawn."""
        features = self._features(x)
        sides = [side for side, _ in self.network["blocks_by_side"]][::-1]
        h, rates = self.start[str(sides[0])].expand(len(x), -1, -1, -1), []
        num_layers = len(self.network["latent_shapes"])
        for side in sides:
            if side != h.shape[-1]:
                h = functional.interpolate(h, scale_factor=side // h.shape[-1]) + self.start[str(side)]
            for layer in self.top_down[str(side)]:
                q_mean, q_log_std = layer["posterior"](torch.cat([h, features[side]], dim=1)).chunk(2, dim=1)
                latent = q_mean.shape[1]
                p_mean, p_log_std, rest = layer["prior"](h).split([latent, latent, h.shape[1]], dim=1)
                number = num_layers - len(rates)
                noise = torch.randn_like(q_mean) if noises is None else noises[number - 1]
                h = h + rest + layer["project"](q_mean + q_log_std.exp() * noise)
                h = h + layer["residual"](h)
                ratio = (2 * (q_log_std - p_log_std)).exp() + ((q_mean - p_mean) / p_log_std.exp()).square()
                rates.append((0.5 * (ratio - 1) + p_log_std - q_log_std).flatten(1).sum(1))
        outputs = self.output(h * self.gain[:, None, None] + self.bias[:, None, None])
        logits = functional.pixel_shuffle(outputs, self.patch)
        distortion = (
            functional.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        )
        return distortion, torch.stack(rates[::-1], dim=1)

    def _features(self, x: Any) -> dict[int, Any]:
        h, features = self.input(functional.pixel_unshuffle(2 * x - 1, self.patch)), {}
        sides = [side for side, _ in self.network["blocks_by_side"]]
        for side, smaller in zip(sides, [*sides[1:], None], strict=True):
            before = h
            for block in self.bottom_up[str(side)]:
                before, h = h, h + block(h)
            features[side] = h if smaller is None else before
            if smaller is not None:
                h = functional.avg_pool2d(h, side // smaller)
        return features


def from_flax(params: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our parameters (or their gradients), under the names and in the layouts of `Deep`."""
    own, out = params["params"], {}

    def put(name: str, conv: Mapping[str, Any], number: int | None = None) -> None:
        kernel, bias = (np.asarray(conv[leaf]) for leaf in ("kernel", "bias"))
        if number is not None:
            kernel, bias = kernel[number], bias[number]
        kernel = kernel[None, None] if kernel.ndim == 2 else kernel
        out[f"{name}.weight"], out[f"{name}.bias"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)), bias

    def put_block(name: str, block: Mapping[str, Any], number: int) -> None:
        for conv in block:
            put(f"{name}.{conv}", block[conv], number)

    for side, num in network["blocks_by_side"]:
        for number in range(num):
            put_block(f"bottom_up.{side}.{number}", own[f"bottom_up_{side}"], number)
        layers = own[f"top_down_{side}"]
        for number in range(len(layers["project"]["bias"])):
            for part in PARTS:
                put_block(f"top_down.{side}.{number}.{part}", layers[part], number)
            put(f"top_down.{side}.{number}.project", layers["project"], number)
        out[f"start.{side}"] = np.ascontiguousarray(np.asarray(own[f"start_{side}"]).transpose(2, 0, 1))
    put("input", own["input"])
    put("output", own["output"]["conv"])
    out["gain"], out["bias"] = (np.asarray(own["output"][name]) for name in ("gain", "bias"))
    return out
