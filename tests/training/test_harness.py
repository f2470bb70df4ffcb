"""Tasks of lm-eval on tiny models, against values that are computed without lm-eval."""

import json
import os
import shutil

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import lm_tasks
import pyarrow.parquet as pq
import pytest
import tiny

from evals.suite import refuse_mixed
from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError, MachineError, SpecError
from tasks.harness import HarnessSpec, HarnessTaskSpec, check_release, installed
from tasks.training import choices, harness, harness_data
from tasks.training.data import Encoder
from tasks.training.models import load
from tasks.training.score import Text, log_probabilities

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
RELEASE = installed() or ""


class Bench:
    """Policies and tasks in a folder."""

    def __init__(self, root):
        self.root, self.models, self.count = root, root / "models", 0
        self.policy = tiny.write_policy(root / "policy", self.models, tiny.write_model(root / "source"))
        self.tasks = lm_tasks.write_tasks(root / "tasks")

    def folder(self):
        self.count += 1
        made = self.root / str(self.count)
        made.mkdir()
        return made

    def run(self, micro_batch=None):
        return Run(self.folder(), self.models, Execution(device="cpu", micro_batch=micro_batch))

    def task(self, name, tasks=None):
        out = self.folder()
        told = harness_data.run(HarnessTaskSpec(task=name, harness=RELEASE), {"tasks": tasks or self.tasks}, out, self.run())
        return out, told

    def scores(self, task, policy=None, micro_batch=None, **asked):
        """What was written, and the metrics."""
        out = self.folder()
        inputs = {"task": task, "policy": policy or self.policy}
        return out, harness.run(HarnessSpec(harness=RELEASE, **asked), inputs, out, self.run(micro_batch))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.dont_write_bytecode", True)
        yield Bench(tmp_path_factory.mktemp("harness"))


def values(folder, metric):
    """Value and weight by document, in the order of the documents."""
    rows = [row for row in pq.read_table(folder / "scores.parquet").to_pylist() if row["metric"] == metric]
    assert all(row["cluster"] == row["item"] for row in rows)
    found = {row["item"]: (row["value"], row["weight"]) for row in rows}
    assert len(found) == len(rows)
    return [found[item] for item in map(harness._hash, lm_tasks.DOCUMENTS) if item in found]


def sums(bench, texts, policy=None):
    """Our own log-probabilities of the second of each two texts behind the first and a space."""
    loaded = load(policy or bench.policy, bench.run(), task="policy")
    encoder = Encoder(loaded.tokenizer)
    rows = [{"id": str(i), "prompt": [{"role": "user", "content": before}]} for i, (before, _) in enumerate(texts)]
    made = [choices._gone_on(encoder, row, after) for row, (_, after) in zip(rows, texts, strict=True)]
    return [total for total, _ in log_probabilities(loaded, encoder, made, bench.run())]


def test_multiple_choice_is_what_our_own_likelihoods_say(bench):
    task, told = bench.task("tiny_choose")
    assert told["metrics"] == ["acc", "acc_norm"]
    assert told["left_out"] == {"f1": "it is no mean over documents (f1_score)"}
    folder, metrics = bench.scores(task)
    both = [(document["query"], choice) for document in lm_tasks.DOCUMENTS for choice in document["choices"]]
    found = iter(sums(bench, both))
    ours = [choices.judged(d["choices"], d["gold"], [next(found), next(found)]) for d in lm_tasks.DOCUMENTS]
    assert values(folder, "lm_eval.tiny_choose.acc") == [(one["accuracy"], 1.0) for one in ours]
    assert values(folder, "lm_eval.tiny_choose.acc_norm") == [(one["accuracy_normalised"], 1.0) for one in ours]
    assert 0 < metrics["acc"] < 1
    assert (metrics["acc"], metrics["acc_norm"]) == (metrics["lm_eval"]["acc,none"], metrics["lm_eval"]["acc_norm,none"])


def test_a_limit_takes_documents_by_digest_and_a_larger_one_contains_a_smaller(bench):
    task, _ = bench.task("tiny_choose")
    whole, five, two = (bench.scores(task, limit=limit)[0] for limit in (None, 5, 2))
    items = [
        {
            row["item"]: row["value"]
            for row in pq.read_table(folder / "scores.parquet").to_pylist()
            if row["metric"].endswith("acc")
        }
        for folder in (whole, five, two)
    ]
    hashes = sorted(map(harness._hash, lm_tasks.DOCUMENTS))
    assert sorted(items[0]) == hashes
    assert [sorted(some) for some in items[1:]] == [hashes[:5], hashes[:2]]
    assert items[1] | items[0] == items[0] and items[2] | items[0] == items[0]


def test_generation_is_judged_after_each_filter(bench):
    loaded = load(bench.policy, bench.run(), task="policy")
    ids = [loaded.tokenizer(document["query"], return_tensors="pt") for document in lm_tasks.DOCUMENTS]
    said = [
        loaded.tokenizer.decode(
            loaded.model.generate(**one, max_new_tokens=6, do_sample=False)[0, one["input_ids"].shape[1] :],
            skip_special_tokens=True,
        )
        for one in ids
    ]
    before = [text.split("\n\n")[0] for text in said]
    told = lm_tasks.write_tasks(bench.folder() / "told")  # documents whose right answers are what the model says, in two of three
    documents = [
        {**document, "choices": [text if i % 3 else "never said"], "gold": 0}
        for i, (document, text) in enumerate(zip(lm_tasks.DOCUMENTS, before, strict=True))
    ]
    (told / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    task, _ = bench.task("tiny_write", told)
    folder, metrics = bench.scores(task)
    rows = {
        row["item"]: row for row in pq.read_table(folder / "scores.parquet").to_pylist() if row["metric"].endswith("strict_match")
    }
    assert [rows[harness._hash(d)]["value"] for d in documents] == [float(bool(i % 3)) for i in range(12)]
    assert metrics["exact_match_strict_match"] == pytest.approx(8 / 12)
    assert set(metrics) >= {"exact_match_strict_match", "exact_match_first_letter"}


def test_likelihoods_are_nats_with_the_number_of_what_they_are_of(bench):
    folder, _ = bench.scores(bench.task("tiny_continue")[0])
    ours = sums(bench, [(document["query"], document["choices"][0]) for document in lm_tasks.DOCUMENTS])
    found = values(folder, "lm_eval.tiny_continue.perplexity")
    assert [value for value, _ in found] == pytest.approx([-total for total in ours], rel=1e-5)
    assert {weight for _, weight in found} == {1.0}
    assert len(values(folder, "lm_eval.tiny_continue.acc")) == 12

    task, told = bench.task("tiny_read")
    assert told["left_out"] == {"bits_per_byte": "it is no mean over documents (bits_per_byte)"}
    folder, _ = bench.scores(task)
    loaded = load(bench.policy, bench.run(), task="policy")
    texts = [
        Text("", {}, [loaded.tokenizer.bos_token_id, *ids], [False] + [True] * len(ids), mean=False)
        for ids in (loaded.tokenizer(document["query"])["input_ids"] for document in lm_tasks.DOCUMENTS)
    ]
    ours = [total for total, _ in log_probabilities(loaded, Encoder(loaded.tokenizer), texts, bench.run())]
    words = [len(document["query"].split()) for document in lm_tasks.DOCUMENTS]
    found = values(folder, "lm_eval.tiny_read.word_perplexity")
    assert [weight for _, weight in found] == words
    assert [value for value, _ in found] == pytest.approx([-total / n for total, n in zip(ours, words, strict=True)], rel=1e-5)


def test_equal_requests_give_equal_bytes_and_batches_change_nothing(bench):
    for name in ("tiny_write", "tiny_continue"):
        task, again = bench.task(name)[0], bench.task(name)[0]
        files = [
            {file.relative_to(made): file.read_bytes() for file in made.rglob("*") if file.is_file()} for made in (task, again)
        ]
        assert files[0] == files[1]
        one, same, three = (bench.scores(task, micro_batch=size)[0] for size in (8, 8, 3))
        for file in ("scores.parquet", "suite.json"):
            assert (one / file).read_bytes() == (same / file).read_bytes()
        rows = [pq.read_table(folder / "scores.parquet").to_pylist() for folder in (one, three)]
        assert [row["value"] for row in rows[0]] == pytest.approx([row["value"] for row in rows[1]], abs=1e-5)


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # PEFT, of prompt tuning: rows come one by one
@pytest.mark.parametrize(("method", "bits"), [("lora", None), ("lora", "nf4"), ("prompt_tuning", None)])
def test_an_adapter_is_measured_and_not_its_base(bench, method, bits):
    import torch
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    from tasks.policy import ADAPTERS, Link, read_record, write_record

    torch.manual_seed(3)
    configs = {
        "lora": LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
        "prompt_tuning": PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    }
    wrapped = get_peft_model(load(bench.policy, bench.run(), task="policy").model, configs[method])
    tuned = bench.folder()
    wrapped.save_pretrained(tuned / ADAPTERS / "01-sft")
    chain = (Link(stage="sft", method=method, adapter="01-sft"),)
    write_record(tuned, read_record(bench.policy).model_copy(update={"chain": chain, "quantization": bits}))
    task, _ = bench.task("tiny_continue")
    ours = sums(bench, [(document["query"], document["choices"][0]) for document in lm_tasks.DOCUMENTS], tuned)
    with_it, without = (bench.scores(task, policy)[0] for policy in (tuned, bench.policy))
    measured = [value for value, _ in values(with_it, "lm_eval.tiny_continue.perplexity")]
    assert measured == pytest.approx([-total for total in ours], rel=1e-5)
    assert measured != pytest.approx([value for value, _ in values(without, "lm_eval.tiny_continue.perplexity")], rel=1e-3)
    written, _ = bench.task("tiny_write")
    one, three = (bench.scores(written, tuned, micro_batch=size)[0] / "scores.parquet" for size in (1, 3))
    assert one.read_bytes() == three.read_bytes()


def test_what_was_asked_otherwise_does_not_pair_up(bench):
    task, _ = bench.task("tiny_choose")
    edited = bench.folder() / "edited"
    shutil.copytree(bench.tasks, edited)
    text = (edited / "choose.yaml").read_text()
    (edited / "choose.yaml").write_text(text.replace("{{query}}", "So: {{query}}"))
    fewer = bench.folder() / "fewer"
    shutil.copytree(bench.tasks, fewer)
    (fewer / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in lm_tasks.DOCUMENTS[:10]))
    plain = bench.scores(task, limit=4)[0]
    for other, says in [
        (bench.scores(task, limit=4, few_shot=2)[0], "differ in how many prompts were asked and how"),
        (bench.scores(task, limit=4, chat_template=True)[0], "differ in how many prompts were asked and how"),
        (bench.scores(bench.task("tiny_choose", edited)[0], limit=4)[0], "differ in its text"),
        (bench.scores(bench.task("tiny_choose", fewer)[0], limit=4)[0], "differ in its"),
    ]:
        with pytest.raises(DataError, match=f"suite lm_eval.tiny_choose: scores_candidate and scores_parent {says}"):
            refuse_mixed({"scores_candidate": plain, "scores_parent": other})
    made = json.loads((plain / "suite.json").read_text())
    assert made.keys() == {"suite", "version", "text", "prompts", "asked", "harness"}
    assert (made["version"], made["harness"]) == (1.0, RELEASE)
    assert made["asked"] == {"limit": 4, "few_shot": 0, "chat_template": False}


def test_the_folder_of_tasks_stays_as_it_was_and_is_not_needed_again(bench):
    mine = bench.folder() / "mine"
    shutil.copytree(bench.tasks, mine)
    before = sorted(mine.rglob("*"))
    task, _ = bench.task("tiny_write", mine)
    assert sorted(mine.rglob("*")) == before
    shutil.rmtree(mine)
    held = sorted(task.rglob("*"))
    assert bench.scores(task, limit=2)[1]["documents"] == 2
    assert sorted(task.rglob("*")) == held
    assert str(bench.root) not in "".join(file.read_text() for file in (task / "task.json", *(task / "tasks").glob("*.yaml")))


def test_documents_that_are_there_twice_count_twice_and_belong_together(bench):
    twice = bench.folder() / "twice"
    shutil.copytree(bench.tasks, twice)
    documents = [*lm_tasks.DOCUMENTS[:3], lm_tasks.DOCUMENTS[0]]
    (twice / "documents.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    folder, _ = bench.scores(bench.task("tiny_choose", twice)[0])
    rows = [row for row in pq.read_table(folder / "scores.parquet").to_pylist() if row["metric"].endswith(".acc")]
    first = harness._hash(lm_tasks.DOCUMENTS[0])
    assert {row["item"] for row in rows if row["cluster"] == first} == {first, f"{first}#2"}
    assert len(rows) == 4


BROKEN = {
    "metric_list: [{metric: no_such_metric, aggregation: mean, higher_is_better: true}]": "it would be code from the hub",
    "metric_list: [{metric: f1}]": "no metric that can be compared document by document",
    "metric_list: [{metric: acc, aggregation: mean, higher_is_better: false}]": "lower is better here",
    "unsafe_code: true": "it runs what the model writes as code",
    "doc_to_image: query": "only text is measured",
    "dataset_kwargs: {data_files: {test: elsewhere.jsonl}}": "elsewhere.jsonl.*relative to the folder of the task's file",
    "doc_to_text: '{{query'": "lm-eval cannot make it: TemplateSyntaxError",
}


def test_data_outside_of_the_folder_is_refused_for_it_could_change_unseen(bench):
    mine = bench.folder() / "mine"
    shutil.copytree(bench.tasks, mine)
    away = bench.tasks / "documents.jsonl"
    (mine / "own.yaml").write_text(f"task: own\ninclude: choose.yaml\ndataset_kwargs: {{data_files: {{test: {away}}}}}\n")
    with pytest.raises(SpecError, match=f"{away} lies outside of the folder of the task"):
        bench.task("own", mine)


@pytest.mark.parametrize(("line", "says"), BROKEN.items())
def test_a_task_that_cannot_be_measured_is_one_sentence(bench, line, says):
    mine = bench.folder() / "mine"
    shutil.copytree(bench.tasks, mine)
    (mine / "own.yaml").write_text(f"task: own\ninclude: choose.yaml\n{line}\n")
    with pytest.raises((SpecError, DataError), match=rf"^lm-eval task own: .*{says}"):
        bench.task("own", mine)


def test_a_group_is_refused_with_what_it_holds(bench):
    with pytest.raises(SpecError, match=r"tiny_all: a group, which is measured task by task; it holds tiny_choose, tiny_write$"):
        bench.task("tiny_all")


def test_a_task_that_wants_no_examples_gets_none(bench):
    mine = bench.folder() / "mine"
    shutil.copytree(bench.tasks, mine)
    (mine / "own.yaml").write_text("task: own\ninclude: choose.yaml\nnum_fewshot: 0\n")
    with pytest.raises(SpecError, match="it is asked without examples, as its file says; leave few_shot out"):
        bench.scores(bench.task("own", mine)[0], few_shot=1)


@pytest.mark.slow
def test_a_wrong_name_gets_near_ones_and_a_file_that_cannot_be_read_is_named(bench):
    mine = bench.folder() / "mine"
    shutil.copytree(bench.tasks, mine)
    (mine / "own.yaml").write_text("task: [")
    with pytest.raises(SpecError, match=r"tiny_chose: no such task, did you mean tiny_choose.*; own.yaml cannot be read \("):
        bench.task("tiny_chose", mine)


@pytest.mark.slow
def test_a_task_of_lm_eval_is_kept_without_its_yaml_and_offline_is_one_sentence(bench, monkeypatch):
    import datasets

    out = bench.folder()
    asked = HarnessTaskSpec(task="arc_easy", harness=RELEASE)
    with pytest.raises(MachineError, match="arc_easy: its data set allenai/ai2_arc is not in the cache and cannot be fetched"):
        harness_data.run(asked, {}, bench.folder(), bench.run())
    rows = [
        {
            "id": str(i),
            "question": d["query"],
            "answerKey": "AB"[d["gold"]],
            "choices": {"text": d["choices"], "label": ["A", "B"]},
        }
        for i, d in enumerate(lm_tasks.DOCUMENTS)
    ]
    made = datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split in ("train", "validation", "test")})
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name=None, **_: made)
    told = harness_data.run(asked, {}, out, bench.run())
    monkeypatch.undo()
    assert told["metrics"] == ["acc", "acc_norm"]
    assert sorted(file.name for file in out.rglob("*") if file.is_file()) == ["task.json", "test.parquet", "train.parquet"]
    folder, _ = bench.scores(out, few_shot=2)
    assert json.loads((folder / "suite.json").read_text())["asked"]["few_shot"] == 2
    assert len(pq.read_table(folder / "scores.parquet")) == 24


def test_another_release_is_refused_with_the_command_that_brings_it():
    check_release(RELEASE)
    with pytest.raises(MachineError, match=rf"lm-eval 0.0.1, and lm-eval {RELEASE} is there; pip install .*lm-eval"):
        check_release("0.0.1")
