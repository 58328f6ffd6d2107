"""Text with typographic signs made plain: what two people type for the same words in two ways.

The published normalisers keep some of these apart ("it’s" is another word than "it's"), and scores by them stay as they
are. The second figure that `score_with_reasons` gives shows how much of an error rate is typography.
"""

from __future__ import annotations

import unicodedata

_SIGNS = {
    "'": "‘’‚‛′‵ʼʹʻʽˈ`´＇ꞌ",
    '"': "“”„‟″‶«»‹›＂〝〞",
    "-": "‐‑‒–—―−﹣－⁃",
    " ": "\t\n\r\x0b\x0c\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029"
    "\u202f\u205f\u3000",
    "": "\xad\u034f\u061c\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\u2061\u2062\u2063"
    "\u2064\u2066\u2067\u2068\u2069\ufeff\ufe00\ufe01\ufe02\ufe03\ufe04\ufe05\ufe06\ufe07\ufe08\ufe09\ufe0a\ufe0b"
    "\ufe0c\ufe0d\ufe0e\ufe0f",
}
"""Plain sign -> the signs that stand for it. The last have no width: soft hyphen, joiners, direction marks."""
_TABLE = str.maketrans({sign: plain for plain, signs in _SIGNS.items() for sign in signs})


def plain_text(text: str) -> str:
    """Straight quotes and hyphens, ordinary spaces, nothing without width, composed letters, half-width forms."""
    folded = unicodedata.normalize("NFKC", text.translate(_TABLE))  # signs first: NFKC makes "´" a space and an accent
    return " ".join(folded.translate(_TABLE).split())
