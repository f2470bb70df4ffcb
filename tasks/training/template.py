# pyright: basic
"""A chat template at work.  Those of vision-language models want messages in parts, others want texts; each gets its own."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

_WORD = "word"


def wants_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template reads `[{"type": "text", "text": ...}]` and cannot read a text."""
    try:
        said = tokenizer.apply_chat_template([{"role": "user", "content": _WORD}], tokenize=False)
    except (TemplateError, TypeError, KeyError):
        return True
    return _WORD not in str(said)


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False, parts: bool | None = None
) -> str:
    """The template's text of `messages`, whose content is a text or parts; with `prompt`, up to where the assistant begins.

    `parts`: what `wants_parts` says, where it is known already.
    """
    parts = wants_parts(tokenizer) if parts is None else parts
    told = [{**message, "content": _content(message["content"], parts)} for message in messages]
    return str(tokenizer.apply_chat_template(told, tokenize=False, add_generation_prompt=prompt))


def _content(content: Any, parts: bool) -> Any:  # noqa: ANN401  a text or parts
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if parts else content
    return [{"type": "image"} if part["type"] == "image" else part for part in content]
