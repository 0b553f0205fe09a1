"""The evaluation program on a small grid, and the report in a browser."""

import csv
import pathlib
import shutil

import numpy as np
import pytest
import services
import small_grid
import tiny
from playwright import sync_api

from hvae_jax import records
from hvae_jax.evaluation import guidance_text, plain, tables
from hvae_jax.evaluation.choices import Guidance

pytestmark = pytest.mark.long

BETAS = ((0.1, 1.0, 1.0), (1.0, 1.0, 1.0), (3.0, 0.3, 1.0))
QUICK = ("--num_draws=2", "--num_samples=300", "--max_fit_images=120", "--max_scored_images=80")


@pytest.fixture(scope="module")
def grid(environment, tmp_path_factory) -> pathlib.Path:
    """An evaluated grid of three models of three layers, and one that diverged."""
    folder = tmp_path_factory.mktemp("grids") / "small"
    data = small_grid.write_data(folder.parent)
    for number, betas in enumerate(BETAS):
        small_grid.make_run(folder / "models" / f"{number:04d}", data, betas, seed=number)
    shutil.copytree(folder / "models" / "0000", folder / "models" / "0003")
    (folder / "grid.csv").write_text("model,status\n0,ok\n1,ok\n2,ok\n3,diverged\n")
    baseline = folder.parent / "one_layer"
    small_grid.make_run(baseline, data, (1.0,), seed=0)
    flags = (f"--workdir={folder}", f"--baseline={baseline}", "--check_bounds", "--codes", *QUICK)
    result = tiny.start_anew(environment, "evaluate", *flags)
    assert result.returncode == 0, result.stderr
    assert "Bounds checked on 3 models: 0 violations" in result.stdout
    assert (
        "accuracy from samples of z_L ≤ f⁻¹(I_q(y; z_L)): 12 checked, 12 could have failed" in result.stdout
    )
    assert "1 models of the grid diverged" in result.stdout
    assert "0000/codes.npz has the codes of 180 of train, 60 of valid, 90 of test images" in result.stdout
    return folder


def test_everything_that_is_promised_is_there(grid):
    names = {
        "evaluation.csv", "guidance.json", "guidance.md", "bounds.json", "report.html", "figures",
        "classifiers",
    }  # fmt: skip
    assert names <= {entry.name for entry in grid.iterdir()}
    figures = {file.stem for file in (grid / "figures").glob("*.png")}
    assert figures == {file.stem for file in (grid / "figures").glob("*.pdf")}
    # None has the name of a figure that the grid program leaves there.
    assert not figures & {"rate_space", "rate_maps", "rate_distortion"}
    assert {"application_maps", "trade_off", "accuracy_by_information", "pictures_generation"} <= figures
    text = guidance_text.to_markdown(
        plain.from_plain(Guidance, records.read_json(grid / "guidance.json"), "guidance.json")
    )
    assert (grid / "guidance.md").read_text() == text
    assert "| one layer (β-VAE) | 1 |" in text
    with (grid / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["0000", "0001", "0002"]
    made_with = [row["made_with"] for row in rows]
    assert len(set(made_with)) == 3
    assert {len(digest) for digest in made_with} == {16}
    assert [model.made_with for model in tables.read_table(grid / "evaluation.csv")] == made_with
    metrics = plain.flatten(records.read_json(grid / "models" / "0001" / "metrics.json"))
    name = "generation.test.draws.inception_score_classifier"
    assert float(rows[1][name]) == metrics[name]


def test_a_resumed_evaluation_does_what_is_missing_and_a_broken_bound_ends_with_status_1(
    programs, grid, tmp_path
):
    shutil.copytree(grid, tmp_path / "grid")
    files = [tmp_path / "grid" / "models" / f"{number:04d}" / "metrics.json" for number in range(3)]
    metrics = records.read_json(files[2])
    metrics["information"]["test"]["label_information_nats"] = 40.0
    records.write_json(files[2], metrics)
    before = [file.stat().st_mtime_ns for file in files]
    files[1].write_text(files[1].read_text()[:1000])
    again = tmp_path / "again"
    repeated = again / "models" / "0000"
    small_grid.make_run(repeated, grid.parent / "classes.npz", BETAS[1], seed=7)
    config = records.read_json(repeated / "config.json")
    config["training"]["eval_every_steps"] *= 2  # another log is no other model
    records.write_json(repeated / "config.json", config)
    third = tmp_path / "third"
    small_grid.make_run(third / "models" / "0000", grid.parent / "classes.npz", BETAS[1], seed=9)
    flags = (f"--workdir={tmp_path / 'grid'}", f"--repeats={again},{third}", "--check_bounds", *QUICK)
    result = programs.run("evaluate", *flags)
    assert result.status == 1, result.err
    after = [file.stat().st_mtime_ns for file in files]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]
    assert records.read_json(files[1]) == records.read_json(grid / "models" / "0001" / "metrics.json")
    assert "0001 is evaluated again: metrics.json is damaged" in result.out
    assert "violation in 0002: I_q(y; z_L) = 40.0000" in result.out
    assert records.read_json(tmp_path / "grid" / "bounds.json")["violations"][0]["model"] == "0002"
    assert "Traceback" not in result.err
    # The repeated models are other seeds of the same betas.
    entries = records.read_json(tmp_path / "grid" / "guidance.json")["applications"].values()
    assert {tuple(entry["unit_betas"]["models"]) for entry in entries} == {
        ("0001", "again/0000", "third/0000")
    }
    assert {tuple(entry["unit_betas"]["seeds"]) for entry in entries} == {(1, 7, 9)}


def test_codes_are_those_whose_active_units_are_counted(programs, grid, tmp_path):
    active: list[int] = []
    for number in range(3):
        folder = grid / "models" / f"{number:04d}"
        rates = records.read_json(folder / "metrics.json")["rates"]
        assert rates["test"]["num_units"] == [16, 8, 3]
        with np.load(folder / "codes.npz") as codes:
            for split in ("valid", "test"):
                means = [codes[f"{split}_means_{layer}"] for layer in (1, 2, 3)]
                active = [int((layer.astype(float).var(0, ddof=1) > 0.01).sum()) for layer in means]
                assert rates[split]["active_units"] == active
    with (grid / "evaluation.csv").open() as file:
        row = list(csv.DictReader(file))[2]
    assert [int(row[f"rates.test.active_units.{layer}"]) for layer in (1, 2, 3)] == active
    assert not (grid / "models" / "0003" / "codes.npz").exists()
    for entry in records.read_json(grid / "guidance.json")["applications"].values():
        (name,) = entry["best"]["models"]
        counted = records.read_json(grid / "models" / name / "metrics.json")["rates"]["test"]["active_units"]
        assert entry["best"]["active_units"] == counted
        assert f" | {', '.join(map(str, counted))} | 1 | " in (grid / "guidance.md").read_text()

    shutil.copytree(grid, tmp_path / "grid")
    files = [tmp_path / "grid" / "models" / f"{number:04d}" / "codes.npz" for number in range(3)]
    files[1].unlink()
    before = files[0].stat().st_mtime_ns
    result = programs.run("evaluate", f"--workdir={tmp_path / 'grid'}", "--codes", *QUICK)
    assert result.status == 0, result.err
    assert files[0].stat().st_mtime_ns == before
    with np.load(files[1]) as again, np.load(grid / "models" / "0001" / "codes.npz") as codes:
        for name in codes:
            np.testing.assert_array_equal(again[name], codes[name])
    flags = ("--codes", "--max_codes=7", *QUICK)
    result = programs.run("evaluate", f"--workdir={tmp_path / 'grid'}", *flags)
    assert result.status == 0, result.err
    with np.load(files[0]) as part:
        assert part["test_means_3"].shape == (7, 3)


def test_the_report_in_a_browser(grid):
    with sync_api.sync_playwright() as playwright:
        # No sandbox: tests may run as root.
        program = services.find_browser(playwright.chromium.executable_path)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 1400})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else problems.append(r.url),
        )
        page.goto((grid / "report.html").as_uri())
        page.wait_for_selector("#maps .scatterlayer .point")

        # Pointing at a dot shows its betas and rates there, and its pictures beside the map.
        page.locator("#maps .scatterlayer .trace").first.locator(".point").nth(2).hover(force=True)
        page.wait_for_selector("#details[data-model='2'] img")
        assert "β = (3, 0.3, 1), seed 2" in (page.locator("#maps .hoverlayer").text_content() or "")
        assert page.locator("#details img").evaluate("image => image.naturalWidth") > 80
        assert "model 0002" in page.locator("#details").inner_text()

        # A click on a column's name sorts by it, a second one the other way round.
        head = page.locator("#models th", has_text="R_3")
        place = head.evaluate("cell => cell.cellIndex")
        rates = f"rows => rows.map(row => Number(row.cells[{place}].dataset.value))"
        head.locator("button").click()
        found = page.locator("#models tbody tr").evaluate_all(rates)
        assert found == sorted(found)
        head.locator("button").click()
        assert page.locator("#models tbody tr").evaluate_all(rates) == sorted(found, reverse=True)
        assert head.get_attribute("aria-sort") == "descending"
        page.locator("#models tbody tr").first.click()
        assert page.locator("#models tr.chosen").count() == 1

        assert page.locator(".figures img").count() >= 8
        assert page.locator(".figures img").evaluate_all(
            "all => all.every(image => image.naturalWidth > 300)"
        )
        assert problems == []
        browser.close()
