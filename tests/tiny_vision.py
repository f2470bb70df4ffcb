"""Tiny random vision-language models of two families, and pictures of one colour each with questions about them."""

import hashlib
import io
import random
from pathlib import Path

from tiny import write_model, write_rows

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220)}
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SIDE = 16


def write_vision_model(folder: Path, kind: str = "llava", *, positions: int = 512) -> Path:
    """Write a LLaVA-like (CLIP, 4 tokens an image) or Idefics3-like (SigLIP, tiles with marks between them) model to `folder`."""
    import torch
    from transformers import (
        AutoModelForImageTextToText,
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        Idefics3Config,
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        LlamaConfig,
        LlavaConfig,
        LlavaProcessor,
    )

    write_model(folder, layers=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": SIDE, "patch_size": SIDE // 2}
    if kind == "llava":
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
        processor = LlavaProcessor(
            images, tokenizer, patch_size=SIDE // 2, vision_feature_select_strategy="default", num_additional_image_tokens=1
        )
    else:
        images = Idefics3ImageProcessorPil(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})
        processor = Idefics3Processor(images, tokenizer, image_seq_len=1)
    processor.chat_template = TEMPLATE
    names = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = LlamaConfig(
        vocab_size=len(processor.tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=positions, **names,
    )  # fmt: skip
    shared = {"text_config": text, "image_token_id": processor.tokenizer.convert_tokens_to_ids("<image>"), **names}
    config = (
        LlavaConfig(vision_config=CLIPVisionConfig(**tower, projection_dim=32), vision_feature_layer=-1, **shared)
        if kind == "llava"
        else Idefics3Config(vision_config=tower, scale_factor=2, **shared)
    )
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("weight") and parameter.dim() > 1 and "embed" not in name:
            parameter.data *= 3  # of the usual scale next to nothing of an image would reach the logits
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(colour: str, number: int, size: tuple[int, int] = (20, 24)) -> bytes:
    """A noisy picture of one colour as PNG; each `number` has a shade of its own."""
    from PIL import Image

    draw = random.Random(f"{colour} {number}")
    shade = [draw.randint(-25, 25) for _ in range(3)]
    pixels = [
        tuple(min(255, max(0, base + off + draw.randint(-10, 10))) for base, off in zip(COLOURS[colour], shade, strict=True))
        for _ in range(size[0] * size[1])
    ]
    image = Image.new("RGB", size)
    image.putdata(pixels)
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def put(folder: Path, colour: str, number: int) -> str:
    """Write a picture into the artifact in `folder`; its name."""
    data = picture(colour, number)
    name = f"{hashlib.sha256(data).hexdigest()}.png"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "images" / name).write_bytes(data)
    return name


def asked(text: str = "<image>what colour is the sky") -> list[dict[str, str]]:
    """A question, about an image unless said otherwise."""
    return [{"role": "user", "content": text}]


def write_data(root: Path, *, train: int = 12, heldout: int = 6) -> tuple[Path, Path, Path]:
    """Instructions, preferences and prompts: name the colour of each picture; one row in each is text alone."""
    folders = root / "inst", root / "pref", root / "prom"
    for split, span in (("train", range(train)), ("heldout", range(100, 100 + heldout))):
        both = [(colour, number) for number in span for colour in COLOURS]
        held = [{"id": f"{c}{n}", "images": [put(folders[0], c, n)], "messages": [*asked(), said(c)]} for c, n in both]
        held.append({"id": "text", "images": None, "messages": [*asked("what is grass"), said("green")]})
        for row in held:
            row["conversation"] = row["id"]
        write_rows(folders[0], split, held)
        names = {(c, n): put(folders[1], c, n) for c, n in both}
        pairs = [
            {"id": f"{c}{n}", "images": [names[c, n]], "prompt": asked(), "chosen": c, "rejected": other(c)} for c, n in both
        ]
        pairs.append({"id": "text", "images": None, "prompt": asked("what is grass"), "chosen": "green", "rejected": "red"})
        for pair in pairs:
            pair["conversation"] = pair["id"]
        write_rows(folders[1], split, pairs)
    rows = [
        {"id": f"{c}{n}", "conversation": f"{c}{n}", "task": None, "images": [put(folders[2], c, n)], "prompt": asked()}
        for n in range(200, 202) for c in COLOURS
    ]  # fmt: skip
    rows.append({"id": "text", "conversation": "text", "task": None, "images": None, "prompt": asked("is grass green")})
    write_rows(folders[2], "prompts", rows)
    return folders


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def other(colour: str) -> str:
    """The next colour."""
    names = [*COLOURS]
    return names[(names.index(colour) + 1) % len(names)]
