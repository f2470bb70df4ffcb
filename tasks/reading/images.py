"""Images of a record: found in all their spellings, checked, kept under the digest of their bytes.

One rule: a record that brings no image is not touched, whatever its text says.  In one that does, `<image>` stands in the text
wherever an image is, and the images are a list beside it, in that order; a record whose places and images differ in number is
refused.  Bytes are never changed, a place outside the given folder is never read, and nothing is ever fetched.
"""

import base64
import binascii
import hashlib
import re
import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import cast

from tasks.core.files import remove
from tasks.reading import turns
from tasks.reading.rows import ANSWER, DIALOGUE, INPUT, PROMPT, Item, Row
from tasks.reading.turns import ROLES, Refused

PLACEHOLDER = "<image>"
FOLDER = "images"
"""where an artifact keeps the bytes: `images/<sha256>.<extension>`"""
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
COLUMNS = ("images", "image")
_EXTENSIONS = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tiff"}
"""Pillow's name of a format -> how its files end; MPO is what phones call a JPEG with a preview"""
_PARTS = ("image", "image_url", "input_image")
_SOURCES = ("image", "path", "url", "base64", "image_url", "bytes")
_TAG = re.compile(r"<img>([^<]+)</img>")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BEFORE = ("system", "history", *DIALOGUE, *PROMPT, *INPUT)
"""columns that come before every answer, in the order of the conversation"""
_AFTER = (
    *ANSWER, "chosen", "rejected", "chosen_response", "rejected_response", "chosen_messages", "rejected_messages",
    "preferred_output", "non_preferred_output",
)  # fmt: skip
"""columns of answers; each goes on from the same prompt"""
_TALKS = ("chosen", "rejected", "chosen_messages", "rejected_messages")
"""answers that may open with the prompt's own turns"""


class Album:
    """The images of one run: each is checked and kept once."""

    def __init__(self, keep: Path, max_pixels: int) -> None:
        """Keep bytes in the folder `keep`; refuse more than `max_pixels` pixels."""
        self._keep, self._max = keep, max_pixels
        self._known: dict[Path, str | Refused] = {}
        keep.mkdir(parents=True, exist_ok=True)

    def take(self, reference: object, root: Path | None) -> str:
        """The name of an image, kept.  `root`: the folder that paths start from.  Raises Refused with the reason."""
        found = _found(reference, root)
        if isinstance(found, bytes):
            return self._kept(found, "the bytes given")
        if found not in self._known:
            shown = str(reference_text(reference))[:200]
            try:
                self._known[found] = self._kept(found.read_bytes(), shown)
            except OSError:
                self._known[found] = Refused(f"image missing: {shown}")
            except Refused as refused:
                self._known[found] = refused
        name = self._known[found]
        if isinstance(name, Refused):
            raise name
        return name

    def move(self, names: Sequence[str], out: Path) -> None:
        """Put the bytes of `names` under `out` and forget the rest."""
        folder = out / FOLDER
        for name in sorted(set(names)):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((self._keep / name).read_bytes())
        remove(self._keep)

    def _kept(self, data: bytes, shown: str) -> str:
        name = f"{hashlib.sha256(data).hexdigest()}.{_checked(data, shown, self._max)}"
        if not (self._keep / name).exists():
            (self._keep / name).write_bytes(data)
        return name


def brings_images(row: Row) -> bool:
    """Whether a record comes with images, or says in a column of its own that it has none."""
    if any(row.get(name) is not None for name in COLUMNS):
        return True
    return any(_has_image(row.get(name)) for name in (*_BEFORE, *_AFTER))


def unfolded(row: Row) -> tuple[Row, list[object]]:
    """The record with `<image>` in its text for each image, and no other trace of them; and what names them, in order.

    Raises Refused where places and images differ in number, or an answer holds an image.
    """
    given = _given(row)
    left = _Counter(given)
    told: Row = {name: value for name, value in row.items() if name not in COLUMNS}
    for name in (name for name in _BEFORE if name in told):
        told[name] = left.rewritten(told[name])
    base = left.copy()
    ends: list[_Counter] = []
    for name in (name for name in _AFTER if name in told):
        side = base.copy()
        if name in _TALKS and _opens(told[name]):
            side = _Counter(given)  # it tells the whole conversation again
        told[name] = side.rewritten(told[name])
        ends.append(side)
    if any(end.found != ends[0].found for end in ends[1:] if end.found and ends[0].found):
        raise Refused("the sides hold other images")
    done = max([base, *ends], key=lambda counter: len(counter.found))
    if given and not done.places:
        told = _put_first(told, len(given))
        return told, given
    if done.missing or len(done.found) - done.inline != len(given):
        raise Refused(f"places and images differ in number: {done.places} and {len(given) + done.inline}")
    return told, done.found


def attach(items: Sequence[Item], names: Sequence[str]) -> None:
    """Give each item its images.  Raises Refused where its text has not as many places, or an answer has one."""
    for item in items:
        prompt = item.messages or []
        places = sum(turn["content"].count(PLACEHOLDER) for turn in prompt if turn["role"] != "assistant")
        answers = [turn["content"] for turn in prompt if turn["role"] == "assistant"]
        answers += [text for text in (item.chosen, item.rejected, item.answer) if text]
        answers += [str(answer["text"]) for answer in item.answers or ()]
        if any(PLACEHOLDER in text for text in answers):
            raise Refused("an image in an answer")
        if places != len(names):
            raise Refused(f"places and images differ in number: {places} and {len(names)}")
        item.images = list(names) or None


def reference_text(reference: object) -> str:
    """What names an image, for people: a path or URL, never bytes."""
    if isinstance(reference, Mapping):
        fields = cast(Mapping[str, object], reference)
        return next((str(fields[key]) for key in ("path", "url") if isinstance(fields.get(key), str)), "the bytes given")
    return str(reference) if isinstance(reference, str) and not reference.startswith("data:") else "the bytes given"


class _Counter:
    """Walks through texts and parts, and notes what each place holds."""

    def __init__(self, given: Sequence[object]) -> None:
        self._given = given
        self.found: list[object] = []
        self.places = self.inline = 0
        self.missing = False

    def copy(self) -> "_Counter":
        other = _Counter(self._given)
        other.found, other.places, other.inline, other.missing = [*self.found], self.places, self.inline, self.missing
        return other

    def rewritten(self, value: object) -> object:
        """`value` (a text, parts, a turn, turns) with a place for each image."""
        value = turns.turned(value)
        if isinstance(value, str):
            return self._text(value)
        if turns.is_parts(value):
            return self._parts(cast("list[object]", value))
        if isinstance(value, Mapping):
            return self._turn(cast(Mapping[str, object], value))
        if isinstance(value, list):
            return [self.rewritten(entry) for entry in cast("list[object]", value)]
        return value

    def _turn(self, turn: Mapping[str, object]) -> dict[str, object]:
        told = {name: value for name, value in turn.items() if name not in COLUMNS}
        own = [image for name in COLUMNS for image in _listed(turn.get(name))]
        for key in ("content", "value", "text", *ROLES):
            value = told.get(key)
            if isinstance(value, str):
                told[key] = value if own else self._text(value)
            elif isinstance(value, list):
                told[key] = self._parts(cast("list[object]", value))
        if own:
            key = next((key for key in ("content", "value", "text") if isinstance(told.get(key), str)), None)
            if key is None:
                raise Refused("a turn of images without a text")
            places = str(told[key]).count(PLACEHOLDER)
            if places not in (0, len(own)):
                raise Refused(f"places and images differ in number: {places} and {len(own)}")
            told[key] = f"{'' if places else PLACEHOLDER * len(own)}{told[key]}"
            for image in own:
                self._inline(image)
        return told

    def _text(self, text: str) -> str:
        said: list[str] = []
        at = 0
        for match in re.finditer(r"<image>|<img>([^<]+)</img>", text):
            said += [text[at : match.start()], PLACEHOLDER]
            at = match.end()
            if match.group(1) is None:
                self._next()
            else:
                self._inline(match.group(1))
        return "".join([*said, text[at:]])

    def _parts(self, parts: Sequence[object]) -> str:
        """Parts as one text: two texts are parted by a line break, a place stands where its image is."""
        said = ""
        for part in parts:
            fields: Mapping[str, object] = cast(Mapping[str, object], part) if isinstance(part, Mapping) else {}
            if fields.get("type") in _PARTS:
                source = next((fields[key] for key in _SOURCES if fields.get(key) is not None), None)
                if source is None:
                    self._next()
                else:
                    self._inline({"base64": source} if fields.get("base64") is source else source)
                said += PLACEHOLDER
                continue
            text = part if isinstance(part, str) else fields.get("text") or fields.get("value") or fields.get("content")
            if fields.get("type") not in (None, "text", "input_text", "output_text") or not isinstance(text, str | None):
                raise Refused(turns.MEDIA if fields.get("type") else "a part without text")
            parted = "\n" if said and not said.endswith(PLACEHOLDER) else ""
            said += parted + self._text(text or "")
        return said

    def _next(self) -> None:
        """A place that the column of images fills."""
        at = len(self.found) - self.inline
        self.places += 1
        if at < len(self._given):
            self.found.append(self._given[at])
        else:
            self.missing = True

    def _inline(self, source: object) -> None:
        """A place that names its image itself."""
        self.places += 1
        self.inline += 1
        self.found.append(source)


def _given(row: Row) -> list[object]:
    return [image for name in COLUMNS for image in _listed(row.get(name))]


def _listed(value: object) -> list[object]:
    value = turns.unpacked(value)
    if value is None or value == "":
        return []
    return [*cast("list[object]", value)] if isinstance(value, list) else [value]


def _opens(value: object) -> bool:
    """Whether an answer begins with a turn that is not the assistant's."""
    value = turns.turned(value)
    first = cast("list[object]", value)[0] if isinstance(value, list) and value else None
    if not isinstance(first, Mapping):
        return False
    fields = cast(Mapping[str, object], first)
    who = next((fields[key] for key in ("role", "from", "speaker") if fields.get(key) is not None), None)
    return ROLES.get(str(who).strip().lower()) in ("user", "system")


def _put_first(row: Row, count: int) -> Row:
    """No place is named: the images stand before the first words of the user."""
    said = PLACEHOLDER * count
    for name in ("history", *DIALOGUE):
        value = turns.unpacked(row.get(name))
        listed: list[object] = [*cast("list[object]", value)] if isinstance(value, list) else []
        for i, turn in enumerate(listed):
            if isinstance(turn, Mapping):
                fields = cast(Mapping[str, object], turn)
                who = next((fields[key] for key in ("role", "from", "speaker") if fields.get(key) is not None), None)
                key = next((key for key in ("content", "value", "text") if isinstance(fields.get(key), str)), None)
                if ROLES.get(str(who).strip().lower()) == "user" and key:
                    listed[i] = {**fields, key: f"{said}{fields[key]}"}
                    return {**row, name: listed}
            elif isinstance(turn, list) and turn and isinstance(cast("list[object]", turn)[0], str):
                listed[i] = [f"{said}{turn[0]}", *cast("list[object]", turn)[1:]]
                return {**row, name: listed}
    for name in (*PROMPT, "input"):
        if isinstance(row.get(name), str):
            return {**row, name: f"{said}{row[name]}"}
        if isinstance(row.get(name), list):
            inner = _put_first({"messages": row[name]}, count)
            return {**row, name: inner["messages"]}
    for name in _TALKS:
        if _opens(row.get(name)):
            row = {**row, name: _put_first({"messages": turns.turned(row[name])}, count)["messages"]}
    return row


def _has_image(value: object) -> bool:
    """Whether a value holds an image of its own: a part, a turn with images, or a tag in a text."""
    if isinstance(value, str):
        if value[:1] in "[{" and ('"image' in value or '"input_image' in value):
            found = turns.unpacked(value)
            return not isinstance(found, str) and _has_image(found)
        return "<img>" in value and _TAG.search(value) is not None
    if isinstance(value, Mapping):
        fields = cast(Mapping[str, object], value)
        if fields.get("type") in _PARTS or any(fields.get(name) for name in COLUMNS):
            return True
        return any(_has_image(entry) for entry in fields.values())
    if isinstance(value, list):
        return any(_has_image(entry) for entry in cast("list[object]", value))
    return False


# -- one image ---------------------------------------------------------------------------------------------------


def _found(reference: object, root: Path | None) -> bytes | Path:
    """The bytes of an image, or the file that holds them."""
    if isinstance(reference, bytes):
        return reference
    if isinstance(reference, Mapping):
        fields = cast(Mapping[str, object], reference)
        source = next((fields[key] for key in ("bytes", "base64", "url", "path", "image") if fields.get(key) is not None), None)
        if isinstance(source, str) and fields.get("base64") is source:
            return _decoded(source)
        if source is None or isinstance(source, Mapping):
            raise Refused("an image without bytes or path")
        return _found(source, root)
    if not isinstance(reference, str) or not reference.strip():
        raise Refused(f"an image without bytes or path: {type(reference).__name__}")
    if reference.startswith("data:"):
        head, comma, body = reference.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refused("not an image: a data address that is not base64")
        return _decoded(body)
    if _REMOTE.match(reference):
        raise Refused(f"image by address, and nothing is fetched: {reference[:200]}")
    return _inside(reference.strip(), root)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("not an image: broken base64") from None


def _inside(reference: str, root: Path | None) -> Path:
    """The file that a path names.  Raises Refused for one that lies outside `root`, which the artifact's key does not cover."""
    if root is None:
        raise Refused(f"no folder of images was given: {reference[:200]}")
    try:
        path = root / reference
        if Path(reference).is_absolute() or not path.parent.resolve().is_relative_to(root.resolve()) or path.name in ("", ".."):
            raise Refused(f"image outside its folder: {reference[:200]}")
    except (OSError, ValueError):
        raise Refused(f"image missing: {reference[:200]}") from None
    return path


def _checked(data: bytes, shown: str, max_pixels: int) -> str:
    """How files of this format end, after the whole image was decoded once.  Raises Refused for what no training can show."""
    from PIL import Image, UnidentifiedImageError  # slow to import, and few need it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own words about sizes and broken metadata
        try:
            image = Image.open(BytesIO(data))
        except Image.DecompressionBombError:
            raise Refused(f"image too large: {shown}") from None
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
            raise Refused(f"not an image: {shown}") from None
        width, height = image.size
        if image.format not in _EXTENSIONS:
            raise Refused(f"unknown image format: {image.format}, {shown}")
        if width * height > max_pixels:
            raise Refused(f"image too large: {width} x {height} pixels, {shown}")
        if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
            raise Refused(f"image with several frames: {shown}")
        try:
            image.load()
        except (OSError, ValueError, SyntaxError, EOFError):
            raise Refused(f"image damaged: {shown}") from None
    return _EXTENSIONS[image.format]
