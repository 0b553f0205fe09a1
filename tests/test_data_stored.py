"""Rows of arrays and of stored ones."""

import data_files
import jax
import numpy as np
import pytest

from hvae_jax import data
from hvae_jax.data import stored
from hvae_jax.training import devices


@pytest.mark.parametrize("shape", [(), (5,), (7, 3, 3, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_arrays_lie_where_a_cpu_device_can_read_them(shape, dtype):
    array = stored.empty(shape, dtype)
    assert (array.shape, array.dtype) == (shape, dtype)
    assert array.ctypes.data % stored.ALIGNMENT == 0
    assert array.flags.writeable


def test_rows_are_those_of_plain_indexing():
    rows = np.random.default_rng(0).integers(0, 256, (50, 2, 3), np.uint8)
    index = np.array([3, 3, 49, 0])
    chosen = stored.select(rows, index)
    np.testing.assert_array_equal(chosen, rows[index])
    assert stored.aligned(chosen) is chosen
    moved = stored.empty((51, 2, 3), np.uint8)[1:]  # six bytes further
    moved[...] = rows
    np.testing.assert_array_equal(stored.aligned(moved), rows)
    assert stored.aligned(moved).ctypes.data % stored.ALIGNMENT == 0
    np.testing.assert_array_equal(stored.concatenate([rows, moved]), np.concatenate([rows, rows]))


@pytest.mark.parametrize("index", [[50], [-1]])
def test_no_other_rows_are_there(index):
    with pytest.raises(IndexError, match="of 50 rows"):
        stored.select(np.zeros((50, 2), np.uint8), np.array(index))


def test_a_device_of_the_cpu_reads_the_images_of_a_data_set_where_they_are():
    dataset = data.load(data_files.make_config("digits", num_valid=100))
    for split in dataset.splits.values():
        placed = devices.replicate(split.images)
        assert placed.addressable_data(0).unsafe_buffer_pointer() == split.images.ctypes.data
    assert jax.default_backend() == "cpu"
