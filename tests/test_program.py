"""What all programs share: their config files, output in any encoding, devices and caches."""

import codecs
import io
import os
import pathlib
import sys
import textwrap
import types

import jax
import pytest

import experiments
from experiments import config_files, environment, grid_task, program, streams
from hvae_jax.errors import RunError
from hvae_jax.grid.plan import TaskRecord


def load(file: pathlib.Path, text: str, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    file.write_text(textwrap.dedent(text))
    monkeypatch.setattr(sys, "argv", ["program", f"--config={file}", *overrides])
    return config_files.Loader("config", lambda: None).parse(str(file)).to_dict()


def test_a_config_may_compute_with_jax_and_holds_plain_numbers(tmp_path, monkeypatch):
    config = load(
        tmp_path / "config.py",
        """
        import jax.numpy as jnp
        import numpy as np
        from ml_collections import ConfigDict

        BETAS = jnp.array([0.5, 2.0])  # starts JAX's devices

        def get_config():
            one = {"betas": BETAS, "pair": (BETAS[0], 1.0), "rate": np.float32(0.25), "name": "x"}
            return ConfigDict({"one": one, "shapes": ((2, 2, 1), (3,)), "none": None})
        """,
        monkeypatch=monkeypatch,
    )
    one = {"betas": (0.5, 2.0), "pair": (0.5, 1.0), "rate": 0.25, "name": "x"}
    assert config == {"one": one, "shapes": ((2, 2, 1), (3,)), "none": None}
    assert all(type(beta) is float for beta in config["one"]["betas"])
    assert type(config["one"]["rate"]) is float


def test_devices_that_a_config_started_stay_as_they_are(monkeypatch):
    before = jax.devices()

    def refuse(name: str, value: object) -> None:
        raise RuntimeError(f"{name} should be updated before backends are initialized")

    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(jax.config, "update", refuse)
    program.split_cpu(7)
    assert jax.devices() == before


def test_what_follows_a_colon_goes_to_get_config(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\ndef get_config(x):\n    return ConfigDict({'x': x})\n"
    )
    assert config_files.Loader("config", lambda: None).parse(f"{file}:two").to_dict() == {"x": "two"}
    with pytest.raises(RunError, match="TypeError: get_config"):
        config_files.Loader("config", lambda: None).parse(str(file))


def test_a_config_of_the_package_is_found_from_another_folder(tmp_path, monkeypatch):
    installed = pathlib.Path(config_files.__file__).parent
    monkeypatch.chdir(tmp_path)
    assert config_files.find("--config", "experiments/digits.py") == installed / "digits.py"
    for absent in ("experiments/absent.py", "hvae_jax/data.py", "digits.py"):
        with pytest.raises(RunError, match="there is no such file"):
            config_files.find("--config", absent)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "digits.py").touch()  # one's own goes first
    assert config_files.find("--config", "experiments/digits.py") == pathlib.Path("experiments/digits.py")


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "−ELBO 24.2 ± 0.1, β = 1, R ≥ 0 → Ж \\udcff"),
        ("latin-1", "-ELBO 24.2 ± 0.1, beta = 1, R >= 0 -> \\u0416 \\udcff"),
        ("cp1252", "-ELBO 24.2 ± 0.1, beta = 1, R >= 0 -> \\u0416 \\udcff"),
        ("ascii", "-ELBO 24.2 +- 0.1, beta = 1, R >= 0 -> \\u0416 \\udcff"),
    ],
)
def test_every_encoding_gets_words_it_can_read(monkeypatch, encoding, text):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    streams.make_tolerant()
    print("−ELBO 24.2 ± 0.1, β = 1, R ≥ 0 → Ж \udcff", end="")  # the last is of a file's name
    sys.stdout.flush()
    assert written.getvalue().decode(encoding) == text
    assert codecs.lookup_error("readable")


def test_a_pipe_is_closed_when_nobody_reads_it():
    read_end, write_end = os.pipe()
    with open(write_end, "w") as stream:
        assert not streams.is_closed(stream)
        os.close(read_end)
        assert streams.is_closed(stream)
        streams.drop(stream)
        stream.write("nobody reads this")  # and closing it is no error
    assert not streams.is_closed(None)
    assert not streams.is_closed(io.StringIO())


def test_without_a_home_or_a_place_there_is_no_compile_cache(tmp_path, monkeypatch):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def fail() -> pathlib.Path:
        raise RuntimeError("Could not determine home directory.")

    with monkeypatch.context() as nobody:
        nobody.setattr(pathlib.Path, "home", fail)
        program.use_compile_cache()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    program.use_compile_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with monkeypatch.context() as read_only:
        read_only.setattr(os, "access", lambda path, mode: False)
        program.use_compile_cache()
    assert updates == {}
    program.use_compile_cache()
    assert updates["jax_compilation_cache_dir"] == str(tmp_path / "cache" / "hvae_jax" / "compiled")


def test_flags_of_xla_that_are_known_cost_no_process(monkeypatch):
    monkeypatch.setattr(environment.subprocess, "run", None)
    for known in ("", "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"):
        monkeypatch.setenv("XLA_FLAGS", known)
        environment.check_xla_flags()


@pytest.mark.parametrize(
    ("given", "platforms", "plugins", "then"),
    [
        ("", "cpu", ("jax_plugins",), "--xla_backend_optimization_level=2"),
        ("", None, (), "--xla_backend_optimization_level=2"),
        ("--xla_dump_to=x", "cpu", (), "--xla_dump_to=x --xla_backend_optimization_level=2"),
        ("--xla_backend_optimization_level=0", "cpu", (), "--xla_backend_optimization_level=0"),
        ("", None, ("libtpu",), ""),
        ("", "cuda,cpu", (), ""),
    ],
)
def test_cpus_compile_sooner_unless_a_flag_or_another_device_says_otherwise(
    monkeypatch, given, platforms, plugins, then
):
    monkeypatch.setenv("XLA_FLAGS", given)
    monkeypatch.setattr(
        environment.importlib.util, "find_spec", lambda name: name if name in plugins else None
    )
    before = getattr(jax.config, "jax_platforms")  # noqa: B009
    jax.config.update("jax_platforms", platforms)
    try:
        program.compile_sooner()
    finally:
        jax.config.update("jax_platforms", before)
    assert os.environ["XLA_FLAGS"] == then


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 bytes"),
            "out of memory (RESOURCE_EXHAUSTED: 9 bytes)",
        ),
        (MemoryError("Unable to allocate 9 bytes"), "out of memory (Unable to allocate 9 bytes); lower"),
        (OSError(28, "No space left on device", "file"), "file: No space left on device"),
        (OSError(28, "No space left on device"), "standard output or a file cannot be written: No space"),
        (RunError("a\nline"), "error: a line"),
        (KeyboardInterrupt(), "stopped; the same command resumes"),
    ],
)
def test_what_the_machine_refuses_is_one_line(capsys, error, message):
    def main(arguments: list[str]) -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        program._main(main, [], resumes=True)
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


def test_a_mistake_of_ours_keeps_its_traceback():
    def main(arguments: list[str]) -> None:
        raise jax.errors.JaxRuntimeError("INTERNAL: not the user's")

    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        program._main(main, [], resumes=True)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (
            "JAX_ENABLE_X64",
            "invalid truth value 'maybe' for environment 'JAX_ENABLE_X64'",
            "JAX_ENABLE_X64=maybe: invalid truth value",
        ),
        (
            "JAX_NUM_CPU_DEVICES",
            'Invalid value "maybe" for JAX flag jax_num_cpu_devices',
            "JAX_NUM_CPU_DEVICES=maybe: Invalid value",
        ),
        ("MPLBACKEND", "Key backend: 'maybe' is not a valid value", "MPLBACKEND=maybe: Key backend"),
    ],
)
def test_a_variable_that_an_import_stumbles_over_is_named(monkeypatch, capsys, name, error, message):
    monkeypatch.setenv(name, "maybe")
    experiments._say_in_one_line(ValueError, ValueError(error), None)
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def test_devices_that_cannot_be_counted_are_named(monkeypatch):
    monkeypatch.setattr(environment.jax, "config", types.SimpleNamespace(jax_num_cpu_devices=0))
    with pytest.raises(RunError, match="JAX_NUM_CPU_DEVICES=0 must be at least 1"):
        environment.start_devices()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "file"), "file: No space left on device"),
        (MemoryError("Unable to allocate 9 bytes"), "out of memory (Unable to allocate 9 bytes)"),
    ],
)
def test_a_task_of_a_grid_says_what_the_machine_refuses_and_leaves_it_in_its_record(
    tmp_path, monkeypatch, capsys, error, message
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(grid_task, "_train", fail)
    monkeypatch.setattr(program, "use_compile_cache", lambda: None)
    (tmp_path / "tasks").mkdir()
    with pytest.raises(SystemExit) as end:
        grid_task._run(tmp_path, "0000", lambda: None)
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1
    assert TaskRecord(tmp_path, "0000").read()["error"].startswith(message)
