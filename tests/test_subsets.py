"""Which images stand for a split."""

import numpy as np
import pytest

from hvae_jax import data
from hvae_jax.data import subsets
from hvae_jax.data.stored import HostArray

SORTED = np.repeat(np.arange(10), [50, 3, 40, 1, 30, 30, 30, 2, 30, 30])


def test_a_subset_is_plain_and_random():
    found = data.subset(1000, 200)
    assert len(set(found.tolist())) == 200
    assert np.all(np.diff(found) > 0)
    assert (found.min() >= 0, found.max() < 1000) == (True, True)
    # Each image equally often: over seeds, a binomial count each.
    counts = sum(np.bincount(data.subset(50, 10, seed), minlength=50) for seed in range(500))
    assert np.all(np.abs(counts - 100) < 5 * np.sqrt(500 * 0.2 * 0.8))


def test_a_smaller_subset_is_part_of_a_larger_one_and_all_are_all():
    assert set(data.subset(1000, 20)) < set(data.subset(1000, 200))
    for most in (7, 8, 10**9):
        assert data.subset(7, most).tolist() == list(range(7))
    assert data.subset(7, 0).tolist() == data.subset(0, 5).tolist() == []
    assert data.subset(1000, 20).tolist() != data.subset(1000, 20, seed=1).tolist()


@pytest.mark.parametrize("num", [1, 4, 10, 12, 35, 200, 246, 500])
def test_a_spread_shows_all_classes_as_equally_as_there_are_images(num: int):
    found = data.spread(SORTED, num)
    assert len(set(found.tolist())) == len(found) == min(num, len(SORTED))
    assert np.all(np.diff(SORTED[found]) >= 0)
    have, chosen = np.bincount(SORTED), np.bincount(SORTED[found], minlength=10)
    # Water filling: no class that has images left stands more than one behind another.
    left = chosen < have
    assert not left.any() or chosen[left].min() >= chosen.max() - 1
    assert (chosen[have > 0].min() >= 1) == (num >= 10)


def test_a_spread_is_drawn_by_its_seed_and_does_not_see_the_order_of_classes():
    assert data.spread(SORTED, 12).tolist() == data.spread(SORTED, 12).tolist()
    assert data.spread(SORTED, 12).tolist() != data.spread(SORTED, 12, seed=1).tolist()
    # Twelve pictures of a hundred classes are not always the first twelve classes.
    assert len({label for seed in range(20) for label in data.spread(np.arange(100), 12, seed)}) > 50


def test_a_spread_without_labels_is_a_random_subset():
    found = data.spread(np.zeros(1000, np.int32), 50)
    assert np.all(np.diff(found) > 0)
    assert found.max() > 500


def test_a_spread_of_labels_on_disk_reads_a_part_of_them(monkeypatch: pytest.MonkeyPatch):
    class Counted(HostArray):
        num_read = 0

        def read(self, places: np.ndarray) -> np.ndarray:
            Counted.num_read += len(places)
            return super().read(places)

    monkeypatch.setattr(subsets, "POOL", 100)
    labels = np.repeat(np.arange(5), 200)
    found = data.spread(Counted(labels), 10)
    assert Counted.num_read == 100
    assert labels[found].tolist() == np.repeat(np.arange(5), 2).tolist()


def test_what_cannot_be_drawn_is_a_callers_error():
    with pytest.raises(ValueError, match=r"labels \[2, 2\] must be \[N\]"):
        data.spread(np.zeros((2, 2), int), 1)
    with pytest.raises(ValueError, match="num=-1"):
        data.spread(SORTED, -1)
    with pytest.raises(ValueError, match="most=-1"):
        data.subset(3, -1)
