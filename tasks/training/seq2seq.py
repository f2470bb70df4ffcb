# pyright: basic
"""Encoder-decoder models (T5, BART) in use: what the encoder reads, what the decoder writes, and how likely it finds it.

The encoder reads everything up to the last answer, by the chat template where there is one, else as plain lines; the decoder
writes that answer and the stop token, and nothing else is trained on or scored.
"""

import math
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from tasks.core.errors import DataError, SpecError
from tasks.training.batches import padded, soft_prompt
from tasks.training.data import Encoder, Messages, Piece
from tasks.training.models import Loaded, stop_ids
from tasks.training.template import render, wants_parts

Turn = tuple[Sequence[int], Sequence[int]]
"""tokens that the encoder reads, and tokens that the decoder writes"""
_HEAD_ROWS = 256
"""positions whose distribution over the vocabulary is normalised at once"""


class Seq2SeqEncoder(Encoder):
    """A tokenizer whose model reads a prompt as a whole and writes the answer from a start token on."""

    def __init__(self, loaded: Loaded) -> None:
        """Raises SpecError for a model that says not how an answer starts and ends."""
        self.tokenizer, config = loaded.tokenizer, loaded.model.config
        generation = getattr(loaded.model, "generation_config", None)
        self.stops = stop_ids(loaded.tokenizer, loaded.model)
        start = getattr(config, "decoder_start_token_id", None)
        start = getattr(generation, "decoder_start_token_id", None) if start is None else start
        if start is None or loaded.tokenizer.eos_token_id is None:
            raise SpecError(
                f"base: the {config.model_type} says not by which token an answer starts (decoder_start_token_id in its config) "
                "and ends (eos_token of its tokenizer); add them to a local copy of the model"
            )
        self.start = int(start)
        pad: Any = loaded.tokenizer.pad_token_id
        self.pad = self.start if pad is None else int(pad)
        self._templated = loaded.tokenizer.chat_template is not None
        self._parts = self._templated and wants_parts(loaded.tokenizer)

    def prompt(self, messages: Messages) -> list[int]:
        """What the encoder reads; without a chat template the words alone, and what the tokenizer puts around a text."""
        if self._templated:
            ids = self.ids(render(self.tokenizer, messages, prompt=True, parts=self._parts))
        else:
            ids = self.tokenizer("\n".join(message["content"] for message in messages))["input_ids"]
        return list(ids) or [self.tokenizer.eos_token_id]  # type: ignore[list-item]

    def answer(self, text: str) -> list[int]:
        """What the decoder writes, stop token included."""
        ids = list(self.tokenizer(text_target=text)["input_ids"])
        return ids if ids and ids[-1] in self.stops else [*ids, self.tokenizer.eos_token_id]  # type: ignore[list-item]

    def pieces(self, messages: Messages) -> list[Piece]:
        """The last answer, and everything before it."""
        if not messages or messages[-1]["role"] != "assistant":
            raise DataError("a conversation does not end with the assistant's words, so there is nothing for a decoder to write")
        return [Piece(self.prompt(messages[:-1]), answer=False), Piece(self.answer(messages[-1]["content"]), answer=True)]

    def faithful(self, pieces: Sequence[Piece], messages: Messages) -> bool:
        """Whether the answer's tokens spell it, up to white space, of which SentencePiece keeps only that there is some."""
        spelled = self.tokenizer.decode(pieces[-1].ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return _folded(str(spelled)) == _folded(messages[-1]["content"])

    def seen(self, ids_BT: Any, pictures: Sequence[Sequence[str]]) -> dict[str, Any]:  # noqa: ANN401
        """For the logits of a text: the decoder is to write what the encoder reads."""
        return {"decoder_input_ids": torch.cat([torch.full_like(ids_BT[:, :1], self.start), ids_BT[:, :-1]], dim=1)}


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def below(model: Any) -> Any:  # noqa: ANN401  transformers and PEFT models
    """The transformers model, with the adapters that are inside of it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def read(model: Any, ids_BT: Tensor, mask_BT: Tensor) -> tuple[BaseModelOutput, Tensor]:  # noqa: ANN401
    """What the encoder makes of rows padded on the right, a soft prompt before them; and the mask of what is there."""
    encoder = below(model).get_encoder()
    if not soft_prompt(model):
        return BaseModelOutput(encoder(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state), mask_BT
    words_BTH = model.word_embeddings(ids_BT)
    vectors_BPH = model.get_prompt(len(ids_BT)).to(words_BTH)
    mask_BT = torch.cat([mask_BT.new_ones(vectors_BPH.shape[:2]), mask_BT], dim=1)
    given_BTH = torch.cat([vectors_BPH, words_BTH], dim=1)
    return BaseModelOutput(encoder(inputs_embeds=given_BTH, attention_mask=mask_BT).last_hidden_state), mask_BT


def speak(
    model: Any,  # noqa: ANN401  transformers and PEFT models
    prompts: Sequence[Sequence[int]],
    encoder: Seq2SeqEncoder,
    new_tokens: int,
    pick: Callable[[Tensor, list[int], int], Tensor],
    quiet: Collection[int] = (),
) -> Iterator[list[tuple[int, int]]]:
    """As `generate.speak`: the next (row, token) of every row that still speaks, step by step."""
    states: Any
    states, mask_BT = read(model, *padded(prompts, encoder.pad, model.device))
    next_B1 = torch.full((len(prompts), 1), encoder.start, device=mask_BT.device)
    writer, rows = below(model), list(range(len(prompts)))
    cache: Any = None
    for step in range(new_tokens):
        output = writer(
            encoder_outputs=states, attention_mask=mask_BT, decoder_input_ids=next_B1, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        next_B = pick(output.logits[:, -1].float(), rows, step)
        said = list(zip(rows, next_B.tolist(), strict=True))
        yield said
        alive = [i for i, (row, token) in enumerate(said) if token not in encoder.stops and row not in quiet]
        if not alive:
            return
        if len(alive) < len(rows):
            keep = torch.tensor(alive, device=next_B.device)
            cache.batch_select_indices(keep)
            next_B, mask_BT, states = next_B[keep], mask_BT[keep], BaseModelOutput(states.last_hidden_state[keep])
            rows = [rows[i] for i in alive]
        next_B1 = next_B[:, None]


def summed(model: Any, encoder: Seq2SeqEncoder, turns: Sequence[Turn]) -> list[float]:  # noqa: ANN401
    """Log-probability of what the decoder is to write after reading, summed over its tokens, nats.  N: tokens of all rows."""
    states, mask_BT = read(model, *padded([read for read, _ in turns], encoder.pad, model.device))
    given_BT, there_BT = padded([[encoder.start, *written[:-1]] for _, written in turns], encoder.pad, model.device)
    row_N, place_N = there_BT.nonzero(as_tuple=True)

    def only_there(head: Any, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ANN401
        return (given[0][row_N, place_N][None], *given[1:])

    writer = below(model)
    hook = writer.get_output_embeddings().register_forward_pre_hook(only_there)
    try:
        logits_NV = writer(encoder_outputs=states, attention_mask=mask_BT, decoder_input_ids=given_BT, use_cache=False).logits[0]
    finally:
        hook.remove()
    wanted_N = torch.tensor([token for _, written in turns for token in written], device=row_N.device)
    parts = [
        part_NV.float().gather(1, want_N[:, None])[:, 0] - part_NV.float().logsumexp(dim=1)
        for part_NV, want_N in zip(logits_NV.split(_HEAD_ROWS), wanted_N.split(_HEAD_ROWS), strict=True)
    ]
    sums_B = torch.zeros(len(turns), dtype=torch.float64, device=row_N.device)
    return sums_B.index_add(0, row_N, torch.cat(parts).double()).tolist()


@torch.inference_mode()
def mean_nll(model: Any, encoder: Seq2SeqEncoder, turns: Sequence[Turn], size: int) -> float:  # noqa: ANN401
    """Mean negative log-likelihood per written token, nats; `size` rows at once."""
    turns = sorted(turns, key=lambda turn: len(turn[0]))
    sums = [total for i in range(0, len(turns), size) for total in summed(model, encoder, turns[i : i + size])]
    return -math.fsum(sums) / sum(len(written) for _, written in turns)


def turn(ids: Sequence[int], written: Sequence[bool]) -> Turn:
    """The two sides of a row whose tokens are `written` from some place on."""
    start = list(written).index(True)
    return ids[:start], ids[start:]
