"""Uploading to the Hub: one folder, one commit, to be repeated after an interruption; a README that a person edited is kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import yaml
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from .cards import merge_card, pipeline_card, write_card
from .models import BaseReference, ViscousFlowModel
from .models.bases import BASES
from .models.saved import load_model, weights_digest
from .repository import hub_problem, read_json, resolve_folder
from .results import published, read_results, write_json

REPLACED = [f"{part}/*" for part in ("model", "transformer", "scheduler", "vae", "figures")]
REPLACED += ["text_encoder*/*", "tokenizer*/*", "model_index.json", "conditions.safetensors"]
REPLACED += ["pytorch_lora_weights.safetensors", "config.json", "diffusion_pytorch_model.safetensors"]
"""What an earlier push may have left that this one no longer has."""


def require_repository(repo_id: str, private: bool | None = None) -> None:
    """Make the repository where there is none, so that a long run does not end at a name or a token that was wrong.

    Raises: ValueError saying what the Hub did not like.
    """
    try:
        HfApi().create_repo(repo_id, private=private, exist_ok=True)
    except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
        raise ValueError(f"cannot push to {repo_id!r}: {hub_problem(error)}") from error


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
    repo_type: Literal["model", "space"] = "model",
) -> str:
    """Upload a folder as one commit, making the repository and the branch where there are none; returns the commit's (or pull request's) address.

    Large files that are already there are not sent again, so an interrupted push is simply repeated. The README is merged with the one
    that is there (`merge_card`).  Raises: ValueError saying what the Hub did not like.
    """
    api = HfApi(token=token)
    try:
        sdk = "gradio" if repo_type == "space" else None
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk)
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True, repo_type=repo_type)
        theirs = _remote_readme(repo_id, revision, token, repo_type)
        readme = folder / "README.md"
        if theirs is not None and readme.is_file():
            merged = merge_card(_decoded(readme), theirs)
            readme.write_bytes(merged.encode(errors="surrogateescape"))
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message or "Upload with hf_flowft",
            delete_patterns=REPLACED,
        )
    except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
        raise ValueError(f"cannot push to {repo_id!r}: {hub_problem(error, revision)}") from error
    return commit.pr_url or commit.commit_url


def _remote_readme(repo_id: str, revision: str | None, token: str | None, repo_type: str) -> str | None:
    try:
        path = hf_hub_download(repo_id, "README.md", revision=revision, token=token, repo_type=repo_type)
    except EntryNotFoundError:
        return None
    return _decoded(Path(path))


def _decoded(path: Path) -> str:
    """A person's text, whatever its encoding and its ends of lines: they come back when it is written."""
    return path.read_bytes().decode(errors="surrogateescape")


def push_pipeline(pipeline: Any, repo_id: str, *, base: BaseReference | None = None, **options: Any) -> str:
    """Upload a pipeline with a plain card.

    Args: `base`: leave out the frozen base, which this repository holds; `options`: of `push_folder`.  Returns: the commit's address.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pipeline.save_pretrained(folder, **({} if base is None else {"base": base}))
        card = pipeline_card(repo_id.split("/")[-1], type(pipeline.model).__name__, pipeline.description, repo_id)
        (folder / "README.md").write_text(card)
        return push_folder(folder, repo_id, **options)


def push_space(space_folder: Path, repo_id: str, **options: Any) -> str:
    """Upload a page written by `space.write_space`; the folder stays as it is.  Args: `options`: of `push_folder`.  Returns: the commit's address."""
    if not (space_folder / "app.py").is_file():
        raise ValueError(
            f"{space_folder} holds no page: it has no app.py; write one with `hf-flowft space RUN_FOLDER --out FOLDER`."
        )
    with TemporaryDirectory() as temporary:
        shutil.copytree(space_folder, temporary, dirs_exist_ok=True)
        return push_folder(Path(temporary), repo_id, repo_type="space", **options)


def push_run(run_folder: Path, repo_id: str, *, base: str = "", **options: Any) -> str:
    """Upload what a run has written: its pipeline at the root, the card, results.json, figures, and the settings without paths of this machine.

    Args: `base`: "user/name" or "user/name@revision" of the repository that holds the frozen base of a residual, which is then left out;
    `options`: of `push_folder`.  Returns: the commit's address.
    Raises: ValueError when the folder is not that of a finished run, or `base` does not hold the base it was trained on.
    """
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_repository(run_folder, folder, repo_id, _base_reference(run_folder, base) if base else None)
        return push_folder(folder, repo_id, **options)


def write_repository(run_folder: Path, folder: Path, repo_id: str, base: BaseReference | None = None) -> None:
    """Lay a finished run out as its repository.  Args: `base`: leave out the frozen base, which is there.  Raises: ValueError as `push_run`."""
    if not (run_folder / "results.json").is_file() or not (run_folder / "pipeline").is_dir():
        raise ValueError(f"{run_folder} is not the folder of a finished run: it has no results.json or no pipeline.")
    results, config = read_results(run_folder / "results.json"), read_config(run_folder)
    shutil.copytree(run_folder / "pipeline", folder, dirs_exist_ok=True)
    if (run_folder / "figures").is_dir():
        shutil.copytree(run_folder / "figures", folder / "figures")
    if base is not None:
        _residual(run_folder).save_residual(folder / "model", base)
        results["base_model"] = {
            "id": base.repository,
            "revision": base.revision,
            "source": "hub",
            "relation": "adapter",
        }
    write_json(folder / "results.json", published(results))
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    if (run_folder / "README.md").is_file():  # with what a person has written there
        shutil.copy(run_folder / "README.md", folder)
    write_card(results, config, folder, source=repo_id)


def read_config(run_folder: Path) -> dict[str, Any]:
    """The settings of a run without paths of this machine and secrets."""
    try:
        return published(yaml.safe_load((run_folder / "config.yaml").read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {run_folder / 'config.yaml'}: {error}.") from error


def _residual(run_folder: Path) -> ViscousFlowModel:
    model = run_folder / "pipeline" / "model"
    if read_json(model / "config.json").get("_class_name") != ViscousFlowModel.__name__:
        raise ValueError(f"{run_folder} holds no residual on a frozen base: push it without --base.")
    return load_model(ViscousFlowModel, model)


def _base_reference(run_folder: Path, base: str) -> BaseReference:
    """The repository `name[@revision]` at its exact commit.  Raises: ValueError when it does not hold the base of this run's model."""
    config = _residual(run_folder).config["base"]
    repo_id, _, revision = base.partition("@")
    try:
        commit = HfApi().model_info(repo_id, revision=revision or None).sha
    except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
        raise ValueError(f"the base {base!r}: {hub_problem(error, revision)}") from error
    model = load_model(BASES[config["_class_name"]], resolve_folder(repo_id, commit) / "model")
    return BaseReference(repo_id, commit, weights_digest(model))
