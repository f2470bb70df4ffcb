"""Continued pre-training: every token counts once, packed texts see nothing of each other, and the chain goes on from it."""

import pytest
import tiny
import torch
from tiny import write_rows

from tasks.core.contract import Execution, Run
from tasks.core.errors import DataError, SpecError
from tasks.policy import read_record
from tasks.train import PretrainSpec, SftSpec
from tasks.training import pretrain
from tasks.training.data import Encoder
from tasks.training.models import load

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rows = [{"id": str(i), "text": text} for i, text in enumerate(tiny.sentences(24, seed=3))]
    return write_rows(tmp_path_factory.mktemp("corpus"), "texts", rows)


@pytest.fixture
def encoder(shop, tmp_path):
    return Encoder(load(shop.policy, Run(tmp_path, shop.models, Execution(device="cpu"))).tokenizer)


def run(shop, corpus, tmp_path, spec, policy=None, **execution):
    out, work = tmp_path / "out", tmp_path / "work"
    out.mkdir()
    work.mkdir()
    here = Run(work, shop.models, Execution(device="cpu", **execution))
    return out, pretrain.run(spec, {"policy": policy or shop.policy, "data": corpus}, out, here)


def spec(**more):
    given = {"method": tiny.METHOD["lora"], "max_length": 32, "global_batch": 4, "max_steps": 4, "learning_rate": 1e-2}
    return PretrainSpec.model_validate({**given, **more})


def test_packing_loses_no_token_and_ends_every_text(encoder):
    texts = [*tiny.sentences(40), " ".join(tiny.sentences(12))]  # the last is longer than a row
    rows = pretrain.packed(encoder, texts, 32)
    end = encoder.tokenizer.eos_token_id
    whole = [[*encoder.ids(text), end] for text in texts]
    assert sorted(token for row in rows for token in row["input_ids"]) == sorted(token for ids in whole for token in ids)
    assert all(len(row["input_ids"]) == sum(row["seq_lengths"]) <= 32 for row in rows)
    pieces = [row["input_ids"][sum(row["seq_lengths"][:i]) :][:n] for row in rows for i, n in enumerate(row["seq_lengths"])]
    short = [ids for ids in whole if len(ids) <= 32]
    assert [ids for ids in short if ids not in pieces] == []  # a text that fits is never cut
    assert len(rows) < len(texts) / 2


def test_the_loss_is_that_of_each_text_alone(shop, corpus, tmp_path, encoder):
    """The first step's loss, packed, equals the mean over every token but each text's first, one text at a time."""
    from tasks.training.data import read_rows, schedule

    _, metrics = run(shop, corpus, tmp_path, spec(max_steps=1))
    model = load(shop.policy, Run(tmp_path, shop.models, Execution(device="cpu"))).model
    rows = pretrain.packed(encoder, [row["text"] for row in read_rows(corpus, "texts")], 32)
    order = schedule([len(row["input_ids"]) for row in rows], global_batch=4, epochs=1, max_steps=1, seed=0)
    total, tokens = 0.0, 0
    for row in (rows[i] for i in order):
        at = 0
        for length in row["seq_lengths"]:
            ids = torch.tensor([row["input_ids"][at : at + length]])
            at += length
            with torch.no_grad():
                logp = model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
            total -= float(logp.gather(1, ids[0, 1:, None]).sum())
            tokens += length - 1
    assert metrics["trained_tokens"] == tokens
    assert metrics["first_loss"] == pytest.approx(total / tokens, abs=1e-4)


def test_how_a_batch_is_cut_does_not_matter(shop, corpus, tmp_path):
    losses = []
    for size in (1, 4):
        folder = tmp_path / str(size)
        folder.mkdir()
        losses.append(run(shop, corpus, folder, spec(), micro_batch=size)[1]["last_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_sft_goes_on_from_it(shop, corpus, tmp_path, train):
    out, metrics = run(shop, corpus, tmp_path, spec())
    assert metrics["last_loss"] < metrics["first_loss"]
    sft = SftSpec.model_validate({"method": tiny.METHOD["lora"], "max_steps": 1, "global_batch": 8})
    done, more = train("sft", sft, out)
    assert more["start"] == "continue"
    record = read_record(done)
    assert [(link.stage, link.adapter) for link in record.chain] == [("pretrain", "0-pretrain"), ("sft", "0-pretrain")]


def test_soft_prompts_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="prefix_tuning cannot train pretrain: a packed row holds several texts"):
        PretrainSpec.model_validate({"method": {"name": "prefix_tuning"}})


def test_a_corpus_without_words_is_an_error(shop, tmp_path):
    empty = write_rows(tmp_path / "empty", "texts", [{"id": "0", "text": ""}])
    with pytest.raises(DataError, match="no text has a token to learn"):
        run(shop, empty, tmp_path, spec())


def test_a_family_whose_packed_texts_see_each_other_is_refused(shop, corpus, tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    source = tiny.write_model(tmp_path / "source")
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.5)
    BloomForCausalLM(config).save_pretrained(source)
    policy = tiny.write_policy(tmp_path / "policy", shop.models, source, name="bloom")
    with pytest.raises(SpecError, match="bloom lets packed texts see each other"):
        run(shop, corpus, tmp_path, spec(), policy)
