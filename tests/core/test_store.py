"""The store: complete or absent, built once, damage noticed, early cut-off, shared by URL."""

import json
import os
import threading
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from tasks.core.build import Workshop
from tasks.core.contract import Inputs, Metrics, Run, Stage, Usage
from tasks.core.errors import DataError, SpecError
from tasks.core.files import write_json
from tasks.core.remote import Remote
from tasks.core.spec import Spec
from tasks.core.store import MANIFEST, Store


class Letters(Spec):
    text: str = "abc"


def upper(spec: Letters, inputs: Inputs, out: Path, run: Run) -> Metrics:
    (out / "part").mkdir()
    (out / "part" / "letters.txt").write_text(spec.text.upper())
    return {"letters": len(spec.text)}


def echo(spec: Letters, inputs: Inputs, out: Path, run: Run) -> Metrics:
    (out / "echo.txt").write_text((inputs["upper"] / "part" / "letters.txt").read_text() + spec.text)
    return {}


UPPER = Stage("upper", 1, "texts", upper)
ECHO = Stage("echo", 1, "texts", echo)


@pytest.fixture
def shop(tmp_path):
    return Workshop(Store(tmp_path / "store"), tmp_path / "models")


def test_builds_once_then_answers_from_the_store(shop):
    first, built = shop.build(UPPER, Letters(), {})
    again, rebuilt = shop.build(UPPER, Letters(), {})
    assert (built, rebuilt) == (True, False)
    assert again.path == first.path == shop.store.root / "texts" / first.key
    assert again.metrics == {"letters": 3}
    assert (first.path / "part" / "letters.txt").read_text() == "ABC"
    assert not list((shop.store.root / ".work").iterdir())


def test_key_is_the_golden_one_so_that_nobody_changes_identity_unawares(shop):
    assert shop.identity(UPPER, Letters(), {}).key == "0128850a4247a1201c6c179b40f70144bb2b1a2e8c28fb05aa47b87022336332"


def test_key_follows_spec_version_input_content_and_texts_and_nothing_else(shop, tmp_path):
    raw = tmp_path / "raw.txt"
    raw.write_text("one")
    key = shop.identity(UPPER, Letters(), {"0": raw}).key
    moved = tmp_path / "elsewhere.txt"
    raw.rename(moved)
    assert shop.identity(UPPER, Letters(), {"0": moved}).key == key
    moved.write_text("two")
    changed = {
        shop.identity(UPPER, Letters(), {"0": moved}).key,
        shop.identity(UPPER, Letters(text="abd"), {"0": moved}).key,
        shop.identity(Stage("upper", 2, "texts", upper), Letters(), {"0": moved}).key,
        shop.identity(Stage("upper", 1, "texts", upper, texts=lambda spec: {"a.sql": "select 1"}), Letters(), {"0": moved}).key,
        shop.identity(Stage("upper", 1, "texts", upper, texts=lambda spec: {"a.sql": "select 2"}), Letters(), {"0": moved}).key,
    }
    assert len(changed | {key}) == 6


def test_what_cannot_be_hashed_raises(shop):
    class Located(Spec):
        where: Path

    with pytest.raises(SpecError, match="a path says where, not what"):
        shop.identity(UPPER, Located(where=Path("/tmp")), {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda path: (path / "part" / "letters.txt").unlink(), "part/letters.txt is missing"),
        (lambda path: rewrite(path / "part" / "letters.txt", "AB"), "part/letters.txt has 2 bytes instead of 3"),
        (lambda path: rewrite(path / "part" / "letters.txt", "XYZ"), "part/letters.txt was altered"),
        (lambda path: (path / "more.txt").write_text("?"), "more.txt does not belong to it"),
        (lambda path: (path / MANIFEST).unlink(), "its manifest is missing or unreadable"),
        (lambda path: rewrite(path / MANIFEST, "{"), "its manifest is missing or unreadable"),
        (lambda path: rewrite(path / MANIFEST, (path / MANIFEST).read_text().replace('"abc"', '"abd"')), "its manifest is"),
    ],
)
def test_damage_is_noticed_set_aside_and_rebuilt(shop, harm, why):
    artifact, _ = shop.build(UPPER, Letters(), {})
    harm(artifact.path)
    assert shop.store.find("texts", artifact.key) is None
    again, built = shop.build(UPPER, Letters(), {})
    assert built
    assert again.digest == artifact.digest
    assert again.damage(deep=True) is None
    reasons = [json.loads(file.read_text())["why"] for file in (shop.store.root / ".aside").glob("*.json")]
    assert len(reasons) == 1
    assert reasons[0].startswith(why)


def rewrite(path: Path, text: str) -> None:
    path.chmod(0o644)
    path.write_text(text)


def test_silent_bit_rot_is_found_on_demand(shop):
    artifact, _ = shop.build(UPPER, Letters(), {})
    file = artifact.path / "part" / "letters.txt"
    times = file.stat()
    rewrite(file, "XYZ")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert artifact.damage() is None
    assert artifact.damage(deep=True) == "part/letters.txt was altered"


def test_a_failed_stage_leaves_no_artifact_but_keeps_its_work_folder(shop):
    def broken(spec: Letters, inputs: Inputs, out: Path, run: Run) -> Metrics:
        (run.work / "checkpoint").write_text("step 7")
        (out / "half").write_text("torn")
        raise DataError("no rows")

    stage = Stage("broken", 1, "texts", broken)
    identity = shop.identity(stage, Letters(), {})
    with pytest.raises(DataError, match="no rows"):
        shop.build(stage, Letters(), {})
    assert shop.store.find("texts", identity.key) is None
    work = shop.store.root / ".work" / identity.key
    assert (work / "checkpoint").read_text() == "step 7"

    def resumed(spec: Letters, inputs: Inputs, out: Path, run: Run) -> Metrics:
        assert not (out / "half").exists()
        (out / "whole").write_text((run.work / "checkpoint").read_text())
        return {}

    artifact, _ = shop.build(Stage("broken", 1, "texts", resumed), Letters(), {})
    assert (artifact.path / "whole").read_text() == "step 7"


def test_early_cut_off_a_rebuilt_equal_input_rebuilds_nothing_below(shop):
    built, _ = shop.build(UPPER, Letters(), {})
    below, _ = shop.build(ECHO, Letters(), {"upper": built})
    same, _ = shop.build(Stage("upper", 2, "texts", upper), Letters(), {})
    assert same.key != built.key
    assert same.digest == built.digest
    again, rebuilt = shop.build(ECHO, Letters(), {"upper": same})
    assert (again.key, rebuilt) == (below.key, False)


def test_fresh_builds_again_and_a_different_result_replaces_the_old(shop):
    results = iter(["one", "one", "two"])

    def drifting(spec: Letters, inputs: Inputs, out: Path, run: Run) -> Metrics:
        (out / "x").write_text(next(results))
        return {}

    stage = Stage("drifting", 1, "texts", drifting)
    first, _ = shop.build(stage, Letters(), {})
    same, built = shop.build(stage, Letters(), {}, fresh=True)
    assert built
    assert same.digest == first.digest
    other, built = shop.build(stage, Letters(), {}, fresh=True)
    assert built
    assert other.digest != first.digest
    assert shop.store.find("texts", first.key).digest == other.digest


def test_runs_at_once_build_each_artifact_once(shop):
    built: list[bool] = []
    calls: list[int] = []
    gate = threading.Barrier(6)

    def slow(spec: Letters, inputs: Inputs, out: Path, run: Run) -> Metrics:
        calls.append(1)
        threading.Event().wait(0.3)
        (out / "x").write_text("x")
        return {}

    stage = Stage("slow", 1, "texts", slow)

    def work() -> None:
        gate.wait()
        built.append(shop.build(stage, Letters(), {})[1])

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sum(built), len(built), len(calls)) == (1, 6, 1)


def test_an_artifact_built_on_one_machine_is_read_on_another(tmp_path):
    url = (tmp_path / "bucket").as_uri()
    here = Workshop(Store(tmp_path / "a", url), tmp_path / "models")
    there = Workshop(Store(tmp_path / "b", url), tmp_path / "models")
    first, _ = here.build(UPPER, Letters(), {})
    second, built = there.build(UPPER, Letters(), {})
    assert not built
    assert second.digest == first.digest
    assert second.path == tmp_path / "b" / "texts" / first.key
    assert second.damage(deep=True) is None


def test_a_torn_remote_copy_is_built_again_and_mended(tmp_path):
    url = (tmp_path / "bucket").as_uri()
    here = Workshop(Store(tmp_path / "a", url), tmp_path / "models")
    first, _ = here.build(UPPER, Letters(), {})
    torn = tmp_path / "bucket" / "texts" / first.key / "part" / "letters.txt"
    rewrite(torn, "AB")
    there = Workshop(Store(tmp_path / "b", url), tmp_path / "models")
    _, built = there.build(UPPER, Letters(), {})
    assert built
    assert torn.read_text() == "ABC"


def test_a_push_that_failed_is_tried_again_by_the_next_run_that_finds_the_artifact(tmp_path):
    bucket = tmp_path / "bucket"
    bucket.write_text("a file where the folder should be")
    here = Workshop(Store(tmp_path / "a", bucket.as_uri()), tmp_path / "models")
    with pytest.raises(OSError, match="bucket"):
        here.build(UPPER, Letters(), {})
    said: list[str] = []
    run = Run(tmp_path, tmp_path, log=said.append)
    first, built = here.build(UPPER, Letters(), {}, run=run)
    assert not built  # it is here, and a storage that is away is no reason to fail
    assert said[0].startswith(f"texts {first.key[:12]}: not pushed to the shared storage (")
    bucket.unlink()
    here.build(UPPER, Letters(), {}, run=run)
    assert said[1:] == [f"texts {first.key[:12]}: was not on the shared storage yet, pushed"]
    second, built = Workshop(Store(tmp_path / "b", bucket.as_uri()), tmp_path / "models").build(UPPER, Letters(), {})
    assert (built, second.digest) == (False, first.digest)


def test_a_hit_asks_the_shared_storage_once_and_sends_nothing_again(tmp_path, monkeypatch):
    asked: list[str] = []
    lacks = Remote.lacks
    monkeypatch.setattr(Remote, "lacks", lambda self, kind, key: asked.append(key) or lacks(self, kind, key))
    here = Workshop(Store(tmp_path / "a", (tmp_path / "bucket").as_uri()), tmp_path / "models")
    first, _ = here.build(UPPER, Letters(), {})
    sent = tmp_path / "bucket" / "texts" / first.key / MANIFEST
    before = sent.stat().st_mtime_ns
    asked.clear()
    here.build(UPPER, Letters(), {})
    assert asked == [first.key]
    assert sent.stat().st_mtime_ns == before


def test_a_shared_copy_is_not_pushed_over_because_the_question_for_it_failed(tmp_path, monkeypatch):
    here = Workshop(Store(tmp_path / "a", (tmp_path / "bucket").as_uri()), tmp_path / "models")
    first, _ = here.build(UPPER, Letters(), {})
    manifest = tmp_path / "bucket" / "texts" / first.key / MANIFEST
    before = manifest.stat().st_mtime_ns

    def refused(self, path, **_):
        raise PermissionError("403\n  Forbidden")

    said: list[str] = []
    with monkeypatch.context() as away:
        away.setattr(LocalFileSystem, "info", refused)
        again, built = here.build(UPPER, Letters(), {}, run=Run(tmp_path, tmp_path, log=said.append))
    assert (built, again.key, manifest.stat().st_mtime_ns) == (False, first.key, before)
    why = "PermissionError: 403 Forbidden"
    assert said == [f"texts {first.key[:12]}: not pushed to the shared storage ({why}); the next run tries again"]


def test_a_storage_that_is_away_is_asked_once_for_all_that_is_here(tmp_path, monkeypatch):
    asked: list[str] = []

    def away(self, kind, key):
        asked.append(key)
        raise TimeoutError("no route")

    monkeypatch.setattr(Remote, "lacks", away)
    here = Workshop(Store(tmp_path / "a", (tmp_path / "bucket").as_uri()), tmp_path / "models")
    made = [here.build(UPPER, Letters(text=text), {})[0] for text in "abc"]
    said: list[str] = []
    here.share(made, said.append)
    assert asked == [made[0].key]
    assert said == [
        f"texts {made[0].key[:12]}: not pushed to the shared storage (TimeoutError: no route), and 2 more not tried; "
        "the next run tries again"
    ]


def test_what_a_storage_says_is_logged_short_and_without_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefghijkl")

    def leaks(self, kind, key):
        raise OSError(f"denied for abcdefghijkl\n{'<xml>' * 500}")

    monkeypatch.setattr(Remote, "lacks", leaks)
    here = Workshop(Store(tmp_path / "a", (tmp_path / "bucket").as_uri()), tmp_path / "models")
    first, _ = here.build(UPPER, Letters(), {})
    said: list[str] = []
    here.share([first], said.append)
    cut = f"denied for <AWS_SECRET_ACCESS_KEY> {'<xml>' * 500}"[:200]
    assert said == [f"texts {first.key[:12]}: not pushed to the shared storage (OSError: {cut}); the next run tries again"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_file_holds_a_number_that_json_has_not(tmp_path, number):
    path = tmp_path / "report.json"
    with pytest.raises(DataError, match=r"report\.json: holds a number that is infinite or none"):
        write_json(path, {"low": [0.5, number]})
    assert not path.exists()


def test_metrics_that_json_cannot_hold_are_refused_before_anything_is_in_place(shop):
    def nan(spec: Letters, inputs: Inputs, out: Path, run: Run) -> Metrics:
        (out / "x").write_text("x")
        return {"loss": float("nan")}

    stage = Stage("nan", 1, "texts", nan)
    with pytest.raises(SpecError, match="nan has no canonical form"):
        shop.build(stage, Letters(), {})
    assert shop.store.find("texts", shop.identity(stage, Letters(), {}).key) is None


def test_secrets_of_the_environment_are_refused_in_a_manifest(shop, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    with pytest.raises(SpecError, match="HF_TOKEN"):
        shop.build(UPPER, Letters(text="see hf_abcdefghijkl"), {})


def test_named_finds_one_and_explains_none_and_several(shop):
    one, _ = shop.build(UPPER, Letters(), {})
    shop.build(UPPER, Letters(text="b"), {})
    assert shop.store.named(one.key[:12]).key == one.key
    with pytest.raises(DataError, match="no artifact"):
        shop.store.named("zz")
    with pytest.raises(DataError, match="2 artifacts match"):
        shop.store.named("")


def test_what_a_build_took_is_in_its_manifest_and_not_in_its_digest(shop):
    def stage(spent):
        def function(spec, inputs, out, run):
            (out / "letters.txt").write_text("abc")
            if spent:
                run.used(Usage(2.5, 1000, None))
                run.used(Usage(0.5, 3000, None))
            return {}

        return Stage("costly", int(spent), "texts", function)

    plain, _ = shop.build(stage(spent=False), Letters(), {})
    costly, _ = shop.build(stage(spent=True), Letters(), {})
    assert plain.digest == costly.digest
    assert plain.provenance.keys() == {"created", "machine", "versions", "commit", "seconds"}
    assert {name: costly.provenance[name] for name in costly.provenance.keys() - plain.provenance.keys()} == {
        "cpu_seconds": 3.0, "peak_bytes": 3000, "gpu_bytes": None,
    }  # fmt: skip
