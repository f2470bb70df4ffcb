"""A release leaves as a folder that other tools load, as its card says: the code of the card is run, the bytes are read."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from cards import run_card
from hub import SECRET, hub  # noqa: F401  a fixture
from peft import PeftModel
from scoring import rows, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from evals.gates import Gate
from flows.export import export
from tasks.channels import promote
from tasks.core.build import Workshop
from tasks.core.contract import Execution, Run, Stage
from tasks.core.errors import DataError, SpecError
from tasks.core.files import remove
from tasks.core.spec import Spec
from tasks.core.store import Store
from tasks.judge import VERDICT, VerdictSpec
from tasks.merge import MergeSpec
from tasks.policy import ADAPTERS, read_record, write_record
from tasks.release import RELEASE, ReleaseSpec
from tasks.train import SftSpec
from tasks.training import merge
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Of(Spec):
    name: str


@pytest.fixture
def bench(shop, tmp_path, monkeypatch):
    """`bench(policy, merged=...)`: the release of a policy's folder, in a channel `champion` of a store of its own."""
    monkeypatch.setenv("ALIGN_MODELS", str(shop.models))
    workshop = Workshop(Store(tmp_path / "store"), shop.models, Execution(device="cpu"))

    def copied(folder):
        return lambda spec, inputs, out, run: (
            shutil.copytree(folder, out, dirs_exist_ok=True, copy_function=shutil.copyfile) and {}
        )

    def scored(spec, inputs, out, run):
        write(out, rows("finished", [1.0] * 60, subject=""))
        return {}

    def released(folder, *, merged=False, name="poet"):
        build = workshop.build
        prompts, _ = build(Stage("prompts", 1, "prompts", copied(shop.prompts)), Of(name="prompts"), {})
        policy, _ = build(Stage("dpo", 1, "policy", copied(folder)), Of(name=str(folder)), {})
        if merged:
            policy, _ = build(Stage("merge", 1, "policy", merge.run), MergeSpec(), {"policy": policy, "prompts": prompts})
        scores, _ = build(Stage("scores", 1, "scores", scored), Of(name="s"), {"policy": policy, "prompts": prompts})
        gates = (Gate(metric="finished_rate", at_least=0.9),)
        verdict, _ = build(VERDICT, VerdictSpec(gates=gates, resamples=1000), {"scores_candidate": scores})
        inputs = {"policy": policy, "verdict": verdict, "scores_candidate": scores, "prompts": prompts}
        release, _ = build(RELEASE, ReleaseSpec(name=name, base_model="org/tiny", license="apache-2.0"), inputs)
        promote(workshop.store, "champion", release)
        return release, policy

    released.store = workshop.store
    return released


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.arange(3, 40)[None]).logits[:, -37:]


def ours(shop, policy, tmp_path):
    return load(policy, Run(tmp_path, shop.models, Execution(device="cpu")))


def front_of(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def base_of(shop):
    return next(path for path in shop.models.iterdir() if path.name.startswith("tiny@"))


def test_an_adapter_alone_names_its_base_loads_as_its_card_says_and_can_be_checked(bench, shop, sft_policies, tmp_path, capsys):
    release, _ = bench(sft_policies("lora"))
    folder = tmp_path / "out"
    folder.mkdir()  # an empty one is fine
    export(bench.store, "champion", folder, form="adapter")
    printed = capsys.readouterr().out
    assert f"release {release.key[:12]}, an adapter: peft.PeftModel.from_pretrained(model org/tiny, this folder)" in printed
    assert f"vLLM: loads (`vllm serve org/tiny --enable-lora --max-lora-rank 8 --lora-modules poet={folder}`)" in printed
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja",
        "generation_config.json", "method.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/tiny"
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    files = [file for file in folder.iterdir() if file.name != "SHA256SUMS"]
    assert sums == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    front = front_of(folder)
    assert {name: front[name] for name in ("base_model", "base_model_relation", "library_name", "license")} == {
        "base_model": "org/tiny", "base_model_relation": "adapter", "library_name": "peft", "license": "apache-2.0",
    }  # fmt: skip
    card = (folder / "README.md").read_text()
    assert release.digest in card
    assert card.count("## How to use it") == card.count("## Limits") == 1
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_of(shop)), folder)
    told = ours(shop, sft_policies("lora"), tmp_path)
    assert torch.equal(logits(model), logits(told.model))
    assert AutoTokenizer.from_pretrained(folder).chat_template == told.tokenizer.chat_template
    run_card(folder, base_of(shop))


def test_nothing_that_leaves_names_a_folder_of_this_machine(bench, shop, sft_policies, tmp_path):
    bench(sft_policies("lora"))
    for form in (None, "adapter"):
        export(bench.store, "champion", tmp_path / f"out-{form}", form=form)
        for file in (tmp_path / f"out-{form}").rglob("*"):
            held = file.read_bytes() if file.is_file() else b""
            assert str(tmp_path).encode() not in held
            assert str(shop.root).encode() not in held


@pytest.mark.parametrize("method", ["lora", "p_tuning", "prefix_tuning"])
def test_an_unmerged_policy_leaves_with_its_base_and_loads_with_peft_alone(bench, shop, sft_policies, tmp_path, method):
    bench(sft_policies(method))
    folder = tmp_path / "exported"
    export(bench.store, "champion", folder)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "base"), folder)
    told = ours(shop, sft_policies(method), tmp_path)
    assert torch.equal(logits(model), logits(told.model))
    assert 'from_pretrained("base")' in (folder / "README.md").read_text()
    if method == "lora":
        run_card(folder)


def test_a_method_that_peft_has_not_leaves_for_us_alone(bench, sft_policies, tmp_path, capsys):
    bench(sft_policies("bottleneck"))
    with pytest.raises(
        SpecError, match="PEFT has no BOTTLENECK adapters, so no other tool would load it; export it without --as"
    ):
        export(bench.store, "champion", tmp_path / "out", form="adapter")
    export(bench.store, "champion", tmp_path / "out")
    assert "by alignflow alone" in capsys.readouterr().out
    assert "make_all_known()" in (tmp_path / "out" / "README.md").read_text()
    bench(sft_policies("bitfit"), name="other")
    with pytest.raises(SpecError, match=r"PEFT has no BITFIT adapters.*; `--as merged` writes the whole model"):
        export(bench.store, "champion", tmp_path / "out2", form="adapter")


def test_a_merged_release_leaves_as_it_is_and_its_adapter_is_found_below_the_merge(bench, shop, sft_policies, tmp_path):
    _, policy = bench(sft_policies("lora"), merged=True)
    export(bench.store, "champion", tmp_path / "whole")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.equal(logits(model), logits(ours(shop, policy.path, tmp_path).model))
    front = front_of(tmp_path / "whole")
    assert (front["library_name"], front["base_model_relation"]) == ("transformers", "finetune")
    run_card(tmp_path / "whole")
    export(bench.store, "champion", tmp_path / "adapter", form="adapter")
    adapter = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_of(shop)), tmp_path / "adapter")
    assert torch.equal(logits(adapter), logits(ours(shop, sft_policies("lora"), tmp_path).model))


def test_the_adapter_below_a_merge_may_be_gone_or_altered_and_that_is_said(bench, sft_policies, tmp_path):
    _, policy = bench(sft_policies("lora"), merged=True)
    unmerged = next(one for one in bench.store.all() if one.kind == "policy" and one.key != policy.key)
    weights = unmerged.path / ADAPTERS / "0-sft" / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"the adapter that was merged: .*was altered; run its plan again, or `--as merged`"):
        export(bench.store, "champion", tmp_path / "out", form="adapter")
    remove(unmerged.path)
    with pytest.raises(DataError, match="the adapter that was merged: it is not in the store any more"):
        export(bench.store, "champion", tmp_path / "out", form="adapter")
    assert not (tmp_path / "out").exists()


def test_an_unmerged_release_is_merged_in_a_child_for_a_whole_model_and_certified(bench, shop, sft_policies, tmp_path):
    bench(sft_policies("lora"))
    export(bench.store, "champion", tmp_path / "whole", form="merged")
    merged = [one for one in bench.store.all() if one.stage == "merge"]
    assert [one.metrics["prompts"] for one in merged] == [6]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert torch.allclose(logits(model), logits(ours(shop, sft_policies("lora"), tmp_path).model), atol=1e-3)
    export(bench.store, "champion", tmp_path / "again", form="merged")  # from the store
    assert len([one for one in bench.store.all() if one.stage == "merge"]) == 1


def test_soft_prompts_cannot_be_merged_and_that_is_said(bench, sft_policies, tmp_path):
    bench(sft_policies("p_tuning"))
    with pytest.raises(SpecError, match="p_tuning cannot be merged"):
        export(bench.store, "champion", tmp_path / "out", form="merged")


def stacked(policy, folder, *, whole=False):
    """A policy whose second adapter lies on the first, or on a model that the first was merged into."""
    shutil.copytree(policy, folder)
    record = read_record(folder)
    chain = (*record.chain, record.chain[0].model_copy(update={"stage": "dpo", "adapter": "1-dpo"}))
    if whole:
        shutil.move(folder / ADAPTERS / "0-sft", folder / ADAPTERS / "1-dpo")
        chain = (record.chain[0], record.chain[0].model_copy(update={"stage": "merge", "adapter": None}), chain[-1])
    else:
        shutil.copytree(folder / ADAPTERS / "0-sft", folder / ADAPTERS / "1-dpo")
    (folder / "policy.json").unlink()
    write_record(folder, record.model_copy(update={"chain": chain}))
    return folder


@pytest.mark.parametrize(
    ("whole", "forms", "said"),
    [
        (False, (None, "adapter"), "0-sft and 1-dpo lie on top of each other, and other tools load one adapter; `--as merged`"),
        (True, ("adapter",), "its adapter lies on a model that merge changed, not on tiny; `--as merged`"),
    ],
)
def test_what_is_not_one_adapter_on_the_base_is_refused(bench, sft_policies, tmp_path, whole, forms, said):
    bench(stacked(sft_policies("lora"), tmp_path / "policy", whole=whole))
    for form in forms:
        with pytest.raises(SpecError, match=said):
            export(bench.store, "champion", tmp_path / "out", form=form)


def test_a_whole_model_has_no_adapter(bench, sft_policies, tmp_path):
    bench(sft_policies("full"))
    with pytest.raises(SpecError, match="its policy is a whole model, no adapter was trained"):
        export(bench.store, "champion", tmp_path / "out", form="adapter")
    export(bench.store, "champion", tmp_path / "out", form="merged")
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_folder_that_holds_something_is_refused_and_a_failed_export_leaves_nothing(bench, sft_policies, tmp_path, monkeypatch):
    bench(sft_policies("lora"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    for taken in ("full", "full/notes"):
        with pytest.raises(SpecError, match="is there already and not empty"):
            export(bench.store, "champion", tmp_path / taken)
    before = sorted(tmp_path.iterdir())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tasks.export.file_digest", full)
    with pytest.raises(OSError, match="No space left"):
        export(bench.store, "champion", tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_the_folder_where_one_stands_is_filled_and_stays_and_a_neighbour_is_left_alone(
    bench, sft_policies, tmp_path, monkeypatch
):
    bench(sft_policies("lora"))
    here, other = tmp_path / "here", tmp_path / ".here.draft"
    here.mkdir()
    other.mkdir()
    monkeypatch.chdir(here)
    export(bench.store, "champion", Path())
    assert {"README.md", "SHA256SUMS", "adapter_config.json"} <= {path.name for path in here.iterdir()}
    assert not [path for path in here.iterdir() if path.name.startswith(".")]
    assert other.is_dir()


def test_asked_for_vllm_what_it_would_not_serve_is_an_error(bench, sft_policies, tmp_path):
    bench(sft_policies("dora"))
    with pytest.raises(
        SpecError, match="vLLM would not serve it: it is DoRA, which vLLM does not support; `--as merged` it would"
    ):
        export(bench.store, "champion", tmp_path / "out", tool="vllm")
    assert not (tmp_path / "out").exists()
    bench(sft_policies("rslora"), name="other")
    export(bench.store, "champion", tmp_path / "out", tool="vllm")
    assert (tmp_path / "out" / "adapter_config.json").is_file()


def test_machines_get_it_as_json(bench, sft_policies, tmp_path, capsys):
    release, _ = bench(sft_policies("ia3"))
    export(bench.store, "champion", tmp_path / "out", form="adapter", json_output=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["release"], told["digest"], told["form"], told["base"]) == (release.key, release.digest, "adapter", "org/tiny")
    assert told["vllm"] == {
        "loads": False,
        "problems": ["its adapter is of type IA3, and vLLM reads LoRA alone"],
        "command": None,
    }
    assert set(told["files"]) | {"SHA256SUMS"} == {file.name for file in (tmp_path / "out").iterdir()}


def test_what_is_pushed_is_the_folder_and_the_commit_names_release_and_verdict(bench, hub, sft_policies, tmp_path, capfd):  # noqa: F811
    release, _ = bench(sft_policies("lora"))
    folder = tmp_path / "out"
    export(bench.store, "champion", folder, form="adapter", repo="ana/poet")
    repo = hub.repos["ana/poet"]
    assert repo["commits"] == [f"Release {release.key[:12]}, pass: 1 of 1 gates hold"]
    assert repo["files"] == {file.name: file.read_bytes() for file in folder.iterdir()}
    assert repo["private"]
    said = "".join(capfd.readouterr())
    assert f"hub: {hub.url}/ana/poet/commit/" in said
    assert SECRET not in said


def test_without_a_token_nothing_is_written_either(bench, hub, sft_policies, tmp_path, monkeypatch):  # noqa: F811
    bench(sft_policies("lora"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SpecError, match="HF_TOKEN is not set"):
        export(bench.store, "champion", tmp_path / "out", repo="ana/poet")
    with pytest.raises(SpecError, match="--public: it says who may read what --push sends"):
        export(bench.store, "champion", tmp_path / "out", public=True)
    assert not (tmp_path / "out").exists()


def test_the_card_of_an_adapter_on_four_bits_loads_it_so(bench, shop, train, tmp_path, capsys):
    wide = tiny.write_policy(tmp_path / "wide", shop.models, tiny.write_model(tmp_path / "source", hidden=64), "wide")
    spec = SftSpec.model_validate({"method": tiny.METHOD["qlora"], "max_steps": 1, "global_batch": 8})  # 4 bits go by 64 numbers
    policy, _ = train("sft", spec, policy=wide)
    bench(policy)
    folder = tmp_path / "out"
    export(bench.store, "champion", folder, form="adapter")
    assert "--quantization bitsandbytes --enable-lora --max-lora-rank 8" in capsys.readouterr().out
    assert 'bnb_4bit_quant_type="nf4"' in (folder / "README.md").read_text()
    run_card(folder, next(shop.models.glob("wide@*")))
