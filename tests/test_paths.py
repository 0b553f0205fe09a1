"""What folder and file flags may name, and what is said of the rest."""

import os
import pathlib

import pytest

from experiments import program
from hvae_jax.errors import RunError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> pathlib.Path:
    """A folder to be in, with a file, a folder and a home."""
    (tmp_path / "file").write_text("what was there")
    (tmp_path / "file.png").write_text("what was there")
    for name in ("folder", "folder.png", "home"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("folder", "folder"),
        ("runs/new", "runs/new"),
        ("folder/../new", "folder/../new"),
        ("a:b", "a:b"),
        ("Θ 1", "Θ 1"),
    ],
)
def test_a_folder_is_what_is_written_and_nothing_is_made(here, value, path):
    assert program.folder_flag("workdir", value) == pathlib.Path(path)
    assert sorted(os.listdir(here)) == ["file", "file.png", "folder", "folder.png", "home", "link"]


def test_home_is_expanded(here, monkeypatch):
    assert program.folder_flag("workdir", "~/x") == here / "home" / "x"
    assert program.file_flag("out", "~/x.png") == here / "home" / "x.png"
    with pytest.raises(RunError, match=r"--workdir=~nobody-of-this-name/x.*write the folder out"):
        program.folder_flag("workdir", "~nobody-of-this-name/x")

    def fail(*_: object) -> str:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "expanduser", fail)
    with pytest.raises(RunError, match="home directory"):
        program.folder_flag("workdir", "~/x")


@pytest.mark.parametrize(
    "value", ["gs://b/r", "s3://b/r.png", "file:///tmp/x", "hdfs://x", "GS://b", " gs://b", "gs:/b"]
)
@pytest.mark.parametrize("flag", [program.folder_flag, program.file_flag])
def test_addresses_are_refused(value, flag):
    with pytest.raises(RunError, match=f"--name={value} is an address"):
        flag("name", value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "--workdir is empty"),
        ("file", "--workdir=file must be a folder, but it is a file"),
        ("absent/../file", "must be a folder, but it is a file"),
        ("file/run", "--workdir=file/run must be a folder, but .*/file is a file"),
        ("link", "--workdir=link cannot be used: No such file"),
        ("x" * 300, "File name too long"),
        ("x\0y", "null"),
    ],
)
def test_folders_that_cannot_be(value, message):
    with pytest.raises(RunError, match=message):
        program.folder_flag("workdir", value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "--out is empty"),
        ("folder", "must be a file, but it names a folder"),
        ("folder.png", "must be a file, but it names a folder"),
        ("new/", "must be a file, but it names a folder"),
        ("figure", "must end in .png, .pdf"),
        ("figure.xyz", r"ends in '\.xyz'; the file's name must end in .png"),
        ("file/figure.png", "cannot be written: .*/file is a file, not a folder"),
        ("link/figure.png", "cannot be used"),
    ],
)
def test_files_that_cannot_be(value, message):
    with pytest.raises(RunError, match=message):
        program.file_flag("out", value)


@pytest.mark.parametrize("value", ["figure.png", "file.png", "figure.PDF", "a/b/c.svg"])
def test_files_that_can(here, value):
    assert program.file_flag("out", value) == pathlib.Path(value)
    assert not (here / "a").exists()
    program.make_parent(pathlib.Path(value))
    assert (here / value).parent.is_dir()
    assert (here / "file.png").read_text() == "what was there"


def test_other_kinds_of_file():
    assert program.file_flag("out", "rows.json", (".json", "")) == pathlib.Path("rows.json")
    assert program.file_flag("out", "rows", (".json", "")) == pathlib.Path("rows")
    with pytest.raises(RunError, match=r"must end in \.json"):
        program.file_flag("out", "rows.png", (".json", ""))


def test_a_folder_without_permission(here, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(RunError, match=r"no permission to write in .*folder"):
        program.file_flag("out", "folder/figure.png")
