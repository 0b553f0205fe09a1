"""What tells that data under a run have changed."""

import hashlib
import json
import pathlib
from typing import Any

import numpy as np
import pytest

from experiments import made_images
from hvae_jax import data
from hvae_jax.data import DataConfig, Dataset, Split, fingerprints
from hvae_jax.data.stored import HostArray

IMAGES = np.random.default_rng(0).integers(0, 256, (300, 4, 5, 1), np.uint8)
LABELS = (np.arange(300) % 7).astype(np.int32)


def make_dataset(images: Any = IMAGES, labels: Any = LABELS, name: str = "npz:a.npz") -> Dataset:
    split = Split(images, labels)
    return Dataset(name, split, Split(images[:0], labels[:0]), Split(images[:9], labels[:9]))


def of_train(**changes: Any) -> str:
    return make_dataset(**changes).describe()["splits"]["train"]["fingerprint"]


def test_a_description_says_what_the_data_are_and_is_ready_for_json():
    found = make_dataset().describe()
    assert json.loads(json.dumps(found)) == found
    assert (found["name"], found["image_shape"], found["num_classes"]) == ("npz:a.npz", [4, 5, 1], 7)
    assert [split["num_images"] for split in found["splits"].values()] == [300, 0, 9]
    assert list(found["splits"]) == ["train", "valid", "test"]
    prints = [split["fingerprint"] for split in found["splits"].values()]
    assert len(set(prints)) == 3
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


def test_a_fingerprint_is_the_sha256_that_it_says_it_is():
    # As released: what is in the folders of runs must not change with the code.
    parts = [hashlib.sha256(hashlib.sha256(rows.tobytes()).digest()).hexdigest() for rows in (IMAGES, LABELS)]
    text = "\n".join(["all", "|u1 [300, 4, 5, 1]", "<i4 [300]", *parts])
    assert of_train() == hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", ["npz:a.npz", "mnist", "tfds:mine"])
def test_data_in_memory_and_streamed_have_the_same_fingerprint(name: str):
    assert of_train(name=name) == of_train(name=name, images=HostArray(IMAGES))
    places = np.arange(0, 300, 2)
    selected = HostArray(IMAGES).select(places)
    assert of_train(name=name, images=selected, labels=LABELS[places]) == of_train(
        name=name, images=IMAGES[places], labels=LABELS[places]
    )


def test_one_pixel_one_label_or_the_order_changes_it():
    pixel, label = IMAGES.copy(), LABELS.copy()
    pixel[123, 2, 3] ^= 1
    label[123] ^= 1
    changes: list[dict[str, Any]] = [
        {},
        {"images": pixel},
        {"labels": label},
        {"images": IMAGES[::-1], "labels": LABELS[::-1]},
        {"images": IMAGES.reshape(300, 5, 4, 1)},
        {"images": IMAGES[:-1], "labels": LABELS[:-1]},
        {"name": "mnist"},  # of a sample
    ]
    assert len({of_train(**change) for change in changes}) == len(changes)


def test_chunks_do_not_change_what_is_seen(monkeypatch: pytest.MonkeyPatch):
    whole = of_train()
    monkeypatch.setattr(fingerprints, "CHUNK_BYTES", 7 * IMAGES[0].nbytes + 3)
    assert of_train() == of_train(images=HostArray(IMAGES)) != whole
    for place in (0, 6, 7, 298, 299):
        images = IMAGES.copy()
        images[place] += 1
        assert of_train(images=images) != of_train()


def test_a_sample_is_spread_evenly_and_sees_what_it_holds():
    places = fingerprints.sampled_places(300)
    assert (len(places), places[0], places[-1]) == (64, 0, 299)
    assert set(np.diff(places)) <= {4, 5}
    assert fingerprints.sampled_places(5).tolist() == [0, 1, 2, 3, 4]
    assert fingerprints.sampled_places(0).tolist() == []
    old = of_train(name="mnist")
    for place in (places[20], places[20] + 1):
        images = IMAGES.copy()
        images[place] += 1
        assert (of_train(name="mnist", images=images) != old) == (place in places)


def test_a_prepared_data_set_is_described_alike_streamed_or_not(tmp_path: pathlib.Path):
    made_images.prepare(tmp_path, 100, 70, 8)
    streamed, kept = (
        data.load(DataConfig("tfds:made_images", str(tmp_path), "none", 10, 0, mode, 0)).describe()
        for mode in ("always", "never")
    )
    assert streamed == kept
    assert kept["splits"]["test"]["num_images"] == 70
