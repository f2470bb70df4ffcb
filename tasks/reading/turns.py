"""Roles and turns in all their spellings, as messages of role `system`, `user` or `assistant`.

Tool calls are the assistant's turns, tool results come back as the user's, and tool definitions go into the system message:
a model of three roles is trained on the same exchange.  White space around a turn is no content.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

Message: TypeAlias = dict[str, str]
"""`{"role": ..., "content": ...}`"""


class Refused(Exception):
    """A record that cannot be used; the text is the reason, as `rule` or `rule: detail`."""


_SPELLINGS = {
    "system": "system developer system_prompt",
    "user": "user human prompter instruction tool observation function function_response tool_response ipython environment",
    "assistant": "assistant gpt chatgpt bing bard model bot chatbot ai claude llm function_call tool_call",
}
ROLES = {name: role for role, names in _SPELLINGS.items() for name in names.split()}
_ROLE_KEYS = ("role", "from", "speaker")
_CONTENT_KEYS = ("content", "value", "text")
_MEDIA_PARTS = ("image", "image_url", "input_image", "audio", "input_audio", "video", "video_url", "file")
MEDIA = "images, sound and video are not supported here"
_MARKED = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_EXTRA_ID = re.compile(r"<extra_id_[01]>(System|User|Assistant)\n")
_IMAGE_TAG = re.compile(r"<img>[^<]+</img>")


def text(value: object, what: str) -> str:
    """The text of a field.  Raises Refused for what is not text."""
    if isinstance(value, str):
        if "\0" in value:
            raise Refused("a NUL character in the text")
        if "<img>" in value and _IMAGE_TAG.search(value):
            raise Refused(MEDIA)
        return value.strip()
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        raise Refused(f"{what} is not text: {value}")
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, Mapping) and {"type", "text"} & value.keys():
        return _parts([cast(object, value)], what)
    if isinstance(value, Sequence):
        return _parts(cast(Sequence[object], value), what)
    raise Refused(f"no {what}" if value is None else f"{what} is not text: {type(cast(object, value)).__name__}")


def messages(value: object, what: str = "messages") -> list[Message]:
    """A list of turns as messages.  Raises Refused for an unknown role or a turn without text."""
    value = unpacked(value)
    if isinstance(value, Mapping):
        value = [cast(object, value)]
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise Refused(f"no {what}" if value is None else f"{what} is not a list of turns: {type(value).__name__}")
    found = [message for turn in cast(Sequence[object], value) for message in _turn(turn, what)]
    return [message for message in found if message["role"] != "system" or message["content"]]


def transcript(value: str) -> list[Message] | None:
    """The turns of `\\n\\nHuman: ... \\n\\nAssistant: ...` or of `<extra_id_1>User\\n...` text; None for any other text."""
    marked, marks = value.lstrip("\ufeff \t\r\n"), _MARKED
    if marked.startswith("<extra_id_"):
        marks = _EXTRA_ID
    elif not marked.startswith(("Human:", "Assistant:")) or "\n\n" not in value:
        return None
    pieces = marks.split(marked)
    if len(pieces) < 3:
        return None
    turns = zip(pieces[1::2], pieces[2::2], strict=True)
    found = [{"role": ROLES[who.lower()], "content": unmarked(text(said, "turn"))} for who, said in turns]
    return [message for message in found if message["role"] != "system" or message["content"]]


def unmarked(value: str) -> str:
    """An answer without the mark that NeMo's files end their turns with."""
    return re.sub(r"\s*<extra_id_[0-9]>\s*\Z", "", value) if value.endswith(">") else value


def as_json(value: object) -> str:
    """Structured content as text."""
    return json.dumps(value, ensure_ascii=False, default=str)


def turned(value: object) -> object:
    """The turns that a text holds as JSON; any other text as it is, for an answer may well be JSON."""
    found = unpacked(value)
    if not isinstance(value, str):
        return found
    listed = cast("list[object]", found) if isinstance(found, list) else []
    return listed if listed and all(_is_turn(turn) for turn in listed) else value


def is_parts(value: object) -> bool:
    """Whether `value` is one text in parts, as `[{"type": "text", "text": ...}]`, and not a list of turns."""
    if not isinstance(value, list) or not value:
        return False
    part = cast(list[object], value)[0]
    return isinstance(part, dict) and "type" in part and not _is_turn(cast(object, part))


def unpacked(value: object) -> object:
    """A list that a CSV cell or a Parquet column holds as JSON text; anything else as it is."""
    if isinstance(value, str) and value[:1] in "[{" and value[-1:] in "]}":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _is_turn(turn: object) -> bool:
    if not isinstance(turn, dict):
        return False
    keys = cast(dict[str, object], turn).keys()
    return not keys.isdisjoint(_ROLE_KEYS) and not keys.isdisjoint(_CONTENT_KEYS)


def _turn(turn: object, what: str) -> list[Message]:
    if isinstance(turn, str):
        raise Refused(f"{what} is a list of texts, not of turns")
    if not isinstance(turn, Mapping):
        raise Refused(f"{what} is not a list of turns: it holds {type(turn).__name__}")
    fields = cast(Mapping[str, object], turn)
    if any(fields.get(key) for key in ("images", "image", "videos", "audios")):
        raise Refused(MEDIA)
    key = next((key for key in _ROLE_KEYS if fields.get(key) is not None), None)
    if key is None:
        named = [(ROLES[name], content) for name, content in fields.items() if name in ROLES and content is not None]
        if not named:
            raise Refused("a turn without a role")
        return [{"role": role, "content": text(content, "turn")} for role, content in named]
    role = ROLES.get(str(fields[key]).strip().lower())
    if role is None:
        raise Refused(f"unknown role: {str(fields[key])[:40]}")
    content = next((fields[key] for key in _CONTENT_KEYS if fields.get(key) is not None), None)
    calls = fields.get("tool_calls")
    if calls:
        called = as_json(calls)
        return [{"role": role, "content": f"{text(content, 'turn')}\n{called}".strip() if content else called}]
    return [{"role": role, "content": text("" if content is None else content, "turn")}]


def _parts(parts: Sequence[object], what: str) -> str:
    texts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise Refused(f"{what} is not text: a list of {type(part).__name__}")
        fields = cast(Mapping[str, object], part)
        if fields.get("type") in _MEDIA_PARTS:
            raise Refused(MEDIA)
        texts.append(text(fields.get("text") or fields.get("value") or fields.get("content"), what))
    return text("\n".join(texts), what)
