"""What users get wrong: for each, one clear line before any work, a status that is not 0, nothing changed.

The programs are started as tests/programs.py does.
"""

import hashlib
import json
import pathlib
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import picture_folders
import programs as started
import pytest
import tiny

from experiments import digits, digits_grid, digits_targets, targets_rows
from hvae_jax import data, experiment

DIGITS = "--config=experiments/digits.py"
GRID = "--config=experiments/digits_grid.py"
TARGETS = "--config=experiments/digits_targets.py"

CONFIGS = {
    "syntax": "def get_config(:\n    return 1\n",
    "no_such_name": "import math\n\nHALF = half\n",
    "key_error": "def get_config():\n    return {}['absent']\n",
    "value_error": "def get_config():\n    raise ValueError('not today')\n",
    "reads_a_file": "def get_config():\n    return open('absent.txt')\n",
    "plain_dict": "def get_config():\n    return {'data': {}}\n",
    "nothing": "def get_config():\n    pass\n",
    "computes": (
        "import jax.numpy as jnp\nfrom experiments import digits\nONES = jnp.ones(2)\ndef get_config():\n"
        "    return digits.get_config()\n"
    ),
    "no_get_config": "CONFIG = {}\n",
    "exits": "import sys\n\n\ndef get_config():\n    sys.exit(0)\n",
    "interrupted": "raise KeyboardInterrupt\n",
    "no_error": "class Odd(BaseException):\n    pass\n\n\nraise Odd('odd')\n",
    "null_bytes": "\0\0",
    "calls_itself": "def get_config():\n    return get_config()\n",
    "numbered_group": (
        "from ml_collections import ConfigDict\nfrom experiments import digits\ndef get_config():\n"
        "    return ConfigDict({**digits.get_config().to_dict(), 3: {}})\n"
    ),
    "frozen": (
        "from ml_collections import FrozenConfigDict\nfrom experiments import digits\ndef get_config():\n"
        "    return FrozenConfigDict(digits.get_config())\n"
    ),
    **{
        name: (
            "from experiments import digits\ndef get_config():\n    config = digits.get_config().unlock()\n"
            f"    with config.ignore_type():\n        config.{change}\n    return config\n"
        )
        for name, change in (
            ("seed_true", "training.seed = True"),
            ("rate_text", "training.learning_rate = '0.1'"),
            ("long_betas", "objective.betas = (1.0,) * 100000"),
            ("targets_none", "objective.targets_nats = None"),
            ("huge_beta", "objective.betas = (10**400, 1.0)"),
            ("huge_seed", "training.seed = 10**5000"),
        )
    },
    "no_model": (
        "from experiments import digits\ndef get_config():\n    config = digits.get_config().unlock()\n"
        "    del config.model\n    return config\n"
    ),
    "number_for_a_group": (
        "from experiments import digits\ndef get_config():\n    config = digits.get_config().unlock()\n"
        "    del config.model\n    config.model = 3\n    return config\n"
    ),
    "function_for_a_number": (
        "from experiments import digits\ndef get_config():\n    config = digits.get_config().unlock()\n"
        "    with config.ignore_type():\n        config.training.learning_rate = abs\n    return config\n"
    ),
}

# Program, arguments, what the line says.
ROWS = [
    # Config files.
    ("run", [], ["--config must be given", "--help"]),
    ("run", ["--config=experiments/absent.py"], ["--config=experiments/absent.py: there is no such file"]),
    ("run", ["--config=configs"], ["--config=configs is a folder"]),
    ("run", ["--config="], ["--config= is empty"]),
    ("run", [DIGITS, DIGITS], ["--config is given 2 times"]),
    ("run", ["--config=configs/syntax.py"], ["configs/syntax.py:1: SyntaxError", "invalid syntax"]),
    ("run", ["--config=configs/no_such_name.py"], ["configs/no_such_name.py:3: NameError", "half"]),
    ("run", ["--config=configs/key_error.py"], ["configs/key_error.py:2: KeyError: 'absent'"]),
    ("run", ["--config=configs/value_error.py"], ["configs/value_error.py:2: ValueError: not today"]),
    ("run", ["--config=configs/reads_a_file.py"], ["reads_a_file.py:2: FileNotFoundError", "absent.txt"]),
    ("run", ["--config=configs/plain_dict.py"], ["returned a dict", "ml_collections.ConfigDict"]),
    ("run", ["--config=configs/plain_dict.py", "--config.data.name=x"], ["returned a dict"]),
    ("run", ["--config=configs/nothing.py"], ["returned NoneType", "ml_collections.ConfigDict"]),
    ("run", ["--config=configs/no_get_config.py"], ["no_get_config.py has no function get_config()"]),
    ("run", ["--config=configs/exits.py"], ["configs/exits.py:5: SystemExit: 0"]),
    ("run", ["--config=configs/interrupted.py"], ["stopped"]),
    ("run", ["--config=configs/no_error.py"], ["configs/no_error.py:5: Odd: odd"]),
    ("run", ["--config=configs/null_bytes.py"], ["null_bytes.py:1: SyntaxError"]),
    ("run", ["--config=configs/calls_itself.py"], ["calls_itself.py:2: RecursionError"]),
    ("run", ["--config=configs/numbered_group.py"], ["config has fields whose names are not all strings"]),
    ("run", ["--config=configs/frozen.py", "--config.data.name=mmnist"], ["config.data.name='mmnist'"]),
    ("run", ["--config=configs/seed_true.py"], ["config.training.seed=True must be", "integer"]),
    ("run", ["--config=configs/rate_text.py"], ["config.training.learning_rate='0.1' must be a number"]),
    ("run", ["--config=configs/long_betas.py"], ["config.objective.betas=(1.0", "has 100000 entries"]),
    ("run", ["--config=configs/targets_none.py"], ["config.objective.targets_nats=None must be a tuple"]),
    ("run", ["--config=configs/huge_beta.py"], ["beta_1=1000", "must be finite"]),
    ("run", ["--config=configs/huge_seed.py"], ["config.training.seed=a number of thousands of digits"]),
    ("run", ["--config=configs/no_model.py"], ["has no group config.model"]),
    ("run", ["--config=configs/number_for_a_group.py"], ["config.model=3 must be a group"]),
    ("run", ["--config=configs/computes.py", "--config.data.name=mmnist"], ["config.data.name='mmnist'"]),
    ("run", ["--config=configs/function_for_a_number.py"], ["config.training.learning_rate is builtin"]),
    ("run", ["--config=json.json"], ["--config=json.json has no function get_config()"]),
    ("run", ["--config=npz.npz"], ["--config=npz.npz cannot be loaded"]),
    ("grid", [DIGITS], ["config has no group grid"]),
    ("run", [GRID], ["config must have the groups", "grid"]),
    # Fields given as flags.
    ("run", [DIGITS, "--config.trainin.seed=1"], ["config.trainin is not a field", "training"]),
    ("run", [DIGITS, "--config.model.chanels=3"], ["config.model.chanels is not a field", "channels"]),
    ("run", [DIGITS, "--config.training.sed=1"], ["config.training.sed is not a field", "seed"]),
    ("run", [DIGITS, "--config.training.seed.x=1"], ["config.training.seed is a field, 0", "'x'"]),
    ("run", [DIGITS, "--config.training.batch_size=2.5"], ["--config.training.batch_size=2.5"]),
    ("run", [DIGITS, "--config.training.num_epochs=many"], ["--config.training.num_epochs=many"]),
    ("run", [DIGITS, "--config.objective.betas=(1.0,"], ["--config.objective.betas=(1.0,", "tuple"]),
    (
        "run",
        [DIGITS, "--config.objective.betas=(3.0,1.0)", "--config.objective.betas=(2.0,1.0)"],
        ["--config.objective.betas=(2.0,1.0): --config.objective.betas is given more than once"],
    ),
    ("run", [DIGITS, "--config.training=3"], ["--config.training=3", "ConfigDict"]),
    ("run", ["--config.training.seed=1", DIGITS], ["--config.training.seed=1", "before"]),
    ("run", [DIGITS, "--config.training.seed"], ["--config.training.seed"]),
    ("run", [DIGITS, "--config.objective.betas[0]=2.0"], ["config.objective.betas[0] is not a field"]),
    ("run", [DIGITS, "--config.=1"], ["--config.=1", "is not a field"]),
    ("run", [DIGITS, "--config.evaluation.num_samples=1000000000"], ["num_samples=1000000000", "1000000"]),
    ("run", [DIGITS, "--config.data.num_workers=1000000000"], ["num_workers=1000000000", "0 to 1024"]),
    ("run", [DIGITS, "--config.objective.betas=(1.0,2.0,3.0)"], ["has 3 entries but the model has 2 layers"]),
    ("run", [DIGITS, "--config.training.num_epochs=1e12"], ["config.training.num_epochs=1000000000000.0"]),
    ("run", [DIGITS, "--config.model.channels=1000000"], ["GiB", "lower config.model.channels"]),
    ("run", [DIGITS, "--config.training.num_epochs=nan"], ["config.training.num_epochs=nan"]),
    ("run", [DIGITS, "--config.evaluation.num_samples=0"], ["config.evaluation.num_samples=0"]),
    ("run", [DIGITS, "--config.data.name=mmnist"], ["config.data.name='mmnist'"]),
    ("run", [DIGITS, "--config.data.name=npz:masks.npz", "--config.data.num_valid=0"], ["masks.npz", "255"]),
    ("run", [DIGITS, "--config.data.name=npz:text.txt"], ["text.txt"]),
    ("run", [DIGITS, "--config.data.name=folder:"], ["config.data.name='folder:': must be one of"]),
    ("run", [DIGITS, "--config.data.name=folder:text.txt"], ["text.txt is a file; name a folder of images"]),
    ("run", [DIGITS, "--config.data.name=folder:absent"], ["absent does not exist; name a folder"]),
    ("run", [DIGITS, "--config.data.name=folder:folder"], ["folder has no train/; it must hold train/"]),
    ("run", [DIGITS, "--config.data.name=folder:pictures"], ["train/b.png has 9 × 8", "config.data.side=N"]),
    (
        "run",
        [DIGITS, "--config.data.name=folder:pictures", "--config.data.side=8"],
        ["cannot read pictures/train/c.jpg (image file is truncated", "get the file again"],
    ),
    ("run", [DIGITS, "--config.data.side=8"], ["config.data.side=8: only images of folder:PATH are scaled"]),
    ("run", [DIGITS, "--config.data.side=eight"], ["--config.data.side=eight"]),
    (
        "grid",
        [GRID, "--config.data.name=folder:x", "--config.data.side=0"],
        ["config.data.side=0", "1 to 4096"],
    ),
    ("grid", [GRID, "--config.grid.betas=((True,1.0),(1.0,))"], ["config.grid.betas", "True"]),
    ("grid", [GRID, "--config.model.latent_shapes=((2,2,16),)"], ["is over 2 layers but the model has 1"]),
    ("grid", [GRID, "--config.grid.memory_gib=0.01"], ["config.grid.memory_gib=0.01 allows 0.01 GiB"]),
    ("grid", [GRID, "--config.grid.memory_gib=1e300"], ["config.grid.memory_gib=1e+300", "at most 1000000"]),
    # Other flags.
    ("run", ["configs/plain_dict.py"], ["--config must be given"]),
    ("run", [DIGITS, "more"], ["'more' is not a flag"]),
    ("run", [DIGITS, "--wrokdir=x"], ["wrokdir"]),
    ("run", [DIGITS, "--num_processes=2"], ["--num_processes=2 needs --coordinator=HOST:PORT"]),
    ("run", [DIGITS, "--start_timeout_s=nan"], ["--start_timeout_s=nan must be a finite number"]),
    (
        "run",
        [DIGITS, "--coordinator=here:99999", "--num_processes=2", "--process_id=0"],
        ["--coordinator=here:99999 must be HOST:PORT"],
    ),
    ("run", [DIGITS, "--coordinator=nowhere"], ["--coordinator=nowhere must be HOST:PORT"]),
    ("grid", [GRID, "--launcher=cloud"], ["--launcher=cloud"]),
    ("grid", [GRID, "--cpu_devices=0"], ["--cpu_devices=0"]),
    (
        "grid",
        [GRID, "--cpu_devices=1000000000"],
        ["--cpu_devices=1000000000: 1000000000 is not"],
    ),
    ("grid", [GRID, "--partition=gpu"], ["--partition needs --launcher=slurm"]),
    ("evaluate", [], ["--workdir must be given"]),
    ("evaluate", ["--workdir=run", "--num_draws=0"], ["num_draws=0"]),
    ("evaluate", ["--workdir=run", "--classifier=vgg"], ["classifier", "vgg", "convnet"]),
    ("evaluate", ["--workdir=run", "--classifier_epochs=0"], ["--classifier_epochs=0"]),
    (
        "evaluate",
        ["--workdir=run", "--classifier=resnet18", "--classifier_channels=8"],
        ["--classifier_channels=8 must be a multiple of 16"],
    ),
    ("evaluate", ["--workdir=run", "--max_codes=3"], ["--max_codes=3 needs --codes"]),
    ("evaluate", ["--workdir=run", "--codes", "--max_codes=0"], ["--max_codes=0"]),
    ("evaluate", ["--workdir=run", "--ood="], ["--ood= must be names of data"]),
    ("evaluate", ["--workdir=run", "--ood=noise,"], ["--ood=noise, must be names", "with commas between"]),
    ("evaluate", ["--workdir=run", "--ood=noise,noise"], ["two sets that are called noise"]),
    ("evaluate", ["--workdir=run", "--ood=nois"], ["--ood=nois: config.data.name='nois'", "noise, constant"]),
    ("evaluate", ["--workdir=run", "--ood=npz:absent"], ["--ood=npz:absent: config.data.name='npz:absent'"]),
    ("evaluate", ["--workdir=run", "--ood=npz:masks.npz"], ["--ood=npz:masks.npz", "255"]),
    ("evaluate", ["--workdir=run", "--ood=noise,npz:wide.npz"], ["wide.npz has images of 8×6×1", "8×8×1"]),
    ("evaluate", ["--workdir=run", "--ood=noise", "--ood_draws=0"], ["--ood_draws=0 must be at least 1"]),
    ("evaluate", ["--workdir=run", "--max_ood_images=3"], ["--max_ood_images=3 must be at least 50"]),
    ("made_images", [], ["--data_dir must be given"]),
    ("made_images", ["--data_dir=new", "--side=1000000000"], ["--side=1000000000", "4096"]),
    ("made_images", ["--data_dir=new", "--side=1"], ["--side=1"]),
    ("made_images", ["--data_dir=new", "--num_train=0"], ["--num_train=0"]),
    ("benchmark.__main__", ["--only=mnist"], ["--only=mnist is unknown"]),
    ("benchmark.__main__", ["--cores=two"], ["--cores=two is unknown"]),
    ("benchmark.__main__", ["--repeats=0"], ["--repeats=0"]),
    ("benchmark.__main__", ["--quick"], ["--quick is of --device"]),
    ("benchmark.__main__", ["--device", "--scaling"], ["--device has no figure and no scaling"]),
    ("grid_task", [], ["the grid's folder and the name of a chunk"]),
    ("grid_task", ["absent", "0000"], ["absent has no plan with a chunk 0000"]),
    # Folders and files.
    ("run", [DIGITS, "--workdir="], ["--workdir is empty"]),
    ("run", [DIGITS, "--workdir=gs://bucket/run"], ["--workdir=gs://bucket/run is an address"]),
    ("run", [DIGITS, "--workdir=absent/../text.txt"], ["must be a folder, but it is a file"]),
    ("run", [DIGITS, "--workdir=text.txt"], ["--workdir=text.txt must be a folder"]),
    ("run", [DIGITS, "--workdir=text.txt/run"], ["text.txt is a file"]),
    ("run", [DIGITS, "--workdir=~absent-user/run"], ["write the folder out"]),
    ("run", [DIGITS, "--workdir=other_run"], ["config.training.seed is 5 there and 0 here"]),
    ("run", [DIGITS, "--workdir=damaged_run"], ["damaged_run/config.json"]),
    ("run", [DIGITS, "--workdir=list_run"], ["list_run/config.json"]),
    ("grid", [GRID, "--workdir=s3://bucket/grid"], ["--workdir=s3://bucket/grid is an address"]),
    ("grid", [GRID, "--baseline=absent"], ["absent"]),
    ("grid", [GRID, "--baseline=text.txt"], ["--baseline=text.txt must be a folder"]),
    ("evaluate", ["--workdir=absent"], ["--workdir=absent holds neither a run"]),
    ("evaluate", ["--workdir=text.txt"], ["--workdir=text.txt must be a folder"]),
    ("evaluate", ["--workdir=run", "--classifiers=text.txt"], ["--classifiers=text.txt must be a folder"]),
    ("evaluate", ["--workdir=run", "--classifiers="], ["--classifiers is empty"]),
    ("evaluate", ["--workdir=run", "--repeats="], ["--repeats is empty"]),
    ("evaluate", ["--workdir=run", "--seeds_from=folder"], ["--seeds_from=folder must be a file"]),
    ("evaluate", ["--workdir=run", "--data=npz:absent"], ["config.data.name='npz:absent'"]),
    ("evaluate", ["--workdir=run", "--num_draws=1000000000"], ["--num_draws=1000000000 needs about"]),
    ("evaluate", ["--workdir=run", "--baseline=absent"], ["absent holds neither a run"]),
    ("evaluate", ["--workdir=run", "--repeats=other_run"], ["--repeats=other_run", "grid"]),
    ("evaluate", ["--workdir=list_run"], ["list_run"]),
    ("made_images", ["--data_dir=gs://bucket"], ["--data_dir=gs://bucket is an address"]),
    ("made_images", ["--data_dir=text.txt"], ["--data_dir=text.txt must be a folder"]),
    ("benchmark.__main__", ["--out=folder"], ["--out=folder must be a file"]),
    ("benchmark.__main__", ["--figure=steps.xyz"], ["--figure=steps.xyz", ".png"]),
    # excess.
    ("excess", [], ["--runs must be given"]),
    ("excess", ["--runs=run", "--separate=absent.csv"], ["absent.csv does not exist"]),
    ("excess", ["--runs=run", "--separate=folder"], ["--separate=folder is a folder without grid.csv"]),
    ("excess", ["--runs=run", "--separate=text.txt"], ["text.txt is damaged"]),
    # explorer.
    ("explorer", [], ["--workdir must be given"]),
    ("explorer", ["--workdir=run", "more"], ["'more' is not a flag"]),
    ("explorer", ["--workdir=run"], ["run holds a single run, not a grid"]),
    ("explorer", ["--workdir=absent"], ["absent/config.json does not exist"]),
    ("explorer", ["--workdir=text.txt"], ["--workdir=text.txt must be a folder"]),
    ("explorer", ["--workdir=damaged_run"], ["damaged_run/config.json"]),
    ("explorer", ["--workdir=unfinished_grid"], ["unfinished_grid is a grid without a finished model"]),
    ("explorer", ["--workdir=unfinished_grid", "--out=folder"], ["--out=folder must be a file"]),
    ("explorer", ["--workdir=unfinished_grid", "--out=page.png"], ["--out=page.png", ".html"]),
    ("explorer", ["--workdir=unfinished_grid", "--num_images=0"], ["--num_images=0"]),
    ("explorer", ["--workdir=unfinished_grid", "--num_samples=100000"], ["--num_samples=100000"]),
    ("explorer", ["--workdir=unfinished_grid", "--max_megabytes=nan"], ["--max_megabytes=nan must be"]),
    # plot_betas.
    ("plot_betas", [], ["--out must be given"]),
    ("plot_betas", ["--out=f.png"], ["a beta that is not 1"]),
    ("plot_betas", ["--out=f.xyz", "beta_3"], ["--out=f.xyz", ".png"]),
    ("plot_betas", ["--out=folder", "beta_3"], ["--out=folder must be a file"]),
    ("plot_betas", ["--out=text.txt/f.png", "beta_3"], ["text.txt is a file"]),
    ("plot_betas", ["--out=f.png", "--results=r.png", "beta_3"], ["--results=r.png", ".json"]),
    ("plot_betas", ["--out=f.png", "beta_3", "absent"], ["absent/config.json does not exist"]),
    ("plot_betas", ["--out=f.png", "beta_3", "text.txt"], ["text.txt must be a folder"]),
    ("plot_betas", ["--out=f.png", "beta_3", "one_layer"], ["differ in config.objective.betas"]),
    ("plot_betas", ["--out=f.png", "beta_3", "other_data"], ["differ in config.data.name"]),
    ("plot_betas", ["--out=f.png", "beta_3", "unfinished"], ["unfinished/evaluation.json does not exist"]),
    (
        "plot_betas",
        ["--out=f.png", "beta_3", "no_test"],
        ["no_test/evaluation.json has no rates"],
    ),
    ("plot_betas", ["--out=f.png", "beta_3", "damaged_run"], ["damaged_run/config.json is damaged"]),
    # targets_table.
    ("targets_table", [TARGETS], ["--out must be given"]),
    ("targets_table", ["--out=new.json"], ["--config must be given"]),
    ("targets_table", [TARGETS, "--out=new.json", "--layers=x"], ["--layers=x must be integers"]),
    ("targets_table", [TARGETS, "--out=new.json", "--layers=4"], ["--layers=4", "2 and 3 layers"]),
    ("targets_table", [TARGETS, "--out=new.json", "--layers="], ["--layers is empty"]),
    ("targets_table", [TARGETS, "--out=new.json", "--layers=3", "--sweep=frontier"], ["--layers=3", "for 2"]),
    ("targets_table", [TARGETS, "--out=new.json", "--seeds=x"], ["--seeds=x must be integers"]),
    ("targets_table", [TARGETS, "--out=new.json", "--seeds="], ["--seeds is empty"]),
    ("targets_table", [TARGETS, "--out=new.json", "--seeds=-1"], ["--seeds=-1 must be 0 to"]),
    ("targets_table", [TARGETS, "--out=new.json", "--first=-1"], ["--first=-1"]),
    ("targets_table", [TARGETS, "--out=new.json", "--inference=x"], ["--inference=x is unknown"]),
    ("targets_table", [TARGETS, "--out=new.json", "--controls=x"], ["--controls=x is unknown"]),
    ("targets_table", [TARGETS, "--out=new.json", "--controls="], ["--controls is empty"]),
    ("targets_table", [TARGETS, "--out=new.json", "--controls=found_betas"], ["name it first"]),
    ("targets_table", [TARGETS, "--out=new.json", "--scale=0"], ["--scale=0.0 must be a positive number"]),
    ("targets_table", [TARGETS, "--out=new.json", "--scale=nan"], ["--scale=nan must be a positive number"]),
    ("targets_table", [TARGETS, "--out=new.json", "--sweep=all"], ["--sweep=all"]),
    (
        "targets_table",
        [TARGETS, "--out=new.json", "--config.model.latent_shapes=((2,2,16),)"],
        ["config.model.latent_shapes=((2, 2, 16),)", "two layers"],
    ),
    ("targets_table", [TARGETS, "--out=new.json", "--config.model.channels=0"], ["config.model.channels=0"]),
    ("targets_table", [TARGETS, "--out=folder"], ["--out=folder must be a file"]),
    ("targets_table", [TARGETS, "--out=/proc/new.json"], ["--out=/proc/new.json cannot be written"]),
    ("targets_table", [TARGETS, "--out=/dev/full"], ["--out=/dev/full must be a file"]),
    ("targets_table", [TARGETS, "--out=table.png"], ["--out=table.png", ".json"]),
    ("targets_table", [TARGETS, "--out=json.json"], ["--out=json.json holds other JSON"]),
    ("targets_table", [TARGETS, "--out=damaged_run/config.json"], ["config.json is damaged"]),
    ("targets_table", [TARGETS, "--out=old.json"], ["old.json: row 1 does not say what config made it"]),
    ("targets_table", [TARGETS, "--out=other.json"], ["other.json: row 1 was made by another config"]),
    ("targets_table", [TARGETS, "--out=replaced.json"], ["replaced.json: row 1 was made by other data"]),
    ("targets_table", ["--only_print", "--out=new.json"], ["new.json has no rows to print"]),
    ("targets_table", ["--only_print", "--out=old.json", "--sweep=frontier"], ["a total of 20 nats"]),
]
# What is asked for rather than done: program, and words of the answer.
HELP = [
    ("run", ["Train one model", "--config.GROUP.FIELD=VALUE", "--[no]tensorboard", "Required."]),
    ("grid", ["Train a whole grid", "--launcher=here|local|slurm", "Default: here."]),
    ("evaluate", ["Evaluate a run or a grid", "--workdir=TEXT"]),
    ("plot_betas", ["test rate answers", "--results=TEXT"]),
    ("targets_table", ["Ask for many rates", "--only_print", "--layers=A,B,..."]),
    ("explorer", ["sliders for the betas", "--num_samples=INTEGER", "Default: 16."]),
    ("made_images", ["smooth random images", "--data_dir=TEXT"]),
    ("benchmark.__main__", ["PyTorch", "--repeats=INTEGER", "Default: 20."]),
    ("grid_task", ["One task of a grid", "experiments.grid_task runs/digits_grid 0032"]),
]
# What the environment says.
ENVIRONMENTS = [
    ({"XLA_FLAGS": "--xla_no_such_flag=1"}, ["XLA_FLAGS=", "Unknown flag", "--xla_no_such_flag=1"]),
    ({"XLA_FLAGS": "nonsense"}, ["XLA_FLAGS='nonsense'", "Could not open file"]),
    ({"JAX_PLATFORMS": "nonsense"}, ["JAX_PLATFORMS=nonsense", "nonsense' is not in the list"]),
    ({"JAX_PLATFORMS": "cuda"}, ["JAX_PLATFORMS=cuda"]),
    (
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
        ["config.training.batch_size=64 cannot be divided over 3 devices"],
    ),
]


class Answer(NamedTuple):
    """How a program ended, and the files of its folder that are new, gone or different after it."""

    ended: started.Ended
    changed: list[str]


def snapshot(folder: pathlib.Path) -> dict[str, str]:
    """Every file and folder in it → what tells its content."""
    content = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        content[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
    return content


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> pathlib.Path:
    """A folder with a file or folder of every wrong kind."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "folder").mkdir()
    (folder / "configs").mkdir()
    for name, text in CONFIGS.items():
        (folder / "configs" / f"{name}.py").write_text(text)
    (folder / "text.txt").write_text("what was there")
    (folder / "json.json").write_text('{"what": "was there"}')
    np.savez(folder / "npz.npz", images=np.zeros((2, 2)))
    pixels, classes = np.arange(80 * 64).reshape(80, 8, 8, 1).astype(np.uint8) % 2, np.arange(80) % 10
    np.savez(
        folder / "masks.npz",
        train_images=pixels,
        train_labels=classes,
        test_images=pixels,
        test_labels=classes,
    )
    wide = np.arange(80 * 48).reshape(80, 8, 6).astype(np.uint8)
    np.savez(folder / "wide.npz", train_images=wide, test_images=wide)

    noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    names = {"train/a.png": noise[:8, :8], "train/b.png": noise[:9, :8], "train/c.jpg": noise}
    picture_folders.write(folder / "pictures", names | {"test/a.png": noise[:8, :8]})
    cut = folder / "pictures" / "train" / "c.jpg"
    cut.write_bytes(cut.read_bytes()[:2000])

    config = digits.get_config().to_dict()
    seed_5 = {**config, "training": {**config["training"], "seed": 5}}
    evaluation = {"step": 10, "test": {"rates_nats": [3.0, 2.0]}}

    def write_run(name: str, config: object, evaluation: object = evaluation) -> None:
        (folder / name / "checkpoints" / "10").mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        if evaluation is not None:
            (folder / name / "evaluation.json").write_text(json.dumps(evaluation))

    write_run("run", config)
    write_run("other_run", seed_5)
    write_run("list_run", ["what", "was", "there"])
    write_run("damaged_run", config)
    (folder / "damaged_run" / "config.json").write_text(json.dumps(config)[:200])
    three = {**config, "objective": {**config["objective"], "betas": (3.0, 1.0)}}
    write_run("beta_3", three)
    write_run("unfinished", config, None)
    (folder / "unfinished_grid").mkdir()
    grid = digits_grid.get_config().to_dict()
    (folder / "unfinished_grid" / "config.json").write_text(json.dumps(grid))
    write_run("no_test", config, {"step": 10})
    write_run("other_data", {**config, "data": {**config["data"], "name": "fashion_mnist"}})
    one = {**config, "objective": {**config["objective"], "betas": (1.0,)}}
    write_run("one_layer", one, {"step": 10, "test": {"rates_nats": [3.0]}})

    row = {"inference": "ladder", "num_layers": 2, "control": "target_rates", "seed": 0, "betas": [1.0, 1.0]}
    row.update(settled_at_step=None, targets_nats=[1.0, 1.0])
    for split in ("train", "test"):
        row.update({f"{split}_rates_nats": [1.0, 1.0], f"{split}_rates_nats_standard_error": [0.1, 0.1]})
        row[f"{split}_distortion_nats"] = 20.0
    row["num_steps"] = 9
    (folder / "old.json").write_text(json.dumps([row]))
    changed = digits_targets.get_config().to_dict()
    changed["training"]["num_epochs"] = 7.0
    described = data.load(experiment.build_group("data", data.DataConfig, changed)).describe()
    row["made_by"] = targets_rows.made_by(changed, described)
    (folder / "other.json").write_text(json.dumps([row]))
    described["splits"]["test"]["fingerprint"] = "0"
    row["made_by"] = targets_rows.made_by(digits_targets.get_config().to_dict(), described)
    (folder / "replaced.json").write_text(json.dumps([row]))
    return folder


@pytest.fixture
def start(programs: started.Server, world: pathlib.Path) -> Callable[..., Answer]:
    """A program in that folder, run to its end."""

    def run(program: str, *arguments: str, **options: Any) -> Answer:
        before = snapshot(world)
        ended = programs.run(program, *arguments, folder=world, **options)
        after = snapshot(world)
        return Answer(ended, sorted(n for n in {*before, *after} if before.get(n) != after.get(n)))

    return run


def name_row(row: tuple[str, list[str], list[str]]) -> str:
    return " ".join([row[0], *row[1]]).replace("--config=experiments/", "")


@pytest.mark.parametrize("row", ROWS, ids=list(map(name_row, ROWS)))
def test_one_clear_line_and_nothing_changed(start, row):
    program, arguments, words = row
    check(start(program, *arguments), words)


@pytest.mark.parametrize(("variables", "words"), ENVIRONMENTS, ids=[str(e) for e, _ in ENVIRONMENTS])
def test_an_environment_that_cannot_be(start, variables, words):
    check(start("run", DIGITS, environment=variables), words)


@pytest.mark.parametrize(("program", "words"), HELP, ids=[name for name, _ in HELP])
def test_help_is_given_without_the_flags_that_are_needed(start, program, words):
    answer = start(program, "--config=absent", "--help")
    assert (answer.ended.status, answer.ended.err, answer.changed) == (0, "", [])
    for word in words:
        assert word in answer.ended.out


def test_a_closed_pipe_ends_a_program_quietly(start):
    plot = ("--out=new_folder/new.png", "--results=new_folder/new.json", "beta_3")
    plotted = start("plot_betas", *plot, draws=True)
    assert (plotted.ended.status, plotted.ended.err) == (0, "")
    # And an output goes into a folder that was not there.
    assert plotted.changed == ["new_folder", "new_folder/new.json", "new_folder/new.png"]
    for program, arguments in (("run", ["--help"]), ("plot_betas", plot)):
        status, _, err = start(program, *arguments, closed_pipe=True).ended
        assert (status, err) == (128 + signal.SIGPIPE, "")


def check(answer: Answer, words: list[str]) -> None:
    tiny.assert_one_error(answer.ended, words[0])
    assert "Traceback" not in answer.ended.out
    error = next(line for line in answer.ended.err.splitlines() if line.startswith("error:"))
    for word in words:
        assert word in error
    assert answer.changed == []
