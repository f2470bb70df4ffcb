# pyright: basic
"""Conversations with images as a model sees them: the right number of tokens for each image, and its pixels beside them.

A row's text is tokenised as any other; each image token of the template is then replaced by what the model's own processor writes
for that image.  Pixels are made when a batch is, from the bytes that the data artifact holds, so nothing is stored twice.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from tasks.core.errors import AlignError, DataError, SpecError
from tasks.reading.images import FOLDER, PLACEHOLDER
from tasks.training.data import Encoder, Messages, Piece
from tasks.training.models import Loaded, encodes
from tasks.training.seq2seq import Seq2SeqEncoder

PICTURES = "pictures"
"""column of encoded rows: names of the row's images (TRL takes `images` for bytes)"""
_TYPES = ("token_type_ids", "mm_token_type_ids")
"""what some models call a row of 1 where an image is, and 0 elsewhere"""


def encoder_for(loaded: Loaded, *data: Path, model: Any = None) -> Encoder:  # noqa: ANN401
    """The encoder of a loaded model; `data` are the artifacts whose images it may meet."""
    if encodes(loaded.model):
        return Seq2SeqEncoder(loaded)
    if loaded.processor is None:
        return Encoder(loaded.tokenizer, model)
    return VisionEncoder(loaded, [folder / FOLDER for folder in data], model)


class VisionEncoder(Encoder):
    """A processor with its chat template."""

    def __init__(self, loaded: Loaded, folders: Sequence[Path], model: Any = None) -> None:  # noqa: ANN401
        """`folders` hold images by name."""
        super().__init__(loaded.tokenizer, model)
        self.processor = loaded.processor
        self._folders = folders
        self._marker = self._image_marker()
        self._marker_id: Any = self.tokenizer.convert_tokens_to_ids(self._marker)
        self._image_id: Any = getattr(self.processor, "image_token_id", None) or self._marker_id
        self._written: dict[str, list[int]] = {}
        self._types: list[str] = []

    def prepared(self, rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
        """Rows whose messages are in parts where they have images; in others a text stays a text, whatever it says."""
        return [_in_parts(row) if row.get("images") else row for row in rows]

    def unusable(self, messages: Messages) -> str | None:
        """A text that spells the model's own image token would be taken for an image."""
        return "texts that spell the model's image token" if any(self._marker in text for text in _texts(messages)) else None

    def pictures(self, messages: Messages) -> list[str]:
        """Names of a conversation's images, in order."""
        parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
        return [part["name"] for part in parts if part["type"] == "image"]

    def prompt(self, messages: Messages) -> list[int]:
        """What the model is given before it answers."""
        return self._filled([Piece(super().prompt(messages), answer=False)], messages)[0].ids

    def pieces(self, messages: Messages) -> list[Piece]:
        """The conversation cut around each assistant turn, with every token of every image."""
        return self._filled(super().pieces(messages), messages)

    def faithful(self, pieces: Sequence[Piece], messages: Messages) -> bool:
        """Whether the tokens spell the rendered text, in which an image is one token."""
        return super().faithful(super().pieces(messages) if self.pictures(messages) else pieces, messages)

    def cuts_image(self, ids: Sequence[int], max_length: int) -> bool:
        """Whether an image token lies beyond the first `max_length`."""
        return self._image_id in ids[max_length:]

    def with_pictures(self, row: dict[str, Any], messages: Messages) -> dict[str, Any]:
        """The row with the names of its images."""
        return {**row, PICTURES: self.pictures(messages)}

    def seen(self, ids_BT: torch.Tensor, pictures: Sequence[Sequence[str]]) -> dict[str, Any]:
        """Pixels of the images of a batch, rows in order, and where they are; nothing for a batch of text alone."""
        shown = [[self._open(name) for name in names] for names in pictures if names]
        if not shown:
            return {}
        pixels = self.processor.image_processor(images=shown, return_tensors="pt")
        where = {name: (ids_BT == self._image_id).long() for name in self._types}
        return {**{name: value.to(ids_BT.device) for name, value in pixels.items()}, **where}

    def positions(self, model: Any, given: dict[str, Any]) -> torch.Tensor:  # noqa: ANN401
        """Of a model that places an image's tokens in rows and columns (M-RoPE, arXiv:2409.12191): its own, (3, B, T)."""
        body = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
        if "pixel_values" not in given or not hasattr(body, "get_rope_index"):
            return given["position_ids"]
        known = {name: value for name, value in given.items() if name not in ("position_ids", "pixel_values")}
        return body.get_rope_index(**known)[0]

    def _image_marker(self) -> str:
        said = self.text([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}])
        names = ("boi_token", "image_token", "fake_image_token")
        known = [str(getattr(self.processor, name)) for name in names if getattr(self.processor, name, None)]
        found = next((token for token in known if said.count(token) == 1), None)
        if found is None:
            raise SpecError(
                f"base: its chat template writes none of the processor's image tokens ({', '.join(known) or 'it has none'}) once "
                'for a part {"type": "image"}; give the base the template of its own model card'
            )
        return found

    def _filled(self, pieces: Sequence[Piece], messages: Messages) -> list[Piece]:
        """`pieces` with each image token replaced by what the processor writes for that image."""
        names = iter(self.pictures(messages))
        filled = [
            piece._replace(ids=[token for one in piece.ids for token in (self._tokens(next(names)) if self._is(one) else [one])])
            if any(map(self._is, piece.ids))
            else piece
            for piece in pieces
        ]
        if next(names, None) is not None:
            raise AlignError("a conversation has more images than its text has image tokens; does the template leave some out?")
        return filled

    def _is(self, token: int) -> bool:
        return token == self._marker_id

    def _tokens(self, name: str) -> list[int]:
        if name not in self._written:
            made = self.processor(text=[self._marker], images=[[self._open(name)]], add_special_tokens=False)
            self._types = [kind for kind in _TYPES if kind in made]
            self._written[name] = [int(token) for token in made["input_ids"][0]]
        return self._written[name]

    def _open(self, name: str) -> Image.Image:
        for folder in self._folders:
            if (folder / name).is_file():
                with Image.open(folder / name) as image:
                    return ImageOps.exif_transpose(image).convert("RGB")
        raise DataError(f"{name}: no such image in {', '.join(map(str, self._folders))}; is the artifact whole?")


class Collator:
    """TRL's collator, and the pixels of the batch it makes."""

    def __init__(self, base: Callable[..., dict[str, Any]], encoder: Encoder, *, copies: int = 1) -> None:
        """`copies`: how often `base` puts each row into a batch, one after the other (2 for pairs)."""
        self._base, self._encoder, self._copies = base, encoder, copies

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of `rows`."""
        batch = self._base([{name: value for name, value in row.items() if name != PICTURES} for row in rows])
        pictures = [row.get(PICTURES) or [] for row in rows] * self._copies
        return {**batch, **self._encoder.seen(batch["input_ids"], pictures)}


def keep_images(source: Path, out: Path, names: Iterable[str]) -> None:
    """Give the artifact in `out` the images that it names, from the artifact `source`, so that it can be read without it."""
    for name in sorted(set(names)):
        (out / FOLDER).mkdir(exist_ok=True)
        shutil.copyfile(source / FOLDER / name, out / FOLDER / name)


def collator(base: Callable[..., dict[str, Any]], encoder: Encoder, *, copies: int = 1) -> Any:  # noqa: ANN401
    """`base` for a text model, else one that also carries pixels."""
    return Collator(base, encoder, copies=copies) if isinstance(encoder, VisionEncoder) else base


def columns(encoder: Encoder) -> dict[str, Any]:
    """Trainer arguments that let the names of images through to the collator."""
    return {"remove_unused_columns": False} if isinstance(encoder, VisionEncoder) else {}


def _in_parts(row: dict[str, Any]) -> dict[str, Any]:
    names = iter(row["images"])
    told = {name: [_message(message, names) for message in row[name]] for name in ("messages", "prompt") if row.get(name)}
    if next(names, None) is not None:
        raise DataError(f"row {row.get('id')}: more images than places in the text; curate it again")
    return {**row, **told}


def _message(message: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    if message["role"] == "assistant" or PLACEHOLDER not in message["content"]:
        return message
    first, *others = message["content"].split(PLACEHOLDER)
    parts = [{"type": "text", "text": first}] if first else []
    for text in others:
        name = next(iter(names), None)
        if name is None:
            raise DataError("a row has more places in its text than images; curate it again")
        parts += [{"type": "image", "name": name}, *([{"type": "text", "text": text}] if text else [])]
    return {**message, "content": parts}


def _texts(messages: Messages) -> list[str]:
    found = [message["content"] for message in messages if isinstance(message["content"], str)]
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return found + [part["text"] for part in parts if part["type"] == "text"]
