"""A model that places images in rows and columns (Qwen2-VL): answers as its own `generate` gives them, batch or not.

Its processor needs torchvision for videos, so the part of it that reads images is written out here.
"""

from functools import partial

import pytest
import tiny
import torch
from PIL import Image
from tiny_vision import TEMPLATE, asked, put, said

from tasks.policy import read_record
from tasks.training.data import encode_instructions
from tasks.training.generate import decode
from tasks.training.models import Loaded
from tasks.training.score import Text, log_probabilities
from tasks.training.vision import encoder_for

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TOKEN = "<|image_pad|>"


class Reader:
    """Tokens and pixels as Qwen2-VL's processor makes them, for images alone."""

    image_token = TOKEN

    def __init__(self, tokenizer, image_processor):
        self.tokenizer, self.image_processor = tokenizer, image_processor
        self.image_token_id = tokenizer.convert_tokens_to_ids(TOKEN)

    def __call__(self, text, images, add_special_tokens=False):
        grids = iter(self.image_processor(images=images, return_tensors="pt")["image_grid_thw"].prod(-1) // 4)
        ids = []
        for token in self.tokenizer.encode(text[0], add_special_tokens=False):
            ids += [token] * (int(next(grids)) if token == self.image_token_id else 1)
        return {"input_ids": [ids], "mm_token_type_ids": [[int(token == self.image_token_id) for token in ids]]}


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    from transformers import AutoTokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

    root = tmp_path_factory.mktemp("grid")
    policy = tiny.write_policy(root / "policy", root / "models", tiny.write_model(root / "source"))
    tokenizer = AutoTokenizer.from_pretrained(root / "source")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|vision_start|>", "<|vision_end|>", TOKEN]})
    tokenizer.chat_template = TEMPLATE.replace("<image>", f"<|vision_start|>{TOKEN}<|vision_end|>")
    names = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name[:-9]}|>") for name in ("vision_start_token_id", "vision_end_token_id")
    }
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
            "bos_token_id": 1, "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "patch_size": 8, "spatial_merge_size": 2,
                       "temporal_patch_size": 2, "mlp_ratio": 2},
        image_token_id=tokenizer.convert_tokens_to_ids(TOKEN), **names,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "embed" not in name:
            parameter.data *= 6
    pixels = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64})
    loaded = Loaded(model, tokenizer, read_record(policy), root, torch.device("cpu"), Reader(tokenizer, pixels))
    return root, loaded, encoder_for(loaded, root)


def prompts(root, encoder):
    """Two pictures, one picture, none; of different sizes, so that rows are padded."""
    names = [put(root, "red", 1), put(root, "blue", 2)]
    Image.new("RGB", (48, 32), "green").save(root / "images" / "wide.png")
    rows = [
        {"prompt": asked("<image>sky or <image>"), "images": names},
        {"prompt": asked("what is grass"), "images": None},
        {"prompt": asked("what colour<image>please"), "images": ["wide.png"]},
    ]
    rows = encoder.prepared(rows)
    return [encoder.prompt(row["prompt"]) for row in rows], [encoder.pictures(row["prompt"]) for row in rows]


def test_answers_are_those_of_the_models_own_generate(eyes):
    root, loaded, encoder = eyes
    encoder.stops = {2}
    ids, pictures = prompts(root, encoder)
    likeliest = lambda logits_BV, rows, step: logits_BV.argmax(dim=-1)  # noqa: E731
    answer = partial(decode, loaded.model, encoder=encoder, new_tokens=8, pick=likeliest)
    together = answer(ids, pictures=pictures)
    assert [answer([one], pictures=[shown])[0] for one, shown in zip(ids, pictures, strict=True)] == together
    for one, shown, spoken in zip(ids, pictures, together, strict=True):
        given = torch.tensor([one])
        loaded.model.base_model.rope_deltas = None
        wanted = loaded.model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), **encoder.seen(given, [shown]), max_new_tokens=8,
            do_sample=False, eos_token_id=2, pad_token_id=2,
        )[0, len(one) :].tolist()  # fmt: skip
        assert spoken == wanted
    assert len({tuple(spoken) for spoken in together}) > 1


def test_a_picture_is_placed_in_rows_and_columns(eyes):
    root, loaded, encoder = eyes
    ids, pictures = prompts(root, encoder)
    given = {"input_ids": torch.tensor([ids[2]]), "attention_mask": torch.ones(1, len(ids[2]), dtype=torch.long)}
    given |= encoder.seen(given["input_ids"], [pictures[2]])
    flat = torch.arange(len(ids[2]))[None]
    places = encoder.positions(loaded.model, {**given, "position_ids": flat})
    assert places.shape == (3, 1, len(ids[2]))
    shown = given["input_ids"][0] == encoder.processor.image_token_id
    assert int(shown.sum()) == 6  # 48 x 32 pixels in patches of 8, four of which are one token
    assert places[1, 0, shown].unique().numel() == 2
    assert places[2, 0, shown].unique().numel() == 3
    assert encoder.positions(loaded.model, {"position_ids": flat}) is flat


def test_scores_do_not_depend_on_the_batch(eyes, tmp_path):
    from tasks.core.contract import Run
    from tasks.core.launch import MICRO_BATCH

    root, loaded, encoder = eyes
    rows = [
        {"messages": [*asked("<image>sky or <image>"), said("red")], "images": [put(root, "red", 1), put(root, "blue", 2)]},
        {"messages": [*asked("what is grass"), said("green")], "images": None},
    ]
    found = encode_instructions(encoder, rows, max_length=200).rows
    texts = [Text("x", row, one["input_ids"], [label >= 0 for label in one["labels"]], True, one["pictures"])
             for row, one in zip(rows, found, strict=True)]  # fmt: skip
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / MICRO_BATCH).write_text("1")
    (tmp_path / "all").mkdir()
    alone, together = (log_probabilities(loaded, encoder, texts, Run(tmp_path / name, root)) for name in ("one", "all"))
    assert [total for total, _ in alone] == pytest.approx([total for total, _ in together], abs=1e-4)
