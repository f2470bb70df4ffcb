"""What `align run` does where the store answers everything."""

from challenging import SOUND, StandIns, run, write_plan
from rich.console import Console

from flows.execute import look, up_to_date
from tasks.core.build import Workshop
from tasks.core.store import Store


def test_a_run_with_nothing_to_build_pushes_what_the_shared_storage_lacks(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "store"))
    build = StandIns(Workshop(Store(tmp_path / "store"), tmp_path / "models"))
    run(write_plan(tmp_path, gates=[SOUND]), build)
    bucket = tmp_path / "bucket"
    shared = write_plan(tmp_path, gates=[SOUND], store={"remote": bucket.as_uri()})
    steps = look(shared)
    assert not bucket.exists()  # `align plan` sends nothing
    assert up_to_date(shared, steps, console=Console(quiet=True))
    there = {path.parent.relative_to(bucket).as_posix() for path in bucket.glob("*/*/manifest.json")}
    assert there == {build.workshop.store.ref(artifact) for artifact in build.made.values()}
