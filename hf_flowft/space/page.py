"""The page itself, in Gradio."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..tables import metrics_table
from .comparison import ADAPTIVE, MAX_STEPS, SOLVERS, Comparison, Drawing
from .pictures import line_pictures, sample_pictures

TITLES = {"base": "Base", "result": "Result"}
FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]
MONO_FONTS = ["ui-monospace", "monospace"]
CSS = """
.gradio-container {max-width: 1240px !important; margin: 0 auto !important}
#verdict {border-left: 4px solid var(--primary-500); padding: 2px 0 2px 14px}
#message p {color: #d0392b; font-weight: 600}
#message:not(:has(p)) {display: none}
#base-cost strong, #result-cost strong {font-size: 1.3em; margin-right: 6px}
#base-cost strong {color: #2f6ea5}
#result-cost strong {color: #d0392b}
.dark #base-cost strong {color: #6fa8dc}
.dark #message p, .dark #result-cost strong {color: #f0796d}
.picture img {border-radius: 6px}
.picture .icon-button-wrapper {display: none}
#results table {width: 100%; border-collapse: collapse; font-size: 0.92em; font-variant-numeric: tabular-nums}
#results table, #results tr, #results th, #results td {border: 0 !important}
#results th, #results td {padding: 5px 12px; text-align: left; overflow-wrap: normal}
#results tr {border-bottom: 1px solid var(--border-color-primary) !important}
"""


def build_page(folder: str | Path, base: str | Path | None = None, base_revision: str | None = None) -> Any:
    """The page of a folder that `write_space` made, as `gradio.Blocks`; open it with `launch`.

    Args: `base`: the base's folder, or a repository on the Hub (at `base_revision`); None shows the result alone.
    Raises: ValueError when a pipeline or results.json cannot be read; ImportError without Gradio.
    """
    gr = _gradio()
    comparison = Comparison.from_folder(Path(folder), base, base_revision)
    with gr.Blocks(title=comparison.results["name"], analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(_heading(comparison.results))
        gr.Markdown(comparison.results["selection"]["verdict"], elem_id="verdict")
        controls, buttons = _controls(gr, comparison)
        message = gr.Markdown(elem_id="message")
        outputs = [message, *_models(gr, comparison)]
        with gr.Accordion("Measured on held-out data", open=True):
            gr.Markdown(_table(comparison.results), elem_id="results")
        _connect(gr, page, comparison, controls, buttons, outputs)
    return page


def launch(page: Any, **options: Any) -> Any:
    """Open a page on this machine, or on a Space: no fonts from elsewhere, no analytics.

    Args: `options`: of `gradio.Blocks.launch` (`server_port`, `prevent_thread_lock` ...).
    """
    gr = _gradio()
    theme = gr.themes.Soft(primary_hue="blue", font=FONTS, font_mono=MONO_FONTS).set(
        block_title_background_fill="none",
        block_title_background_fill_dark="none",
        block_title_padding="0",
        block_title_text_color="*neutral_600",
    )
    return page.launch(theme=theme, css=CSS, ssr_mode=False, footer_links=["gradio"], **options)


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise ImportError("the page needs Gradio: pip install hf_flowft[space]") from error
    return gradio


def _controls(gr: Any, comparison: Comparison) -> tuple[list[Any], list[Any]]:
    """Steps, solver, seed and (of conditional models) labels; and the buttons."""
    with gr.Row(equal_height=True):
        steps = gr.Slider(1, MAX_STEPS, value=8, step=1, label="Steps", elem_id="steps", scale=3)
        solver = gr.Dropdown(list(SOLVERS), value="euler", label="Solver", elem_id="solver", scale=2)
        seed = gr.Number(0, precision=0, label="Seed", elem_id="seed", scale=1)
        with gr.Column(scale=1, min_width=140):
            draw = gr.Button("Draw", variant="primary", elem_id="draw")
            again = gr.Button("New noise", elem_id="again")
    controls = [steps, solver, seed]
    if comparison.labels:
        choices = [(name, label) for label, name in comparison.labels.items()]
        options = {
            "choices": choices,
            "value": [label for _, label in choices[:10]],
            "label": "Labels",
            "elem_id": "labels",
        }
        controls.append(gr.CheckboxGroup(**options) if len(choices) <= 12 else gr.Dropdown(multiselect=True, **options))
    return controls, [draw, again]


def _models(gr: Any, comparison: Comparison) -> list[Any]:
    """The models side by side: what the samples cost, the samples and, of points in the plane, their ways; in the order of `updates`."""
    names = list(comparison.models)
    gr.Markdown(_notes(comparison))
    with gr.Row():
        columns = [gr.Column() for _ in range(2)]  # a result alone leaves the right half empty
    costs, samples = [], []
    for name, column in zip(names, columns, strict=False):
        with column:
            costs.append(gr.Markdown(elem_id=f"{name}-cost"))
            samples.append(_picture(gr, f"{name}-samples", f"samples of the {name}"))
    lines: list[Any] = []
    if comparison.in_plane:
        gr.Markdown("From the noise to the samples: the way of each point.")
        with gr.Row():
            lines += [_picture(gr, f"{name}-lines", f"ways from noise to sample, {name}") for name in names]
            if len(names) == 1:
                gr.Column()
    return [*costs, *samples, *lines]


def _picture(gr: Any, name: str, text: str) -> Any:
    return gr.Image(
        elem_id=name,
        elem_classes="picture",
        alt_text=text,
        show_label=False,
        format="png",
        interactive=False,
        buttons=[],
        container=False,
    )


def _connect(
    gr: Any, page: Any, comparison: Comparison, controls: list[Any], buttons: list[Any], outputs: list[Any]
) -> None:
    """Draw when the page opens and whenever something is chosen."""
    steps, solver, seed = controls[:3]

    def redraw(*values: Any) -> list[Any]:
        try:
            return ["", *updates(comparison, *values)]
        except ValueError as error:
            return [str(error), *[gr.skip()] * (len(outputs) - 1)]

    def next_seed(value: Any) -> Any:
        return int(value) + 1 if isinstance(value, (int, float)) else 0

    solver.input(
        lambda name: gr.Slider(interactive=name != ADAPTIVE), solver, steps, queue=False, api_visibility="private"
    )
    options = {"show_progress": "minimal", "api_visibility": "private"}
    triggers = [page.load, buttons[0].click, steps.input, solver.input, seed.submit, *(c.input for c in controls[3:])]
    gr.on(triggers, redraw, controls, outputs, trigger_mode="always_last", **options)
    buttons[1].click(next_seed, seed, seed, queue=False, api_visibility="private").then(
        redraw, controls, outputs, **options
    )


def updates(comparison: Comparison, steps: Any, solver: Any, seed: Any, labels: Any = ()) -> list[Any]:
    """What the page shows of each model: cost, samples and, in the plane, lines.  Raises: ValueError, a sentence for the page."""
    drawings = comparison.draw(steps, solver, seed, labels)
    costs = [_cost(name, drawing) for name, drawing in drawings.items()]
    samples = sample_pictures(comparison, drawings, labels)
    lines = line_pictures(comparison, drawings) if comparison.in_plane else {}
    return [*costs, *samples.values(), *lines.values()]


def _cost(name: str, drawing: Drawing) -> str:
    n = drawing.num_evaluations
    spent = f"{n} evaluation{'s' if n > 1 else ''} of the network, {drawing.seconds:.2g} s for {len(drawing.samples)} samples"
    return f"**{TITLES[name]}** {spent}"


def _heading(results: dict[str, Any]) -> str:
    start = f"Fine-tuned from `{results['base']}`" if results["base"] else "Trained from scratch"
    return f"# {results['name']}\n{start} on **{results['data']['name']}** with {results['method_title']}; seed {results['seed']}."


def _notes(comparison: Comparison) -> str:
    sentences = ["Base and result start from the same noise."] if "base" in comparison.models else []
    if not (comparison.is_image or comparison.in_plane):
        sentences.append(f"Samples have the shape {comparison.event_shape}: their first two coordinates are shown.")
    if "condition" in comparison.models["result"].conditions:
        sentences.append("Conditions are drawn from those the model was trained under.")
    return " ".join(sentences)


def _table(results: dict[str, Any]) -> str:
    return f"{metrics_table(results['metrics'])}\n\nOn the {results['test_split']} split; ± is the standard error over noise draws. `@N`: N solver steps."
