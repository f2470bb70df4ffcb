"""Pushing to the hub: one commit of every byte, checked there; what is refused or breaks is one sentence without the token."""

import pytest
from hub import SECRET, hub  # noqa: F401  a fixture

from tasks.core.errors import MachineError, SpecError
from tasks.hub import check_push, push

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")  # the client's own


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "out"
    (out / "base").mkdir(parents=True)
    (out / "README.md").write_text("---\nlicense: mit\n---\n# A card\n")
    (out / "model.safetensors").write_bytes(bytes(range(256)) * 4000)
    (out / "base" / "model.safetensors").write_bytes(b"other weights")
    (out / "SHA256SUMS").write_text("")
    return out


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The client waits between attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sent(folder, repo="ana/poet", **more):
    return push(folder, repo, check_push(repo), **{"public": False, "message": "Release 3f2a91: pass", **more})


def test_every_byte_arrives_in_one_commit_in_a_private_repository(hub, folder):  # noqa: F811
    url = sent(folder)
    repo = hub.repos["ana/poet"]
    assert (repo["private"], repo["commits"], repo["files"]) == (True, ["Release 3f2a91: pass"], content(folder))
    assert url.startswith(f"{hub.url}/ana/poet/commit/")


def test_the_next_release_replaces_the_files_and_what_it_lacks_goes(hub, folder):  # noqa: F811
    sent(folder)
    (folder / "base" / "model.safetensors").unlink()
    (folder / "model.safetensors").write_bytes(b"new weights")
    sent(folder, message="Release 77c0de: pass")
    repo = hub.repos["ana/poet"]
    assert (repo["commits"], repo["files"]) == (["Release 3f2a91: pass", "Release 77c0de: pass"], content(folder))


def test_what_no_export_put_there_is_never_replaced(hub, folder):  # noqa: F811
    files = {".gitattributes": b"", "model.gguf": b"by hand", "README.md": b"by hand"}
    hub.repos["ana/poet"] = {"private": True, "files": dict(files), "commits": []}
    with pytest.raises(
        SpecError, match=r"it holds what no `align export` put there \(model.gguf, README.md\).*name a new repository"
    ):
        sent(folder)
    assert hub.repos["ana/poet"] == {"private": True, "files": files, "commits": []}


def test_a_repository_is_open_only_where_that_is_said(hub, folder):  # noqa: F811
    sent(folder, public=True)
    assert hub.repos["ana/poet"]["private"] is False
    with pytest.raises(SpecError, match="it is there already and everybody can read it; --public says that you mean that"):
        sent(folder)
    assert len(hub.repos["ana/poet"]["commits"]) == 1


def test_without_a_token_offline_or_with_no_name_nothing_is_asked(hub, folder, monkeypatch):  # noqa: F811
    for repo, said in (("poet", "a repository is called OWNER/NAME"), ("a b/c", "no name of a repository")):
        with pytest.raises(SpecError, match=said):
            sent(folder, repo)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SpecError, match="--push ana/poet: HF_HUB_OFFLINE is set, so the hub is not asked"):
        sent(folder)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SpecError, match="--push ana/poet: HF_TOKEN is not set; put a token that may write to ana/poet into it"):
        sent(folder)
    assert hub.asked == []


def test_a_refused_token_is_said_and_never_shown(hub, folder, capfd):  # noqa: F811
    hub.accepts = "another"
    with pytest.raises(
        SpecError, match=r"the hub refused the token in HF_TOKEN \(401\); give one that may write to ana"
    ) as error:
        sent(folder)
    assert SECRET not in str(error.value) + "".join(capfd.readouterr())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("at", ["/create", "/preupload", "/objects/batch", "/blob/", "/commit/", "/tree/"])
def test_a_hub_that_dies_on_the_way_is_one_sentence_and_the_folder_stays(hub, folder, at, capfd):  # noqa: F811
    hub.dies_at = at
    before = content(folder)
    said = r"--push ana/poet: not sent \((Remote|Connect|Read|Write)\w*Error: .*\); .* is whole, `hf upload ana/poet"
    with pytest.raises(MachineError, match=said) as error:
        sent(folder)
    assert "\n" not in str(error.value)
    assert SECRET not in str(error.value) + "".join(capfd.readouterr())
    assert content(folder) == before


@pytest.mark.parametrize("name", ["README.md", "model.safetensors"])
def test_other_bytes_on_the_hub_are_noticed(hub, folder, name):  # noqa: F811
    hub.spoils = name
    with pytest.raises(MachineError, match=rf"the hub holds other bytes of {name} than"):
        sent(folder)
