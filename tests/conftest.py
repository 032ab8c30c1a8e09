"""Shared fixtures: one torch thread a process, no network but a Hub in memory, and the development data where it is present."""

import os
from pathlib import Path

import pytest
import torch
from hub_fixtures import hub as hub
from hub_fixtures import hub_env as hub_env
from hub_fixtures import offline as offline

os.environ.setdefault("TQDM_DISABLE", "1")
torch.set_num_threads(1)

SHARED_DATA = Path(os.environ.get("HF_FLOWFT_SHARED_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of development data (HF_FLOWFT_SHARED_DATA overrides it); tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no development data at {SHARED_DATA}; set HF_FLOWFT_SHARED_DATA to its folder")
    return SHARED_DATA


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(0)
