"""Data sets by name, as uint8 images, and what turns them into a model's input.

`load(config)` understands `digits` (scikit-learn, nothing to download), `idx:FOLDER` (MNIST's own
file format), `npz:FILE` (your arrays), `folder:PATH` (PNG and JPEG files) and, once prepared, `mnist`,
`fashion_mnist`, `svhn_cropped`, `cifar10` and `tfds:NAME` of TensorFlow Datasets, which are read without
TensorFlow. A split that is too large to keep on the devices is streamed to them: it comes as a
`stored.StoredArray`.

What your arrays may be; what is not listed is refused, and `Dataset.notices` says what was changed:

| Names in `npz:FILE` | |
| --- | --- |
| images | `train_images`, `test_images`, perhaps `valid_images`; or `x_train`, `x_test`, `x_valid` |
| labels | `train_labels`, … or `y_train`, …: of all splits, or of none (then all are 0) |
| also | `val` or `validation` for `valid`, capitals for small letters; other arrays are refused |

| Names in `idx:FOLDER` | |
| --- | --- |
| images | `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte` |
| labels | `train-labels-idx1-ubyte`, `t10k-labels-idx1-ubyte` |
| also | `.idx` for `-idx`, `test` for `t10k`, gzipped (known by content), in a folder of the file's name |

| Files in `folder:PATH` | |
| --- | --- |
| splits | the folders `train`, `test`, perhaps `valid` (or `val`, `validation`) |
| labels | a folder for each class in each of them, numbered by name; or images alone, then all are 0 |
| images | `.png`, `.jpg`, `.jpeg`, known by content; in the order of their names |
| also | other files beside the splits, and names that start with a dot, are passed over |

| An image file | Becomes |
| --- | --- |
| all grey, also as palette or 1 bit | one channel |
| any in colour | three channels; those of grey files are equal, with a notice |
| transparent, 16 bits, CMYK, turned by EXIF | over white, the upper 8, RGB, as seen; with a notice |
| of any size, with `DataConfig.side` | the square in its middle, scaled; without it all must have one size |

| Images | Become |
| --- | --- |
| `[N, H, W]`, or `[N, H, W, C]` with C 1 to 4 | `[N, H, W, C]` |
| `[N, C, H, W]` with C 1 to 4, where W is not | `[N, H, W, C]`, with a notice |
| uint8, or other integers, all from 0 to 255 | themselves |
| float, all splits in [0, 1] | times 255, rounded, with a notice |
| float, whole numbers from 0 to 255 | themselves, with a notice |
| bool | 0 and 255, with a notice |

| Labels | Become |
| --- | --- |
| `[N]` or `[N, 1]`: integers of 0 or more, whole floats, bool | themselves |
| such, where fewer than half of 0 … largest occur | numbered from 0 in rising order, with a notice |
| strings, or bytes in UTF-8 | numbered from 0 in alphabetical order, with a notice |
| one-hot `[N, M]`: one 1 in each row, else 0 | the place of the 1, with a notice |

Labels are numbered alike in all splits; `Dataset.class_names` keeps the strings or ids.
Pixels are taken as 0 to 255. A split whose largest value is 1 or less is refused, and so are training images
that rounding leaves constant (`binarize="round"`); a largest value below 128 gives a notice.
`check_values=False` takes all as they are.
"""

from hvae_jax.data.sources import BINARIZE as BINARIZE
from hvae_jax.data.sources import FOLDER as FOLDER
from hvae_jax.data.sources import TFDS_NAMES as TFDS_NAMES
from hvae_jax.data.sources import DataConfig as DataConfig
from hvae_jax.data.sources import Dataset as Dataset
from hvae_jax.data.sources import load as load
from hvae_jax.data.sources import make_preprocess as make_preprocess
from hvae_jax.data.sources import title_of as title_of
from hvae_jax.data.stored import Split as Split
from hvae_jax.data.subsets import spread as spread
from hvae_jax.data.subsets import subset as subset
