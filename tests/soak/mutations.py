"""Random changes to the files and flags of a user, for the fuzz."""

import gzip
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

NUMBERS = (
    "0", "-0", "-1", "1", "2", "3", "0.5", "1.5", "1e-320", "1e308", "1e400", "-1e400", "nan",
    "NaN", "inf", "Infinity", "-Infinity", "2147483648", "9007199254740993",
    "9223372036854775808", "1" + "0" * 30, "9" * 400, "9" * 5000, "0x10", "1_000", "1,000",
    "1e3", "00", ".5", "5.", "+1", "\uff18", "\u0663", "1e9", "1000000", "1000000000000",
)  # fmt: skip
WORDS = (
    "", " ", "true", "false", "null", "None", '""', "[]", "{}", "self", "none", "x" * 300,
    "\0", "\ufeff", "\x1b[31m", "\u202e", "\u00e9", "\ud800", "../../etc", "/dev/null", "/",
    "~", "%s", "{0}", "$(id)", "'", '"', "\\", "-", "--", "=", "#", ",", ";", "[[", "a.b",
    "2024-01-01", "12:00", "2024-13-45T99:99:99", "llama-3.1-8b", "h100-sxm",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("nan"), 2**31,
    2**53 + 1, 2**63, 10**30, 10**400, "", "1", "nan", "x", "x" * 300, "\0", "\ud800", [], {},
    [[]], [None], [0], {"": 0}, {"a": {"a": {}}}, 10**9, 10**12, [1] * 3000,
)  # fmt: skip
LONGEST = 1_000_000  # characters
_TOKEN = re.compile(r'"[^"\n]*"|[-+]?[0-9][0-9.e+-]*|\w+|[^\w\s]|\n')
_NUMBER = re.compile(r"(?<![\w.])[-+]?[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")


def mutated(text: str, source: Random) -> bytes:
    """The text with one to four random changes, in an encoding that is usually UTF-8."""
    for _ in range(source.choice((1, 1, 1, 2, 2, 3, 4))):
        text = source.choice(_CHANGES)(text, source)[:LONGEST]
    return encoded(text, source)


def encoded(text: str, source: Random) -> bytes:
    """The text in UTF-8, or sometimes as a file from another program or a broken one."""
    raw = text.encode("utf-8", errors="surrogatepass")
    match source.randrange(40):
        case 0:
            return b"\xef\xbb\xbf" + raw
        case 1:
            return text.encode("utf-16", errors="surrogatepass")
        case 2:
            return raw.replace(b"\n", b"\r\n")
        case 3:
            return raw.replace(b"\n", b"\r")
        case 4:
            return gzip.compress(raw)
        case 5:
            return raw[: source.randint(0, len(raw))]
        case 6:
            at = source.randint(0, len(raw))
            return raw[:at] + source.randbytes(source.randint(1, 4)) + raw[at:]
        case 7:
            return bytes(raw[:1]) * source.choice((0, 1, 100_000))
    return raw


def _piece(source: Random) -> str:
    return source.choice(NUMBERS if source.random() < 0.5 else WORDS)


def _characters(text: str, source: Random) -> str:
    first = source.randint(0, len(text))
    last = min(len(text), first + source.randint(0, 12))
    return text[:first] + _piece(source) * source.randint(0, 2) + text[last:]


def _token(text: str, source: Random) -> str:
    """One word, number, quoted text or sign is replaced."""
    spans = [found.span() for found in _TOKEN.finditer(text)]
    if not spans:
        return _piece(source)
    (first, last), new = source.choice(spans), _piece(source)
    if text[first] == '"' and source.random() < 0.7:
        new = f'"{new}"'
    return text[:first] + new + text[last:]


def _number(text: str, source: Random) -> str:
    """One number is replaced by another, or changed a little."""
    spans = [found.span() for found in _NUMBER.finditer(text)]
    if not spans:
        return text
    first, last = source.choice(spans)
    old = text[first:last]
    near = (f"-{old}", f"{old}0", f"{old}000", f"0.{old}", f"{old}.5", f'"{old}"', f"1{old}")
    return text[:first] + source.choice((*near, *NUMBERS)) + text[last:]


def _lines(text: str, source: Random) -> str:
    """A line is removed, repeated, moved or cut off."""
    lines = text.split("\n")
    at = source.randrange(len(lines))
    line = lines[at]
    match source.randrange(6):
        case 0:
            del lines[at]
        case 1:
            lines.insert(source.randint(0, len(lines)), line)
        case 2:
            lines[at] = line[: source.randint(0, len(line))]
        case 3:
            source.shuffle(lines)
        case 4:
            lines[at] = line + source.choice((",", " ", "\t", ";", " # x")) + _piece(source)
        case 5:
            lines[at : at + 1] = [line] * source.choice((2, 3, 200))
    return "\n".join(lines)


def _json(text: str, source: Random) -> str:
    """A value, key or item of a JSON text, or of one of its lines, is changed."""
    lines = [text] if text.startswith(("[", "{\n")) else text.split("\n")
    at = source.randrange(len(lines))
    try:
        value = json.loads(lines[at])
    except (ValueError, RecursionError):
        return _token(text, source)
    lines[at] = json.dumps(_changed(value, source), ensure_ascii=source.random() < 0.5)
    return "\n".join(lines)


def _changed(value: Any, source: Random) -> Any:
    if isinstance(value, dict) and value and source.random() < 0.9:
        key = source.choice(list(value))
        match source.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return value | {_piece(source): source.choice(VALUES)}
            case 2:
                return {(_piece(source) if k == key else k): v for k, v in value.items()}
            case 3:
                return value | {key: value[source.choice(list(value))]}
        return value | {key: _changed(value[key], source)}
    if isinstance(value, list) and value and source.random() < 0.8:
        at = source.randrange(len(value))
        match source.randrange(5):
            case 0:
                return value[:at] + value[at + 1 :]
            case 1:
                return value[:at] + value[at : at + 1] * source.choice((2, 100)) + value[at:]
        return [*value[:at], _changed(value[at], source), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and source.random() < 0.4:
        return source.choice((-value, value + 1, value - 1, value * 1000, str(value)[:4000]))
    return source.choice(VALUES) if source.random() < 0.9 else [value]


def _nested(text: str, source: Random) -> str:
    """Deeply nested brackets are put somewhere."""
    at, deep = source.randint(0, len(text)), source.choice((50, 2000, 100_000))
    opened = source.choice(("[", '{"a":', "{", "a.", "(", "[["))
    return text[:at] + opened * deep + text[at:]


_CHANGES: tuple[Callable[[str, Random], str], ...] = (
    _characters, _characters, _token, _token, _token, _number, _number, _number, _lines, _lines,
    _json, _json, _json,
) * 8 + (_nested,)  # fmt: skip
