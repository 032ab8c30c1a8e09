"""A data set of the Hub at the very revision that is reported: resolved before it is loaded; from the cache where there is no connection."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

from datasets import Dataset, DatasetBuilder, IterableDataset, load_dataset_builder
from datasets import config as datasets_config
from datasets.naming import camelcase_to_snakecase
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import REGEX_COMMIT_HASH, repo_folder_name

from ..repository import hub_problem
from .card_files import CARD_FILES, require_own_files
from .errors import reason


def open_hub(
    path: str, subset: str, split: str, revision: str, streaming: bool
) -> tuple[Dataset | IterableDataset, dict[str, str]]:
    """One split of a data set on the Hub, and facts about where it came from.

    Args: `path`: its id; `subset`: one of its configurations, empty for the only one; `revision`: a branch, tag or commit, empty for main.
    Raises: ValueError in one sentence when it does not exist, is not open to us or not readable, or can't be reached and is not in the cache.
    """
    commit, online = resolve_commit(path, revision or "main")
    try:
        if online:
            _check_card(path, commit)
            builder = load_dataset_builder(path, subset or None, revision=commit)
        else:
            builder = _from_cache(path, subset, commit)
        if builder.hash != commit:  # `datasets` turns to any revision in its cache when a connection breaks
            raise ValueError("the connection to the Hub was lost")
        if streaming:
            rows = builder.as_streaming_dataset(split=split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=split)
    except Exception as error:  # datasets raises a dozen kinds; the user needs one sentence
        raise ValueError(f"cannot load the data set {path!r} at revision {commit}: {reason(error)}.") from error
    named = {} if builder.config.name == "default" else {"subset": builder.config.name}
    return rows, {"source": path, **named, "split": split, "revision": commit}


def resolve_commit(path: str, revision: str) -> tuple[str, bool]:
    """The commit a revision is, and whether the Hub says so (or the cache)."""
    try:
        if datasets_config.HF_HUB_OFFLINE:
            raise OfflineModeIsEnabled("offline mode is enabled")
        commit = HfApi().dataset_info(path, revision=revision, timeout=30).sha
        with suppress(EntryNotFoundError):  # a download by name makes the cache remember what the name stands for
            hf_hub_download(path, "README.md", repo_type="dataset", revision=revision)
        return commit, True
    except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
        commit = "" if _is_answer(error) else _remembered(path, revision)
        if not commit:
            raise ValueError(f"{path!r} is no file or folder here, and {hub_problem(error, revision)}") from error
        if not isinstance(error, OfflineModeIsEnabled):
            warnings.warn(f"The Hub cannot be reached: {path} is used as it is in the cache, {commit}.", stacklevel=2)
        return commit, False


def _is_answer(error: Exception) -> bool:
    """Whether the Hub has said no, or would; not that it can't be reached or is out of order."""
    response = error.response if isinstance(error, HfHubHTTPError) else None
    return isinstance(error, HFValidationError) or (response is not None and response.status_code < 500)


def _remembered(path: str, revision: str) -> str:
    """The commit a revision was when the Hub was last asked; empty when it never was."""
    if REGEX_COMMIT_HASH.fullmatch(revision):
        return revision
    reference = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=path, repo_type="dataset") / "refs" / revision
    return reference.read_text().strip() if reference.is_file() else ""


def _check_card(path: str, commit: str) -> None:
    """Look at the card before `datasets` does what it says."""
    for name in CARD_FILES:
        with suppress(EntryNotFoundError):
            require_own_files(Path(hf_hub_download(path, name, repo_type="dataset", revision=commit)).parent)


def _from_cache(path: str, subset: str, commit: str) -> DatasetBuilder:
    """What reads the tables that an earlier load left in the cache of `datasets`."""
    user, _, name = path.rpartition("/")
    folder = "___".join(part for part in (user, camelcase_to_snakecase(name)) if part)
    found = sorted(Path(datasets_config.HF_DATASETS_CACHE).glob(f"{folder}/*/*/{commit}"))
    by_subset = {tables.parts[-3]: tables for tables in found if subset in ("", tables.parts[-3])}
    if len(by_subset) != 1:
        which = (
            f"several subsets, {', '.join(by_subset)}: choose one with data.subset" if by_subset else "nothing of it"
        )
        raise ValueError(f"the Hub cannot be reached, and the cache has {which}")
    (tables,) = by_subset.values()
    return Cache(dataset_name=name, repo_id=path, config_name=tables.parts[-3], version=tables.parts[-2], hash=commit)
