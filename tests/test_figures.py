import matplotlib.image
import numpy as np
import pytest

from hvae_jax.figures import runs as figures


@pytest.mark.parametrize("num_columns", [1, 12])
def test_no_words_are_cut_off_beside_or_above_rows_of_images(tmp_path, num_columns):
    """The edges of the picture stay white, at the longest labels and with one image in a row."""
    white = np.ones((num_columns, 8, 8, 1))
    rows = {"temperature 1, pixels drawn": white, "from $z_2$ and up": white}
    file = tmp_path / "rows.png"
    figures.image_rows(rows, "Samples: digits, generalized top down, betas (0.464, 0.464)", file)
    picture = matplotlib.image.imread(file)[..., :3]
    assert picture.min() < 0.5  # the words are there
    for edge in (picture[:, :4], picture[:, -4:], picture[:4], picture[-4:]):
        assert edge.min() == 1.0
