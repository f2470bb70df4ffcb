"""The smoke plan, run once for all tests that only look at it."""

import pytest
from smoke import write_smoke


@pytest.fixture(scope="session")
def smoke(tmp_path_factory, prefect_server):
    """The plan, run once from nothing."""
    made = write_smoke(tmp_path_factory.mktemp("smoke"), prefect_server)
    printed = made.align("run", "plan.yaml")
    assert "released" in printed
    return made


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Builds plans of stand-in stages into a store below `tmp_path`, which the commands take too."""
    from challenging import StandIns

    from tasks.core.build import Workshop
    from tasks.core.store import Store

    monkeypatch.setenv("ALIGN_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "store"))
    return StandIns(Workshop(Store(tmp_path / "store"), tmp_path / "models"))
