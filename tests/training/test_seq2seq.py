"""Encoder-decoder models: what is read and written, the loss, answers, scores, prefixes on both sides, and what is refused.

That each method trains what it should, reloads and merges on a T5 is in test_matrix.
"""

import shutil
from importlib import import_module
from pathlib import Path

import pytest
import tiny
import torch
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from small_models import build, inputs, logits, moved, save, steps, tensors, wrap
from tiny import write_rows
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError, SpecError
from tasks.core.files import tree
from tasks.generate import AnswersSpec
from tasks.group import GrpoSpec, RlooSpec
from tasks.measure import ScoresSpec
from tasks.methods import METHODS
from tasks.policy import read_record
from tasks.preference import DpoSpec, KtoSpec, OrpoSpec
from tasks.profile import ProfileSpec
from tasks.tables import read_rows
from tasks.train import PretrainSpec, RewardSpec, SftSpec
from tasks.training.__main__ import HARMLESS
from tasks.training.data import IGNORED, encode_instructions
from tasks.training.methods.seq2seq_prefix import Seq2SeqPrefixConfig, write
from tasks.training.models import load
from tasks.training.seq2seq import Seq2SeqEncoder

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    *(pytest.mark.filterwarnings(f"ignore:{said}") for said in HARMLESS),
]
TRAINED = ["full", "lora", "bottleneck", "prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2", "ia3"]


def said(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


class Bench:
    """Tiny bases, rows, and jobs in this process."""

    def __init__(self, root: Path) -> None:
        self.root, self._made = root, {}
        words = tiny.sentences(120)
        for split, span in (("train", range(8)), ("heldout", range(40, 45))):
            write_rows(root / "inst", split, [row(i, messages=said(words[i], words[i + 1])) for i in span])
            pairs = [row(i, prompt=said(words[i]), chosen="yes " + words[i], rejected="no " + words[i + 2]) for i in span]
            write_rows(root / "pref", split, pairs)
        write_rows(root / "prom", "prompts", [row(i, prompt=said(words[i])) for i in range(60, 67)])
        write_rows(root / "text", "texts", [row(i, text=words[i]) for i in range(70, 73)])

    def base(self, kind: str = "t5") -> Path:
        place = self.root / kind
        if not place.exists():
            tiny.write_policy(place, self.root / "models", tiny.write_model(self.root / f"{kind}-source", kind=kind), name=kind)
        return place

    def job(self, name: str, spec, given: dict[str, Path], work: Path, **execution):
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        run = Run(work, self.root / "models", Execution(device="cpu", **execution))
        return out, import_module(f"tasks.training.{name}").run(spec, given, out, run)

    def sft(self, method: str, work: Path | None = None, kind: str = "t5", **execution):
        """A policy trained by `method`, made once unless it has a folder of its own."""
        spec = SftSpec.model_validate(
            {"method": tiny.METHOD[method], "max_steps": 4, "global_batch": 8, "learning_rate": 1e-2, "warmup": 0}
        )
        given = {"policy": self.base(kind), "data": self.root / "inst"}
        if work:
            return self.job("sft", spec, given, work, **execution)
        if (kind, method) not in self._made:
            self._made[kind, method] = self.job("sft", spec, given, self.root / f"{kind}-{method}", **execution)
        return self._made[kind, method]

    def load(self, policy: Path, **how):
        return load(policy, Run(self.root, self.root / "models", Execution(device="cpu")), **how)


def row(number: int, **fields):
    return {"id": f"{number:03}", "conversation": f"{number:03}", "task": None, **fields}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("seq2seq"))


@pytest.fixture(scope="module")
def encoder(bench) -> Seq2SeqEncoder:
    return Seq2SeqEncoder(bench.load(bench.base()))


def test_the_encoder_reads_lines_and_the_decoder_writes_the_last_answer_with_its_stop_token(encoder):
    asked, answer = encoder.pieces(said("red cat", "yes", "blue dog", "one two"))
    assert encoder.tokenizer.decode(asked.ids) == "red cat\nyes\nblue dog</s>"
    assert encoder.tokenizer.decode(answer.ids) == "one two</s>"
    assert (asked.answer, answer.answer) == (False, True)
    with pytest.raises(DataError, match="does not end with the assistant's words"):
        encoder.pieces(said("red cat"))


def test_a_chat_template_is_used_where_there_is_one(bench):
    loaded = bench.load(bench.base())
    tokenizer = AutoTokenizer.from_pretrained(bench.root / "t5-source")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + ' ' }}{% endfor %}"
    object.__setattr__(loaded, "tokenizer", tokenizer)
    assert tokenizer.decode(Seq2SeqEncoder(loaded).prompt(said("red cat"))) == "user: red cat "


def test_rows_that_do_not_fit_are_counted(encoder):
    short, long = said("red cat", "yes"), said("red cat " * 40, "yes")
    stopped, cut = said("red", "yes </s> no"), said("red", "one two three " * 20)
    encoded = encode_instructions(encoder, [{"messages": m} for m in (short, long, stopped, cut)], max_length=30)
    assert encoded.dropped == {"prompts longer than max_length": 1, "not spelled back by the tokenizer": 1}
    assert (encoded.total, len(encoded.rows), encoded.truncated) == (4, 2, 1)
    first = encoded.rows[0]
    kept = [label for label in first["labels"] if label != IGNORED]
    assert encoder.tokenizer.decode(kept) == "yes</s>"


def slow_sum(model, source: list[int], target: list[int]) -> float:
    """Log-probability of `target` after `source`, summed, by transformers' own loss."""
    with torch.no_grad():
        loss = model.eval()(input_ids=torch.tensor([source]), labels=torch.tensor([target])).loss
    return -float(loss) * len(target)


def test_the_loss_is_that_of_each_row_alone_and_the_cut_of_the_batch_does_not_matter(bench, encoder, tmp_path):
    model = bench.load(bench.base()).model
    turns = [encoder.pieces(row["messages"]) for row in read_rows(bench.root / "inst" / "train.parquet")]
    total = -sum(slow_sum(model, asked.ids, answer.ids) for asked, answer in turns)
    whole, one = bench.sft("lora")
    parts, other = bench.sft("lora", tmp_path, micro_batch=2)
    assert (one["micro_batch"], other["micro_batch"], other["accumulation"]) == (8, 2, 4)
    assert one["first_loss"] == pytest.approx(total / sum(len(answer.ids) for _, answer in turns), abs=1e-4)
    assert one["trained_tokens"] == 4 * sum(len(answer.ids) for _, answer in turns)
    assert (logits(bench.load(whole).model) - logits(bench.load(parts).model)).abs().max() < 1e-4


def test_the_held_out_loss_is_that_of_each_row_alone(bench, encoder):
    out, metrics = bench.sft("prefix_tuning")
    model = bench.load(out).model
    turns = [encoder.pieces(row["messages"]) for row in read_rows(bench.root / "inst" / "heldout.parquet")]
    total = -sum(slow_sum(model, asked.ids, answer.ids) for asked, answer in turns)
    assert metrics["heldout_loss"] == pytest.approx(total / sum(len(answer.ids) for _, answer in turns), abs=1e-5)
    assert metrics["heldout_rows"] == 5


@pytest.mark.parametrize("method", TRAINED)
def test_scores_are_those_of_each_row_alone(bench, encoder, tmp_path, method):
    policy, _ = bench.sft(method)
    given = {
        "policy": policy,
        "preferences": bench.root / "pref",
        "instructions": bench.root / "inst",
        "texts": bench.root / "text",
    }
    out, metrics = bench.job("score", ScoresSpec(), given, tmp_path)
    assert metrics["left_out"] == {"texts, to which an encoder-decoder model gives no likelihood": 3}
    found = {(one["metric"], one["item"]): one for one in read_scores(out)}
    model = bench.load(policy).model
    for pair in read_rows(bench.root / "pref" / "heldout.parquet"):
        for side in ("chosen", "rejected"):
            target = encoder.answer(pair[side])
            scored = found[f"{side}_logp", pair["id"]]
            assert scored["value"] == pytest.approx(slow_sum(model, encoder.prompt(pair["prompt"]), target), abs=1e-3)
            assert scored["weight"] == len(target)
    for one in read_rows(bench.root / "inst" / "heldout.parquet"):
        asked, answer = encoder.pieces(one["messages"])
        mean = -slow_sum(model, asked.ids, answer.ids) / len(answer.ids)
        assert found["answer_nll", one["id"]]["value"] == pytest.approx(mean, abs=1e-4)
    assert not [metric for metric, _ in found if metric == "text_nll"]


def read_scores(out: Path):
    import pyarrow.parquet as pq

    return pq.read_table(out / "scores.parquet").to_pylist()


def test_texts_alone_are_refused(bench, tmp_path):
    with pytest.raises(DataError, match=r"nothing to score \(3 texts, to which an encoder-decoder model gives no likelihood"):
        bench.job("score", ScoresSpec(), {"policy": bench.base(), "texts": bench.root / "text"}, tmp_path)


@pytest.mark.parametrize(
    ("kind", "method"), [*(("t5", method) for method in TRAINED), ("bart", "lora"), ("bart", "prefix_tuning")]
)
def test_answers_are_those_of_transformers_generate(bench, tmp_path, kind, method):
    policy, _ = bench.sft(method, kind=kind)
    out, metrics = bench.job(
        "generate", AnswersSpec(max_new_tokens=9), {"policy": policy, "prompts": bench.root / "prom"}, tmp_path
    )
    loaded = bench.load(policy)
    encoder = Seq2SeqEncoder(loaded)
    for one in read_rows(out / "answers.parquet"):
        ids = torch.tensor([encoder.prompt(one["prompt"])])
        wrote = loaded.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False)[0]
        assert one["answer"] == loaded.tokenizer.decode(wrote, skip_special_tokens=True)
        assert one["finished"] == (int(wrote[-1]) in encoder.stops)
    assert metrics["answers"] == 7


@pytest.mark.parametrize("method", ["full", "lora", "p_tuning", "prefix_tuning", "p_tuning_v2"])
def test_a_resumed_run_leaves_the_bytes_of_the_unbroken_one(bench, tmp_path, method):
    whole, _ = bench.sft(method, tmp_path, checkpoint_every=2)
    payload = {file.relative_to(whole): file.read_bytes() for file in tree(whole)}
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    resumed, metrics = bench.sft(method, tmp_path, checkpoint_every=2)
    assert metrics["resumed_at_step"] == 2
    assert {file.relative_to(resumed): file.read_bytes() for file in tree(resumed)} == payload


@pytest.mark.parametrize("method", [name for name in TRAINED if METHODS[name].checkpointing])
def test_gradient_checkpointing_changes_nothing(bench, tmp_path, method):
    out, _ = bench.sft(method, tmp_path, gradient_checkpointing=True)
    other, _ = bench.sft(method)
    assert (logits(bench.load(out).model) - logits(bench.load(other).model)).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["lora", "p_tuning", "prefix_tuning", "p_tuning_v2"])
def test_training_goes_on_with_the_adapter(bench, tmp_path, method):
    first, before = bench.sft(method)
    spec = SftSpec.model_validate(
        {"method": tiny.METHOD[method], "max_steps": 2, "global_batch": 8, "learning_rate": 1e-2, "warmup": 0}
    )
    out, metrics = bench.job("sft", spec, {"policy": first, "data": bench.root / "inst"}, tmp_path)
    assert metrics["start"] == "continue"
    assert read_record(out).adapters == ["0-sft"]
    assert metrics["first_loss"] < before["first_loss"]
    assert (logits(bench.load(out).model) - logits(bench.load(first).model)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("job", "spec"),
    [
        ("reward", RewardSpec(max_steps=1)), ("dpo", DpoSpec(max_steps=1)), ("pretrain", PretrainSpec(max_steps=1)),
        ("kto", KtoSpec(max_steps=1)), ("orpo", OrpoSpec(max_steps=1)),
        ("grpo", GrpoSpec(rewards=[{"rule": "finished"}])), ("rloo", RlooSpec(rewards=[{"rule": "finished"}])),
    ],
)  # fmt: skip
def test_stages_for_decoders_are_refused_in_one_sentence(bench, tmp_path, job, spec):
    with pytest.raises(SpecError, match=f"^{job}: the base is an encoder-decoder model, and .*; use another base"):
        inputs = {"policy": bench.base(), "data": bench.root / "pref", "prompts": bench.root / "pref"}
        bench.job(job, spec, inputs, tmp_path)


def test_a_decoder_method_is_refused(bench, tmp_path):
    spec = SftSpec.model_validate({"method": {"name": "moe_router"}, "max_steps": 1})
    with pytest.raises(SpecError, match="t5 is no mixture of experts"):
        bench.job("sft", spec, {"policy": bench.base(), "data": bench.root / "inst"}, tmp_path)


def test_what_use_costs_is_measured(bench, tmp_path):
    policy, _ = bench.sft("prefix_tuning")
    spec = ProfileSpec(prompt_tokens=12, new_tokens=4, rounds=6)
    given = {"base": bench.base(), "unmerged": policy, "prompts": bench.root / "prom"}
    _, metrics = bench.job("profile", spec, given, tmp_path)
    assert {"prefill_seconds/base", "decode_seconds/unmerged"} <= metrics.keys()


# the two prefixes


def test_pefts_prefix_never_reaches_the_encoder():
    """Why ours exists."""
    model = build("t5")
    adapted = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_2_SEQ_LM")).eval()
    seen = []
    model.get_encoder().register_forward_hook(lambda module, given, output: seen.append(output.last_hidden_state))
    before = logits(adapted)
    with torch.no_grad():
        for parameter in adapted.prompt_encoder.parameters():
            parameter.mul_(10)
    assert (logits(adapted) - before).abs().max() > 1e-3
    assert torch.equal(*seen)


def prefixed(hidden: int | None = None):
    model = build("t5")
    return model, wrap(model, Seq2SeqPrefixConfig(length=3, hidden=hidden), "t5")


def explicit(stack, states_BTH, allowed_BST, prefixes, cross=None):
    """A T5 stack written out: heads one by one, the prefix's keys first, without bias.  `cross`: states and mask to look at."""

    def attention(module, query_BTH, seen_BSH, bias_HTS, allowed, prefix):
        heads, width = module.n_heads, module.key_value_proj_dim
        outputs = []
        for b in range(len(query_BTH)):
            query, key, value = module.q(query_BTH[b]), module.k(seen_BSH[b]), module.v(seen_BSH[b])
            parts = []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                scores = query[:, part] @ key[:, part].T + bias_HTS[h]
                scores = scores.masked_fill(~allowed[b], -torch.inf)
                values = value[:, part]
                if prefix is not None:
                    scores = torch.cat([query[:, part] @ prefix[0][:, part].T, scores], dim=1)
                    values = torch.cat([prefix[1][:, part], values])
                parts.append(scores.softmax(-1) @ values)
            outputs.append(module.o(torch.cat(parts, dim=1)))
        return torch.stack(outputs)

    length = states_BTH.shape[1]
    first = stack.block[0].layer[0].SelfAttention.base_layer
    bias_HTS = first.compute_bias(length, length)[0]
    for block, prefix in zip(stack.block, prefixes, strict=True):
        layer = block.layer[0]
        normed = layer.layer_norm(states_BTH)
        states_BTH = states_BTH + attention(layer.SelfAttention.base_layer, normed, normed, bias_HTS, allowed_BST, prefix)
        if cross is not None:
            seen_BSH, there_BTS = cross
            module = block.layer[1].EncDecAttention
            none_HTS = torch.zeros(module.n_heads, length, seen_BSH.shape[1])
            looked = attention(module, block.layer[1].layer_norm(states_BTH), seen_BSH, none_HTS, there_BTS, None)
            states_BTH = states_BTH + looked
        states_BTH = block.layer[-1](states_BTH)
    return stack.final_layer_norm(states_BTH)


@pytest.mark.parametrize("hidden", [None, 8])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_both_prefixes_are_keys_and_values_before_those_of_each_self_attention(hidden, kernel):
    model, adapted = prefixed(hidden)
    model.set_attn_implementation(kernel)
    steps(adapted)
    given = inputs(model)
    mask_BT = torch.ones_like(given["input_ids"])
    mask_BT[1, 6:] = 0
    with torch.no_grad():
        found = adapted.eval()(**given, attention_mask=mask_BT).logits
        vectors = [
            [block.layer[0].SelfAttention.prefix_states["default"]() for block in stack.block]
            for stack in (model.encoder, model.decoder)
        ]
        rows, length = mask_BT.shape
        there_BTS = mask_BT.bool()[:, None, :].expand(-1, length, -1)
        causal_BTS = torch.ones(rows, length, length).tril().bool()
        read_BTH = explicit(model.encoder, model.shared(given["input_ids"]), there_BTS, vectors[0])
        written = explicit(model.decoder, model.shared(given["decoder_input_ids"]), causal_BTS, vectors[1], (read_BTH, there_BTS))
        scale = model.config.d_model**-0.5 if model.config.scale_decoder_outputs else 1.0
        assert (found - model.lm_head(written * scale)).abs().max() < 1e-4


@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_each_side_has_a_prefix_of_its_own_and_both_train(side):
    _, adapted = prefixed()
    before = tensors(adapted)
    steps(adapted)
    changed = moved(adapted, before)
    assert changed == {name for name in before if ".prefix_states." in name}
    mine = [name for name in changed if name.startswith(f"base_model.model.{side}.")]
    assert len(mine) == 4  # keys and values of two layers
    out = logits(adapted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name in mine:
                parameter.add_(1.0)
    assert (logits(adapted) - out).abs().max() > 1e-3


def test_the_mlp_is_shared_by_the_layers_of_a_side_and_dropped_at_rest(tmp_path):
    _, adapted = prefixed(hidden=8)
    trunks = [name for name, _ in adapted.named_parameters() if ".trunk." in name]
    assert {name.split(".")[2] for name in trunks} == {"encoder", "decoder"}
    assert len(trunks) == 2 * 3  # of each side P', and a matrix with its bias
    steps(adapted)
    write(adapted, tmp_path)
    again = PeftModel.from_pretrained(build("t5"), tmp_path)
    assert torch.equal(logits(again), logits(adapted))
    names = {name for name, _ in again.named_parameters() if ".prefix_states." in name}
    assert {name.rpartition(".")[2] for name in names} == {"key", "value"}
    assert again.peft_config["default"].hidden is None


def test_an_adapter_that_is_off_leaves_the_base_bit_equal_and_several_live_beside_each_other(tmp_path):
    base = logits(build("t5"))
    _, adapted = prefixed()
    steps(adapted)
    first = logits(adapted)
    save(adapted, tmp_path)
    adapted.add_adapter("other", Seq2SeqPrefixConfig(length=5, hidden=4, task_type="SEQ_2_SEQ_LM"))
    adapted.set_adapter("other")
    assert (logits(adapted) - first).abs().max() > 1e-3
    adapted.set_adapter("default")
    assert torch.equal(logits(adapted), first)
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted), base)
    assert torch.equal(logits(adapted.unload()), base)
    assert torch.equal(logits(PeftModel.from_pretrained(build("t5"), tmp_path)), first)


def test_a_prefix_merges_into_nothing():
    _, adapted = prefixed()
    with pytest.raises(SpecError, match="no weight yields them; leave merge out"):
        adapted.merge_and_unload()


def test_a_cache_gives_what_the_whole_gives(bench):
    policy, _ = bench.sft("p_tuning_v2")
    model = bench.load(policy).model
    ids, written = torch.arange(5, 17)[None], torch.arange(20, 28)[None]
    with torch.no_grad():
        whole = model(input_ids=ids, decoder_input_ids=written).logits
        cache, parts = None, []
        for i in range(0, 8, 2):  # two at once: rows of a chunk may not see what comes after them
            output = model(input_ids=ids, decoder_input_ids=written[:, i : i + 2], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            parts.append(output.logits)
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-4


def test_a_merged_model_loads_as_any_other(bench, tmp_path):
    policy, _ = bench.sft("lora")
    spec = import_module("tasks.merge").MergeSpec()
    out, _ = bench.job("merge", spec, {"policy": policy, "prompts": bench.root / "prom"}, tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(out / "model")
    assert (logits(model) - logits(bench.load(policy).model)).abs().max() < 1e-4


def test_adapters_of_one_base_are_composed(bench, tmp_path):
    spec = import_module("tasks.compose").ComposeSpec(weights=(0.5, 0.5))
    given = {"part_0": bench.sft("lora")[0], "part_1": bench.sft("rslora")[0]}
    _, metrics = bench.job("compose", spec, given, tmp_path)
    assert metrics["max_logit_distance"] < 1e-3 < metrics["sum_effect"]
