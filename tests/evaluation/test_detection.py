"""Sets from elsewhere, what stands beside what, files, the fourth application, figures."""

import csv
import dataclasses
import math
import pathlib
from typing import Any

import drawn
import jax
import numpy as np
import pytest
from small_metrics import make_metrics, there

from experiments import evaluate_ood
from hvae_jax import data, records
from hvae_jax.data import Dataset, Split
from hvae_jax.data.stored import HostArray
from hvae_jax.errors import RunError
from hvae_jax.evaluation import detection, guidance, guidance_text, ood, ood_files, ood_sets, plain
from hvae_jax.evaluation.detection import Detection, DetectionSizes, Detector, Found
from hvae_jax.evaluation.metrics import PerApplication, PerSplit, Score
from hvae_jax.evaluation.ood_files import DetectionSettings
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.figures import detection as figures
from hvae_jax.keys import make_key
from hvae_jax.models.conditioning import at
from hvae_jax.models.hvae import make_hvae

SIZES = DetectionSizes(num_draws=2, max_images=50)


def make_dataset(num_valid: int = 60, num_test: int = 70, channels: int = 1) -> Dataset:
    generator = np.random.default_rng(0)
    train, valid, test = (
        Split(generator.integers(0, 256, (num, 8, 8, channels)).astype(np.uint8), np.zeros(num, np.int32))
        for num in (80, num_valid, num_test)
    )
    return Dataset("own", train, valid, test)


def write(folder: pathlib.Path, name: str, shape: tuple[int, ...], num: int = 90) -> str:
    """An NPZ of images that all differ; the name of the data."""
    generator = np.random.default_rng(1)
    images = {
        f"{split}_images": generator.integers(0, 256, (num, *shape)).astype(np.uint8)
        for split in ("train", "test")
    }
    np.savez(folder / f"{name}.npz", **images)  # type: ignore[arg-type]
    return f"npz:{folder / name}.npz"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be names of data"),
        ("noise,,digits", "with commas between"),
        ("noise,noise", "two sets that are called noise: noise and noise"),
        ("npz:a/x.npz,npz:b/x.npz", "two sets that are called x: npz:a/x.npz and npz:b/x.npz"),
        ("nois", "--ood=nois: config.data.name='nois'.*built in are noise, constant, inverted"),
    ],
)
def test_names_that_are_no_sets(text, words):
    with pytest.raises(RunError, match=words):
        ood_sets.parse(text)
    assert ood_sets.parse("noise, npz:a.npz,digits") == ("noise", "npz:a.npz", "digits")


def test_what_is_built_in():
    own = ood_sets.inside(make_dataset(channels=3), 50)
    made = {name: ood_sets.make(name, own) for name in ood_sets.BUILT_IN}
    for of in made.values():
        assert of.images.test.shape == (50, 8, 8, 3)
        assert of.images.test.dtype == np.uint8
        assert (there(of.images.valid) != of.images.test).any()
        again = ood_sets.make(of.name, own)
        np.testing.assert_array_equal(again.images.test, of.images.test)
    inverted, constant, noise = (made[name].images.test for name in ("inverted", "constant", "noise"))
    np.testing.assert_array_equal(inverted.astype(int) + own.test, 255)
    np.testing.assert_array_equal(there(made["inverted"].images.valid).astype(int) + there(own.valid), 255)
    assert [made[name].are_pairs for name in ood_sets.BUILT_IN] == [False, False, True]
    assert np.ptp(constant, axis=(1, 2)).max() == 0
    assert len(np.unique(constant[:, 0, 0], axis=0)) > 40  # a colour each
    assert len(np.unique(noise)) == 256
    error = 255 / math.sqrt(12 * noise.size)
    assert abs(noise.mean() - 127.5) < 5 * error


def test_own_images_are_a_random_part_of_each_split():
    dataset = make_dataset()
    own = ood_sets.inside(dataset, 50)
    places = data.subset(70, 50)
    np.testing.assert_array_equal(own.test, dataset.test.images[places])
    assert len(there(own.valid)) == 50
    assert len(ood_sets.inside(dataset, 1000).test) == 70
    assert ood_sets.inside(make_dataset(num_valid=1), 50).valid is None
    with pytest.raises(RunError, match="--ood needs 2 images in the test split"):
        ood_sets.inside(make_dataset(num_test=1), 50)


def test_data_from_elsewhere_are_chosen_by_and_reported_on_other_images(tmp_path):
    name = write(tmp_path, "grey", (8, 8))
    (source,) = ood_sets.read([name], "", True, 50)
    found = ood_sets.make(source, ood_sets.inside(make_dataset(channels=3), 50))
    assert (found.name, found.are_pairs) == ("grey", False)
    # Grey becomes colour, every channel alike.
    assert found.images.test.shape == (50, 8, 8, 3)
    assert np.ptp(found.images.test, axis=3).max() == 0
    with np.load(tmp_path / "grey.npz") as arrays:
        for split, images in (("train", there(found.images.valid)), ("test", found.images.test)):
            expected = arrays[f"{split}_images"][data.subset(90, 50)]
            np.testing.assert_array_equal(images[..., 0], expected)
    without = ood_sets.make(source, ood_sets.inside(make_dataset(num_valid=0), 50))
    assert without.images.valid is None


@pytest.mark.parametrize(("shape", "own"), [((8, 6), 1), ((8, 8, 3), 1), ((8, 8, 4), 3)])
def test_images_of_another_shape_are_one_line_with_both(tmp_path, shape, own):
    name = write(tmp_path, "other", shape)
    sources = ood_sets.read(["noise", name], "", True, 50)
    found = "×".join(map(str, (*shape, 1)[:3]))
    words = rf"^--ood=npz:.*other.npz has images of {found} \(.*, the run's own are 8×8×{own}: "
    with pytest.raises(RunError, match=words):
        ood_sets.check(sources, (8, 8, own))
    with pytest.raises(RunError, match=words):
        ood_sets.make(sources[1], ood_sets.inside(make_dataset(channels=own), 50))
    ood_sets.check(sources, tuple(map(int, found.split("×"))))


def test_data_that_cannot_be_read_are_named_with_the_flag(tmp_path, monkeypatch):
    with pytest.raises(RunError, match=r"^--ood=npz:absent: config\.data\.name='npz:absent'"):
        ood_sets.read(["npz:absent"], "", True, 50)
    name = write(tmp_path, "one", (8, 8), num=1)
    with pytest.raises(RunError, match="fewer than 2 images"):
        ood_sets.read([name], "", True, 50)
    name = write(tmp_path, "large", (8, 8))
    monkeypatch.setattr(ood_sets, "machine_bytes", lambda: 5000)
    with pytest.raises(RunError, match=r"--max_ood_images=50 needs 0\.0 GiB"):
        ood_sets.read([name], "", True, 50)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [((0, 100), "--ood_draws=0 must be at least 1"), ((1, 49), "--max_ood_images=49 must be at least 50")],
)
def test_sizes_that_make_no_sense(sizes, words):
    with pytest.raises(RunError, match=words):
        DetectionSizes(*sizes)


def make_model(make_config: Any, **changes: Any):
    small = {"channels": 2, "num_stages": 1, "latent_shapes": ((4, 4, 1), (2,))}
    model = make_hvae(make_config(**{**small, **changes}), (8, 8, 1))
    extra: Any = {"betas": np.ones(model.num_layers)} if model.config.is_conditioned else {}
    params = jax.jit(lambda key: model.init(key, np.zeros((1, 8, 8, 1), np.float32), key, **extra))(
        make_key(0)
    )
    return model, at(params, (0.5, 2.0)) if extra else params


def preprocess(keys: jax.Array, images: jax.Array) -> jax.Array:
    return images / 255.0


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({"latent_shapes": ((4, 4, 1),)}, ()),
        ({"inference": "ladder"}, (1,)),
        ({"conditioning": "scale_shift"}, (1,)),
        ({"inference": "deep", "latent_shapes": (*[(4, 4, 2)] * 2, (1, 1, 3))}, (2,)),
    ],
)
def test_every_family_looks_at_images_from_elsewhere(make_config, changes, layers):
    model, params = make_model(make_config, **changes)
    found = Detector(model, make_dataset(), preprocess, ["noise", "inverted"], SIZES).detect(params, 0)
    one = found.detection
    names = ["negative_elbo", "negative_importance_weighted_bound"]
    for layer in layers:
        names += [f"negative_elbo_above_{layer}", f"llr_above_{layer}"]
    assert (one.layers, [of.name for of in one.sets]) == (layers, ["noise", "inverted"])
    for number, of_set in enumerate(one.sets, start=1):
        assert [entry.score for entry in of_set.scores] == names
        assert of_set.num_images == PerSplit(valid=50, test=50)
        for split in ("valid", "test"):
            scores = found.scores[f"outside_{number}_{split}"], found.scores[f"inside_{split}"]
            assert scores[0].shape == (50, len(names))
    assert one.chosen in names
    assert plain.from_plain(Detection, plain.to_plain(one), "ood.json") == one


@pytest.mark.long
def test_what_stands_beside_what(make_config):
    """The statistics are those of the arrays in ood.npz, valid beside valid, test beside test."""
    model, params = make_model(make_config)
    detector = Detector(model, make_dataset(), preprocess, ["noise", "inverted"], SIZES)
    one, arrays = detector.detect(params, 0)
    for number, (of_set, are_pairs) in enumerate(zip(one.sets, (False, True), strict=True), start=1):
        for column, entry in enumerate(of_set.scores):
            for split in ("valid", "test"):
                own, other = (arrays[f"{name}_{split}"] for name in ("inside", f"outside_{number}"))
                expected = ood.auroc(own[:, column], other[:, column], are_pairs)
                assert there(getattr(entry, split)).auroc == pytest.approx(expected, abs=1e-3)
    means = {
        name: np.mean([there(of.by(name).valid).auroc.value for of in one.sets])
        for name in (entry.score for entry in one.sets[0].scores)
    }
    assert one.chosen == max(means, key=lambda name: means[name])
    mean = there(one.mean_auroc)
    assert there(mean.valid).value == pytest.approx(max(means.values()))
    assert there(mean.valid).standard_error is None
    tests = [of.by(there(one.chosen)).test.auroc.value for of in one.sets]
    assert mean.test.value == pytest.approx(np.mean(tests))
    # Own images have the same scores beside other sets, in another place of memory, and again.
    dataset = make_dataset()
    streamed = dataset._replace(test=Split(HostArray(dataset.test.images), dataset.test.labels))
    for sources, of_data in ((["constant"], dataset), (["noise", "inverted"], streamed)):
        other = Detector(model, of_data, preprocess, sources, SIZES).detect(params, 0)
        np.testing.assert_allclose(other.scores["inside_test"], arrays["inside_test"], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, other.scores, arrays)


@pytest.mark.long
def test_without_a_validation_split_no_score_is_chosen(make_config):
    model, params = make_model(make_config)
    found = Detector(model, make_dataset(num_valid=0), preprocess, ["noise"], SIZES).detect(params, 0)
    assert (found.detection.chosen, found.detection.mean_auroc) == (None, None)
    assert found.detection.sets[0].scores[0].valid is None
    assert found.scores.keys() == {"inside_test", "outside_1_test"}
    model = evaluate_ood.with_detection(evaluated(), found.detection)
    assert model.metrics.applications.test.detection is None
    assert "validation split" in model.metrics.left_out["applications.detection"]
    text = guidance_text.to_markdown(guidance.make_guidance([model.scored]))
    assert "- detection: there is no validation split to choose the score by" in text
    assert "| noise | " in evaluate_ood.describe(model)


def compared(shift: float = 1.0, seed: int = 0, sets: tuple[str, ...] = ("noise", "mnist")) -> Found:
    """Of normal scores: those from elsewhere are `shift` higher by the ratio, and lower by the likelihood."""
    generator = np.random.default_rng(seed)
    names = {"negative_elbo": -0.5, "negative_importance_weighted_bound": -0.4, "llr_above_1": shift}

    def sample(is_outside: bool):
        return {name: is_outside * by + generator.normal(size=60) + 10.0 for name, by in names.items()}

    inside: Any = {split: sample(False) for split in detection.SPLITS}
    outside: Any = [{split: sample(True) for split in detection.SPLITS} for _ in sets]
    found = detection.compare(inside, outside, sets, [False] * len(sets), 5, (1,))
    arrays = {f"inside_{split}": np.stack(list(of.values()), axis=1) for split, of in inside.items()}
    for number, of_set in enumerate(outside, start=1):
        arrays |= {f"outside_{number}_{s}": np.stack(list(of.values()), axis=1) for s, of in of_set.items()}
    return Found(found, arrays)


def evaluated(name: str = "run", betas: tuple[float, ...] = (1.0, 1.0), seed: int = 0) -> Evaluated:
    metrics = make_metrics()
    with_valid = PerSplit(valid=metrics.applications.test, test=metrics.applications.test)
    return Evaluated(
        name, pathlib.Path(name), betas, seed, dataclasses.replace(metrics, applications=with_valid)
    )


def models(*shifts: float, num_seeds: int = 1) -> list[Evaluated]:
    """Of betas (1, 1), (0.5, 1), (0.25, 1), …, each with its shift."""
    return [
        evaluate_ood.with_detection(
            evaluated(f"{number}{seed}", (0.5**number, 1.0), seed),
            compared(shift, 10 * number + seed).detection,
        )
        for number, shift in enumerate(shifts)
        for seed in range(num_seeds)
    ]


def test_detection_is_an_application_like_the_others():
    found = models(0.3, 2.0, 1.0, num_seeds=2)
    made = guidance.make_guidance([model.scored for model in found])
    entry = there(made.applications.detection)
    assert entry.metric == "mean AUROC against noise, mnist, by the score that validation chose"
    assert entry.best.betas == (0.5, 1.0)
    means = [there(there(model.detection).mean_auroc) for model in found[2:4]]
    assert entry.best.valid == pytest.approx(np.mean([there(mean.valid).value for mean in means]))
    assert entry.best.test == pytest.approx(np.mean([mean.test.value for mean in means]))
    of_images = math.sqrt(np.mean([there(mean.test.standard_error) ** 2 for mean in means]))
    assert entry.best.standard_error_of_images_and_draws == pytest.approx(of_images)
    spread = there(entry.seed_spread)
    assert spread.degrees_of_freedom == 3
    assert entry.best.standard_error_of_seeds == pytest.approx(spread.standard_deviation / math.sqrt(2))
    text = guidance_text.to_markdown(made)
    assert "## Detection: mean AUROC against noise, mnist" in text
    assert "Independent betas won, by" in text
    assert plain.from_plain(type(made), plain.to_plain(made), "guidance.json") == made


def test_without_repeats_no_betas_are_said_to_win():
    text = guidance_text.to_markdown(guidance.make_guidance([model.scored for model in models(0.3, 2.0)]))
    section = text.partition("## Detection")[2]
    assert "whether they won cannot be said" in section
    assert "won, by" not in section


def test_who_does_not_ask_sees_nothing_of_it():
    without = [evaluated().scored, evaluated("1", (0.5, 1.0)).scored]
    made = guidance.make_guidance(without)
    assert made.applications.detection is None
    assert "detection" not in made.left_out
    assert "etection" not in guidance_text.to_markdown(made)
    # Also of a table without it, beside models that have it: they stand alone.
    some = [*without, models(1.0)[0].scored]
    assert there(guidance.make_guidance(some).applications.detection).num_candidates == 1


def settings(**changes: Any) -> DetectionSettings:
    made = DetectionSettings("1", SIZES, {"binarize": "none"}, "c", 5, "d", {"noise": {"test": {"n": 1}}})
    return dataclasses.replace(made, **changes)


def test_files_are_kept_with_what_made_them(tmp_path):
    assert ood_files.why_stale(tmp_path, settings()) == "it has no ood.json yet"
    found = compared()
    ood_files.save(tmp_path, found, settings())
    assert ood_files.why_stale(tmp_path, settings()) is None
    assert ood_files.load(tmp_path) == found.detection
    for changes, why in (
        ({"version": "2"}, "version was 1, is 2"),
        ({"sizes": DetectionSizes(3, 50)}, "sizes: num_draws was 2, is 3"),
        ({"step": 6}, "step was 5, is 6"),
        ({"outside": {"noise": {"test": {"n": 2}}}}, "outside: noise: test: n was 1, is 2"),
        ({"outside": {}}, "outside: noise was"),
    ):
        assert there(ood_files.why_stale(tmp_path, settings(**changes))).startswith(why)
    content = (tmp_path / "ood.npz").read_bytes()
    (tmp_path / "ood.npz").write_bytes(content[:100])
    assert ood_files.why_stale(tmp_path, settings()) == "ood.npz is absent or damaged"
    (tmp_path / "ood.npz").write_bytes(content)
    whole = records.read_json(tmp_path / "ood.json")
    for damaged in ({**whole, "sets": 3}, {"settings": whole["settings"]}, [1]):
        records.write_json(tmp_path / "ood.json", damaged)
        assert ood_files.why_stale(tmp_path, settings()) == "ood.json is damaged"
        with pytest.raises(RunError, match=r"ood\.json"):
            ood_files.load(tmp_path)
    (tmp_path / "ood.json").write_text("{")
    assert ood_files.why_stale(tmp_path, settings()) == "ood.json is damaged"


def test_a_table_has_a_row_for_each_model_set_and_score(tmp_path):
    found = models(0.3, 2.0)
    ood_files.write_table(tmp_path, [*found, evaluated("plain")])
    with (tmp_path / "ood.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3
    (row,) = [r for r in rows if (r["model"], r["set"], r["score"]) == ("10", "mnist", "llr_above_1")]
    entry = there(found[1].detection).sets[1].by("llr_above_1")
    assert (row["beta_1"], row["is_chosen"]) == ("0.5", "1")
    assert float(row["test.auroc"]) == entry.test.auroc.value
    assert float(row["valid.fpr_at_80_tpr_standard_error"]) == there(entry.valid).fpr_at_80_tpr.standard_error
    assert sum(int(row["is_chosen"]) for row in rows) == 4


def test_histograms_and_maps_show_what_was_measured(tmp_path, monkeypatch):
    kept = drawn.keep_figures(monkeypatch)
    found = compared(sets=("noise",))
    found.scores["outside_1_test"][:3] = np.inf
    figures.histograms(found.detection, found.scores, "a title", tmp_path / "histograms")
    panels = [axes for axes in kept["histograms.png"].axes if axes.get_xlabel()]
    assert [axes.get_xlabel().partition(" (")[0] for axes in panels] == [
        "−ELBO", "−importance-weighted bound", "LLR$^{>1}$",
    ]  # fmt: skip
    auroc = found.detection.sets[0].by("llr_above_1").test.auroc.value
    labels = [text.get_text() for text in there(panels[2].get_legend()).get_texts()]
    assert labels == ["own test images", f"noise, AUROC {auroc:.3f}"]
    patches: Any = panels[2].patches
    shares = [patch.get_data().values for patch in patches]
    assert [values.sum() for values in shares] == pytest.approx([1.0, 1.0])
    assert shares[1][-1] >= 3 / 60  # what overflowed is at the far end

    several = models(0.3, 2.0, 1.0)
    made = guidance.make_guidance([model.scored for model in several])
    figures.detection_maps(several, made, tmp_path / "maps")
    axes = next(a for a in kept["maps.png"].axes if a.get_title() == "mnist: LLR$^{>1}$")
    expected = [there(m.detection).sets[1].by("llr_above_1").test.auroc.value for m in several]
    assert sorted(drawn.dots(axes)[:, 2]) == pytest.approx(sorted(expected))


def test_of_many_ratios_figures_show_some_and_the_chosen_one():
    names = [f"llr_above_{layer}" for layer in range(1, 20)]
    separation = detection.separate(np.arange(9.0), np.arange(9.0))
    scores = tuple(detection.OfScore(score=name, test=separation) for name in ("negative_elbo", *names))
    one = Detection(
        num_images=PerSplit(test=9),
        num_draws=1,
        layers=tuple(range(1, 20)),
        sets=(detection.OfSet(name="noise", num_images=PerSplit(test=9), scores=scores),),
        chosen="llr_above_3",
    )
    assert figures.shown_scores(one) == [
        "negative_elbo", "llr_above_1", "llr_above_3", "llr_above_10", "llr_above_19",
    ]  # fmt: skip


def test_a_fourth_application_leaves_room_for_nothing_that_is_not_there():
    assert dict(PerApplication(detection=1).items()) == {"detection": 1}
    assert "detection" not in plain.to_plain(PerApplication(generation=Score(1.0)))
