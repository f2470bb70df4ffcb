# ruff: noqa: RUF001  the typographic characters below are data
"""Which encoding bytes are in, told from a sample, and text out of them.  Unclear bytes are an error, never mojibake."""

import codecs
import io
import re
from typing import BinaryIO

import charset_normalizer

from tasks.core.errors import DataError

SAMPLE = 1 << 20
"""bytes looked at"""
BROKEN = "\ufffd"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMMON_HANZI = frozenset("的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里")
_WESTERN = frozenset("àâäáãåæçèéêëíîïìñóôöòõøœùûüúßÀÂÄÁÃÅÆÇÈÉÊËÍÎÏÌÑÓÔÖÒÕØŒÙÛÜÚÿ‘’“”„‚–—…•€£§°«»·©®™¡¿´ºª×½¼²³\u00a0")


def marked(sample: bytes) -> str | None:
    """The encoding that a byte order mark at the start announces."""
    return next((name for mark, name in _MARKS if sample.startswith(mark)), None)


def detect(sample: bytes, *, complete: bool, where: str) -> str:
    """Python's name of the encoding of `sample`; `complete` when it is the whole file.  Raises DataError when it is unclear."""
    if mark := marked(sample):
        return mark
    if b"\0" in sample and (wide := _utf16(sample)):
        return wide
    if b"\0" in sample and sample.count(b"\0") > len(sample) // 100:
        raise DataError(f"{where}: binary content, not text; is it the right file?")
    if not complete:
        sample = sample[: max(sample.rfind(b"\n"), sample.rfind(b"\r"), len(sample) - 4) + 1]
    if sample.isascii() or _is_utf8(sample, complete=complete):
        return "utf-8"
    lines = re.split(rb"[\r\n]+", sample)
    foreign = [line for line in lines if not line.isascii()]
    bad = sum(not _is_utf8(line, complete=True) for line in foreign)
    if bad * 2 <= len(foreign):
        return "utf-8"  # a few broken lines in a UTF-8 file: each is refused by itself
    legacy = _legacy(b"\n".join(foreign))
    if legacy:
        return legacy
    if bad * 10 <= len(lines):
        return "utf-8"
    guess = charset_normalizer.from_bytes(sample[: 1 << 16]).best()
    hint = f" (perhaps {guess.encoding})" if guess else ""
    raise DataError(f"{where}: the text is not UTF-8 and its encoding is unclear{hint}; name it with `encoding` in the source")


def text(stream: BinaryIO, encoding: str) -> io.TextIOWrapper:
    """Decode `stream`; what cannot be decoded is left as a mark that `undecodable` finds.  Line ends stay as they are."""
    return io.TextIOWrapper(stream, encoding, errors="replace" if _wide(encoding) else "surrogateescape", newline="")


def undecodable(line: str, encoding: str) -> bool:
    """Whether `line` holds bytes that are not in the encoding."""
    if line.isascii():
        return False
    if _wide(encoding):
        return BROKEN in line
    try:
        line.encode()
    except UnicodeEncodeError:
        return True
    return False


def printable(line: str) -> str:
    """`line` as text that can be stored: bytes that could not be decoded are written as `\\xNN`.

    >>> printable("caf" + chr(0xDCE9))
    'caf\\\\xe9'
    """
    try:
        line.encode()
    except UnicodeEncodeError:
        return line.encode("utf-8", "surrogateescape" if _escaped(line) else "backslashreplace").decode(
            "utf-8", "backslashreplace"
        )
    return line


def _escaped(line: str) -> bool:
    return not any("\ud800" <= c <= "\udc7f" or "\udd00" <= c <= "\udfff" for c in line)


def _wide(encoding: str) -> bool:
    return codecs.lookup(encoding).name.startswith(("utf-16", "utf-32"))


def _is_utf8(data: bytes, *, complete: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data, complete)
    except UnicodeDecodeError:
        return False
    return True


def _utf16(sample: bytes) -> str | None:
    """UTF-16 without a mark: the NULs of ASCII characters all lie on one side."""
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    few, many = min(even, odd), max(even, odd)
    if many < len(sample) // 40 or few * 10 > many:
        return None
    return "utf-16-le" if odd > even else "utf-16-be"


def _legacy(data: bytes) -> str | None:
    """gb18030 or cp1252 where the text reads like Chinese or a Western European language, else None."""
    high = sum(byte >= 0x80 for byte in data)
    hanzi = data.decode("gb18030", "replace")
    wide = [c for c in hanzi if c >= "\x80"]
    common = sum(c in _COMMON_HANZI for c in wide)
    plain = sum(
        "\u4e00" <= c <= "\u9fff" or "\u3000" <= c <= "\u303f" or "\uff00" <= c <= "\uffef" or c in "“”‘’…—·" for c in wide
    )
    if hanzi.count(BROKEN) * 100 <= len(wide) and plain >= 0.9 * len(wide) and common >= max(1, 0.06 * len(wide)):
        return "gb18030"
    western = data.decode("cp1252", "replace")
    known = sum(c in _WESTERN for c in western)
    alone = len(re.findall(rb"(?<![\x80-\xff])[\x80-\xff]{1,2}(?![\x80-\xff])", data))
    if known >= 0.97 * high and alone * 2 >= high:
        return "cp1252"
    return None
