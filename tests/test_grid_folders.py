"""The folder of a grid: more models for a finished one, two processes in one, damaged and missing files."""

import copy
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
import small_grid

from experiments import digits_grid, grid_here, grid_launch
from hvae_jax import experiment, records
from hvae_jax.errors import RunError, Stopped
from hvae_jax.files import claims
from hvae_jax.grid import folders, slurm
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import plan as grid_plan
from hvae_jax.grid import run as grid_run
from hvae_jax.grid import size as grid_size
from hvae_jax.grid import table as grid_table

LAUNCHED = slurm.Options("30", None, 0, 1, None, 1, 60, (), ())


def make_config(data_file: pathlib.Path, **grid) -> dict:
    """Of a grid of 2 × 1 betas, seed 0, 8 steps."""
    config = digits_grid.get_config().to_dict()
    config["data"].update(name=f"npz:{data_file}", num_valid=60)
    config["model"].update(channels=2, num_stages=1, latent_shapes=((4, 4, 1), (2,)))
    config["training"].update(num_epochs=3.0, log_every_steps=2)
    config["training"].update(eval_every_steps=4, checkpoint_every_steps=4)
    config["evaluation"].update(num_samples=2, num_importance_samples=2)
    config["grid"].update({"betas": ((0.3, 3.0), (1.0,)), "seeds": (0,), "chunk_size": 2, **grid})
    return config


class Trained:
    """How the tests train: one experiment for all grids, so that each program is compiled once."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.data_file = small_grid.write_data(folder)
        _, members = grid_members.read_config(make_config(self.data_file))
        self.built = experiment.from_config(members[0].config, num_devices=1)
        self.folder = folder / "grid"
        self.train(self.folder)

    def config(self, **grid) -> dict:
        return make_config(self.data_file, **grid)

    def train(self, folder: pathlib.Path, config: dict | None = None, **grid) -> dict[str, np.ndarray]:
        config = config or self.config(**grid)
        grid_config, members = grid_members.read_config(config)
        grid_here.train(folder, config, grid_config, self.built, members, None)
        return grid_table.load(folder)

    def launch(
        self, folder: pathlib.Path, dry_run: bool = True, num_tasks: int | None = None, **grid
    ) -> None:
        config = self.config(**grid)
        grid_config, members = grid_members.read_config(config)
        options = grid_launch.Options("local", num_tasks, 1, None, LAUNCHED)
        grid_launch.launch(folder, config, grid_config, members, options, self.built.num_steps, dry_run)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[Trained]:
    """A finished grid of two models. What the tests train is made once for each number of models or seed."""
    with pytest.MonkeyPatch.context() as patch:
        makers = grid_run.PackedTrainer, grid_run.make_evaluate
        made = {}

        def make_trainer(built, capacity):
            if capacity not in made:
                trainer = makers[0](built, capacity)
                made[capacity] = trainer, makers[1](built, trainer)
            return made[capacity][0]

        patch.setattr(grid_run, "PackedTrainer", make_trainer)
        patch.setattr(grid_run, "make_evaluate", lambda _, trainer: made[trainer.layout.capacity][1])
        # All data sets here have the same image shape. What fits in memory is measured elsewhere.
        init_params, params = experiment.Experiment.init_params, {}

        def keep_params(built, seed):
            if seed not in params:
                with jax.ensure_compile_time_eval():  # `jax.eval_shape` may be the first to ask
                    params[seed] = init_params(built, seed)
            return params[seed]

        patch.setattr(experiment.Experiment, "init_params", keep_params)
        patch.setattr(grid_size, "_working_bytes", lambda *_: 2**20)
        patch.setattr(grid_size, "model_steps_per_second", lambda *_: 1.0)
        yield Trained(tmp_path_factory.mktemp("grids"))


@pytest.fixture
def folder(trained, tmp_path) -> pathlib.Path:
    """A copy of it."""
    shutil.copytree(trained.folder, tmp_path / "grid")
    return tmp_path / "grid"


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    """Every file below, but for locks, which say who had them last."""
    return {
        file: file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix != ".lock"
    }


def error_of(call: Callable[..., object], *arguments, **named) -> str | None:
    """The line that it ends in, if it does."""
    try:
        call(*arguments, **named)
    except RunError as error:
        text = str(error)
    else:
        return None
    assert "\n" not in text
    return text


def begin(trained: Trained, folder: pathlib.Path) -> None:
    """A grid that was stopped in its first steps."""
    config = trained.config()
    members = folders.open_grid(folder, config, grid_members.read_config(config)[1])
    with pytest.raises(Stopped):
        grid_run.run_chunk(folder, trained.built, members, 2, lambda _: None, lambda: True, 0.0)


# More models


@pytest.mark.long
def test_a_finished_grid_takes_more_betas_and_seeds(trained, folder):
    before, old = contents(folder / "models"), grid_table.load(folder)
    table = trained.train(folder, betas=((1.0, 3.0, 0.3), (1.0,)), seeds=(7, 0))
    # In the order of the grid; those that were there keep their folders.
    assert table["model"].reshape(3, 2).tolist() == [[2, 3], [4, 1], [5, 0]]
    assert table["betas"][:, 0, 0].tolist() == [[1.0, 1.0], [3.0, 1.0], [0.3, 1.0]]
    assert (table["status"] == "ok").all()
    for name in ("distortion_nats", "elbo_nats", "rates_nats"):
        np.testing.assert_array_equal(table[name][[2, 1], 0, 1], old[name][:, 0, 0])
    after = contents(folder / "models")
    assert {file: after[file] for file in before} == before, "what was there is as it was"
    for number, betas, seed in ((2, [1.0, 1.0], 7), (5, [0.3, 1.0], 7)):
        config = records.read_json(folder / "models" / f"{number:04d}" / "config.json")
        assert (config["objective"]["betas"], config["training"]["seed"]) == (betas, seed)
    # The same models as of a grid that had them all from the start.
    fresh = trained.train(folder.parent / "fresh", betas=((3.0,), (1.0,)), seeds=(0, 7))
    np.testing.assert_allclose(
        fresh["rates_nats"][:, :, [1, 0]], table["rates_nats"][1:2], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(
        RunError, match=r"holds a grid with 4 models that this one lacks: config\.grid\.betas is "
    ):
        trained.train(folder)
    assert json.loads((folder / "models.json").read_text())["0001"]["objective.betas"] == [3.0, 1.0]


def test_a_grid_that_is_not_finished_takes_no_more_models(trained, folder):
    (folder / "models" / "0001" / "evaluation.json").unlink()
    before = contents(folder)
    match = r"holds a grid of 2 models, 1 of which are not complete: finish it first .* add these 2 models"
    with pytest.raises(RunError, match=match):
        trained.train(folder, seeds=(0, 1))
    with pytest.raises(RunError, match=match):
        trained.launch(folder, num_tasks=2, seeds=(0, 1))
    assert contents(folder) == before


def test_tasks_are_planned_for_the_models_that_a_grid_takes_more(trained, folder, capsys):
    trained.launch(folder, dry_run=False)  # of nothing: all is complete
    assert grid_plan.read(folder) == grid_plan.Plan(2, 1, 0, None, [])
    before = contents(folder)
    trained.launch(folder, num_tasks=2, chunk_size=0, seeds=(0, 1))
    assert contents(folder) == before
    assert "4 models of 8 steps in 1 chunks of at most 2: 0 complete, 0 at work or queued, 1 to start" in (
        capsys.readouterr().out
    )
    config = trained.config(seeds=(0, 1))
    members = folders.open_grid(folder, config, grid_members.read_config(config)[1])
    plan = grid_plan.make(folder, members, 1, None, 1, 0, None)
    assert plan.chunks == [[2], [3]]
    grid_plan.write(folder, plan)
    assert grid_plan.current(folder, members) == plan
    with pytest.raises(RunError, match="4 models, 2 of which are not complete"):
        trained.launch(folder, seeds=(0, 1, 2))


@pytest.mark.parametrize(
    ("group", "fields", "message"),
    [
        (
            "grid",
            {"betas": ((0.3,), (1.0,))},
            r"1 models that this one lacks: config\.grid\.betas is .* there and",
        ),
        (
            "training",
            {"num_epochs": 4.0},
            r"num_epochs is 3\.0 there and 4\.0 here\. A grid does not go on for",
        ),
        ("training", {"learning_rate": 1.0}, r"learning_rate is 0\.002 there and 1\.0 here\. Give another"),
        (
            "evaluation",
            {"num_samples": 3},
            r"num_samples is 2 there and 3 here\. Models of one grid are eval",
        ),
        ("grid", {"data_order": "per_model"}, r"data_order is 'shared' there and 'per_model' here"),
    ],
)
def test_another_grid_in_the_folder_is_refused_and_nothing_is_touched(
    trained, folder, group, fields, message
):
    config = trained.config()
    config[group].update(fields)
    before = contents(folder)
    with pytest.raises(RunError, match=message) as error:
        trained.train(folder, config)
    assert "\n" not in str(error.value)
    assert contents(folder) == before


def test_fields_on_which_no_number_depends_may_change(trained, folder):
    config = trained.config(chunk_size=1, memory_gib=100.0)
    config["training"]["num_checkpoints"] += 1
    before = (folder / "grid.csv").read_bytes()
    trained.train(folder, config)
    assert (folder / "grid.csv").read_bytes() == before
    assert records.read_json(folder / "config.json")["grid"]["chunk_size"] == 1


def test_a_grid_of_0_1_0_has_its_models_by_their_place(trained, folder):
    (folder / "models.json").unlink()
    config = trained.config(seeds=(1, 0))
    members = folders.number(folder, grid_members.read_config(config)[1])
    assert [member.number for member in members] == [2, 0, 3, 1]
    for model in (folder / "models").iterdir():  # not one was begun
        shutil.rmtree(model)
    members = folders.number(folder, grid_members.read_config(config)[1])
    assert [member.number for member in members] == [0, 1, 2, 3]


def test_numbers_are_found_again_without_their_list(trained, tmp_path):
    """A grid that grew, some of whose new models are begun; the others get the numbers they had."""
    small, large = trained.config(), trained.config(betas=((0.1, 0.3, 1.0, 3.0), (1.0,)), seeds=(5, 0))
    members = folders.open_grid(tmp_path, small, grid_members.read_config(small)[1])
    for member in members:
        records.open_run(member.folder(tmp_path), member.config)
        records.write_json(member.folder(tmp_path) / "evaluation.json", {"step": 1, "status": "diverged"})
    grown = folders.open_grid(tmp_path, large, grid_members.read_config(large)[1])
    assert [member.number for member in grown] == [2, 3, 4, 0, 5, 6, 7, 1]
    for member in grown[1:3]:
        records.open_run(member.folder(tmp_path), member.config)
    (tmp_path / "models.json").unlink()
    again = folders.number(tmp_path, grid_members.read_config(large)[1])
    assert [member.number for member in again] == [member.number for member in grown]


def test_a_grid_of_other_data_is_refused(trained, folder, tmp_path):
    arrays = small_grid.make_arrays()
    arrays["train_images"][3] += 1
    np.savez(tmp_path / "other.npz", **arrays)  # type: ignore[arg-type]
    config, before = trained.config(seeds=(0, 1)), contents(folder)
    config["data"]["name"] = f"npz:{tmp_path / 'other.npz'}"
    grid_config, members = grid_members.read_config(config)
    built = experiment.from_config(members[0].config, num_devices=1)
    match = f"is not the data that {folder} is of: its train split had"
    with pytest.raises(RunError, match=match):
        grid_here.train(folder, config, grid_config, built, members, None)
    assert contents(folder) == before
    (folder / "models" / "0001" / "evaluation.json").unlink()
    chunk = folders.number(folder, members)[2:3]
    with pytest.raises(RunError, match=match):
        grid_run.run_chunk(folder, built, chunk, 2, lambda _: None, lambda: False, 0.0)


# Two processes


def test_a_second_process_in_the_folder_ends_with_one_line(trained, folder, tmp_path):
    with claims.claim(grid_plan.launch_lock(folder), "the grid"):
        before = contents(folder)
        for start in (trained.train, lambda folder, **grid: trained.launch(folder, False, 2, **grid)):
            with pytest.raises(claims.Claimed, match=f"the grid in {folder} is being worked on by process"):
                start(folder, seeds=(0, 1), chunk_size=0)
        assert contents(folder) == before
    holds, ends = threading.Event(), threading.Event()

    def report(progress):
        holds.set()
        assert ends.wait(600)

    _, members = grid_members.read_config(trained.config())
    new = tmp_path / "new"

    def first():
        folders.open_grid(new, trained.config(), members)
        grid_run.run(new, trained.built, members, 2, report)

    worker = threading.Thread(target=first)
    worker.start()
    assert holds.wait(600)
    before = contents(new)
    others = {
        "chunk 0000 of .* is being worked on by process": members,
        # Divided otherwise: another chunk, the same model.
        r"model 0001 of .* is being worked on by process": members[1:],
    }
    for match, some in others.items():
        with pytest.raises(claims.Claimed, match=match):
            grid_run.run_chunk(new, trained.built, some, 2, lambda _: None, lambda: False, 0.0)
    assert contents(new) == before
    with (
        pytest.raises(claims.Claimed),
        claims.claim(members[0].folder(new) / records.RUN_LOCK, "a run of it"),
    ):
        pass
    ends.set()
    worker.join()
    np.testing.assert_array_equal(
        grid_table.load(new)["rates_nats"], grid_table.load(trained.folder)["rates_nats"]
    )


def test_what_another_process_has_trained_meanwhile_is_not_trained_again(trained, folder):
    before = contents(folder)
    _, members = grid_members.read_config(trained.config())
    grid_run.run_chunk(
        folder, trained.built, members, 2, lambda _: pytest.fail("trained"), lambda: False, 0.0
    )
    assert contents(folder) == before


def test_a_dry_run_and_a_plan_touch_nothing(trained, tmp_path, capsys):
    grid_config, members = grid_members.read_config(trained.config())
    begin(trained, tmp_path)
    (tmp_path / "chunks" / "0009").mkdir()
    before = contents(tmp_path)
    grid_here.dry_run(tmp_path, grid_config, trained.built, members)
    trained.launch(tmp_path)
    assert contents(tmp_path) == before
    assert (tmp_path / "chunks" / "0009").is_dir()
    assert not grid_plan.launch_lock(tmp_path).exists()
    out = capsys.readouterr().out
    assert "2 models of 8 steps in 1 chunks of at most 2, over" in out
    assert "Would run 1 tasks, for the chunks 0000" in out


# Damaged and missing files

DAMAGE = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "zeroed": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "removed": lambda file: file.unlink(),
}
NAMED = ("config.json", "models.json", "data.json", "models/0001/rates.jsonl")
# An evaluation that is lost is made again, and with it other files of its model: so it is another model's.
MADE_ANEW = (
    *("versions.json", "grid.csv", "timing.csv", "figures/rate_distortion.png", "tasks/0000.lock"),
    *("models/0001/config.json", "models/0001/timing.json", "models/0001/run.lock"),
    "models/0000/evaluation.json",
)


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", NAMED)
def test_a_file_that_cannot_be_made_anew_is_named(trained, folder, name, damage):
    file, before = folder / name, contents(folder)
    DAMAGE[damage](file)
    damaged = contents(folder)
    error = error_of(trained.train, folder)
    if error is None:
        assert (name, damage) in (("models.json", "removed"), ("data.json", "removed"))
        assert contents(folder) == before
    else:
        assert str(file) in error
        assert contents(folder) == damaged, "nothing was touched"


@pytest.mark.parametrize("damage", DAMAGE)
def test_other_damaged_files_of_a_finished_grid_are_made_anew(trained, folder, damage):
    before = contents(folder)
    for name in MADE_ANEW:
        DAMAGE[damage](folder / name)
    assert error_of(trained.train, folder) is None
    after = contents(folder)
    changed = {str(path.relative_to(folder)) for path in before if before[path] != after.get(path)}
    assert changed <= {"models/0001/timing.json", "timing.csv", "versions.json"}, "lost times stay lost"
    if "versions.json" in changed:
        assert "written again" in (folder / "versions.json").read_text()


def test_a_checkpoint_that_is_missing_its_arrays_is_named_by_who_reads_it(trained, folder):
    """Each of its other files in turn: test_checkpoints."""
    checkpoint = folder / "models" / "0000" / "checkpoints" / "8"
    assert jax.tree.leaves(experiment.restore(trained.built, folder / "models" / "0000"))
    files = [file for file in checkpoint.rglob("*") if file.is_file()]
    max(files, key=lambda file: file.stat().st_size).unlink()
    error = error_of(experiment.restore, trained.built, folder / "models" / "0000")
    assert error is not None
    assert str(checkpoint) in error


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["plan.json", "jobs.json", "0000.json"])
def test_a_damaged_file_of_tasks_is_named_or_not_needed(trained, folder, name, damage):
    _, members = grid_members.read_config(trained.config())
    (folder / "models" / "0001" / "evaluation.json").unlink()
    grid_plan.write(folder, grid_plan.make(folder, members, 1, None, 1, 0, None))
    grid_plan.add_jobs(folder, {"0001": grid_plan.Job("local", "", "log")})
    grid_plan.TaskRecord(folder, "0000").fail("no room")
    file = folder / "tasks" / name
    DAMAGE[damage](file)
    before = contents(folder)
    error = error_of(trained.launch, folder, chunk_size=1)
    assert error is None or (str(file) in error and damage != "removed")
    assert contents(folder) == before


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": 1}', '{"0000": 3}', "[[0]]", "null", "7", '"0"'])
@pytest.mark.parametrize("name", ["models.json", "config.json", "tasks/plan.json", "tasks/jobs.json"])
def test_json_that_is_something_else_is_named(trained, folder, name, content):
    _, members = grid_members.read_config(trained.config())
    (folder / "models" / "0001" / "evaluation.json").unlink()
    grid_plan.write(folder, grid_plan.make(folder, members, 1, None, 1, 0, None))
    grid_plan.add_jobs(folder, {"0001": grid_plan.Job("local", "", "log")})
    file = folder / name
    file.write_text(content)
    if (name, content) in (("models.json", "{}"), ("tasks/jobs.json", "{}")):
        return  # what an empty grid has, or a plan of which nothing was started
    with pytest.raises(RunError, match=str(file if name != "config.json" else folder)):
        trained.launch(folder, chunk_size=1)


def test_a_chunk_that_was_begun_and_lost_its_list_is_named(trained, tmp_path):
    begin(trained, tmp_path)
    file = tmp_path / "chunks" / "0000" / "models.json"
    for damage in ("cut", "zeroed", "removed"):
        whole = file.read_bytes()
        DAMAGE[damage](file)
        before = contents(tmp_path)
        with pytest.raises(RunError, match=str(file)):
            trained.train(tmp_path)
        assert contents(tmp_path) == before
        file.write_bytes(whole)
    for text in ("[7]", "[]", "{}", "[[0]]"):
        file.write_text(text)
        with pytest.raises(RunError, match=f"{file} is damaged: it must list models of the grid"):
            trained.train(tmp_path)


# Folders that cannot be used


def test_a_file_where_a_folder_is_needed_is_named_before_any_training(trained, tmp_path):
    for name in ("models", "chunks", "tasks", "figures"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(RunError, match=f"{tmp_path / name} must be a folder, but it is a file"):
            trained.train(tmp_path)
        assert contents(tmp_path) == {tmp_path / name: b"mine"}
        (tmp_path / name).unlink()
    with pytest.raises(RunError, match="must be a folder, but it is a file"):
        trained.train(trained.data_file)


def test_the_folder_of_a_run_is_refused(trained, tmp_path):
    config = copy.deepcopy(trained.config())
    del config["grid"]
    records.open_run(tmp_path, config)
    before = contents(tmp_path)
    with pytest.raises(RunError, match=f"{tmp_path} holds a single run, not a grid"):
        trained.train(tmp_path)
    assert contents(tmp_path) == before


def test_a_full_disk_is_one_line_and_the_grid_goes_on(trained, tmp_path, monkeypatch):
    """It is full four times, a little later each time."""
    folder, replace = tmp_path / "grid", os.replace
    for place in ("models.json", "models/0000/config.json", "models/0001/evaluation.json", "grid.csv"):

        def full(source, target, place=place):
            if str(target).endswith(place):
                raise OSError(28, "No space left on device")
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(RunError, match=f"{place} cannot be written: No space left on device"):
                trained.train(folder)
    trained.train(folder)
    for name in ("grid.csv", "models/0000/evaluation.json", "models/0001/evaluation.json"):
        assert (folder / name).read_bytes() == (trained.folder / name).read_bytes()
