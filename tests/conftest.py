"""Fixtures for all tests: the bundled recordings, and the optional data beside the checkout."""

from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

settings.register_profile("untimed", deadline=None)  # a first call may load a library, on a busy machine for long
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Conformance data and corpora too large for the repository: a folder `shared` beside the checkout."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"no data beside the checkout (expected in {path})")
    return path


@pytest.fixture(scope="session")
def recordings() -> list[Path]:
    """The recordings shipped with the package; they are part of the repository, so their absence is a failure."""
    paths = sorted((ROOT / "engine" / "recordings").glob("*.flac"))
    assert paths, "engine/recordings holds no .flac file"
    return paths
