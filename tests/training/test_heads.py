"""Task heads on a tiny BERT and a tiny Llama: what moves, what is saved, how texts, tags and answers align, what is refused."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import torch
from tiny import write_rows
from transformers import AutoTokenizer

from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError, SpecError
from tasks.core.files import tree
from tasks.heads import KINDS, Head, PredictSpec, TaskSpec, read_head
from tasks.merge import MergeSpec
from tasks.methods import METHODS
from tasks.policy import read_record
from tasks.training import heads, merge, predict
from tasks.training.head_data import best_span, collate, cut, encode, joined
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type"),
    pytest.mark.filterwarnings("ignore:.*You passed `quantization_config`.*"),
]
HEAD = r"(^|\.)(score|classifier|qa_outputs|pooler)(\.|$)"
TRAINS = {
    "full": r"",
    "head": r"(?!)",
    "bottleneck": r"\.bottleneck_",
    "lora": r"\.lora_[AB]\.",
    "qlora": r"\.lora_[AB]\.",
    "pissa": r"\.lora_[AB]\.",
    "prompt_tuning": r"^prompt_encoder\.",
    "prefix_tuning": r"^prompt_encoder\.",
    "p_tuning_v2": r"^prompt_encoder\.",
    "ia3": r"\.ia3_l\.",
    "bitfit": r"\.bitfit_",
    "layer_norm": r"\.ln_tuning_layers\.",
}
SOME = ["full", "lora", "head", "p_tuning_v2"]
"""methods of every kind and model; the others are run once"""
CASES = [(model, kind, method) for model in ("bert", "llama") for kind in KINDS for method in SOME]
CASES += [
    (model, "sequence_classification", method)
    for model in ("bert", "llama")
    for method in ("bottleneck", "qlora", "pissa", "prompt_tuning", "prefix_tuning", "ia3", "bitfit", "layer_norm")
]
CASES += [("gpt2", kind, "lora") for kind in KINDS]
ANIMALS = ("cat", "dog", "bird")


def row(number, form, **columns):
    empty = dict.fromkeys(("text", "pair", "label", "tokens", "tags", "question", "context", "answers"))
    return {"id": f"{number:03}", "conversation": f"c{number}", "form": form, **empty, **columns}


def example(kind, number, words):
    tokens = words.split()
    if kind == "sequence_classification":
        return row(number, "classes", text=words, label="animal" if set(tokens) & set(ANIMALS) else "none")
    if kind == "token_classification":
        return row(number, "tags", tokens=tokens, tags=["B-ANI" if token in ANIMALS else "O" for token in tokens])
    start = len(tokens[0]) + 1
    found = [{"text": tokens[1], "start": start}] if number % 7 else []
    return row(number, "questions", question="what is it", context=words, answers=found)


class Works:
    """Trains each (model, kind, method) once."""

    def __init__(self, root: Path) -> None:
        self.root, self.models, self._made = root, root / "models", {}
        words = tiny.sentences(60)
        for kind in KINDS:
            rows = [example(kind, i, text) for i, text in enumerate(words)]
            write_rows(root / kind, "train", rows[:16])  # two batches, so that a step's loss can be told from another's
            write_rows(root / kind, "heldout", rows[44:])

    def base(self, model: str) -> Path:
        place = self.root / model
        if not place.exists():
            source = self.root / f"{model}-source"
            tiny.write_encoder(source) if model == "bert" else tiny.write_model(source, kind=model.partition("-")[0])
            if model == "llama-calm":  # a token classifier's dropout draws anew for each micro-batch
                config = json.loads((source / "config.json").read_text())
                (source / "config.json").write_text(json.dumps(config | {"classifier_dropout": 0.0}))
            tiny.write_policy(place, self.models, source, name=model)
        return place

    def spec(self, kind: str, method: str, **more) -> TaskSpec:
        given = {"kind": kind, "method": tiny.METHOD[method], "max_steps": 4, "global_batch": 16, "learning_rate": 1e-2}
        return TaskSpec.model_validate({**given, "max_length": 64, "stride": 8, "warmup": 0, **more})

    def run_in(self, work: Path, **execution) -> Run:
        work.mkdir(parents=True, exist_ok=True)
        return Run(work, self.models, Execution(device="cpu", **execution))

    def train(self, model, kind, method, work, *, execution=None, **more):
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        inputs = {"policy": self.base(model), "data": self.root / kind}
        return out, heads.run(self.spec(kind, method, **more), inputs, out, self.run_in(work, **(execution or {})))

    def trained(self, model, kind, method):
        if (model, kind, method) not in self._made:
            real, seen = heads.start, []

            def start(*given):
                begin = real(*given)
                tensors = {name: p.detach().clone() for name, p in begin.model.named_parameters(remove_duplicate=False)}
                seen.append((begin, tensors))
                return begin

            heads.start = start
            try:
                out, metrics = self.train(model, kind, method, self.root / f"{model}-{kind}-{method}")
            finally:
                heads.start = real
            self._made[model, kind, method] = (out, metrics, *seen[0])
        return self._made[model, kind, method]

    def rows(self, kind):
        return pq.read_table(self.root / kind / "heldout.parquet").to_pylist()

    def predicted(self, loaded, out, kind, work):
        return predict.predict(loaded, read_head(out), self.rows(kind), self.run_in(work))


@pytest.fixture(scope="module")
def works(tmp_path_factory) -> Works:
    return Works(tmp_path_factory.mktemp("heads"))


@pytest.mark.parametrize(("model", "kind", "method"), CASES)
def test_the_head_and_what_the_method_trains_move_and_nothing_else(works, model, kind, method):
    out, metrics, begin, before = works.trained(model, kind, method)
    moved = {name for name, p in begin.model.named_parameters(remove_duplicate=False) if not torch.equal(p, before[name])}
    heads_moved = {name for name in moved if re.search(HEAD, name)}
    assert heads_moved
    assert all(re.search(TRAINS[method], name) for name in moved - heads_moved)
    assert bool(moved - heads_moved) == (method != "head")
    assert metrics["last_loss"] < metrics["first_loss"]
    assert metrics["rows_dropped"] == {}
    assert read_record(out).task == kind


@pytest.mark.parametrize(("model", "kind", "method"), CASES)
def test_what_was_saved_predicts_as_what_was_trained(works, tmp_path, model, kind, method):
    out, _, begin, _ = works.trained(model, kind, method)
    began = works.predicted(begin.loaded.replace(begin.model.eval()), out, kind, tmp_path / "a")
    again = works.predicted(load(out, works.run_in(tmp_path / "b")), out, kind, tmp_path / "b")
    assert [p.said for p in again] == [p.said for p in began]
    assert [p.confidence for p in again] == pytest.approx([p.confidence for p in began], abs=1e-5)


@pytest.mark.parametrize(
    ("model", "kind", "method"), [case for case in CASES if METHODS[case[2]].adapter and METHODS[case[2]].merges_into]
)
def test_merged_it_answers_alike_and_keeps_its_labels(works, tmp_path, model, kind, method):
    out = works.trained(model, kind, method)[0]
    merged = tmp_path / "merged"
    merged.mkdir()
    run = works.run_in(tmp_path / "work")
    certificate = merge.run(MergeSpec(quantised_tolerance=0.1), {"policy": out, "data": works.root / kind}, merged, run)
    assert certificate["max_logit_distance"] < 1e-4 < certificate["adapter_effect"]
    assert read_head(merged).labels == read_head(out).labels
    one, two = (works.predicted(load(p, run), out, kind, tmp_path / p.name) for p in (out, merged))
    assert [p.confidence for p in one] == pytest.approx([p.confidence for p in two], abs=1e-4)
    assert [p.said for p in one if p.confidence > 0.501] == [
        q.said for p, q in zip(one, two, strict=True) if p.confidence > 0.501
    ]


@pytest.mark.parametrize("model", ["bert", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_plain_transformers_reads_the_merged_model_alike(works, tmp_path, model, kind):
    import transformers

    out = works.trained(model, kind, "lora")[0]
    merged = tmp_path / "merged"
    merged.mkdir()
    run = works.run_in(tmp_path / "work")
    merge.run(MergeSpec(), {"policy": out, "data": works.root / kind}, merged, run)
    from tasks.release import AUTO_CLASSES

    plain = getattr(transformers, AUTO_CLASSES[kind]).from_pretrained(merged / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(merged / "model")
    head, rows = read_head(out), works.rows(kind)[:5]
    if kind == "sequence_classification":
        ours = works.predicted(load(merged, run), out, kind, tmp_path / "p")[:5]
        found = transformers.pipeline("text-classification", model=plain, tokenizer=tokenizer)([r["text"] for r in rows])
        assert [f["label"] for f in found] == [p.said for p in ours]
        assert [f["score"] for f in found] == pytest.approx([p.confidence for p in ours], abs=1e-5)
        assert plain.config.label2id == {"animal": 0, "none": 1}
    for r in rows:
        window = cut(tokenizer, head, [r]).windows[0]
        given = {"sequence_classification": (r["text"],), "token_classification": (" ".join(r["tokens"] or ()),)}
        texts = given.get(kind, (r["question"], r["context"]))
        with torch.no_grad():
            found = plain(**tokenizer(*texts, return_tensors="pt"))
        logits = torch.cat([found.start_logits, found.end_logits]) if kind == "question_answering" else found.logits
        own = predict.head_logits(load(merged, run).model, window, tokenizer, head)
        assert torch.allclose(logits.reshape(own.shape), own, atol=1e-5)


@pytest.mark.parametrize(("model", "kind"), [("llama", "question_answering"), ("bert", "sequence_classification")])
def test_plain_peft_loads_the_adapter_as_the_model_card_says(works, tmp_path, model, kind):
    """Both bases lack weights that transformers would fill at random: the body's own name, and the pooler."""
    import transformers
    from peft import PeftModel

    from tasks.release import AUTO_CLASSES

    out = works.trained(model, kind, "lora")[0]
    folder, head = out / "adapters/0-task", read_head(out)
    config = transformers.AutoConfig.from_pretrained(folder)
    how = {"key_mapping": dict(head.key_mapping)} if head.key_mapping else {}
    base = getattr(transformers, AUTO_CLASSES[kind]).from_pretrained(works.root / f"{model}-source", config=config, **how)
    plain = PeftModel.from_pretrained(base, folder).eval()
    loaded = load(out, works.run_in(tmp_path))
    for window in cut(loaded.tokenizer, head, works.rows(kind)[:4]).windows:
        ours, theirs = (predict.head_logits(m, window, loaded.tokenizer, head) for m in (loaded.model, plain))
        assert torch.allclose(ours, theirs, atol=1e-6)
    assert head.key_mapping == ({r"^model\.": "transformer."} if model == "llama" else {})


def payload(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in tree(folder)}


@pytest.mark.parametrize(
    ("model", "kind", "method"),
    [
        ("bert", "sequence_classification", "lora"),
        ("bert", "token_classification", "full"),
        ("llama", "question_answering", "lora"),
    ],
)
def test_a_resumed_run_leaves_the_bytes_of_the_unbroken_one(works, tmp_path, model, kind, method):
    how = {"execution": {"checkpoint_every": 2}}
    whole = payload(works.train(model, kind, method, tmp_path, **how)[0])
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    resumed, metrics = works.train(model, kind, method, tmp_path, **how)
    assert metrics["resumed_at_step"] == 2
    assert payload(resumed) == whole
    assert [name for name, data in whole.items() if str(works.root).encode() in data or b"/tmp" in data] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_cut_of_a_batch_changes_nothing(works, tmp_path, kind):
    """Token rows differ in their number of labels, questions in their padding: a mean of means would differ."""
    curves = []
    for size in (2, 16):
        out, _ = works.train("llama-calm", kind, "lora", tmp_path / str(size), execution={"micro_batch": size})
        curves.append([step["loss"] for step in json.loads((out / "training.json").read_text())])
    assert curves[0] == pytest.approx(curves[1], rel=2e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_predictions_do_not_depend_on_what_they_share_a_batch_with(works, tmp_path, monkeypatch, kind, method):
    out = works.trained("llama", kind, method)[0] if method == "lora" else works.train("llama", kind, method, tmp_path / "w")[0]
    loaded = load(out, works.run_in(tmp_path))
    together = works.predicted(loaded, out, kind, tmp_path / "a")
    monkeypatch.setitem(predict.ROWS, "cpu", 1)
    alone = works.predicted(loaded, out, kind, tmp_path / "b")
    assert [p.said for p in alone] == [p.said for p in together]
    assert [p.confidence for p in alone] == pytest.approx([p.confidence for p in together], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_predict_stage_scores_every_held_out_row_and_the_majority_beside_it(works, tmp_path, kind):
    out = works.trained("bert", kind, "lora")[0]
    (tmp_path / "out").mkdir()
    inputs = {"policy": out, "data": works.root / kind}
    metrics = predict.run(PredictSpec(), inputs, tmp_path / "out", works.run_in(tmp_path / "w"))
    scores = pq.read_table(tmp_path / "out/scores.parquet").to_pylist()
    rows = {r["id"]: r for r in works.rows(kind)}
    for metric, subject in {(s["metric"], s["subject"]) for s in scores}:
        assert {s["item"] for s in scores if (s["metric"], s["subject"]) == (metric, subject)} == set(rows)
    table = pq.read_table(tmp_path / "out/predictions.parquet").to_pylist()
    assert [line["id"] for line in table] == sorted(rows)
    if kind == "sequence_classification":
        assert metrics["accuracy"] == pytest.approx(sum(r["predicted"] == r["expected"] for r in table) / len(table))
        head = read_head(out)
        assert metrics["accuracy/majority"] == pytest.approx(sum(r["label"] == head.majority for r in rows.values()) / len(rows))
    if kind == "token_classification":
        pairs = [p for line in table for p in zip(line["predicted"].split(), line["expected"].split(), strict=True)]
        assert metrics["tag_accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
        assert metrics["entity_f1/majority"] == 0
    if kind == "question_answering":
        assert all(line["predicted"] in rows[line["id"]]["context"] for line in table)
        assert {s["subject"] for s in scores} == {""}


# -- alignment, worked out by hand -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny.write_encoder(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return AutoTokenizer.from_pretrained(tiny.write_model(tmp_path_factory.mktemp("llama")))


def head(kind, **more):
    return Head(**{"kind": kind, "labels": ("B", "O"), "max_length": 32, "stride": 2, "max_answer_tokens": 5, **more})


def test_a_tag_stands_at_the_first_piece_of_its_word(bert):
    rows = [row(0, "tags", tokens=["red", "xyz", "cat"], tags=["O", "B", "O"])]
    found = encode(bert, head("token_classification"), rows).rows[0]
    assert bert.convert_ids_to_tokens(found["input_ids"]) == ["[CLS]", "red", "x", "##y", "##z", "cat", "[SEP]"]
    assert found["labels"] == [-100, 1, 0, -100, -100, 1, -100]


def test_a_piece_with_a_leading_space_belongs_to_the_word_after_it(llama):
    rows = [row(0, "tags", tokens=["cat", "dog", "北京"], tags=["O", "B", "O"])]
    found = encode(llama, head("token_classification"), rows).rows[0]
    text, starts = joined(rows[0]["tokens"])
    offsets = llama(text, return_offsets_mapping=True)["offset_mapping"]
    labelled = [(text[a:b].strip()[:1], label) for (a, b), label in zip(offsets, found["labels"], strict=True) if label != -100]
    assert labelled == [("c", 1), ("d", 0), ("北", 1)]
    assert starts == [0, 4, 8]


def test_every_word_of_a_long_row_is_predicted_once(bert):
    tokens = [f"{word}xy" for word in tiny.WORDS]
    rows = [row(0, "tags", tokens=tokens, tags=["O"] * len(tokens))]
    windows = cut(bert, head("token_classification", max_length=12, stride=3), rows).windows
    assert len(windows) > 3
    assert all(len(window.ids) <= 12 for window in windows)
    words = [word for window in windows for word, _ in window.places.values()]
    assert words == list(range(len(tokens)))


def test_a_word_that_the_tokenizer_drops_gets_the_majority_tag(bert):
    rows = [row(0, "tags", tokens=["cat", "\u200b", "dog"], tags=["O", "O", "O"])]
    found = cut(bert, head("token_classification"), rows).windows[0]
    assert {word for word, _ in found.places.values()} == {0, 2}
    certain = {0: torch.tensor([1.0, 0.0]), 2: torch.tensor([0.0, 1.0])}
    assert predict._tags(head("token_classification", majority="O"), rows[0], [certain]).said == ["B", "O", "O"]


def test_an_answer_is_the_pieces_that_hold_it(bert):
    rows = [row(0, "questions", question="what", context="the cat xyz says no", answers=[{"text": "xyz says", "start": 8}])]
    found = encode(bert, head("question_answering"), rows).rows[0]
    assert bert.convert_ids_to_tokens(found["input_ids"][found["labels"][0] : found["labels"][1] + 1]) == [
        "x",
        "##y",
        "##z",
        "says",
    ]
    assert found["token_type_ids"][found["labels"][0]] == 1


def test_a_window_without_the_whole_answer_points_at_the_first_token(bert):
    context = "red blue green one two three cat dog bird yes no maybe"
    answer = {"text": "cat dog", "start": context.index("cat")}
    given = head("question_answering", max_length=10, stride=2)
    rows = [row(0, "questions", question="what is", context=context, answers=[answer])]
    windows, encoded = cut(bert, given, rows).windows, encode(bert, given, rows)
    assert len(windows) == len(encoded.rows) > 2
    for window, features in zip(windows, encoded.rows, strict=True):
        pieces = bert.convert_ids_to_tokens(window.ids)
        start, end = features["labels"]
        whole = "cat" in pieces and "dog" in pieces
        assert (pieces[start : end + 1] == ["cat", "dog"]) == whole
        assert whole or (start, end) == (0, 0)
    assert sum(features["labels"] != [0, 0] for features in encoded.rows) >= 1


def test_a_question_without_an_answer_points_at_the_first_token(bert):
    rows = [row(0, "questions", question="what", context="the cat", answers=[])]
    assert encode(bert, head("question_answering"), rows).rows[0]["labels"] == [0, 0]


def test_a_question_that_leaves_no_room_is_counted_and_predicted_empty(works, tmp_path, bert):
    given = head("question_answering", max_length=8, stride=2)
    rows = [row(0, "questions", question="what is the colour of grass", context="the cat", answers=[{"text": "cat", "start": 4}])]
    assert encode(bert, given, rows).dropped == {"questions that leave no room for their context": 1}
    assert predict._answer(given, rows[0], []).said == ""


def test_the_best_span_runs_forward_and_is_short_enough():
    start, end = torch.tensor([9.0, 1.0, 5.0, 0.0]), torch.tensor([9.0, 6.0, 0.0, 4.0])
    places = {1: (0, 3), 2: (4, 7), 3: (8, 9)}
    assert best_span(start, end, places, 5) == (9.0, (4, 9))  # position 0 is no part of the context; 2 then 1 runs backward
    assert best_span(start, end, places, 1) == (7.0, (0, 3))


def test_no_answer_is_said_only_where_training_knew_of_such_questions():
    asked = row(0, "questions", question="q", context="a b c", answers=[])
    outcomes = [(1.0, (0, 1), 3.0), (2.5, (2, 3), 2.6)]
    assert predict._answer(head("question_answering"), asked, outcomes).said == "b"
    knows = head("question_answering", unanswerable=True)
    assert predict._answer(knows, asked, outcomes) == ("", pytest.approx(-0.1))


def test_a_batch_is_padded_with_what_no_head_looks_at():
    rows = [{"input_ids": [5, 6, 7], "labels": [1, -100, 2]}, {"input_ids": [8], "labels": [3]}]
    batch = collate(rows, 9, "token_classification")
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[1, -100, 2], [3, -100, -100]],
    }


# -- what is refused ---------------------------------------------------------------------------------------------


def test_rows_of_another_form_are_an_error_that_names_it(works, tmp_path):
    spec, inputs = works.spec("token_classification", "lora"), {"policy": works.base("bert"), "data": works.root / KINDS[0]}
    with pytest.raises(DataError, match="16 of 16 rows are classes, and token_classification learns from tags"):
        heads.run(spec, inputs, tmp_path, works.run_in(tmp_path))


def test_one_label_is_nothing_to_tell_apart(works):
    with pytest.raises(DataError, match="1 different labels"):
        heads.head_of(works.spec("sequence_classification", "lora"), [row(0, "classes", text="a", label="x")] * 3)


def test_labels_are_sorted_and_the_majority_is_the_first_of_equals(works):
    rows = [row(i, "classes", text="a", label=label) for i, label in enumerate("zbbza")]
    found = heads.head_of(works.spec("sequence_classification", "lora"), rows)
    assert (found.labels, found.majority) == (("a", "b", "z"), "b")


def test_more_tokens_than_the_model_has_positions_are_refused(works, tmp_path):
    with pytest.raises(SpecError, match=r"max_length 200: this model has 128 positions"):
        works.train("bert", "sequence_classification", "lora", tmp_path, max_length=200)


def test_a_base_without_such_a_head_is_refused(works, tmp_path):
    with pytest.raises(SpecError, match="no such head for this base"):
        works.train("opt", "token_classification", "lora", tmp_path)


def test_a_task_model_is_no_policy(works, tmp_path):
    out = works.trained("llama", "sequence_classification", "lora")[0]
    with pytest.raises(DataError, match="a model for sequence classification, where a policy is needed"):
        load(out, works.run_in(tmp_path), task="policy")


def test_an_unseen_label_is_wrong_and_not_an_error(works, tmp_path):
    out = works.trained("bert", "sequence_classification", "lora")[0]
    write_rows(tmp_path / "data", "heldout", [row(i, "classes", text="red", label="new") for i in range(3)])
    (tmp_path / "out").mkdir()
    inputs = {"policy": out, "data": tmp_path / "data"}
    assert predict.run(PredictSpec(), inputs, tmp_path / "out", works.run_in(tmp_path / "w"))["accuracy"] == 0
