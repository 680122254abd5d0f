"""XXH64 in plain Python, to check the engine's against (the specification: xxHash, XXH64 algorithm, seed 0)."""

from __future__ import annotations

ALL = (1 << 64) - 1
P1, P2, P3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P4, P5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5


def rotate(value: int, by: int) -> int:
    """Left, in 64 bits."""
    return (value << by | value >> 64 - by) & ALL


def turn(lane: int, word: int) -> int:
    """One step of one lane."""
    return rotate((lane + word * P2) & ALL, 31) * P1 & ALL


def xxh64(data: bytes) -> int:
    """The hash of `data`."""
    at, size = 0, len(data)
    if size >= 32:
        lanes = [(P1 + P2) & ALL, P2, 0, -P1 & ALL]
        while at + 32 <= size:
            for lane in range(4):
                lanes[lane] = turn(lanes[lane], int.from_bytes(data[at : at + 8], "little"))
                at += 8
        value = sum(rotate(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & ALL
        for lane in lanes:
            value = ((value ^ turn(0, lane)) * P1 + P4) & ALL
    else:
        value = P5
    value = (value + size) & ALL
    while at + 8 <= size:
        value = (rotate(value ^ turn(0, int.from_bytes(data[at : at + 8], "little")), 27) * P1 + P4) & ALL
        at += 8
    if at + 4 <= size:
        value = (rotate(value ^ int.from_bytes(data[at : at + 4], "little") * P1 & ALL, 23) * P2 + P3) & ALL
        at += 4
    for byte in data[at:]:
        value = rotate(value ^ byte * P5 & ALL, 11) * P1 & ALL
    for shift, factor in ((33, P2), (29, P3), (32, 1)):
        value = (value ^ value >> shift) * factor & ALL
    return value
