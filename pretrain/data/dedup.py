"""Exact de-duplication, and the split into training and validation, both by the hash of a document's content."""

from __future__ import annotations

import hashlib


def content_digest(text: str) -> bytes:
    """sha256 of the text with every run of white space made one space: re-indented copies are the same document."""
    return hashlib.sha256(" ".join(text.split()).encode()).digest()


class Deduplicator:
    """Remembers digests (32 bytes a document) and says which documents are new."""

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_new(self, digest: bytes) -> bool:
        """Whether this content comes for the first time; it is known from then on."""
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True


def hash_fraction(digest: bytes, purpose: str) -> float:
    """A number in [0, 1) that depends on the content alone; independent for each purpose."""
    return int.from_bytes(hashlib.sha256(purpose.encode() + digest).digest()[:8], "big") / 2**64


def is_validation(digest: bytes, share: float) -> bool:
    """Whether a document belongs to the held-out `share`, wherever and whenever it is met."""
    return hash_fraction(digest, "validation") < share
