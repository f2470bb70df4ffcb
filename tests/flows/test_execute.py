"""What `align run` does where the store answers everything."""

from io import StringIO

from challenging import SOUND, StandIns, run, write_plan
from rich.console import Console

from flows.execute import look, up_to_date
from tasks.channels import channel
from tasks.core.build import Workshop
from tasks.core.remote import Remote
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


def test_a_run_with_nothing_to_build_moves_its_channel_before_it_waits_for_the_shared_storage(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("ALIGN_STORE", str(tmp_path / "store"))
    build = StandIns(Workshop(Store(tmp_path / "store"), tmp_path / "models"))
    release = run(write_plan(tmp_path, gates=[SOUND]), build, land=False)
    stood = []

    def away(self, kind, key):
        stood.append(channel(build.workshop.store, "champion"))
        raise TimeoutError("no route")

    monkeypatch.setattr(Remote, "lacks", away)
    shared = write_plan(tmp_path, gates=[SOUND], store={"remote": (tmp_path / "bucket").as_uri()})
    console = Console(record=True, file=StringIO())
    assert up_to_date(shared, look(shared), console=console)
    assert stood == [release.key]
    left = len(build.made) - 1
    said = console.export_text().splitlines()
    assert [line.partition(": ")[2] for line in said] == [
        f"not pushed to the shared storage (TimeoutError: no route), and {left} more not tried; the next run tries again"
    ]
