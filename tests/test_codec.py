"""Bits on disk: bins and stacks invert exactly, images come back, bits are the rates, damage is named."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from hvae_jax import RunError, codec, experiment, make_hvae
from hvae_jax.codec import bins, bits_back, compiled, container, machine, others, pixels, report
from hvae_jax.codec.bins import BIN_BITS, POSTERIOR_BITS, Gaussians
from hvae_jax.codec.pixels import PIXEL_BITS
from hvae_jax.codec.stack import Stack
from hvae_jax.likelihoods import LogisticMixture
from hvae_jax.models import conditioning
from hvae_jax.objective import LayerwiseTerms

SHAPE = (8, 8, 1)
KEY = jax.random.key(0)
BETAS = (0.5, 1.0, 2.0)
GAIN = 1.0  # of weights: rates are a few bits, and no posterior lies beyond the bins
DEEP = {
    "inference": "deep",
    "latent_shapes": ((4, 4, 2), (4, 4, 2), (1, 1, 3)),
    "likelihood": "bernoulli",
}


class Coded(NamedTuple):
    model: Any
    params: Any
    images: np.ndarray
    data: bytes
    bits: codec.Bits


def make_coded(config: Any, num: int, shape: tuple[int, int, int] = SHAPE, **how: Any) -> Coded:
    model, generator = make_hvae(config, shape), np.random.default_rng(0)
    images = generator.integers(0, 256, (num, *shape)).astype(np.uint8)
    if config.likelihood == "bernoulli":
        images = np.where(images > 127, 255, 0).astype(np.uint8)
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def weights(leaf: Any) -> np.ndarray:  # as an untrained model has them; nothing is compiled
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if len(leaf.shape) > 1 else 0.0
        return generator.normal(0.0, GAIN * scale, leaf.shape).astype(np.float32)

    params = jax.tree.map(weights, jax.eval_shape(model.init, KEY, x, KEY))
    if config.is_conditioned:
        params = conditioning.at(params, BETAS)
    data, bits = codec.encode_measured(model, params, images, **how)
    return Coded(model, params, images, data, bits)


@pytest.fixture(scope="module")
def coded(make_config: Callable[..., Any]) -> Coded:
    """Binary images of two layers; the last batch is cut short."""
    return make_coded(make_config(likelihood="bernoulli"), 300, batch_size=16)


def test_bins_share_out_the_posterior():
    """Against SciPy's normal distribution; what is found under a number is what has it in its share."""
    generator = np.random.default_rng(0)
    # Like the prior, narrow, far in its tail, far beyond all bins, wider than it.
    q = Gaussians(np.array([[0.5, 0.3, 3.0, 9.0, 0.0]]), np.array([[2.0, 1e-3, 0.1, 0.1, 50.0]]))
    p = Gaussians(np.array([[0.5, 0.0, 0.0, 0.0, 1.0]]), np.array([[2.0, 1.0, 1.0, 1.0, 2.0]]))
    every = np.arange(2**BIN_BITS)[:, None].repeat(5, axis=1)
    starts, widths = bins.shares(every, q, p)
    np.testing.assert_array_equal(widths.sum(axis=0), 2**POSTERIOR_BITS)
    np.testing.assert_array_equal(starts[1:], np.cumsum(widths, axis=0)[:-1])
    np.testing.assert_array_equal(widths[:, 0], 2 ** (POSTERIOR_BITS - BIN_BITS))
    edges = norm.ppf(np.arange(2**BIN_BITS + 1) / 2**BIN_BITS)[:, None] * p.std + p.mean
    mass = np.diff(norm.cdf(edges, q.mean, q.std), axis=0) * 2**POSTERIOR_BITS
    assert np.abs(widths - mass).max() <= 1.0 + 1e-6
    low = norm.cdf(bins.values(every, p), p.mean, p.std)
    np.testing.assert_allclose(low[1:-1], (every[1:-1] + 0.5) / 2**BIN_BITS, atol=1e-6)

    numbers = generator.integers(0, 2**POSTERIOR_BITS, (500, 5))
    numbers[0], numbers[1] = 0, 2**POSTERIOR_BITS - 1
    q, p = (Gaussians(*(np.repeat(part, 500, axis=0) for part in of)) for of in (q, p))
    starts, widths = bins.shares(bins.find(numbers, q, p), q, p)
    assert ((starts <= numbers) & (numbers < starts + widths)).all()


def test_a_stack_gives_back_what_was_pushed_and_counts_it():
    generator, stack = np.random.default_rng(0), Stack()
    widths = generator.integers(1, 2**20, 200)
    below, whole = (generator.random(200) * widths).astype(np.int64), generator.integers(0, 2**22, 200)
    probabilities = generator.random(200)
    binary = (generator.random(200) < probabilities).astype(np.int64)
    information = [
        np.log2(widths).sum(),
        22.0 * 200,
        -np.log2(np.where(binary, probabilities, 1.0 - probabilities)).sum(),
    ]
    sizes = [stack.num_bits]
    stack.push_below(below, widths)
    sizes.append(stack.num_bits)
    stack.reserve(stack.num_bits + 1000)  # more than there is: random words go below all that lies there
    sizes[-2:] = [size + stack.num_bits - sizes[-1] for size in sizes[-2:]]
    stack.push_uniform(whole, 22)
    sizes.append(stack.num_bits)
    stack.push_binary(binary, probabilities)
    sizes.append(stack.num_bits)
    np.testing.assert_allclose(np.diff(sizes), information, rtol=0.002)

    read = Stack(stack.words())
    np.testing.assert_array_equal(read.pop_binary(probabilities), binary)
    np.testing.assert_array_equal(read.pop_uniform(200, 22), whole)
    np.testing.assert_array_equal(read.pop_below(widths), below)
    assert read.is_seed(stack.num_seed_words)
    assert not read.is_seed(stack.num_seed_words + 1)


def test_shares_of_a_mixture_are_its_probabilities():
    mixture = LogisticMixture(3)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (4, 5, 5, 3)).astype(np.uint8)
    # Scales so wide that no image is out of the question.
    outputs = jnp.asarray(generator.normal(0.0, 0.7, (4, 5, 5, mixture.num_outputs(3))), jnp.float32)
    coder, total = pixels.MixturePixels(mixture), np.zeros(4)
    for channel in range(3):
        starts_of = coder._starts(outputs, images, channel)
        every = [starts_of(np.full((4, 5, 5), n, np.int32)) for n in range(257)]
        assert (np.diff(every, axis=0) > 0).all()
        assert (every[0] == 0).all()
        assert (every[-1] == 2**PIXEL_BITS).all()
        here = images[..., channel].astype(np.int32)
        total += np.log2((starts_of(here + 1) - starts_of(here)) / 2**PIXEL_BITS).sum(axis=1)
    log_prob = jax.jit(mixture.log_prob)(outputs, jnp.asarray(images / 255.0, jnp.float32))
    exact = np.asarray(log_prob) / np.log(2.0)
    np.testing.assert_allclose(total, exact, rtol=0.005)


def test_images_come_back_and_all_bits_are_told(coded):
    counted = []
    back = codec.decode(coded.model, coded.params, coded.data, report=counted.append)
    np.testing.assert_array_equal(back, coded.images)
    assert counted[-1] == 300
    bits = coded.bits
    assert bits.total == 8 * len(coded.data)
    told = bits.header + bits.initial + bits.net.sum() + bits.pixels.sum()
    assert 0 <= bits.total - told <= 64  # the last words are not full
    header = container.unpack(coded.data).header
    assert header.batch_sizes[0] == 1  # so that one image pays for what it borrows, and not a batch
    assert max(header.batch_sizes) == 16
    assert bits.initial < 1.1 * 35 * POSTERIOR_BITS + 96


def test_a_layer_takes_its_rate(coded):
    """Both are means over the images, at draws that have nothing to do with each other."""
    x, terms_fn = jnp.asarray(coded.images / 255.0, jnp.float32), jax.jit(coded.model.apply)
    terms = [terms_fn(coded.params, x, jax.random.key(number)) for number in range(16)]
    rates = np.mean([np.asarray(t.rates) for t in terms], axis=0) / np.log(2.0)
    distortion = np.mean([np.asarray(t.distortion) for t in terms], axis=0) / np.log(2.0)
    found = np.column_stack([coded.bits.net, coded.bits.pixels, coded.bits.net.sum(1) + coded.bits.pixels])
    logged = np.column_stack([rates, distortion, rates.sum(axis=1) + distortion])
    error = (found - logged).std(axis=0) / np.sqrt(len(found))
    assert (np.abs((found - logged).mean(axis=0)) < 5.0 * error).all()
    assert (rates.mean(axis=0) > 0.5).all()


def test_draws_do_not_follow_from_the_image_before(coded):
    """A layer that says nothing takes from the stack what the image before it put there."""
    programs = bits_back.Programs(coded.model, coded.params, 16)
    encoder = bits_back.Encoder(programs, pixels.BinaryPixels(), 16, 0)
    flat = Gaussians(np.zeros((1, 200)), np.ones((1, 200)))
    first, _ = encoder._pop(1, flat, flat)
    encoder.stack.push_uniform(first.ravel(), BIN_BITS)
    encoder._done = 1
    second, _ = encoder._pop(1, flat, flat)
    assert (first == second).mean() < 0.02


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"inference": "ladder", "likelihood": "logistic_mixture"}, (8, 8, 3)),
        ({**DEEP, "conditioning": "scale_shift"}, SHAPE),
    ],
    ids=["ladder", "deep, conditioned"],
)
def test_other_models(make_config, changes, shape):
    coded = make_coded(make_config(**changes), 7, shape=shape, batch_size=4)
    np.testing.assert_array_equal(codec.decode(coded.model, coded.params, coded.data), coded.images)
    if coded.model.config.is_conditioned:
        assert container.unpack(coded.data).header.betas == list(BETAS)
        with pytest.raises(RunError, match="another model"):
            codec.decode(coded.model, conditioning.at(coded.params, (0.5, 1.0, 3.0)), coded.data)


def test_the_top_is_read_first(make_config, coded):
    """The picture is that of the latents that were encoded, the layers below at their means."""
    model, params, images = coded[:3]
    encoders: list[Any] = []

    class Kept(bits_back.Encoder):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            encoders.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits_back, "Encoder", Kept)
        data, bits = codec.encode_measured(model, params, images, batch_size=16, top_first=2)
    np.testing.assert_array_equal(codec.decode(model, params, data), images)
    top = codec.decode_top(model, params, data, 2)
    np.testing.assert_array_equal(top.places, np.arange(300))
    assert top.num_bits == 300 * 3 * BIN_BITS
    drawn = bins.values(np.concatenate(encoders[-1].sections[2]), Gaussians(np.zeros(3), np.ones(3)))
    picture = jax.jit(lambda z: model.apply(params, KEY, 300, 0.0, {2: z}, method="sample"))(drawn)
    np.testing.assert_allclose(top.images, picture, atol=1e-5)
    # What the top borrows is not given back: the stack pays where the pixels do not bring as much.
    assert bits.initial == 32 * container.unpack(data).header.num_seed_words

    last = codec.decode_top(model, params, coded.data, 2)
    assert len(last.places) == container.unpack(coded.data).header.batch_sizes[-1]
    assert last.places[-1] == 299
    assert last.images.shape == (len(last.places), *SHAPE)


def test_what_cannot_be_coded(make_config, coded):
    model, params, images = coded[:3]
    with pytest.raises(RunError, match="black and white"):
        codec.encode(model, params, images // 2)
    density = make_hvae(make_config(), SHAPE)
    with pytest.raises(RunError, match=r"config.model.likelihood='gaussian_fixed_std' is a density"):
        codec.encode(density, params, images)
    mixture = make_hvae(make_config(likelihood="bernoulli", top_prior="mixture"), SHAPE)
    with pytest.raises(RunError, match="top_prior='mixture': bits on disk are"):
        codec.encode(mixture, params, images)
    with pytest.raises(ValueError, match=r"images must be uint8 \[N"):
        codec.encode(model, params, images[..., 0])
    with pytest.raises(ValueError, match="top_first must be in 0 … 2, got 3"):
        codec.encode(model, params, images, top_first=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(RunError, match=r"need constriction; pip install"):
            codec.encode(model, params, images)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
    with pytest.raises(RunError, match="not finite"):
        codec.encode(model, broken, images, batch_size=16)


def test_another_model_version_device_or_digit_is_refused(coded, monkeypatch):
    model, params, data = coded.model, coded.params, coded.data
    other = jax.tree.map(lambda leaf: leaf + 1e-6, params)
    with pytest.raises(RunError, match="another model"):
        codec.decode(model, other, data)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "versions", lambda: {"jax": "0.0"})
        with pytest.raises(RunError, match=r"written with jax .*, here is 0\.0"):
            codec.decode(model, params, data)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "device", lambda: "abacus")
        with pytest.raises(RunError, match="here is abacus"):
            codec.decode(model, params, data)
    content = container.unpack(data)
    header = dataclasses.replace(content.header, probe="0" * 32)
    with pytest.raises(RunError, match="other last digits"):
        codec.decode(model, params, container.pack(header, content.payload))
    with pytest.raises(RunError, match="is no file of"):
        codec.decode(model, params, b"PK" + data)


def test_no_damage_gives_another_picture(coded):
    """200 damaged files; a quarter of them with a checksum that fits, as if someone had written them."""
    model, params = coded.model, coded.params
    data, _ = codec.encode_measured(model, params, coded.images[:20], batch_size=16)
    content, generator = container.unpack(data), np.random.default_rng(0)
    start, text = content.num_header_bytes, json.dumps(dataclasses.asdict(content.header))
    said: list[str] = []
    for attempt in range(200):
        damaged, kind = bytearray(data), attempt % 4
        if kind == 0:
            damaged[generator.integers(len(data))] ^= 1 << generator.integers(8)
        elif kind == 1:
            del damaged[generator.integers(len(data)) :]
        elif kind == 2:
            damaged += generator.bytes(int(generator.integers(1, 9)))
        elif attempt % 8 == 3:
            payload = bytearray(data[start:])
            payload[generator.integers(len(payload))] ^= 1 << generator.integers(8)
            damaged = bytearray(container.pack(content.header, bytes(payload[: len(payload) - attempt % 3])))
        else:
            letters = list(text)
            letters[generator.integers(len(letters))] = chr(generator.integers(32, 127))
            try:
                fields = json.loads("".join(letters))
                header = container.Header(**fields)
            except (ValueError, TypeError):
                continue
            damaged = bytearray(container.pack(header, content.payload))
        try:
            back = codec.decode(model, params, bytes(damaged))
        except RunError as error:
            said.append(str(error))
        else:
            np.testing.assert_array_equal(back, coded.images[:20])
    assert len(said) > 170
    assert not any("\n" in line for line in said)


def test_numbers_of_a_report_add_up(coded):
    terms = LayerwiseTerms(jnp.full(300, 60.0), jnp.tile(jnp.array([3.0, 2.0]), (300, 1)))
    made = report.make_report(coded.bits, terms, SHAPE, others.bits_of_others(coded.images))
    assert len(made["net_bits"]) == len(made["rates_bits"]) == 2
    assert made["total_bits"] * 300 == pytest.approx(8 * len(coded.data))
    elbo = made["distortion_bits"] + sum(made["rates_bits"])
    assert made["negative_elbo_bits"] == pytest.approx(elbo)
    assert np.shape(made["images"]["net_bits"]) == (300, 2)
    np.testing.assert_allclose(np.mean(made["images"]["net_bits"], axis=0), made["net_bits"])
    # Random bits: nobody needs less than they are, nor much more.
    assert 64 < made["other_bits"]["xz"] < 75
    assert 64 < made["other_bits"]["png"] < 75
    assert made["totals"]["total_bits"] == 8 * len(coded.data)
    text = report.to_text(made)
    assert [line.split()[0] for line in text.splitlines()[2:4]] == ["z_2", "z_1"]


def test_last_digits_do_not_depend_on_flags_of_xla(monkeypatch):
    """At LLVM's level 0, which XLA_FLAGS may ask for, products and sums are rounded one by one."""
    x, y, z = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)

    def at(level: int) -> Any:
        monkeypatch.setattr(compiled, "LEVEL", level)
        return np.asarray(compiled.compiled()(lambda x, y, z: x * y + z)(x, y, z))

    named = at(compiled.LEVEL)
    exact = (x.astype(np.float64) * y + z).astype(np.float32)
    assert (named == exact).all()
    assert (at(0) != exact).any()


def test_programs(programs, finished_run, tmp_path):
    """Out and back as a user does it; a damaged file writes nothing."""
    file, table, out = tmp_path / "test.bits", tmp_path / "test.json", tmp_path / "test.npz"
    run = f"--workdir={finished_run}"
    ended = programs.run("compress", run, f"--out={file}", f"--report={table}", "--num_images=20")
    assert ended.status == 0, ended.err
    assert "net / dim" in ended.out
    made = json.loads(table.read_text())
    assert made["num_images"] == 20
    ended = programs.run("decompress", str(file), run, f"--out={out}")
    assert ended.status == 0, ended.err
    images = np.load(out)["images"]
    assert container.hash_images(images) == container.unpack(file.read_bytes()).header.images
    assert images.shape == (20, 8, 8, 1)
    # The library reads what a program wrote, which compiles with other flags of XLA than the tests do.
    built = experiment.from_folder(finished_run)
    params = built.at(experiment.restore(built, finished_run).eval_params)
    np.testing.assert_array_equal(codec.decode(built.model, params, file.read_bytes()), images)
    out.unlink()
    file.write_bytes(file.read_bytes()[:-1])
    ended = programs.run("decompress", str(file), run, f"--out={out}")
    assert ended.status == 1
    assert ended.err.startswith("error: the file is damaged")
    assert ended.err.count("\n") == 1
    assert not out.exists()
