"""report.html: one page that needs nothing but itself: maps to point at, figures, a table to sort."""

import base64
import html
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from hvae_jax import records
from hvae_jax.data.pixels import to_bytes
from hvae_jax.evaluation import guidance_text
from hvae_jax.evaluation.choices import Guidance
from hvae_jax.evaluation.detection import Detection
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.figures.applications import rate_axes
from hvae_jax.figures.detection import score_label
from hvae_jax.figures.style import tile

REPORT_FILE = "report.html"
# Shown where they exist, in this order.
FIGURES: Mapping[str, str] = {
    "metric_by_total_rate": "What each application gains from the total rate; equal betas stand out.",
    "accuracy_by_information": "Accuracy from the top layer under its bound. Only samples are bound by it.",
    "score_factor_maps": "The two factors of the inception score.",
    "trade_off": "The three applications against each other.",
    "distortion_by_rate": "Distortion against total rate. On a dotted line the ELBO is the same.",
    "pictures_reconstruction": "Best for reconstruction.",
    "pictures_representation": "Best for representation.",
    "detection_maps": "How well each score tells each set of images from elsewhere.",
    "detection_histograms": "Scores of own test images and of images from elsewhere.",
    "pictures_generation": "Best for generation.",
    "pictures_detection": "Best for detection.",
    "latents_representation": "Latents of the best for representation, by class.",
    "pictures_model": "What the model does.",
    "latents_model": "Its latents, by class.",
}


def write(folder: pathlib.Path, models: Sequence[Evaluated], guidance: Guidance) -> None:
    """Writes report.html into `folder`, whose figures are drawn already.

    Args:
      folder: of the run or grid.
      models: evaluated.
      guidance: content of guidance.json.
    """
    pictures = json.dumps([_strip(model) for model in models])
    figures, looked = folder / records.FIGURES_FOLDER, any(model.detection for model in models)
    shown = "".join(
        f'<figure><img src="{_data_uri((figures / f"{name}.png").read_bytes())}" alt="{html.escape(text)}">'
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for name, text in FIGURES.items()
        if (figures / f"{name}.png").exists() and (looked or "detection" not in name)
    )
    name = html.escape(folder.absolute().name)
    counted = f"{guidance_text.describe_models(guidance)}, {_count(guidance.num_layers, 'layer')}"
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>hvae_jax: {name}</title>
<style>{_STYLE}</style></head><body>
<h1>{name}: {counted}</h1>
{_guidance(guidance)}
<h2>Where the models lie</h2>
<p>A dot is a model, a star the best for the application by validation. Point at a dot: its betas, rates and
pictures. A click keeps them.</p>
<div class="explorer">
<aside id="details"><h3>No model chosen</h3><p>Point at a dot, or click on a row of the table.</p></aside>
{_maps(models, guidance)}</div>
<h2>Figures</h2><div class="figures">{shown}</div>
<h2>All models</h2><p>Numbers of the test split. A click on a column's name sorts by it.</p>
{_table(models)}
<script>const pictures = {pictures};
{_SCRIPT}</script>
</body></html>
"""
    records.write_text(folder / REPORT_FILE, page)


def columns(model: Evaluated) -> dict[str, float | int | str]:
    """What the table says of a model: name → value."""
    metrics, rates = model.metrics, model.metrics.rates.test
    whole, top = metrics.reconstruction.test.from_layer[0], metrics.representation.layers[-1]
    label, generation = metrics.information.test.whole.label, metrics.generation.test
    scores, pixels = generation.scores, generation.pixels or "samples"
    judged, both = (scores.judged, scores.precision_recall) if scores else (None, None)
    betas = {f"β_{layer}": beta for layer, beta in enumerate(model.betas, start=1)}
    of_layers = {f"R_{layer}": rate for layer, rate in enumerate(rates.rates_nats.value, start=1)}
    units = rates.active_units or ("",) * len(of_layers)
    of_units = {f"active units of z_{layer}": number for layer, number in enumerate(units, start=1)}
    if rates.groups is not None:
        of_units = {}
        for group in rates.groups:
            own = units[group.lowest_layer - 1 : group.highest_layer]
            of_units[f"active units of {group.name}"] = "" if "" in own else sum(map(int, own))
        of_layers = {f"R of {group.name}": group.rate_nats.value for group in rates.groups}
        of_groups = [set(model.betas[group.lowest_layer - 1 : group.highest_layer]) for group in rates.groups]
        if all(len(values) == 1 for values in of_groups):
            names = (group.name for group in rates.groups)
            betas = {f"β of {name}": min(values) for name, values in zip(names, of_groups, strict=True)}
    found = {
        "model": model.name,
        **betas,
        "seed": model.seed,
        **of_layers,
        **of_units,
        "D": rates.distortion_nats.value,
        "−ELBO": rates.negative_elbo_nats.value,
        "PSNR": whole.psnr_db.value,
        "SSIM": whole.ssim.value,
        "accuracy, samples of z_L": top.samples and top.samples.best.test_accuracy.value,
        "accuracy, means of z_L": top.means and top.means.best.test_accuracy.value,
        "I_q(y; z_L)": label and label.label_information_nats.value,
        f"inception score of {pixels} (own classifier)": judged and judged.inception_score_classifier.value,
        "diversity": judged and judged.diversity,
        "sharpness": judged and judged.sharpness,
        f"Fréchet distance of {pixels} (own classifier)": scores and scores.frechet_distance_classifier,
        "precision": both and both.precision_classifier,
        "recall": both and both.recall_classifier,
    }
    if model.detection is not None:
        found |= _detection_columns(model.detection)
    return {name: "" if value is None else value for name, value in found.items()}


def _detection_columns(detection: Detection) -> dict[str, float | None]:
    """How well the chosen score tells each set; without a choice the likelihood's own bound."""
    score = detection.chosen or "negative_elbo"
    mean = detection.mean_auroc
    return {
        **{f"AUROC of {of.name}": of.by(score).test.auroc.value for of in detection.sets},
        "mean AUROC": mean and mean.test.value,
    }


def _maps(models: Sequence[Evaluated], guidance: Guidance) -> str:
    """The plane of rates, once for each application, as plotly draws it, with its script inline."""
    import plotly.graph_objects as go  # here: in the extra `evaluation`, slow to import
    from plotly.subplots import make_subplots

    x, y, *labels = rate_axes(models)
    x_label, y_label = (label.replace("$", "").replace("\\dots", "…") for label in labels)
    # A logarithmic axis has no zero and collapsed rates are common, so the square root is drawn.
    # Without a choice the models are shown all the same, coloured by nothing.
    panels = list(guidance.applications.items()) or [(None, None)]
    titles = [application or "" for application, _ in panels]
    figure = make_subplots(rows=1, cols=len(panels), subplot_titles=titles)
    ticks = [0, 0.1, 1, 3, 10, 30, 100, 300, 1000]
    names = [
        f"{model.name}: β = ({', '.join(f'{b:.3g}' for b in model.betas)}), seed {model.seed}<br>"
        f"R = ({', '.join(f'{r:.2f}' for r in model.rates_nats)}) nats"
        for model in models
    ]
    for column, (application, entry) in enumerate(panels, start=1):
        values = [model.scored.test(application) if application else math.nan for model in models]
        texts = [
            f"{name}<br>{application}: {value:.3f}" if application else name
            for name, value in zip(names, values, strict=True)
        ]
        width, gap = 1 / len(titles), 0.04
        figure.add_trace(
            go.Scatter(
                x=np.sqrt(np.maximum(x, 0)),
                y=np.sqrt(np.maximum(y, 0)),
                mode="markers",
                customdata=list(range(len(models))),
                text=texts,
                hovertemplate="%{text}<extra></extra>",
                marker={
                    "color": values if application else None,
                    "colorscale": "Viridis",
                    "size": 9,
                    "line": {"width": 0.5, "color": "white"},
                    "showscale": bool(application),
                    "colorbar": {
                        "orientation": "h", "y": -0.32, "x": (column - 0.5) * width, "len": width - 2 * gap,
                        "thickness": 10,
                    },
                },
                showlegend=False,
            ),
            row=1,
            col=column,
        )  # fmt: skip
        best = entry.best.models if entry else ()
        chosen = [number for number, model in enumerate(models) if model.name in best]
        figure.add_trace(
            go.Scatter(
                x=np.sqrt(np.maximum(x[chosen], 0)), y=np.sqrt(np.maximum(y[chosen], 0)), mode="markers",
                marker={"symbol": "star-open", "size": 17, "color": "black", "line": {"width": 1.5}},
                hoverinfo="skip", showlegend=False,
            ),
            row=1,
            col=column,
        )  # fmt: skip
        axis = {"tickvals": np.sqrt(ticks).tolist(), "ticktext": [f"{t:g}" for t in ticks], "zeroline": False}
        limit = [[-0.15, 1.06 * float(np.sqrt(max(values.max(), 1.0)))] for values in (x, y)]
        figure.update_xaxes(title_text=x_label, range=limit[0], **axis, row=1, col=column)
        figure.update_yaxes(
            title_text=y_label if column == 1 else "", range=limit[1], **axis, row=1, col=column
        )
    figure.update_layout(
        height=440, margin={"l": 55, "r": 10, "t": 40, "b": 110}, template="simple_white", hovermode="closest"
    )
    return figure.to_html(
        full_html=False,
        include_plotlyjs=True,
        div_id="maps",
        config={"responsive": True, "displaylogo": False},
    )


def _strip(model: Evaluated) -> dict[str, str]:
    """A model's name, a line about it and its pictures: test images, reconstructions, samples."""
    arrays = model.pictures()
    rows = [arrays["images"], *arrays["reconstructions"], arrays["samples"]]
    lines = [tile(row / 255) for row in rows]
    width = max(line.shape[1] for line in lines)  # there may be fewer test images than samples
    fill = [((0, 0), (0, width - line.shape[1]), (0, 0))[: line.ndim] for line in lines]  # grey has two axes
    lines = [np.pad(line, pad, constant_values=1.0) for line, pad in zip(lines, fill, strict=True)]
    between = np.ones((1, *lines[0].shape[1:]))
    stacked = np.concatenate([part for line in lines for part in (line, between)][:-1])
    file = io.BytesIO()
    Image.fromarray(to_bytes(stacked)).save(file, "PNG", optimize=True)
    from_layers = model.metrics.reconstruction.test.layers or range(1, model.num_layers + 1)
    below = [f"from z_{layer} up" if layer > 1 else "from all layers" for layer in from_layers]
    said = columns(model)
    if model.detection is not None and model.detection.chosen is not None:
        said["told by"] = score_label(model.detection.chosen).replace("$", "")
    values = "".join(f"<dt>{html.escape(name)}</dt><dd>{_text(value)}</dd>" for name, value in said.items())
    return {
        "name": model.name,
        "image": _data_uri(file.getvalue()),
        "rows": f"rows: test images; reconstructed {', '.join(below)}; samples",
        "values": values,
    }


def _guidance(guidance: Guidance) -> str:
    introduction = html.escape(guidance_text.introduction(guidance))
    parts = [f'<h2>Which betas for which application</h2><p>{introduction}</p><div class="guidance">']
    for application, entry in guidance.applications.items():
        unit = f" {entry.unit}" if entry.unit else ""
        rows, has_units = [], guidance_text.knows_units(entry)
        best = "best" if entry.num_candidates > 1 else "this model"
        for label, one in {best: entry.best, **entry.rivals()}.items():
            if one is None:
                rows.append(f"<tr><td>{label}</td><td colspan={4 + has_units}>absent</td></tr>")
                continue
            cells = (
                label,
                ", ".join(f"{beta:.3g}" for beta in one.betas),
                ", ".join(f"{rate:.2f}" for rate in one.rates_nats),
                *([guidance_text.describe_units(one)] if has_units else []),
                f"{one.test:.3f} ± {one.test_standard_error:.3f}{unit}",
                str(len(one.seeds)),
            )
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
        title = f"{application.capitalize()}: {entry.metric}"
        parts.append(
            f"<section><h3>{html.escape(title)}</h3><table><thead><tr><th>choice</th><th>betas</th>"
            f"<th>rates (nats)</th>{'<th>active units</th>' * has_units}<th>test</th><th>seeds</th></tr>"
            f"</thead><tbody>{''.join(rows)}</tbody></table><p>{html.escape(guidance_text.statement(entry))} "
            f"{html.escape(guidance_text.spread_statement(entry))}</p></section>"
        )
    left_out = [
        f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in guidance.left_out.items()
    ]
    return "".join([*parts, "</div>", f"<p>Left out:</p><ul>{''.join(left_out)}</ul>" if left_out else ""])


def _table(models: Sequence[Evaluated]) -> str:
    names = list(columns(models[0]))
    head = "".join(f"<th><button>{html.escape(name)}</button></th>" for name in names)
    body = "".join(
        f'<tr data-model="{number}">'
        + "".join(
            f'<td data-value="{html.escape(str(value))}">{_text(value)}</td>'
            for value in columns(model).values()
        )
        + "</tr>"
        for number, model in enumerate(models)
    )
    table = f'<table id="models"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="wide">{table}</div>'


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _text(value: float | int | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else html.escape(str(value))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1320px;
  padding: 0 1em; color: #222; }
.guidance { display: flex; flex-wrap: wrap; gap: 0 2.5em; }
.guidance table { font-size: 13px; }
.guidance section { flex: 1; min-width: 380px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd; }
td:first-child, th:first-child, td[colspan] { text-align: left; }
.wide { overflow-x: auto; } #models tr:hover, #models tr.chosen { background: #e8f1f8; }
th button { font: inherit; font-weight: 600; border: 0; background: none; cursor: pointer; }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
.explorer { display: flex; flex-direction: row-reverse; gap: 1em; min-height: 620px; }
.explorer > div { flex: 1; min-width: 0; }
#details { width: 300px; flex: none; font-size: 13px; } #details h3 { margin: 0; }
#details img { width: 100%; image-rendering: pixelated; }
#details dl { display: grid; grid-template-columns: 1fr auto; gap: 0 1em; } #details dd { margin: 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1.5em; } figure { margin: 0; max-width: 100%; }
figure img { max-width: 100%; max-height: 420px; } figcaption { color: #555; }
"""

_SCRIPT = """
const details = document.getElementById("details"), maps = document.getElementById("maps");
const table = document.getElementById("models");
let kept = null;
function show(number) {
  const model = pictures[number];
  details.dataset.model = number;
  details.innerHTML = `<h3>model ${model.name}</h3>` +
    `<img alt="pictures of model ${model.name}" src="${model.image}">` +
    `<p>${model.rows}</p><dl>${model.values}</dl>`;
  for (const row of table.tBodies[0].rows) row.classList.toggle("chosen", row.dataset.model == number);
}
maps.on("plotly_hover", event => { if (kept === null) show(event.points[0].customdata); });
maps.on("plotly_click", event => {
  const number = event.points[0].customdata;
  kept = kept === number ? null : number;
  show(number);
});
table.tBodies[0].addEventListener("click", event => {
  const row = event.target.closest("tr");
  if (row) { kept = Number(row.dataset.model); show(kept); }
});
table.tHead.addEventListener("click", event => {
  const head = event.target.closest("th");
  if (!head) return;
  const place = head.cellIndex, down = head.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  const value = row => Number(row.cells[place].dataset.value);
  rows.sort((a, b) => (down ? -1 : 1) * (value(a) - value(b)));
  table.tBodies[0].append(...rows);
});
"""
