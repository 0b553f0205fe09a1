"""The explorer of a grid: what the page holds, and the page used in a browser as a reader uses it."""

import base64
import io
import json
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import services
import small_metrics
import tiny
from PIL import Image
from playwright import sync_api

from experiments import explorer as explorer_program
from experiments import explorer_models
from hvae_jax import data, experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.figures import explorer
from hvae_jax.grid import table
from hvae_jax.keys import make_key

pytestmark = pytest.mark.long

NUM_IMAGES, NUM_SAMPLES = 5, 7
FLAGS = (f"--num_images={NUM_IMAGES}", f"--num_samples={NUM_SAMPLES}")
BETAS = ((0.1, 1.0, 10.0), (0.3, 3.0))
# Numbers of models; the second one's betas, (1, 3), are the nearest to 1, and it alone is evaluated.
MISSING, NEAREST = 5, 3


def read_data(page: pathlib.Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*)</script>', page.read_text())
    assert found
    return json.loads(found[1])


def read_sheet(uri: str) -> np.ndarray:
    prefix = "data:image/png;base64,"
    assert uri.startswith(prefix)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(prefix)))))


@pytest.fixture(scope="module")
def grid(programs, tiny_data, tmp_path_factory) -> pathlib.Path:
    """3 × 2 betas of one short conditioned run; one model diverged, one is evaluated; with its page."""
    folder = tmp_path_factory.mktemp("explorer")
    run = (
        "--config=experiments/digits_conditioned.py",
        f"--config.data.name=npz:{tiny_data}",
        *tiny.TRAINING,
        "--config.training.learning_rate_warmup_steps=0",
    )
    points = ("--config=experiments/digits_grid.py", f"--config.grid.betas={BETAS}".replace(" ", ""))
    for program, flags in (
        ("run", (*run, f"--workdir={folder / 'run'}")),
        ("grid", (*points, f"--from_model={folder / 'run'}", f"--workdir={folder / 'grid'}")),
    ):
        ended = programs.run(program, *flags)
        assert ended.status == 0, ended.err
    models = folder / "grid" / "models"
    records.write_json(models / f"{MISSING:04d}" / "evaluation.json", {"step": 25, "status": "diverged"})
    metrics = to_plain(small_metrics.make_metrics(accuracy=0.625))
    records.write_json(models / f"{NEAREST:04d}" / "metrics.json", metrics)
    ended = programs.run("explorer", f"--workdir={folder / 'grid'}", *FLAGS)
    assert ended.status == 0, ended.err
    assert "explorer.html: 0.0" in ended.out
    return folder / "grid"


def test_the_page_needs_nothing_but_itself(grid):
    text = (grid / "explorer.html").read_text()
    assert len(text) < 15e6
    assert "http" not in text
    assert str(grid.parent) not in text
    assert not re.findall(r"""(?:src|href|@import|url\()\s*=?\s*["']?(?!\$\{)[\w./]""", text)
    assert "[[" not in text.replace("[[68, 1, 84]", "").partition('id="data"')[0]


def test_numbers_and_pixels_are_those_of_the_models(grid):
    page, found = read_data(grid / "explorer.html"), table.load(grid)
    names = [quantity["name"] for quantity in page["quantities"]]
    assert names[:5] == ["R₁", "R₂", "ΣR", "D", "−ELBO"]
    assert [axis["labels"] for axis in page["axes"]] == [["0.1", "1", "10"], ["0.3", "3"]]
    assert len(page["points"]) == 6
    built = experiment.from_folder(grid / "models" / "0000")
    params = experiment.restore(built, grid / "models" / "0000").eval_params
    stored = built.dataset.test.images[data.spread(built.dataset.test.labels, NUM_IMAGES)]
    key = make_key(built.training.seed)
    x = built.preprocess_fn(jax.random.split(key, NUM_IMAGES), stored)
    apply: Any = built.model.apply
    images_fn = jax.jit(
        lambda own: jnp.concatenate(
            [
                apply(own, x, method="reconstruct"),
                apply(own, x, from_layer=2, method="reconstruct"),
                apply(own, key, NUM_SAMPLES, method="sample"),
            ]
        )
    )
    for number, point in enumerate(page["points"]):
        first, second = point["sliders"]
        assert point["betas"] == [BETAS[0][first], BETAS[1][second]]
        if number == MISSING:
            assert (point["sheet"], point["missing"]) == (None, "No model here: it diverged.")
            assert set(point["values"]) == {None}
            continue
        rates = found["rates_nats"][first, second, 0]
        distortion = found["distortion_nats"][first, second, 0]
        np.testing.assert_allclose(
            point["values"][:5],
            [*rates, rates.sum(), distortion, distortion + rates.sum()],
            rtol=1e-5,
        )
        images = np.asarray(images_fn(built.at(params, point["betas"])))
        sheet = read_sheet(point["sheet"])
        assert sheet.shape == (4 * 8, NUM_IMAGES * 8)  # seven samples take two rows
        cells = sheet.reshape(4, 8, NUM_IMAGES, 8).swapaxes(1, 2).reshape(-1, 8, 8)
        expected = 255 * np.clip(images[..., 0], 0, 1)
        # Compiled otherwise, pixels differ in the last digits, and 0.5 may be rounded either way.
        np.testing.assert_allclose(cells[: len(expected)], expected, atol=0.51)
    np.testing.assert_array_equal(
        read_sheet(page["testImages"]), np.hstack(list(255 * np.asarray(x)[..., 0]))
    )
    accuracy = names.index("accuracy")
    assert [point["values"][accuracy] for point in page["points"]].count(0.625) == 1
    assert page["points"][NEAREST]["errors"][accuracy] == 0.01


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        program = services.find_browser(playwright.chromium.executable_path)
        # No sandbox: tests may run as root.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, grid) -> Iterator[Any]:
    """The page in a tab; nothing may be asked of a network, and no script may fail."""
    tab = browser.new_page(viewport={"width": 1300, "height": 1100})
    problems: list[str] = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else problems.append(r.url))
    tab.goto((grid / "explorer.html").as_uri())
    yield tab
    assert problems == []
    tab.close()


def assert_shows(tab: Any, page: dict[str, Any], number: int) -> None:
    """That everything on the page is of the model of that number."""
    point = page["points"][number]
    assert tab.locator("#pictures").get_attribute("data-model") == f"{number:04d}"
    betas = ", ".join(f"β{sub} = {beta:g}" for sub, beta in zip("₁₂", point["betas"], strict=True))
    assert tab.locator("#here").inner_text() == betas
    assert [tab.locator(f"#axis-{axis}").input_value() for axis in (0, 1)] == list(map(str, point["sliders"]))
    assert [tab.locator(f"#value-{axis}").inner_text() for axis in (0, 1)] == [
        f"{b:g}" for b in point["betas"]
    ]
    for place in (0, 1, 3):
        shown = tab.locator(f"#number-{place} .nats").inner_text()
        if point["values"][place] is None:
            assert shown == "–"
            continue
        value, error = map(float, shown.removesuffix(" nats").split(" ± "))
        assert abs(value - point["values"][place]) <= max(0.1 * error, 5e-4)
        bits = float(tab.locator(f"#number-{place} .bits").inner_text())
        assert abs(bits - point["values"][place] / np.log(2)) <= max(0.2 * error, 5e-4)
    cell = tab.locator("#made .cell").first
    drawn = cell.evaluate("cell => getComputedStyle(cell).backgroundImage")
    assert drawn == ("none" if point["sheet"] is None else f'url("{point["sheet"]}")')
    assert tab.locator("#missing").inner_text() == point["missing"]
    assert tab.evaluate("location.hash") == f"#{','.join(map(str, point['sliders']))}"


def test_sliders_by_mouse_and_keyboard(opened, grid):
    page = read_data(grid / "explorer.html")
    assert_shows(opened, page, NEAREST)
    assert opened.locator("#axis-0").get_attribute("aria-valuetext") == "β₁ 1"
    opened.locator("#axis-1").focus()
    opened.keyboard.press("ArrowLeft")
    assert_shows(opened, page, 2)
    opened.keyboard.press("ArrowRight")
    assert_shows(opened, page, NEAREST)
    accuracy = opened.locator("#numbers tr", has_text="accuracy").locator(".nats")
    assert accuracy.inner_text() == "0.625 ± 0.010"
    box = opened.locator("#axis-0").bounding_box()
    opened.mouse.click(box["x"] + 9, box["y"] + box["height"] / 2)
    assert_shows(opened, page, 1)
    assert accuracy.inner_text() == "–"
    opened.mouse.click(box["x"] + box["width"] - 9, box["y"] + box["height"] / 2)
    assert_shows(opened, page, MISSING)
    assert opened.locator("#plane .here").count() == 0
    opened.keyboard.press("ArrowLeft")
    assert_shows(opened, page, NEAREST)


def test_the_plane_of_rates(opened, grid):
    page = read_data(grid / "explorer.html")
    dots = opened.locator("#plane .dot").evaluate_all(
        "all => all.map(dot => [Number(dot.dataset.point), Number(dot.getAttribute('cx')),"
        " Number(dot.getAttribute('cy'))])"
    )
    assert [number for number, *_ in dots] == [0, 1, 2, 3, 4]
    # More rate is further to the right, or up.
    values = np.asarray([page["points"][number]["values"][:2] for number, *_ in dots])
    centres = np.asarray([centre for _, *centre in dots])
    assert (np.argsort(values[:, 0]) == np.argsort(centres[:, 0])).all()
    assert (np.argsort(values[:, 1]) == np.argsort(-centres[:, 1])).all()
    # The dot that is furthest from all others, which a click cannot mistake.
    apart = np.linalg.norm(centres[:, None] - centres, axis=-1) + 1e9 * np.eye(5)
    apart[NEAREST] = -1.0  # where the page begins
    number = int(np.argmax(apart.min(axis=1)))
    box = opened.locator(f"#plane [data-point='{number}']").bounding_box()
    opened.mouse.click(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2 - 1)
    assert_shows(opened, page, number)
    ring = opened.locator("#plane .here")
    assert float(ring.get_attribute("cx")) == pytest.approx(centres[number, 0])
    # Arrow keys go from dot to dot, to where they point.
    opened.locator("#plane").focus()
    for key in ("ArrowRight",) * 5:
        opened.keyboard.press(key)
    right = int(opened.locator("#pictures").get_attribute("data-model"))
    assert_shows(opened, page, right)
    opened.keyboard.press("ArrowLeft")
    left = int(opened.locator("#pictures").get_attribute("data-model"))
    assert centres[left, 0] < centres[right, 0]
    # Other quantities along the axes.
    opened.locator("#up").select_option("D")
    assert "D: distortion, −log p(x|z) (nats)" in opened.locator("#plane").text_content()
    assert_shows(opened, page, left)


def test_an_address_opens_a_model_and_one_of_nothing_the_first(opened, grid):
    page = read_data(grid / "explorer.html")
    opened.evaluate("location.hash = '#0,1'")
    opened.wait_for_selector("#pictures[data-model='0001']")
    assert_shows(opened, page, 1)
    opened.evaluate("location.hash = '#7,7'")
    opened.wait_for_selector("#pictures[data-model='0003']")
    opened.goto((grid / "explorer.html").as_uri() + "#2,0")
    opened.reload()
    assert_shows(opened, page, 4)


def test_of_trained_models_and_of_a_list_of_points(programs, browser, grid, finished_grid, tmp_path):
    out = tmp_path / "new" / "page.html"
    before = {file: file.stat().st_mtime_ns for file in finished_grid.rglob("*")}
    ended = programs.run("explorer", f"--workdir={finished_grid}", f"--out={out}", "--num_samples=0")
    assert ended.status == 0, ended.err
    assert {file: file.stat().st_mtime_ns for file in finished_grid.rglob("*")} == before
    assert "<h1>tiny: 2 generalized top down models, each trained for its own betas</h1>" in out.read_text()
    assert "experiments.evaluate --workdir=DIR" in out.read_text()
    page = read_data(out)
    assert [point["name"] for point in page["points"]] == ["0000", "0002"]  # of two seeds the first
    assert page["points"][0]["sheet"] != page["points"][1]["sheet"]

    points = "((10.0,3.0),(0.1,0.3),(1.0,1.0))"
    flags = (
        "--config=experiments/digits_grid.py",
        "--config.grid.betas=()",
        f"--config.grid.points={points}",
    )
    run, folder = grid.parent / "run", tmp_path / "list"
    for ended in (
        programs.run("grid", *flags, f"--from_model={run}", f"--workdir={folder}"),
        programs.run("explorer", f"--workdir={folder}", *FLAGS),
    ):
        assert ended.status == 0, ended.err
    page = read_data(folder / "explorer.html")
    assert [axis["name"] for axis in page["axes"]] == ["point"]
    assert "asked at 3 choices of betas</h1>" in (folder / "explorer.html").read_text()
    totals = [point["values"][2] for point in page["points"]]
    assert totals == sorted(totals)
    tab = browser.new_page()
    tab.goto((folder / "explorer.html").as_uri())
    tab.locator("#axis-0").focus()
    for press, number in (("Home", 0), ("End", 2)):
        tab.keyboard.press(press)
        assert tab.locator("#pictures").get_attribute("data-model") == page["points"][number]["name"]
    tab.locator("button", has_text="β = 1").click()
    assert tab.locator("#here").inner_text() == "β₁ = 1, β₂ = 1"
    tab.close()


def test_what_cannot_be_made(programs, grid, tmp_path):
    out = tmp_path / "page.html"
    flags = (f"--workdir={grid}", f"--out={out}")
    tiny.assert_one_error(
        programs.run("explorer", *flags, *FLAGS, "--max_megabytes=0.001"),
        "0.001 are allowed: lower --num_images=5 or --num_samples=7",
    )
    tiny.assert_one_error(programs.run("explorer", *flags, "--data=npz:absent.npz"), "npz:absent.npz")
    folder = tmp_path / "grid"
    shutil.copytree(grid, folder)
    metrics = records.read_json(folder / "models" / f"{NEAREST:04d}" / "metrics.json")
    metrics["settings"] = {"checksum": "0"}
    records.write_json(folder / "models" / f"{NEAREST:04d}" / "metrics.json", metrics)
    tiny.assert_one_error(
        programs.run("explorer", f"--workdir={folder}", f"--out={out}"), "is of an earlier checkpoint"
    )
    shutil.rmtree(folder / "models")
    tiny.assert_one_error(
        programs.run("explorer", f"--workdir={folder}", f"--out={out}"), "a grid without a finished model"
    )
    assert not out.exists()


def test_sheets_of_colours_and_of_a_last_row_that_is_not_full():
    images = np.random.default_rng(0).uniform(-0.2, 1.2, (5, 3, 4, 3))
    sheet = read_sheet(explorer.data_uri(images, 2))
    assert sheet.shape == (9, 8, 3)
    expected = np.round(255 * np.clip(images, 0, 1))
    np.testing.assert_array_equal(sheet[6:, :4], expected[4])
    np.testing.assert_array_equal(sheet[3:6, 4:], expected[3])
    assert not sheet[6:, 4:].any()


def test_text_cannot_end_the_script_that_holds_it():
    point = explorer.Point((0,), "0000", (1.0,), {}, None, "</script><b>")
    content = explorer.Content(
        title="<i>", lead=(), notes=(), heading="", axes=[explorer.Axis("β₁", "", ("1",))], beta_names=["β₁"],
        quantities=[], plane=("R₁", "D"), points=[point], start=0, marks=(),
        test_images=np.zeros((1, 2, 2, 1)), rows=(), num_samples=0,
    )  # fmt: skip
    page = explorer.to_html(content)
    assert "<i>" not in page
    assert page.count("</script>") == 2
    with pytest.raises(RunError, match="raise --max_megabytes"):
        explorer.to_html(content, max_bytes=len(page) - 1)


def test_of_many_layers_three_are_reconstructed_from():
    assert explorer_models.choose_rows([1, 3]) == [1, 3]
    assert explorer_models.choose_rows([1, 2, 5, 9, 20, 43]) == [1, 9, 43]


def test_the_plane_is_of_the_rates_that_move():
    def plane(num_rates: int, *places: int) -> tuple[str, str]:
        rates = [explorer.Quantity(f"R_{n}", "", is_rate=True) for n in range(1, num_rates + 1)]
        total = explorer.Quantity("total", "", is_rate=True)
        axes = [explorer.Axis("", "", ("1",) * number) for number in places]
        return explorer_program._plane([*rates, total, explorer.Quantity("D", "")], axes)

    assert plane(1, 3) == ("R_1", "D")
    assert plane(2, 3, 3) == plane(2, 3, 1) == plane(2, 9) == ("R_1", "R_2")
    assert plane(3, 3, 3, 3) == plane(3, 5) == ("R_1", "R_3")
    assert plane(3, 3, 3, 1) == ("R_1", "R_2")
