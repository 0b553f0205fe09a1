"""The published two-layer GHVAE in plain PyTorch, and the worker that `experiments.benchmark` times.

Deep networks are in `torch_deep`; all else here is for both.

Only the benchmark uses this file: `pip install -e ".[benchmark]"`. It must not import JAX, so that the
worker's memory is PyTorch's alone. A *network* is a plain dict, see `cases.describe_network`.
"""

import importlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.benchmark import serving, torch_deep

torch: Any = importlib.import_module("torch")  # Any: types must also check where PyTorch is absent
nn: Any = torch.nn
functional: Any = torch.nn.functional

KERNEL_SIZE = 4


class GHVAE(nn.Module):
    """q(z_2|x), q(z_1|z_2, x), p(z_1|z_2), p(x|z_1) of Xiao and Bamler (2023); images are `[B, C, H, W]`."""

    def __init__(self, network: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network
        stages, c = network["stages"], network["channels"]
        bottom, last = stages[-1]["side_out"], stages[-1]
        image_channels, side = network["image_shape"][2], network["z_1"][0]
        z_1_channels, (z_2_dims,) = network["z_1"][2], network["z_2"]
        size = side * side * z_1_channels
        widths = [image_channels] + [c] * len(stages)

        def down(stage: Mapping[str, int], c_in: int) -> Any:
            return nn.Conv2d(c_in, c, KERNEL_SIZE, stage["stride"], stage["padding"])

        def up(stage: Mapping[str, int], c_in: int, c_out: int) -> Any:
            return nn.ConvTranspose2d(c_in, c_out, KERNEL_SIZE, stage["stride"], stage["padding"])

        self.q2_convs = nn.ModuleList(map(down, stages, widths))
        self.q2_mean = nn.Linear(c * bottom**2, z_2_dims)
        self.q2_std = nn.Linear(c * bottom**2, z_2_dims)

        self.q1_convs = nn.ModuleList(map(down, stages[:-1], widths))
        self.q1_lift = nn.Linear(z_2_dims, c * bottom**2)
        self.q1_up = up(last, c, c)
        self.q1_join = down(last, 2 * c)
        self.q1_mean = nn.Conv2d(c, z_1_channels, 3, 1, 1)
        self.q1_std = nn.Conv2d(c, z_1_channels, 3, 1, 1)

        self.p1_hidden = nn.Linear(z_2_dims, size // 2)
        self.p1_mean = nn.Linear(size // 2, size)
        self.p1_std = nn.Linear(size // 2, size)

        c_ins = [z_1_channels] + [c] * (len(stages) - 1)
        self.decoder = nn.ModuleList(map(up, stages[::-1], c_ins, widths[-2::-1]))

    def forward(self, x: Any, noises: Sequence[Any] | None = None) -> tuple[Any, Any]:
        """Distortion `[B]` and rates `[B, 2]`, nats; `noises` are those of z_1 and z_2, else drawn."""
        relu, softplus = functional.relu, functional.softplus
        h = x
        for conv in self.q2_convs:
            h = relu(conv(h))
        h = h.flatten(1)
        q2_mean, q2_std = self.q2_mean(h), softplus(self.q2_std(h))
        z_2 = q2_mean + q2_std * (torch.randn_like(q2_mean) if noises is None else noises[1])

        h = x
        for conv in self.q1_convs:
            h = relu(conv(h))
        bottom = self.network["stages"][-1]["side_out"]
        lifted = relu(self.q1_lift(z_2)).unflatten(1, (-1, bottom, bottom))
        h = torch.cat([relu(self.q1_up(lifted)), h], dim=1)
        h = relu(self.q1_join(h))
        q1_mean, q1_std = self.q1_mean(h), softplus(self.q1_std(h))
        z_1 = q1_mean + q1_std * (torch.randn_like(q1_mean) if noises is None else noises[0])

        h = relu(self.p1_hidden(z_2))
        p1_mean = self.p1_mean(h).view_as(q1_mean)
        p1_std = softplus(self.p1_std(h)).view_as(q1_std)

        h = z_1
        for number, conv in enumerate(self.decoder, start=1):
            h = conv(h) if number == len(self.decoder) else relu(conv(h))
        rate_1 = _kl_divergence(q1_mean, q1_std, p1_mean, p1_std)
        rate_2 = _kl_divergence(q2_mean, q2_std, torch.zeros_like(q2_mean), torch.ones_like(q2_std))
        return self._distortion(h, x), torch.stack([rate_1, rate_2], dim=1)

    def _distortion(self, outputs: Any, x: Any) -> Any:
        if self.network["likelihood"] == "bernoulli":
            cross_entropy = functional.binary_cross_entropy_with_logits(outputs, x, reduction="none")
            return cross_entropy.flatten(1).sum(1)
        std = self.network["likelihood_std"]
        constant = math.prod(x.shape[1:]) * (math.log(std) + 0.5 * math.log(2 * math.pi))
        return (0.5 / std**2) * (x - outputs).square().flatten(1).sum(1) + constant


def make(network: Mapping[str, Any]) -> Any:
    """The network that a description is of."""
    return (torch_deep.Deep if network["is_deep"] else GHVAE)(network)


def mean_loss(model: Any, x: Any, betas: Sequence[float]) -> Any:
    """Batch mean of D + Σ β_l R_l."""
    distortion, rates = model(x)
    return (distortion + sum(beta * rates[:, index] for index, beta in enumerate(betas))).mean()


def from_flax(params: Mapping[str, Any], network: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Our Flax parameters (or their gradients), under the names and in the layouts of `make`'s network.

    Images are `[H, W, C]` there and `[C, H, W]` here, so whatever is flattened is also permuted. Our
    heads hold mean and pre-std side by side along their last axis.

    Raises:
      ValueError: a parameter that has no place here.
    """
    if network["is_deep"]:
        return torch_deep.from_flax(params, network)
    flat: dict[str, np.ndarray] = {}
    _flatten(params["params"], "", flat)
    num_stages, z_1 = len(network["stages"]), tuple(network["z_1"])
    bottom = network["stages"][-1]["side_out"]
    feature_map = (bottom, bottom, network["channels"])
    out: dict[str, np.ndarray] = {}

    def take(path: str) -> tuple[np.ndarray, np.ndarray]:
        return flat.pop(f"{path}/kernel"), flat.pop(f"{path}/bias")

    def put(name: str, weight: np.ndarray, bias: np.ndarray) -> None:
        out[f"{name}.weight"], out[f"{name}.bias"] = weight, bias

    def conv(path: str, *names: str) -> None:
        kernel, bias = take(path)
        kernels, biases = np.split(kernel, len(names), axis=-1), np.split(bias, len(names))
        for name, k, b in zip(names, kernels, biases, strict=True):
            put(name, k.transpose(3, 2, 0, 1), b)

    def conv_transpose(path: str, name: str) -> None:
        kernel, bias = take(path)
        put(name, kernel.transpose(2, 3, 0, 1), bias)

    def dense(path: str, *names: str, shape_in: tuple = (), shape_out: tuple = ()) -> None:
        kernel, bias = take(path)
        kernels, biases = np.split(kernel, len(names), axis=-1), np.split(bias, len(names))
        for name, k, b in zip(names, kernels, biases, strict=True):
            put(
                name,
                _channels_first(_channels_first(k, shape_in).T, shape_out),
                _channels_first(b, shape_out),
            )

    for i in range(num_stages - 1):
        conv(f"posterior_1/Down_0/Conv_{i}", f"q2_convs.{i}")
        conv(f"posterior_0/Down_0/Conv_{i}", f"q1_convs.{i}")
        conv_transpose(f"decoder/Up_0/ConvTranspose_{i}", f"decoder.{i}")
    conv("posterior_1/Down_1/Conv_0", f"q2_convs.{num_stages - 1}")
    dense("posterior_1/Head_0/Dense_0", "q2_mean", "q2_std", shape_in=feature_map)
    dense("posterior_0/Lift_0/Dense_0", "q1_lift", shape_out=feature_map)
    conv_transpose("posterior_0/Lift_0/Up_0/ConvTranspose_0", "q1_up")
    conv("posterior_0/Down_1/Conv_0", "q1_join")
    conv("posterior_0/Head_0/Conv_0", "q1_mean", "q1_std")
    dense("prior_0/DenseHead_0/Dense_0", "p1_hidden")
    dense("prior_0/DenseHead_0/Dense_1", "p1_mean", "p1_std", shape_out=z_1)
    conv_transpose("decoder/ConvTranspose_0", f"decoder.{num_stages - 1}")
    if flat:
        raise ValueError(f"these parameters have no place in the PyTorch network: {sorted(flat)}")
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


def evaluate_same(
    network: Mapping[str, Any],
    params: Mapping[str, Any],
    x: np.ndarray,
    noises: Sequence[np.ndarray],
    betas: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Distortion `[B]`, rates `[B, L]` and the loss's gradients of `make`'s network with our parameters.

    Args:
      network, params: as for `from_flax`.
      x: `[B, H, W, C]`.
      noises: standard normal, of z_1 … z_L, `[B, H, W, C]` or `[B, dims]`.
      betas: of the loss.
    """
    model = make(network)
    state = {name: torch.tensor(array) for name, array in from_flax(params, network).items()}
    model.load_state_dict(state)  # strict: every parameter and shape must fit
    given = [torch.tensor(z) if z.ndim == 2 else torch.tensor(z).permute(0, 3, 1, 2) for z in noises]
    distortion, rates = model(torch.tensor(x).permute(0, 3, 1, 2), given)
    (distortion + rates @ torch.tensor(betas)).mean().backward()
    grads = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return distortion.detach().numpy(), rates.detach().numpy(), grads


class NetworkWorker:
    """Trains and evaluates the network on the images of one file; every answer is in seconds.

    `spec` may hold the `device` that it is to run on, the CPU by default, and the `compute_dtype` "bfloat16",
    which is PyTorch's autocast.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        network, training = spec["network"], spec["training"]
        self._device = torch.device(spec.get("device", "cpu"))
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("the PyTorch that is installed finds no GPU")
        # Its convolutions would be of TF32 parts, which have fewer digits than float32.
        torch.backends.cudnn.allow_tf32 = False
        self._is_half = spec.get("compute_dtype", "float32") == "bfloat16"
        with np.load(spec["data"]) as arrays:
            images = torch.from_numpy(arrays["train_images"]).permute(0, 3, 1, 2).contiguous()
        x = (images > 127).float() if spec["binarize"] == "round" else images.float() / 255
        x, self._batch_size = x.to(self._device), training["batch_size"]
        self._dataset = torch.utils.data.TensorDataset(x)
        self._batches = x.split(self._batch_size)
        self._model = make(network).to(self._device)
        self._loss_fn: Callable[..., Any] = torch.compile(mean_loss) if spec["compile"] else mean_loss
        self._betas = spec["betas"]
        adam = {"lr": training["learning_rate"], "betas": (training["b1"], training["b2"])}
        self._optimizer = torch.optim.Adam(self._model.parameters(), **adam, eps=training["eps"])
        self._done = 0

    def num_parameters(self) -> int:
        """Of the network."""
        return sum(parameter.numel() for parameter in self._model.parameters())

    def steps(self, count: int) -> float:
        """A plain loop of training steps on tensors that are in memory."""
        start = time.perf_counter()
        for _ in range(count):
            self._step(self._batches[self._done % len(self._batches)])
            self._done += 1
        if self._device.type == "cuda":  # where the steps are only begun
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def epoch(self) -> float:
        """One epoch through a DataLoader that shuffles, and the mean loss."""
        loader = torch.utils.data.DataLoader(self._dataset, batch_size=self._batch_size, shuffle=True)
        start = time.perf_counter()
        total = torch.zeros(())
        for (x,) in loader:
            total += self._step(x)
        total.item()
        return time.perf_counter() - start

    def evaluate(self) -> float:
        """Distortion and rates of every image, one draw each."""
        start = time.perf_counter()
        with torch.no_grad():
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_half):
                terms = [self._model(x) for x in self._batches]
            torch.cat([distortion for distortion, _ in terms]).float().cpu().numpy()
            torch.cat([rates for _, rates in terms]).float().cpu().numpy()
        return time.perf_counter() - start

    def peak_mib(self) -> float:
        """The process's largest resident set so far."""
        return serving.peak_mib()

    def _step(self, x: Any) -> Any:
        self._optimizer.zero_grad()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_half):
            loss = self._loss_fn(self._model, x, self._betas)
        loss.backward()
        self._optimizer.step()
        return loss.detach()


class GemmWorker:
    """Float32 products of square matrices, by PyTorch."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        del spec

    def gemm(self, size: int, count: int) -> float:
        """Seconds for `count` products of two `[size, size]` matrices."""
        a, b, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
        torch.mm(a, b, out=out)
        start = time.perf_counter()
        for _ in range(count):
            torch.mm(a, b, out=out)
        return time.perf_counter() - start


def main() -> None:
    """Serves as a worker of `benchmark.workers.Contender`."""

    def start(spec: Mapping[str, Any]) -> None:
        if spec["num_threads"]:
            torch.set_num_threads(spec["num_threads"])
        torch.manual_seed(0)

    serving.serve({"network": NetworkWorker, "gemm": GemmWorker}, start)


def _kl_divergence(q_mean: Any, q_std: Any, p_mean: Any, p_std: Any) -> Any:
    variance_ratio = (q_std / p_std).square()
    distance = ((q_mean - p_mean) / p_std).square()
    return 0.5 * (variance_ratio + distance - 1.0 - variance_ratio.log()).flatten(1).sum(1)


def _flatten(tree: Mapping[str, Any], prefix: str, out: dict[str, np.ndarray]) -> None:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            _flatten(value, f"{prefix}{name}/", out)
        else:
            out[f"{prefix}{name}"] = np.asarray(value)


def _channels_first(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Reorders the leading axis from flattened `[H, W, C]` to flattened `[C, H, W]`."""
    if len(shape) != 3:
        return array
    order = np.arange(math.prod(shape)).reshape(shape).transpose(2, 0, 1).ravel()
    return array[order]


if __name__ == "__main__":
    main()
