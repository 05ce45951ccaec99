"""Damage to checkpoints: opcodes that want to run something, archives and headers that lie."""

import copy
import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from fuzz_mutations import EXTREME_64, ODD_TEXTS, ODD_VALUES, mutate_bytes


def hostile_snippets(canary: str) -> list[bytes]:
    """Opcodes that would make a file at `canary`, if anything ran them, and some that abuse what torch allows."""
    command, code = f"touch {canary}", f"open({canary!r}, 'w')"
    short = [b"\x8c" + bytes([len(text)]) + text.encode() for text in ("os", "system", command[:250])]
    return [
        f"cos\nsystem\n(S'{command}'\ntR".encode(),  # GLOBAL, REDUCE
        f"cposix\nsystem\n(S'{command}'\ntR0".encode(),
        f'cbuiltins\neval\n(S"{code}"\ntR'.encode(),
        f'c__builtin__\neval\n(S"{code}"\ntR'.encode(),
        f'cbuiltins\nexec\n(S"{code}"\ntR0'.encode(),
        f"(S'{command}'\nios\nsystem\n".encode(),  # INST
        b"(" + f"cos\nsystem\nS'{command}'\no".encode(),  # OBJ
        f"csubprocess\nPopen\n(S'{command}'\ntI01\n\x81".encode(),  # NEWOBJ
        short[0] + short[1] + b"\x93" + short[2] + b"\x85R",  # STACK_GLOBAL
        f"cos\nsystem\n}}S'x'\nS'{command}'\nsb".encode(),  # BUILD
        b"ccollections\nOrderedDict\n)R}S'__class__'\ncos\nsystem\nsb",
        f"cfunctools\npartial\n(cos\nsystem\nS'{command}'\ntR)R".encode(),
        b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(J\xff\xff\xff\x7ft(K\x01tI00\nNtR",
        b"ccollections\nOrderedDict\n(K\x01K\x02tR",
        b"ctorch.nn.parameter\nParameter\n(K\x01tR",
        b"ctorch\nSize\n(J\xff\xff\xff\x7ft\x85R",
        b"ctorch._utils\n_rebuild_parameter\n)R",
        b"cnumpy.core.multiarray\nscalar\n(NNtR",
        b"(K\x01K\x01Q",  # a persistent id that is none
        b"h\xfe",  # a memo that was never written
        b"\x82\x01",  # an extension
        b"t" * 9,
        b"R" * 3,
        b"\x8a\xff" + b"\xff" * 255,  # a number of 2,040 bits
        b"X\xff\xff\xff\x7f",  # a text of 2 GB that is not there
        b"(" * 5000,
        b"]" * 3000 + b"a" * 2990,  # lists in lists
    ]


def mutate_pickle(rng: Random, content: bytes, snippets: Sequence[bytes]) -> bytes:
    """Opcodes that do not belong there, or bytes changed between the others."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content, [content])
    places = [place for _, _, place in pickletools.genops(content)]
    for place in sorted((rng.choice(places) for _ in range(rng.choice((1, 1, 2)))), reverse=True):
        content = content[:place] + rng.choice(snippets) + content[place + rng.choice((0, 0, 1)) :]
    return content


def mutate_zip(rng: Random, content: bytes, snippets: Sequence[bytes]) -> bytes:
    """A file inside a valid zip archive is damaged, renamed, missing, or there twice."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = [(info.filename, archive.read(info)) for info in archive.infolist()]
    number = rng.choice([index for index, (name, _) in enumerate(files) if rng.random() < 0.2 or "pkl" in name] or [0])
    name, inside = files[number]
    how = rng.randrange(10)
    if how == 0:
        del files[number]
    elif how == 1:
        files.append((name, mutate_bytes(rng, inside, [content])))
    elif how == 2:
        files[number] = (rng.choice((name + "x", "../" + name, "x/" + name, "/" + name, "é/" + name)), inside)
    else:
        files[number] = (name, _damaged(rng, name, inside, snippets))
    packed = io.BytesIO()
    with zipfile.ZipFile(
        packed, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for name, inside in files:
            archive.writestr(name, inside)
    return packed.getvalue()


def _damaged(rng: Random, name: str, inside: bytes, snippets: Sequence[bytes]) -> bytes:
    return mutate_pickle(rng, inside, snippets) if name.endswith("pkl") else mutate_bytes(rng, inside, [inside])


def mutate_safetensors(rng: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """A header that is valid JSON and says something else, with a length that is right or is not; or bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content, others)
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice([name for name in header if name != "__metadata__"] or [""])
        rng.choice(HEADER_DAMAGES)(rng, header, name)
    text = json.dumps(header).encode()
    said = len(text) if rng.random() < 0.85 else rng.choice((0, 1, len(text) + 1, len(text) - 1, *EXTREME_64))
    return struct.pack("<Q", said % 2**64) + text + content[8 + size :]


def _set_type(rng: Random, header: dict[str, Any], name: str) -> None:
    types = (
        "F64",
        "F16",
        "BF16",
        "I64",
        "I32",
        "I8",
        "U8",
        "BOOL",
        "F8_E4M3",
        "F8_E5M2",
        "U64",
        "C64",
        "F4",
        "X",
        3,
        None,
    )
    if isinstance(header.get(name), dict):
        header[name]["dtype"] = rng.choice(types)


def _set_shape(rng: Random, header: dict[str, Any], name: str) -> None:
    shapes = (
        [],
        [0],
        [-1],
        [2**40],
        [2**63],
        [2**32, 2**32],
        [1.5],
        ["8"],
        [0, 2**62],
        None,
        [8, 1, 16],
        [4, 32],
        [2] * 70,
    )
    if isinstance(header.get(name), dict):
        header[name]["shape"] = rng.choice((*shapes, (header[name].get("shape") or [])[::-1]))


def _set_offsets(rng: Random, header: dict[str, Any], name: str) -> None:
    begin, end = rng.choice(((0, 0), (0, 2**40), (2**63, 2**63 + 4), (4, 0), (-4, 0), (0, 4), (2**64 - 8, 2**64 - 4)))
    if isinstance(header.get(name), dict):
        header[name]["data_offsets"] = rng.choice(([begin, end], [begin], [], None, [begin, end, end], "0"))


def _rename(rng: Random, header: dict[str, Any], name: str) -> None:
    header[rng.choice(("", "model." + name, name + "x", rng.choice(ODD_TEXTS)))] = header.pop(name, None)


def _set_anything(rng: Random, header: dict[str, Any], name: str) -> None:
    header[rng.choice((name, "__metadata__"))] = copy.deepcopy(rng.choice(ODD_VALUES))


HEADER_DAMAGES: tuple[Callable[[Random, dict[str, Any], str], None], ...] = (
    _set_type,
    _set_shape,
    _set_offsets,
    _rename,
    _set_anything,
)
