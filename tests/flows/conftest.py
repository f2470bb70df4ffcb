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
