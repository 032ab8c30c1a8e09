"""The console command `hf-flowft`: pretrain, finetune METHOD, evaluate, sample, push, export, space, demonstrate, rollout, study NAME, demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .cli_policy import add_policy_verbs
from .cli_sharing import add_sharing_verbs

METHODS: dict[str, dict[str, Any]] = {
    "plain": {"objective": {"name": "fm"}},
    "gft": {"objective": {"name": "gft"}},
    "mle": {"objective": {"name": "mle"}},
    "prior": {"objective": {"name": "prior"}},
    "gav": {"objective": {"name": "mle"}, "model": {"name": "viscosity"}},
}
"""What a method fixes; everything else is settings."""
TRAINING_MEMORY = (
    "set train.gradient_checkpointing to true, raise train.gradient_accumulation_steps (the batch stays the same), lower eval.batch_size, and shrink what "
    "is frozen: model.dtype bfloat16 (lora), model.reference_dtype bfloat16 (pretrained); --plan tells what a text-to-image run needs"
)
MEMORY = {
    "pretrain": TRAINING_MEMORY,
    "finetune": TRAINING_MEMORY,
    "evaluate": "lower eval.batch_size",
    "sample": "draw fewer samples at once, with --num or --labels",
    "rollout": "lower --num-envs",
}
"""What to do when the device has no memory left, by verb."""
SETTINGS = """Any setting of the run can be given as --section.name value, in the place of the config's, for example
  --data.path my_images --train.num_steps 500 --eval.every 100
--settings lists them all, with what they mean."""
STOPPED = 130
"""The exit code of what was stopped by Ctrl-C or SIGTERM."""
STUDIES = ("digits", "forgetting", "toy", "shift", "policy", "tasks", "mnist", "captions", "benchmark")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; errors of the user, packages that are missing and devices without memory end in one sentence and exit code 2."""
    parser = build_parser()
    known, rest = parser.parse_known_args(arguments)
    if rest and not known.takes_settings:
        parser.error(f"unknown option {rest[0]}")
    try:
        return known.run(known, rest) or 0
    except BrokenPipeError:  # the reader of our output has gone away, e.g. `| head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        more = "; the same command goes on with what is finished" if known.verb in ("study", "demo") else ""
        print(f"hf-flowft: stopped{more}.", file=sys.stderr)
        return STOPPED
    except (ImportError, OSError, ValueError) as error:
        return _refused(str(error))
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, which is imported by what needs it
            raise
        return _refused(
            f"the device is out of memory: {MEMORY.get(known.verb, 'choose a smaller model or fewer data')}."
        )


def _refused(sentence: str) -> int:
    print(f"hf-flowft: error: {sentence}", file=sys.stderr)
    return 2


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their own options; settings of a run (--train.num_steps 100 ...) are passed through to the config."""
    parser = argparse.ArgumentParser(
        prog="hf-flowft", description="Fine-tune flow-matching models, and know whether they got better."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    pretrain = _verb(verbs, "pretrain", "train a flow from scratch", _pretrain, takes_settings=True)
    finetune = _verb(verbs, "finetune", "fine-tune a pretrained flow", _finetune, takes_settings=True)
    finetune.add_argument(
        "method",
        choices=METHODS,
        help="plain: flow matching; gft: gradual fine-tuning; mle: maximum likelihood of reconstructions; prior: prior preservation, the base's own "
        "samples as data; gav: artificial viscosity, a residual on the frozen base",
    )
    finetune.add_argument(
        "--plan",
        action="store_true",
        help="of a text-to-image pipeline: print the memory and time it will need, and stop",
    )
    finetune.add_argument("--tflops", type=float, default=100.0, help="for --plan: TFLOP/s the device reaches")
    for verb in (pretrain, finetune):
        verb.add_argument("--config", help="a YAML file of settings")
        verb.add_argument("--settings", action="store_true", help="print the settings there are, and stop")
    evaluate = _verb(
        verbs, "evaluate", "measure a pipeline on the test split of a config's data", _evaluate, takes_settings=True
    )
    evaluate.add_argument("pipeline", help="a pipeline folder or a repository on the Hub")
    evaluate.add_argument("--config", required=True, help="the YAML file whose data and eval sections are used")
    evaluate.add_argument("--out", help="write the numbers to this JSON file")
    sample = _verb(verbs, "sample", "draw samples of a pipeline", _sample)
    sample.add_argument("pipeline", help="a pipeline folder or a repository on the Hub")
    sample.add_argument("--labels", type=int, nargs="*", help="class labels, one a sample, or one for --num samples")
    sample.add_argument("--num", type=int, help="number of samples, without labels or with one; default 16")
    sample.add_argument("--steps", type=int, default=16, help="solver steps")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--out", default="samples.png", help=".png for images, .npy for anything")
    add_sharing_verbs(verbs, _verb)
    add_policy_verbs(verbs, _verb)
    study = _verb(verbs, "study", "run a study and write its tables and figures", _study)
    study.add_argument("name", choices=STUDIES)
    study.add_argument("--out", help="folder of the study; default runs/NAME")
    study.add_argument("--quick", action="store_true", help="a small version, to see that it runs")
    study.add_argument(
        "--data",
        help="policy: a LeRobotDataset of Push-T (folder or Hub id; planned without it); mnist: a folder with mnist_unet/, images/ "
        "and models/; captions: a folder with images/mnist.npz (scikit-learn's digits without it)",
    )
    demo = _verb(verbs, "demo", "digits: pretrain, fine-tune by every method, compare", _demo)
    demo.add_argument("--out", default="runs/demo")
    demo.add_argument("--quick", action="store_true", help="a small version, to see that it runs")
    return parser


def _verb(verbs: Any, name: str, text: str, run: Any, takes_settings: bool = False) -> argparse.ArgumentParser:
    more = {"epilog": SETTINGS, "formatter_class": argparse.RawDescriptionHelpFormatter} if takes_settings else {}
    parser = verbs.add_parser(name, help=text, description=text, **more)
    parser.set_defaults(run=run, takes_settings=takes_settings)
    return parser


def _pretrain(options: argparse.Namespace, settings: list[str]) -> int:
    return _train(options, settings, {}, {"objective": {"name": "fm"}})


def _finetune(options: argparse.Namespace, settings: list[str]) -> int:
    return _train(options, settings, {"model": {"name": "pretrained"}, **METHODS[options.method]})


def _train(
    options: argparse.Namespace, settings: list[str], fixed: dict[str, Any], defaults: dict[str, Any] | None = None
) -> int:
    from .training.config import load_config, print_settings
    from .training.run import Run
    from .training.step import NonFiniteLossError

    if options.settings:
        print_settings()
        return 0
    config = load_config(options.config, settings, {**fixed, **(defaults or {})})
    plain = config.as_dict()
    for section, values in fixed.items():
        if values["name"] != "pretrained" and plain[section]["name"] != values["name"]:
            raise ValueError(
                f"this command trains with {section} {values['name']!r}, but the settings say {plain[section]['name']!r}."
            )
    if getattr(options, "plan", False):
        from .training.plan import plan as make_plan

        print(make_plan(config, options.tflops))
        return 0
    try:
        result = Run(config).execute()
    except NonFiniteLossError as error:
        raise ValueError(str(error)) from error
    if result.results:
        print(f"Written to {result.folder}: pipeline, results.json, README.md, figures.")
    return STOPPED if result.stopped else 0


def _evaluate(options: argparse.Namespace, settings: list[str]) -> None:
    from .results import RESULTS_VERSION, environment, public_name, write_json
    from .tables import metrics_table
    from .training.config import load_config
    from .training.judging import judge

    metrics = judge(options.pipeline, load_config(options.config, settings))
    print(metrics_table({public_name(options.pipeline): metrics}))
    if options.out:
        content = {
            "format_version": RESULTS_VERSION,
            "pipeline": public_name(options.pipeline),
            "metrics": metrics,
            "environment": environment(),
        }
        write_json(Path(options.out), content)


def _sample(options: argparse.Namespace, settings: list[str]) -> None:
    import numpy as np
    import torch

    from .figures import image_rows
    from .pipelines import FlowPipeline, FlowPolicyPipeline
    from .training.processes import training_device

    pipeline = FlowPipeline.from_pretrained(options.pipeline).to(training_device())
    pipeline.set_progress_bar_config(disable=True)
    is_png = options.out.endswith(".png")
    if not options.out.endswith((".png", ".npy")):
        raise ValueError(f"--out must end in .png (images) or .npy (anything), got {options.out!r}.")
    if is_png and not pipeline.description.get("is_image"):
        raise ValueError("the samples of this pipeline are not images: give --out a name that ends in .npy.")
    if isinstance(pipeline, FlowPolicyPipeline):
        raise ValueError("a policy acts under observations: run it with `hf-flowft rollout`.")
    generator = torch.Generator().manual_seed(options.seed)
    labels, num = options.labels or [], options.num
    if num is not None and len(labels) > 1:
        raise ValueError(f"--num {num} goes with one label or none, got {len(labels)} labels.")
    if labels:
        call = {"class_labels": labels if num is None else labels * num}
    else:
        call = {"batch_size": 16 if num is None else num}
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    samples: Any = pipeline(num_inference_steps=options.steps, generator=generator, output_type="pt", **call)[0]
    samples = samples.cpu()
    if is_png:
        low, high = pipeline.description["value_range"]
        unit = (samples - low) / (high - low)
        image_rows(
            {str(i): row for i, row in enumerate(unit.split(10))},
            Path(options.out),
            [str(label) for label in options.labels or []] if len(samples) <= 10 else (),
        )
    else:
        np.save(options.out, samples.numpy())
    print(f"{len(samples)} samples written to {options.out}.")


def _study(options: argparse.Namespace, settings: list[str]) -> None:
    from importlib import import_module

    if options.data and options.name not in ("policy", "mnist", "captions"):
        raise ValueError(
            f"--data is for the studies policy, mnist and captions; the study {options.name} has its own data."
        )
    study = import_module(f".studies.{options.name}", __package__)
    given = {"data": options.data} if options.data else {}
    study.main(Path(options.out or f"runs/{options.name}"), quick=options.quick, **given)


def _demo(options: argparse.Namespace, settings: list[str]) -> None:
    from importlib import import_module

    import_module(".studies.digits", __package__).main(Path(options.out), quick=options.quick)


if __name__ == "__main__":
    sys.exit(main())
