"""What a vision-language model is given: the right tokens and pixels, loss on answers alone, and no image cut."""

import json
import shutil

import pytest
import tiny
import torch
from PIL import Image
from tiny_vision import COLOURS, asked, other, put, said

from tasks.base import BaseSpec, build_base
from tasks.core.contract import Run
from tasks.core.errors import AlignError, DataError, SpecError
from tasks.policy import read_record
from tasks.tables import read_rows
from tasks.training.data import IGNORED, encode_instructions, encode_pairs, encode_texts
from tasks.training.models import load
from tasks.training.vision import PICTURES, Collator, VisionEncoder, encoder_for
from tasks.training.vision_models import seeing

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def eyes(studio):
    loaded = load(studio.policy, studio.at())
    return studio, loaded, encoder_for(loaded, studio.instructions, studio.preferences, studio.prompts)


def opened(studio, name):
    return Image.open(studio.instructions / "images" / name).convert("RGB")


def talk(studio, *turns):
    """A row: pairs of a question and an answer; `<image>` in a question is a red one, then a blue one, ..."""
    messages = [message for question, answer in turns for message in (*asked(question), said(answer))]
    count = sum(question.count("<image>") for question, _ in turns)
    names = [put(studio.instructions, [*COLOURS][i % 3], i) for i in range(count)]
    return {"id": "x", "messages": messages, "images": names or None}


def test_only_a_model_that_sees_has_a_processor(studio, eyes):
    _, loaded, encoder = eyes
    assert isinstance(encoder, VisionEncoder)
    assert type(loaded.model).__name__.endswith("ForConditionalGeneration")
    assert loaded.tokenizer is loaded.processor.tokenizer
    assert {name.rpartition(".")[2] for name in seeing(loaded.model)} in (
        {"vision_tower", "multi_modal_projector"},
        {"vision_model", "connector"},
    )


@pytest.mark.parametrize(
    "turns",
    [
        [("<image>what colour is the sky", "red")],
        [("is the sky <image> or <image>", "yes maybe")],
        [("what is grass", "green"), ("and<image>", "no"), ("<image>please", "thank you")],
    ],
)
def test_tokens_and_pixels_are_those_of_the_processor(eyes, turns):
    studio, loaded, encoder = eyes
    row = talk(studio, *turns)
    prepared = encoder.prepared([row])[0]
    ids = [token for piece in encoder.pieces(prepared["messages"]) for token in piece.ids]
    images = [opened(studio, name) for name in row["images"]]
    wanted = loaded.processor(
        text=[encoder.text(prepared["messages"])], images=[images], add_special_tokens=False, return_tensors="pt"
    )
    assert ids == wanted["input_ids"][0].tolist()
    seen = encoder.seen(torch.tensor([ids]), [encoder.pictures(prepared["messages"])])
    assert seen.keys() == wanted.keys() - {"input_ids", "attention_mask"}
    assert all(torch.equal(seen[name], wanted[name]) for name in seen)


def test_the_loss_is_on_the_answer_and_its_stop_token_worked_out_by_hand(llava):
    loaded = load(llava.policy, llava.at())
    encoder = encoder_for(loaded, llava.instructions)
    found = encode_instructions(encoder, [talk(llava, ("<image>sky", "red"), ("grass<image>", "green"))], max_length=200).rows[0]
    image, word = loaded.processor.image_token_id, lambda text: loaded.tokenizer.encode(text, add_special_tokens=False)
    start, end, line = word("<|im_start|>"), word("<|im_end|>"), word("\n")
    user = [*start, *word("user\n")]
    reply = [*start, *word("assistant\n")]
    parts = [
        (user + [image] * 4 + word("sky") + end + line + reply, False), (word("red") + end, True), (line, False),
        (user + word("grass") + [image] * 4 + end + line + reply, False), (word("green") + end, True), (line, False),
    ]  # fmt: skip
    assert found["input_ids"] == [token for ids, _ in parts for token in ids]
    assert found["labels"] == [token if answer else IGNORED for ids, answer in parts for token in ids]
    assert len(found[PICTURES]) == 2


def test_a_row_of_text_alone_is_tokenised_as_text_and_has_no_pixels(eyes):
    studio, loaded, encoder = eyes
    row = talk(studio, ("what is grass", "green"))
    found = encode_instructions(encoder, [row], max_length=200).rows[0]
    text = "<|im_start|>user\nwhat is grass<|im_end|>\n<|im_start|>assistant\ngreen<|im_end|>\n"
    assert loaded.tokenizer.decode(found["input_ids"]) == text
    assert found[PICTURES] == []
    assert encoder.seen(torch.tensor([found["input_ids"]]), [[]]) == {}


def test_a_text_that_spells_the_image_token_is_counted_and_left_out(eyes):
    studio, _, encoder = eyes
    rows = [talk(studio, ("what is sky", "red")), talk(studio, ("<image>sky", "red"))]
    rows += [{"id": "y", "messages": [*asked("what is <image>"), said("a tag")], "images": None}]
    result = encode_instructions(encoder, rows, max_length=500)
    assert (len(result.rows), dict(result.dropped)) == (2, {"texts that spell the model's image token": 1})
    pair = {"prompt": asked("which tag"), "chosen": "<image>", "rejected": "no", "images": None}
    for encode in (encode_pairs, encode_texts):
        assert dict(encode(encoder, [pair], max_length=500).dropped) == {"texts that spell the model's image token": 1}


def test_an_image_is_whole_or_its_row_is_left_out_and_counted(eyes):
    studio, _, encoder = eyes
    row = talk(studio, ("<image>sky", "red"), ("grass<image>", "green"))
    whole = encode_instructions(encoder, [row], max_length=1000).rows[0]["input_ids"]
    last = max(i for i, token in enumerate(whole) if token == encoder.processor.image_token_id)
    fits = encode_instructions(encoder, [row], max_length=last + 1)
    assert (fits.rows[0]["input_ids"], fits.truncated) == (whole[: last + 1], 1)
    cut = encode_instructions(encoder, [row], max_length=last)
    assert (cut.rows, dict(cut.dropped)) == ([], {"images that do not fit max_length": 1})


def batch_of(encoder, rows):
    """Rows padded on the right with their pixels, as training has them."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return Collator(DataCollatorForLanguageModeling(pad_token_id=encoder.pad), encoder)(rows)


@torch.no_grad()
def test_a_row_means_the_same_in_a_batch_as_alone(eyes):
    studio, loaded, encoder = eyes
    rows = [
        talk(studio, ("<image>what colour", "red")),
        talk(studio, ("what is grass", "green")),
        talk(studio, ("is it <image> or<image>", "blue"), ("sure", "yes")),
    ]
    rows = encode_instructions(encoder, rows, max_length=500).rows
    together = batch_of(encoder, rows)
    together.pop("labels")
    logits = loaded.model(**together).logits
    for i, row in enumerate(rows):
        alone = batch_of(encoder, [row])
        alone.pop("labels")
        length = len(row["input_ids"])
        assert torch.allclose(loaded.model(**alone).logits[0], logits[i, :length], atol=2e-5)


@torch.no_grad()
def test_another_image_gives_other_logits(eyes):
    studio, loaded, encoder = eyes
    rows = [talk(studio, ("<image>sky", "red")), talk(studio, ("<image>sky", "red"))]
    rows[1]["images"] = [put(studio.instructions, "blue", 7)]
    one, two = (batch_of(encoder, [row]) for row in encode_instructions(encoder, rows, max_length=500).rows)
    assert torch.equal(one["input_ids"], two["input_ids"])
    gap = loaded.model(**one).logits[0, -3:] - loaded.model(**two).logits[0, -3:]
    assert float(gap.abs().max()) > 0.05


def test_pairs_carry_their_pixels_for_both_sides(eyes):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    studio, _, encoder = eyes
    rows = encode_pairs(encoder, read_rows(studio.preferences / "heldout.parquet")[:2], max_length=500).rows
    batch = Collator(DataCollatorForPreference(pad_token_id=encoder.pad), encoder, copies=2)(rows)
    names = [row[PICTURES][0] for row in rows] * 2
    alone = [encoder.seen(batch["input_ids"], [[name]])["pixel_values"][0] for name in names]
    assert torch.equal(batch["pixel_values"], torch.stack(alone))
    assert len(batch["input_ids"]) == 4


def test_an_image_that_is_not_there_is_named(llava):
    encoder = encoder_for(load(llava.policy, llava.at()), llava.instructions)
    row = {"id": "x", "messages": [*asked("<image>"), said("a")], "images": ["gone.png"]}
    with pytest.raises(DataError, match=r"gone\.png: no such image in"):
        encode_instructions(encoder, [row], max_length=100)
    with pytest.raises(DataError, match="more images than places"):
        encoder.prepared([row | {"images": ["a.png", "b.png"]}])
    with pytest.raises(DataError, match="more places in its text than images"):
        encoder.prepared([row | {"messages": [*asked("<image><image>"), said("a")]}])


def test_a_model_of_text_refuses_images(llava, tmp_path):
    policy = tiny.write_policy(tmp_path / "policy", tmp_path / "models", tiny.write_model(tmp_path / "source"))
    encoder = encoder_for(load(policy, Run(tmp_path, tmp_path / "models")), llava.instructions)
    with pytest.raises(DataError, match="the data hold images, and the base is a model of text alone"):
        encode_instructions(encoder, [talk(llava, ("<image>sky", "red"))], max_length=100)


def test_a_template_without_image_tokens_is_refused(llava, tmp_path):
    loaded = load(llava.policy, llava.at())
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template.replace("{{ '<image>' }}", "")
    with pytest.raises(SpecError, match="writes none of the processor's image tokens"):
        encoder_for(loaded, llava.instructions)


def test_the_processor_belongs_to_the_base(studio, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(studio.source, source)
    run = Run(tmp_path / "work", tmp_path / "models")
    run.work.mkdir()
    (tmp_path / "one").mkdir()
    build_base(BaseSpec(model="local"), {"source": source}, tmp_path / "one", run)
    first = read_record(tmp_path / "one")
    assert {"processor_config.json", "tokenizer.json", "chat_template.jinja"} <= first.base.files.keys()
    config = json.loads((source / "processor_config.json").read_text())
    (source / "processor_config.json").write_text(json.dumps({**config, "note": 1}))
    (tmp_path / "two").mkdir()
    build_base(BaseSpec(model="local"), {"source": source}, tmp_path / "two", run)
    second = read_record(tmp_path / "two")
    assert (second.base.revision != first.base.revision, second.tokenizer != first.tokenizer) == (True, True)
    (source / "processor_config.json").unlink()
    with pytest.raises(SpecError, match=r"it reads images, and there is no processor_config\.json"):
        build_base(BaseSpec(model="local"), {"source": source}, tmp_path / "two", run)


def test_a_processor_that_cannot_be_loaded_says_what_to_do(llava, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(llava.source, source)
    config = json.loads((source / "processor_config.json").read_text())
    (source / "processor_config.json").write_text(json.dumps({**config, "processor_class": "Qwen2VLProcessor"}))
    policy = tiny.write_policy(tmp_path / "policy", tmp_path / "models", source)
    with pytest.raises(AlignError, match=r"its image processor cannot be loaded .* use another base"):
        load(policy, Run(tmp_path, tmp_path / "models"))


def test_colours_are_told_apart_by_name():
    assert [other(colour) for colour in COLOURS] == ["green", "blue", "red"]
