"""Damage to files, drawn from a seeded generator: to bytes, to tables, to JSON and to YAML.

Every function takes a `random.Random` and content, and returns other content; the same state gives the same damage.
"""

import copy
import json
import struct
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Any

EXTREME = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
EXTREME_64 = (*EXTREME, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1)

# What people, spreadsheets and evil wishers put where a name or a number belongs.
ODD_TEXTS = (
    *("", " ", "0", "-0", "-1", "1", "1e308", "1e309", "-1e400", "nan", "inf", "-Infinity", "1_0", "0x10", "1,5", "٣"),
    *("9" * 400, "9" * 5000, "1e-400", "1.7976931348623157e308", "5e-324", "None", "null", "~", "true", "no", "[]"),
    *(
        "{}",
        "\x00",
        "a\x00b",
        "\ufeff",
        "\u202e",
        "\u2028",
        "\x85",
        "\x0b",
        "é",
        "e\u0301",
        "🎵",
        "\ud7ff\ue000",
        "\x1b[2J",
    ),
    *(
        '"',
        "'",
        '""',
        "\\",
        "\\x00",
        "\\ud800",
        "#",
        "---",
        "&a",
        "*a",
        "!!python/object/apply:os.getcwd []",
        "<<",
        "-",
    ),
    *(":", "%", "{", "[", "a: b", "|", ">", "../..", "/", "/dev/zero", ".", "..", "x" * 300, "y" * 200_000, "\t", ","),
    *(";", "\n", "\r", "\r\n", "$(true)", "{0}", "%s", "0-1", "5-", "0-99999999999", "1" + "0" * 30 + "-" + "9" * 40),
)
ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 64, 2**15, 2**31, 2**53, 2**63, 2**64, 10**30, 10**400, -(2**63)),
    *(
        0.5,
        -0.5,
        1e308,
        5e-324,
        float("nan"),
        float("inf"),
        -float("inf"),
        [],
        {},
        [[]],
        [None],
        {"": None},
        [0] * 5000,
    ),
    *(
        "",
        "a",
        "64",
        "\x00",
        "\ud800",
        "é" * 999,
        [1, "1"],
        {"0": "a"},
        {"a": "b"},
        [1.5, 2],
        [2, 2, 2**40, 2],
        [[1, 2]],
    ),
)


# ── bytes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def mutate_bytes(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """One to eight damages; more often in the first bytes, where headers are."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        content = rng.choice(BYTE_DAMAGES)(rng, content, others)
    return content


def _place(rng: Random, content: bytes) -> int:
    share = rng.random()
    return int(len(content) * (share if rng.random() < 0.4 else share**6))


def _flip_bits(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    damaged = bytearray(content or b"\0")
    for _ in range(rng.choice((1, 1, 2, 16))):
        damaged[min(_place(rng, damaged), len(damaged) - 1)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _overwrite(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    start, size = _place(rng, content), rng.choice((1, 2, 4, 8, 100))
    return content[:start] + _filling(rng, size) + content[start + size :]


def _filling(rng: Random, size: int) -> bytes:
    return rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size)))


def _set_field(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A field of 16, 32 or 64 bits becomes an extreme number, in either order of its bytes."""
    size, letter = rng.choice(((2, "H"), (4, "I"), (4, "I"), (4, "I"), (8, "Q")))
    number = rng.choice(EXTREME_64 if size == 8 else EXTREME) % 2 ** (8 * size)
    start = _place(rng, content) // 2 * 2
    return content[:start] + struct.pack(rng.choice("<>") + letter, number) + content[start + size :]


def _truncate(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    return content[: _place(rng, content)]


def _insert(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    start = _place(rng, content)
    return content[:start] + _filling(rng, rng.choice((1, 3, 4, 64, 5000))) + content[start:]


def _remove(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    start = _place(rng, content)
    return content[:start] + content[start + rng.choice((1, 2, 4, 64, 1000)) :]


def _duplicate(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    start, size = _place(rng, content), rng.choice((1, 4, 16, 256, 4096))
    return content[: start + size] + content[start : start + size] * rng.choice((1, 1, 2, 20)) + content[start + size :]


def _splice(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return content[: _place(rng, content)] + other[_place(rng, other) :]


BYTE_DAMAGES = (_flip_bits, _overwrite, _set_field, _set_field, _truncate, _insert, _remove, _duplicate, _splice)


# ── tables and other text ─────────────────────────────────────────────────────────────────────────────────────────────


def mutate_table(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Cells, columns and lines of a table go wrong; at times the encoding too."""
    lines = [line.split("\t" if b"\t" in content else ",") for line in content.decode().splitlines()]
    separator = "\t" if b"\t" in content else ","
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        rng.choice((_set_cell, _set_cell, _set_cell, _change_columns, _change_lines))(rng, lines)
    text = rng.choice(("\n", "\n", "\n", "\r\n", "\r")).join(separator.join(cells) for cells in lines)
    return _encode(rng, text + rng.choice(("\n", "\n", "")), others)


def _set_cell(rng: Random, lines: list[list[str]]) -> None:
    cells = rng.choice(lines or [[""]])
    if cells:
        number = rng.randrange(len(cells))
        cells[number] = rng.choice((rng.choice(ODD_TEXTS), cells[number] + rng.choice(ODD_TEXTS), rng.choice(cells)))


def _change_columns(rng: Random, lines: list[list[str]]) -> None:
    """A column goes, comes twice, or a row gets another number of cells."""
    number, how = rng.randrange(max(map(len, lines), default=1)), rng.randrange(4)
    for cells in lines if how < 2 else [rng.choice(lines)] if lines else []:
        if how in (0, 2):
            del cells[number : number + 1]
        else:
            cells[number:number] = (
                cells[number : number + 1] if how == 1 else [rng.choice(ODD_TEXTS)] * rng.choice((1, 9))
            )


def _change_lines(rng: Random, lines: list[list[str]]) -> None:
    number, how = rng.randrange(len(lines) + 1), rng.randrange(4)
    if how == 0:
        del lines[number : number + rng.choice((1, 1, 9))]
    elif how == 1 and lines:
        lines[number:number] = [list(rng.choice(lines)) for _ in range(rng.choice((1, 3)))]
    elif how == 2:
        lines.insert(number, [rng.choice(ODD_TEXTS)])
    else:
        rng.shuffle(lines)


def mutate_text(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Odd texts anywhere in lines of any kind."""
    text = content.decode()
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(len(text) + 1)
        text = text[:start] + rng.choice(ODD_TEXTS) + text[start + rng.choice((0, 0, 1, 5)) :]
    return _encode(rng, text, others)


def _encode(rng: Random, text: str, others: Sequence[bytes]) -> bytes:
    how = rng.randrange(20)
    if how == 0:
        return text.encode(rng.choice(("utf-16", "utf-8-sig", "utf-32-le")), "surrogatepass")
    content = text.encode("utf-8", "surrogatepass")
    return mutate_bytes(rng, content, others) if how < 3 else content


# ── JSON and YAML ─────────────────────────────────────────────────────────────────────────────────────────────────────


def mutate_json(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Values of wrong types and sizes, keys that are missing, strange or there twice, depth without end."""
    value = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = _change_value(rng, value)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:
        text = _with_odd_syntax(rng, text)
    return _encode(rng, text, others)


def _change_value(rng: Random, value: Any) -> Any:
    """Walk down at random, and change what is found there."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        how = rng.randrange(12)
        if how == 0:
            return {name: item for name, item in value.items() if name != key}
        if how == 1:
            return {**value, rng.choice(ODD_TEXTS): copy.deepcopy(rng.choice(ODD_VALUES))}
        return {**value, key: _change_value(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.7:
        number = rng.randrange(len(value))
        return [*value[:number], _change_value(rng, value[number]), *value[number + rng.choice((0, 1, 1, 1)) :]]
    if isinstance(value, (int, float)) and not isinstance(value, bool) and rng.random() < 0.4:
        return rng.choice(
            (-value, value + 1, value * 2, value * 1024, float(max(-1e300, min(value, 1e300))), str(value), [value])
        )
    return copy.deepcopy(rng.choice((*ODD_VALUES, *ODD_TEXTS)))


def _with_odd_syntax(rng: Random, text: str) -> str:
    depth = rng.choice((900, 100_000))
    nested = rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth))
    odd = rng.choice((nested, "NaN", "1" * 5000, "1e999", '"\\ud800"', "'a'", "01", "tru", ""))
    first_value = text.find(": ")
    twice = text[:1] + text[1:].split(",")[0] + "," + text[1:]
    return rng.choice(
        (odd, text.replace(text[first_value : first_value + 3], ": " + odd, 1), text + odd, twice, text[:-1])
    )


def mutate_yaml(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Lines `key: value` with other values, other keys, anchors, tags and bombs."""
    lines = [line for line in content.decode().splitlines() if line and not line.startswith("#")]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        number = rng.randrange(max(len(lines), 1))
        key, _, value = lines[number].partition(": ") if lines else ("a", "", "b")
        odd = rng.choice((*ODD_TEXTS, *map(repr, ODD_VALUES), *YAML_ODDITIES))
        lines[number : number + 1] = rng.choice(
            ([f"{key}: {odd}"], [f"{key}: {odd}"], [f"{key}: {odd}"], [f"{odd}: {value}"], [lines[number]] * 2)
            if lines
            else ([odd],)
        )
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice((*YAML_ODDITIES, *ODD_TEXTS)))
    return _encode(rng, "\n".join(lines) + "\n", others)


_LAUGHS = ["a: &a [x, x, x, x, x, x, x, x, x]"] + [
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
]
_LAUGHING_TABLES = ["a: &a {x: 1, y: 2}"] + [
    f"{name}: &{name} {{x: *{before}, y: *{before}}}"
    for before, name in pairwise([f"a{'b' * depth}" for depth in range(40)])
]
YAML_ODDITIES = (
    *(
        "[a, b]",
        "[[a]]",
        "{a: 1}",
        "{a: {b: [1, {}]}}",
        "{[a]: b}",
        "{1: 2, 1: 3}",
        "!!binary aGk=",
        "!!set {a, b}",
        "? a",
    ),
    *(
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!int x",
        "!!float x",
        "!!timestamp 9",
        "@",
        "`",
    ),
    *(
        "2001-01-01",
        "2001-99-99",
        "0o7",
        "1:30:60",
        "&x [*x]",
        "&x {a: *x}",
        "*nobody",
        "{<<: 1}",
        "{<<: {a: b}}",
        "=",
        "%Y",
    ),
    *(
        "[" * 900 + "]" * 900,
        "[" * 20_000,
        "{a: " * 900 + "1" + "}" * 900,
        "- " * 900,
        "\n".join(_LAUGHS),
        "\n".join(_LAUGHING_TABLES),
        "--- b\n--- c",
        "...",
    ),
)
