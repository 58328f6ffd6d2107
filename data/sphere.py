"""NIST SPHERE (TIMIT, Switchboard): a text header that counts the samples, which libsndfile does not compare.

Source: NIST SPHERE package, `sphere.doc`.
"""

from __future__ import annotations

import re

from data.findings import WHOLE, Finding

MAGIC = b"NIST_1A\n"
FIELD = re.compile(rb"^(channel_count|sample_n_bytes|sample_count) -\S+ (\d+)", re.MULTILINE)


def check_sphere(head: bytes, size: int) -> Finding:
    """A SPHERE file that begins so and has so many bytes."""
    header_bytes = head[8:16].strip()
    counts = {name: int(value) for name, value in FIELD.findall(head)}
    if not header_bytes.isdigit() or len(counts) < 3 or b"embedded" in head:  # compressed
        return WHOLE
    promised = counts[b"channel_count"] * counts[b"sample_n_bytes"] * counts[b"sample_count"]
    present = size - int(header_bytes)
    if promised <= present:  # libsndfile reads to the end, whatever the count
        return WHOLE
    return Finding(damage=f"truncated: the header promises {promised} bytes of samples, {max(0, present)} are there")
