"""Which JPEG files a decoder may be given unseen: whole ones of the usual kind, in which it would not stop halfway."""

from __future__ import annotations

import re

FRAMES = (0xC0, 0xC1, 0xC2)
"""Markers of a Huffman-coded frame: baseline, extended, progressive (ITU-T T.81, table B.1)."""

BETWEEN = frozenset([0xC4, 0xDA, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE])
"""Markers of segments that may stand around it: tables, scans, the restart interval, applications', comments."""

START, END = b"\xff\xd8", 0xD9
_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")  # within a scan stand stuffed zeros and restarts alone


def is_plain(content: bytes) -> bool:
    """Whether a file is one Huffman-coded frame from its first byte to its last, with no marker out of place.

    libjpeg stops within a scan at a wrong marker alone; OpenCV leaves gray what it has not decoded by then
    and says nothing. Damage within the coded data stops neither of them, damage to the tables before it both.

    Args:
        content: the whole file.
    """
    place, frames = len(START), 0
    while content.startswith(START) and (found := _MARKER.search(content, place)):
        marker = found[1][0]
        if marker == END:
            return frames == 1 and found.end() == len(content)
        if marker in FRAMES:
            frames += 1
        elif marker not in BETWEEN:
            return False
        place = found.end() + max(2, int.from_bytes(content[found.end() : found.end() + 2], "big"))
    return False
