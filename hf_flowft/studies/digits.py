"""The demo: a flow that draws the digits 0 to 4 learns 5 to 9 from a hundred images, by every method side by side."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from .. import figures
from ..batch import Batch
from ..cards import write_card
from ..data import load_data
from ..pipelines import FlowPipeline
from ..randomness import keyed_generator
from ..results import RESULTS_VERSION, add_baselines, environment, write_json
from ..tables import markdown_table, number
from ..training.config import RunConfig
from ..training.pictures import pictured
from ..training.run import RunResult
from ..training.samplers import Sampler
from .common import run_or_reuse, study_config

METHODS = {
    "plain": "digits_plain",
    "plain + warm-up": "digits_warmup",
    "GFT, target": "digits_gft_target",
    "GFT, replay": "digits_gft",
    "MLE, ot_output": "digits_mle",
    "MLE + GAV": "digits_gav",
    "GFT replay, then MLE self": "digits_few_steps",
}
RECIPE = "GFT replay, then MLE self"
BASELINE = "plain"
COLUMNS = {
    "new digits, 16 steps": "target/energy@16",
    "old digits, 16 steps": "base_domain/energy@16",
    "new, 1 step": "target/energy@1",
    "old, 1 step": "base_domain/energy@1",
    "new, 2 steps": "target/energy@2",
    "old, 2 steps": "base_domain/energy@2",
    "nearest training image": "nearest_train",
    "path length": "path_length",
    "dopri5 evaluations": "nfe_dopri5",
}
QUICK = {"train.num_steps": 20, "eval.every": 10, "eval.num_repeats": 2, "eval.report_num_steps": [1, 2, 16]}


def main(out: Path, quick: bool = False) -> None:
    """Run the demo into `out`: one run folder a method, results.json, table.md and figures/.

    `quick` trains for a few steps only, to see that everything runs. What is finished already is reused.
    """
    started = time.perf_counter()
    base = run_or_reuse(config_of("digits_base", out, quick))
    runs = {}
    for index, (name, config_name) in enumerate(METHODS.items(), 1):
        print(f"\n[{index}/{len(METHODS)}] {name}")
        runs[name] = run_or_reuse(config_of(config_name, out, quick))
        show_baseline(runs, name, config_of(config_name, out, quick))
    results = collect(base, runs)
    write_json(out / "results.json", results)
    table = comparison_table(results)
    (out / "table.md").write_text(table + "\n")
    draw(out / "figures", base, runs, config_of("digits_plain", out, quick))
    print(
        f"\n{table}\n\nEnergy distance to held-out images within labels, lower is better (mean ± standard error over noise draws)."
    )
    show_recipe(runs[RECIPE].folder / "pipeline")
    print(
        f"Pictures: {out / 'figures'}. Each method's pipeline, card and numbers: {out}/*. {time.perf_counter() - started:.0f} s."
    )


def config_of(name: str, out: Path, quick: bool) -> RunConfig:
    """A shipped config with its folders under `out`."""
    overrides: dict[str, Any] = {"output_dir": str(out / name), **(QUICK if quick else {})}
    plain = study_config(name, {}).as_dict()
    if "path" in plain["model"]:
        overrides["model.path"] = str(out / Path(plain["model"]["path"]).parent.name / "pipeline")
    if quick and plain["pairs"]["name"] == "self":
        overrides["pairs.num_pairs"] = 256
    return study_config(name, overrides)


def show_baseline(runs: dict[str, RunResult], name: str, config: RunConfig) -> None:
    """Put the plain fine-tune, which comes first, beside a method in its results file and on its card."""
    run = runs[name]
    if name != BASELINE:
        run.results = add_baselines(run.results, {BASELINE: runs[BASELINE].results})
        write_json(run.folder / "results.json", run.results)
        write_card(run.results, config.as_dict(), run.folder)


def collect(base: RunResult, runs: dict[str, RunResult]) -> dict[str, Any]:
    """One results file for the study: each method's metrics on the test split, its curve, its seconds."""
    first = next(iter(runs.values())).results
    models = {
        "base": first["metrics"]["base"],
        **{name: run.results["metrics"]["result"] for name, run in runs.items()},
    }
    return {
        "format_version": RESULTS_VERSION,
        "name": "digits",
        "metrics": models,
        "seconds": {
            "base": base.results["train"]["seconds"],
            **{name: run.results["train"]["seconds"] for name, run in runs.items()},
        },
        "best_step": {name: run.results["selection"]["best_step"] for name, run in runs.items()},
        "verdicts": {name: run.results["selection"]["verdict"] for name, run in runs.items()},
        "data": first["data"],
        "seed": first["seed"],
        "environment": environment(),
    }


def comparison_table(results: dict[str, Any]) -> str:
    """Methods against qualities, Markdown."""
    rows = [
        [name, *[number(metrics.get(key)) for key in COLUMNS.values()], f"{results['seconds'][name]:.0f}"]
        for name, metrics in results["metrics"].items()
    ]
    return markdown_table(["model", *COLUMNS, "training s"], rows)


def draw(folder: Path, base: RunResult, runs: dict[str, RunResult], config: RunConfig) -> None:
    """The pictures of the study; `config` names data with the old and the new digits, so that all ten are drawn."""
    data = load_data(config.data)
    batch = pictured(data, config.seed)

    def samples(pipeline: FlowPipeline, shown: Batch, num_steps: int) -> torch.Tensor:
        sampler = Sampler(config.eval, pipeline.shift)
        drawn = sampler(pipeline.velocity(), shown.x_0, shown.condition, num_steps)
        return data.to_unit(drawn, shown.condition)

    def row(pipeline: FlowPipeline, num_steps: int) -> torch.Tensor:
        return samples(pipeline, batch, num_steps)

    every = {"base": base.pipeline, **{name: run.pipeline for name, run in runs.items()}}
    figures.image_rows(
        {name: row(p, 16) for name, p in every.items()},
        folder / "samples_16_steps.png",
        data.label_names,
        "sixteen steps",
    )
    figures.image_rows(
        {name: row(p, 1) for name, p in every.items()}, folder / "samples_1_step.png", data.label_names, "one step"
    )
    twice = pictured_twice(batch, config.seed)

    def wide(run: RunResult, num_steps: int) -> torch.Tensor:
        return samples(run.pipeline, twice, num_steps)

    story = {
        "base, 16 steps": wide(base, 16),
        "plain fine-tuning, 16 steps": wide(runs["plain"], 16),
        "GFT with replay, 16 steps": wide(runs["GFT, replay"], 16),
        "GFT with replay, 1 step": wide(runs["GFT, replay"], 1),
        "... then MLE on itself, 1 step": wide(runs[RECIPE], 1),
        "... then MLE on itself, 2 steps": wide(runs[RECIPE], 2),
    }
    title = "Pretrained on 0 to 4, then 100 images of 5 to 9; each column has one noise"
    figures.image_rows(
        story, folder / "story.png", [data.label_names[i] for i in twice.condition["class_labels"]], title
    )
    draw_curves(folder, runs)


def pictured_twice(batch: Batch, seed: int) -> Batch:
    """Every label of a picture twice, with noise of its own."""
    labels = batch.condition["class_labels"].repeat_interleave(2)
    x_0 = torch.randn(len(labels), *batch.x_1.shape[1:], generator=keyed_generator(seed, "story"))
    return Batch(x_0, {"class_labels": labels}, x_0=x_0)


def draw_curves(folder: Path, runs: dict[str, RunResult]) -> None:
    """Loss over steps, target against forgetting over the run, quality against the number of solver steps."""
    history = {name: run.results["train"]["history"] for name, run in runs.items()}
    loss = {name: ([e["step"] for e in h], [e["loss"] for e in h]) for name, h in history.items()}
    figures.curves(
        loss, folder / "loss.png", xlabel="step", ylabel="training loss (of each method's own kind)", log_y=True
    )
    traces = {}
    for name in (n for n in runs if n != RECIPE):
        scores = runs[name].results["selection"]["scores"]
        traces[name] = ([_mean(s["base_domain"]) for s in scores], [_mean(s["target"]) for s in scores])
    figures.trade_off(
        traces,
        folder / "forgetting.png",
        xlabel="old digits: energy distance (validation)",
        ylabel="new digits: energy distance (validation)",
        title="learning against forgetting over each run (square: end; lower left is better)",
    )
    for domain, title in (("target", "new digits"), ("base_domain", "old digits")):
        series, errors = {}, {}
        models = {"base": next(iter(runs.values())).results["metrics"]["base"]}
        models |= {name: run.results["metrics"]["result"] for name, run in runs.items()}
        for name, metrics in models.items():
            points = {int(k.split("@")[1]): v for k, v in metrics.items() if k.startswith(f"{domain}/energy@")}
            series[name] = (sorted(points), [max(points[n]["value"], 1e-3) for n in sorted(points)])
            errors[name] = [points[n]["stderr"] for n in sorted(points)]
        path = folder / f"steps_{title.split()[0]}.png"
        figures.curves(
            series,
            path,
            xlabel="solver steps",
            ylabel="energy distance (test)",
            title=title,
            log_x=True,
            log_y=True,
            errors=errors,
        )


def show_recipe(folder: Path) -> None:
    """Load the recommended pipeline back from its folder and draw from it, as a user would."""
    pipeline = FlowPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    sample: Any = pipeline(
        class_labels=[7], num_inference_steps=1, output_type="np", generator=torch.Generator().manual_seed(0)
    )[0]
    print("\nLoaded back with FlowPipeline.from_pretrained; a seven in one step:")
    for line in sample[0, 0]:
        print("   " + "".join(" .:-=+*#%@"[min(9, max(0, int(value / 16 * 9.99)))] * 2 for value in line))


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
