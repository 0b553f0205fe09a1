"""Reads the images of a file of `experiments.compress`.

    python -m experiments.decompress test.bits --workdir=runs/mnist --out=test.npz
    python -m experiments.decompress test.bits --workdir=runs/mnist --out=test_from_z_2.npz --layers=2

IMAGES.npz has the array `images`, uint8 [N, H, W, C], bit for bit what was encoded; binarised images are 0
and 255.
--layers=K reads the layers from z_K up alone, and writes the picture that they make, the layers below at the
prior's means, with `places`, the images that it is of: all where the file has these layers in front
(`experiments.compress --top_first`), else those that were encoded last, which lie on top.
A file of another model, version or device, or a damaged one, ends in one line, and nothing is written.
"""

import io
from typing import Any

import numpy as np
from absl import flags

from experiments import program
from experiments.compress import Pace
from hvae_jax import codec, experiment, files
from hvae_jax.codec import container
from hvae_jax.codec.stack import require_constriction
from hvae_jax.errors import RunError


def main(arguments: list[str]) -> None:
    """Reads the flags, decodes, writes."""
    if len(arguments) != 1:
        raise RunError("give one file of experiments.compress, and flags that start with --")
    require_constriction()
    source = program.source_flag("FILE", arguments[0])
    workdir = program.folder_flag("workdir", flags.FLAGS.workdir)
    out = program.file_flag("out", flags.FLAGS.out, (".npz",))
    content = source.read_bytes()
    header = container.unpack(content).header
    built = experiment.from_folder(workdir)
    layer = flags.FLAGS.layers
    if layer is not None and not 1 <= layer <= built.model.num_layers:
        raise RunError(f"--layers={layer} must be in 1 … {built.model.num_layers}, the model's layers")

    program.start_devices()
    params = experiment.restore(built, workdir).eval_params
    if header.betas:
        params = built.at(params, header.betas)
    pace = Pace(header.num_images)
    arrays: dict[str, Any]
    if layer is None:
        arrays = {"images": codec.decode(built.model, params, content, report=pace)}
        said = f"all {header.num_images} images"
    else:
        top = codec.decode_top(built.model, params, content, layer, report=pace)
        arrays = {"images": np.rint(255.0 * top.images).astype(np.uint8), "places": top.places}
        said = (
            f"z_{layer} and what is above it of {len(top.places)} of {header.num_images} images: "
            f"{top.num_bits / len(top.places):,.1f} bits each, most of which the rest of the file gives back"
        )
    seconds, images_per_s = pace.end()
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    program.make_parent(out)
    files.write_bytes(out, file.getvalue())
    print(f"{said}. {seconds:.1f} s with compiling, then {images_per_s:.0f} images/s. They are in {out}")


def define_flags() -> None:
    """Not at import, where they would meet the flags of another program in the same process."""
    flags.DEFINE_string("workdir", None, "Folder of the run that the file was written with.", required=True)
    flags.DEFINE_string("out", None, "NPZ to write.", required=True)
    flags.DEFINE_integer("layers", None, "The lowest layer to read; all of them, and the pixels, without it.")


if __name__ == "__main__":
    define_flags()
    program.run(main, resumes=False)
