"""A run's folder: opened again, gone on with, of other data, damaged, of another version."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from experiments import digits, run
from hvae_jax import experiment, going_on, records, run_config, training
from hvae_jax.errors import RunError
from hvae_jax.files import claims
from hvae_jax.training import checkpoints, memory
from hvae_jax.training.checkpoints import Checkpoints

BUILT: dict[tuple[str, bytes], experiment.Experiment] = {}
OLD = pathlib.Path(__file__).parent / "run_0_1_0"  # digits, 8 steps, as 0.1.0 left it


def write_data(file: pathlib.Path, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    images = {
        f"{split}_images": generator.integers(0, 256, (40, 8, 8), np.uint8) for split in ("train", "test")
    }
    labels = {f"{split}_labels": np.arange(40) % 10 for split in ("train", "test")}
    np.savez(file, allow_pickle=False, **images, **labels)


def make_config(file: pathlib.Path, **changes: object) -> dict:
    """A small config on `file`; changes as training__seed=1."""
    config = digits.get_config().to_dict()
    config["data"] |= {"name": f"npz:{file}", "num_valid": 8}
    config["model"] |= {"channels": 4, "latent_shapes": ((2, 2, 2), (3,))}
    config["training"] |= {"batch_size": 8, "num_epochs": 3.0}
    for name, value in changes.items():
        group, _, field = name.partition("__")
        config[group][field] = value
    return config


def build(config: dict) -> experiment.Experiment:
    """As `from_config` does; once for equal configs and data, since building traces the model."""
    file = pathlib.Path(config["data"]["name"].removeprefix("npz:"))
    key = json.dumps(config), file.read_bytes() if file.exists() else b""
    if key not in BUILT:
        BUILT[key] = experiment.from_config(config)
    return BUILT[key]


def open_folder(folder: pathlib.Path, config: dict, init_from: pathlib.Path | None = None):
    """As the program does; what the run starts from."""
    built = build(config)
    with contextlib.ExitStack() as stack:
        return run.open_folder(stack, folder, built, config, built.dataset.describe(), init_from)


def save(folder: pathlib.Path, config: dict, step: int = 12, value: float = 0.1) -> training.TrainState:
    """As if the run had done so many steps, at its end by default."""
    shapes = jax.eval_shape(build(config).init_state)
    state = jax.tree.map(lambda leaf: np.full(leaf.shape, value, leaf.dtype), shapes)
    state = state._replace(step=np.int32(step))
    saved = Checkpoints(folder / records.CHECKPOINTS_FOLDER, 3)
    saved.save(step, state, {"logged": step, "ended": step})
    saved.wait()
    saved.close()
    return state


def content(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "data.npz"
    write_data(file)
    return file


@pytest.fixture
def begun(tmp_path: pathlib.Path, file: pathlib.Path) -> tuple[pathlib.Path, dict]:
    """A run with a checkpoint, and its config."""
    config = make_config(file)
    open_folder(tmp_path / "run", config)
    save(tmp_path / "run", config)
    return tmp_path / "run", config


def test_other_data_under_the_same_name_are_refused(begun, file):
    folder, config = begun
    before = content(folder)
    write_data(file, seed=1)
    with pytest.raises(
        RunError, match=r"not the data that .*run is of: its train split had 32 images of finger"
    ):
        open_folder(folder, config)
    with pytest.raises(RunError, match="not the data that"):
        _ = experiment.from_folder(folder).dataset
    assert content(folder) == before
    write_data(file)
    open_folder(folder, config)
    # A folder of 0.1.0 learns what its data are.
    (folder / records.DATA_FILE).unlink()
    open_folder(folder, config)
    assert content(folder) == before


def test_a_model_is_there_without_its_data_and_with_data_that_moved(begun, file):
    folder, _ = begun
    moved = file.with_name("moved.npz")
    file.rename(moved)
    built = experiment.from_folder(folder)
    state = experiment.restore(built, folder)
    samples = np.asarray(built.model.apply(state.eval_params, jax.random.key(0), 2, method="sample"))
    assert samples.shape == (2, 8, 8, 1)
    assert built.num_steps == 12
    with pytest.raises(RunError, match=r"data\.npz does not exist"):
        _ = built.dataset
    assert len(experiment.from_folder(folder, data=f"npz:{moved}").dataset.valid.images) == 8
    # The same command with the new name goes on, too.
    open_folder(folder, make_config(moved))
    assert records.config_of(folder)["data"]["name"] == f"npz:{moved}"


def test_a_second_process_in_the_folder_ends_and_changes_nothing(begun):
    folder, config = begun
    with claims.claim(folder / records.RUN_LOCK, "the run"):
        before = content(folder)
        with pytest.raises(RunError, match=r"the run in .* is being worked on by process \d+"):
            open_folder(folder, {**config, "evaluation": {"num_samples": 3, "num_importance_samples": 3}})
        assert content(folder) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__seed": 1}, r"config\.training\.seed is 0 there and 1 here"),
        ({"training__num_epochs": 1.0}, r"num_epochs=1\.0 is 4 steps, and the run in .* has done 12"),
        (
            {"training__num_epochs": 9.0, "training__learning_rate_decay_fraction": 0.5},
            r"learning_rate_decay_fraction is 0\.0 there",
        ),
    ],
)
def test_what_would_be_another_run_is_refused(begun, changes, message):
    folder, config = begun
    before = content(folder)
    with pytest.raises(RunError, match=message):
        open_folder(folder, make_config(pathlib.Path(config["data"]["name"][4:]), **changes))
    assert content(folder) == before


@pytest.mark.parametrize("field", ["training__learning_rate_decay_fraction", "objective__warmup_fraction"])
def test_a_pace_that_follows_the_plan_does_not_go_on(tmp_path, file, field):
    config = make_config(file, **{field: 0.5})
    open_folder(tmp_path / "run", config)
    save(tmp_path / "run", config)
    with pytest.raises(
        RunError, match=rf"num_epochs is 3\.0 in .*{field.partition('__')[2]}=0\.5.*--init_from"
    ):
        open_folder(tmp_path / "run", make_config(file, **{field: 0.5, "training__num_epochs": 9.0}))


def test_fields_that_do_not_change_training_may_change(begun, file):
    folder, _ = begun
    (folder / records.EVALUATION_FILE).write_text("{}")
    changes = {"data__num_workers": 5, "training__num_checkpoints": 7, "evaluation__num_samples": 3}
    open_folder(folder, make_config(file, **changes))
    config = records.config_of(folder)
    assert config["data"]["num_workers"] == 5
    assert config["training"]["num_checkpoints"] == 7
    open_folder(folder, make_config(file, training__num_epochs=9.0, **changes))
    assert records.config_of(folder)["training"]["num_epochs"] == 9.0
    assert not (folder / records.EVALUATION_FILE).exists()  # it was of the shorter run


def test_a_run_that_came_to_no_checkpoint_does_not_block_its_folder(tmp_path, file):
    folder = tmp_path / "run"
    open_folder(folder, make_config(file, training__learning_rate=1e9))
    (folder / records.RATES_FILE).write_text("rows of what failed")
    open_folder(folder, make_config(file))
    assert records.config_of(folder)["training"]["learning_rate"] == 2e-3
    assert not (folder / records.RATES_FILE).exists()


def test_another_run_gives_the_parameters(begun, tmp_path, file):
    source, _ = begun
    folder, config = tmp_path / "new", make_config(file, objective__betas=(1.0, 4.0))
    start = open_folder(folder, config, source)
    assert start is not None
    state = going_on.init_state(build(config), start)
    wanted = experiment.restore(experiment.from_folder(source), source).params
    jax.tree.map(np.testing.assert_array_equal, state.params, wanted)
    assert int(state.step) == 0
    assert state.beta_state.betas.tolist() == [1.0, 4.0]
    # Killed before its first checkpoint, it starts from the same, with or without the flag.
    later = save(source, begun[1], step=13, value=0.2)
    assert open_folder(folder, config) == open_folder(folder, config, source) == start
    # A new run takes the newest.
    newest = open_folder(tmp_path / "newer", config, source)
    assert newest is not None
    assert (newest.step, newest.checksum) == (13, checkpoints.sum_state(later))
    # Once it has a checkpoint of its own, the other run is not needed, and no third one may take its place.
    save(folder, config)
    shutil.rmtree(source)
    assert open_folder(folder, config) is open_folder(folder, config, source) is None
    with pytest.raises(RunError, match=r"--init_from=.*newer: the run in .*new started from .*run"):
        open_folder(folder, config, tmp_path / "newer")


def test_what_cannot_give_parameters_is_one_line(begun, tmp_path, file):
    source, config = begun
    with pytest.raises(RunError, match=r"another network: config\.model\.channels is 4 there and 8 here"):
        open_folder(tmp_path / "new", make_config(file, model__channels=8), source)
    with pytest.raises(RunError, match="must be the folder of a run with a checkpoint"):
        open_folder(tmp_path / "new", config, tmp_path)
    with pytest.raises(RunError, match="is the --workdir itself"):
        open_folder(source, config, source)
    with pytest.raises(RunError, match="started without --init_from"):
        open_folder(source, config, tmp_path)
    assert not (tmp_path / "new").exists()


@dataclasses.dataclass(frozen=True)
class Grown:
    """The group `evaluation` of a later version."""

    num_samples: int
    num_importance_samples: int
    added: tuple[int, ...] = (1, 2)


def test_a_field_that_was_added_has_its_default_in_old_folders(begun, monkeypatch):
    folder, config = begun
    monkeypatch.setitem(run_config.GROUPS, "evaluation", Grown)
    assert records.config_of(folder)["evaluation"]["added"] == [1, 2]
    grown = {**config, "evaluation": {**config["evaluation"], "added": (1, 2)}}
    assert records.differences(records.config_of(folder), grown) == {}
    assert records.check_run(folder, grown) is False
    grown["evaluation"]["added"] = (3,)
    with pytest.raises(RunError, match=r"config\.evaluation\.added is \[1, 2\] there and \[3\] here"):
        records.check_run(folder, grown)
    assert run_config.build_group("evaluation", Grown, config).added == (1, 2)


def test_a_config_of_a_newer_version_is_named(begun):
    folder, config = begun
    newer = json.loads((folder / records.CONFIG_FILE).read_text())
    newer["training"]["added"] = 1
    (folder / records.CONFIG_FILE).write_text(json.dumps(newer))
    for ask in (lambda: open_folder(folder, config), lambda: experiment.from_folder(folder)):
        with pytest.raises(
            RunError, match=r"config\.training\.added, which this version .* a newer one wrote it"
        ):
            ask()


@pytest.mark.parametrize("name", ["config.json", "versions.json", "data.json", "evaluation.json", "run.lock"])
@pytest.mark.parametrize("damage", ["half", "zeroed", "removed"])
def test_each_file_of_the_folder_is_rebuilt_or_named(begun, name, damage):
    folder, config = begun
    (folder / records.EVALUATION_FILE).write_text("{}")
    before, damaged = content(folder), folder / name
    if damage == "removed":
        damaged.unlink()
    else:
        whole = damaged.read_bytes()
        damaged.write_bytes(whole[: len(whole) // 2] if damage == "half" else bytes(len(whole)))
    is_named = name == "config.json" or (name == "data.json" and damage != "removed")
    if is_named:
        with pytest.raises(RunError, match=name) as error:
            open_folder(folder, config)
        assert "\n" not in str(error.value)
        damaged.write_bytes(before[damaged])
    open_folder(folder, config)
    if name in ("config.json", "data.json"):
        assert content(folder) == before
    if name == "versions.json":  # what made the run is not known any more, and that is what it says
        assert records.read_json(damaged)["note"] == "written again after it was lost"


@pytest.mark.parametrize("name", ["figures", "checkpoints"])
def test_a_file_in_place_of_a_folder(tmp_path, file, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    before = content(tmp_path)
    with pytest.raises(RunError, match=f"{name} must be a folder, but it is a file"):
        open_folder(tmp_path / "run", make_config(file))
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("training__num_epochs", 1e12, r"num_epochs=1000000000000\.0 over 32 images is \d+ steps"),
        ("model__channels", 10**6, "lower config.model.channels"),
        ("training__batch_size", 2_000_000_000, "batch_size=2000000000 images take"),
        ("evaluation__num_samples", 10**9, r"config\.evaluation\.num_samples=1000000000 must be"),
    ],
)
def test_sizes_beyond_any_machine_are_refused_before_work(file, field, value, message):
    config = make_config(file, **{field: value})
    if field == "training__batch_size":
        config["training"]["num_epochs"] = 1e12
    with pytest.raises(RunError, match=message):
        experiment.from_config(config)


def test_what_fits_is_counted_from_shapes(monkeypatch):
    state = {"kernel": jax.ShapeDtypeStruct((1000, 250), np.float32)}  # 1 MB, three times
    monkeypatch.setattr(memory, "total_bytes", lambda: 3_000_000)
    memory.check_fits(state, (5, 5, 1), batch_size=30_000)
    monkeypatch.setattr(memory, "total_bytes", lambda: 2_999_999)
    with pytest.raises(RunError, match=r"lower config\.model\.channels"):
        memory.check_fits(state, (5, 5, 1), batch_size=1)
    with pytest.raises(RunError, match="batch_size=30000 images"):
        memory.check_fits({}, (5, 5, 1), batch_size=30_000)


def test_a_run_of_version_0_1_0_loads_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(OLD, folder)
    config = run_config.with_tuples(records.config_of(folder))
    assert open_folder(folder, config) is None
    built = experiment.from_folder(folder)
    described = records.data_of(folder)
    assert described is not None
    assert set(described["splits"]) == {"train", "valid", "test"}
    state = experiment.restore(built, folder, step=8)
    assert int(state.step) == 8
    with pytest.raises(RunError, match="no checkpoint of step 4; the steps there are: 8"):
        experiment.restore(built, folder, step=4)

    config["training"]["num_epochs"] = 0.66  # 12 steps
    open_folder(folder, config)
    built = experiment.from_config(config)
    with contextlib.closing(built.make_batches()) as batches:
        state = training.train(
            folder,
            built.init_state(),
            built.terms_fn,
            batches,
            preprocess_fn=built.preprocess_fn,
            control=built.make_control(),
            config=built.training,
        )
    assert int(state.step) == 12
    assert records.load(folder)["step"].tolist() == [4, 8, 12]
    log = records.load(folder)
    negative_elbo_nats = log["distortion_nats"] + log["rates_nats"].sum(axis=1)
    assert negative_elbo_nats[1] == pytest.approx(47.875, abs=1e-3)  # as 0.1.0 wrote
    assert 40.0 < negative_elbo_nats[2] < negative_elbo_nats[1]
