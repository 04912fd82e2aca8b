"""A mutator: whole files in, damaged ones out, the same ones for the same random numbers."""

from __future__ import annotations

import json
from random import Random
from typing import Any

HEADS = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0", b"MM\0*", b"II+\0", b"BM", b"RIFF", b"PK\x03\x04"]
HEADS += [b"\x80\x02}", b"\x80\x04\x95", b"{", b"[", b"\x1f\x8b", b"\xef\xbb\xbf", b"%YAML", b"\0" * 16]
NUMBERS = [b"\xff\xff\xff\xff", b"\x80\0\0\0", b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"\0\0\0\0", b"\x7f\xff\xff\xff"]
DEEP = "'deep'"  # stands for a list of lists of lists ...
VALUES: list[Any] = [None, True, -1, 0, 2**31, 2**63, 10**400, 1e308, float("nan"), "", "x" * 3000, "3", "\x00", DEEP]
VALUES += [[], {}, [[]], [None], {"a": None}, {"": ""}, [1, 2, 3], "../../../etc/passwd", "2001-01-01", "${name}"]
TEXTS = [
    "\t",
    "{",
    "[",
    "*a",
    "&a [*a]",
    "!!python/name:os.system",
    "a: &b [*b]",
    "\x00",
    ": ",
    "- ",
    "'",
    '"',
    "\u202e",
]


def damage(data: bytes, random: Random) -> bytes:
    """Flip, cut, repeat, overwrite or exchange some bytes."""
    for _ in range(random.randint(1, 3)):
        start = random.randrange(len(data) + 1)
        end = min(len(data), start + random.choice((1, 4, 16, 256, 4096)))
        part = data[start:end]
        data = random.choice(
            (
                data[:start],
                data[start:],
                data[:start] + data[end:],
                data[:end] + part * random.choice((1, 10, 1000)) + data[end:],
                data[:start] + bytes(byte ^ 1 << random.randrange(8) for byte in part) + data[end:],
                data[:start] + random.randbytes(len(part)) + data[end:],
                data[:start] + random.choice(NUMBERS) + data[start + 4 :],
                random.choice(HEADS) + data[random.choice((0, 4, 8)) :],
                data[:start] + random.choice(TEXTS).encode() + data[start:],
            )
        )
    return data


def distort(tree: Any, random: Random) -> Any:
    """Exchange, remove or add a value somewhere in what JSON or YAML holds."""
    place, places = tree, []
    while isinstance(place, (dict, list)) and place:
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        places.append((place, key))
        place = place[key]
    if not places:
        return random.choice(VALUES)
    place, key = random.choice(places)
    if random.random() < 0.15:
        del place[key]
    elif random.random() < 0.15 and isinstance(place, dict):
        place[random.choice(("", "x", "_target_", "name", 3))] = random.choice(VALUES)
    else:
        place[key] = random.choice(VALUES)
    return tree


def written(tree: Any) -> bytes:
    """A tree as JSON, which is YAML too."""
    text = json.dumps(tree, default=str)
    return text.replace(json.dumps(DEEP), "[" * 20_000 + "]" * 20_000).encode()
