import numpy as np
import pytest
from skimage import metrics

from hvae_jax.evaluation import similarity


@pytest.mark.parametrize(("shape", "window"), [((4, 8, 8, 1), 3), ((3, 28, 28, 1), 7), ((2, 32, 32, 3), 7)])
def test_both_agree_with_scikit_image(shape, window):
    generator = np.random.default_rng(0)
    x = generator.random(shape, np.float32)
    y = np.clip(x + 0.2 * generator.normal(size=shape), 0, 1).astype(np.float32)
    expected = [metrics.peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(similarity.psnr(x, y), expected, rtol=1e-5)
    expected = [
        metrics.structural_similarity(a, b, win_size=window, data_range=1.0, channel_axis=2)
        for a, b in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(similarity.ssim(x, y), expected, atol=1e-5)


def test_known_values():
    black = np.zeros((2, 8, 8, 1))
    np.testing.assert_allclose(similarity.psnr(black, black + 0.1), 20.0, rtol=1e-6)
    np.testing.assert_allclose(similarity.psnr(black, black), 100.0)
    np.testing.assert_allclose(similarity.ssim(black, black), 1.0, rtol=1e-6)


def test_values_outside_0_and_1_are_clipped_first():
    white = np.ones((1, 8, 8, 1))
    assert similarity.psnr(white, white + 7) == similarity.psnr(white, white)
    assert similarity.ssim(white - 1, white - 9) == pytest.approx(1.0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(2, 8, 8, 1\)"):
        similarity.psnr(np.zeros((2, 8, 8, 1)), np.zeros((1, 8, 8, 1)))
