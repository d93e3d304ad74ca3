from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache directory, in place of the user's own."""
    place = tmp_path / "cache"
    monkeypatch.setenv("OCTAVO_CACHE", str(place))
    return place
