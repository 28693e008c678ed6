"""What a run has and what it lacks: documents and pictures under their keys, here or in another run, and failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import StoreError
from ..images import from_uint8, to_uint8
from ..store import Store
from ..verdicts import CLEAN
from .documents import SHAPES, Failed
from .keys import FIDELITY, Attack, Key, Keys, Pair

UNANSWERED = ("unreachable", "missing_key", "error")
"""States of a verdict that a later run asks for again."""


class Artefacts:
    """Documents by kind and key, remembered while their pictures are at work; ``failed``: why a key has none.

    ``verify`` looks at every pixel of the pictures that are there already, instead of only at the ends of their files.
    What a store of ``reuse``, another run, has under the same key is taken from there.
    """

    def __init__(self, store: Store, verify: bool, reuse: Sequence[Store]) -> None:
        self.failed: dict[Key, str] = {}
        self._store, self._reuse = store, reuse
        self._whole = store.has_image if verify else store.seems_whole
        self._known: dict[tuple[str, Key], dict[str, Any]] = {}

    def clear(self) -> None:
        """Forget what is remembered; the store keeps it."""
        self.failed.clear()
        self._known.clear()

    def get(self, kind: str, key: Key) -> dict[str, Any]:
        """The document, with its picture whole; {} for none, or for no key."""
        if key and (kind, key) not in self._known:
            value = self._store.get(kind, key, SHAPES[kind])
            if value is None or ("image" in value and not self._whole(value["image"])):
                value = self._adopt(kind, key)
            if value:
                self._known[kind, key] = value
        return self._known.get((kind, key), {})

    def answered(self, key: Key) -> bool:
        """Is there a verdict under the key that is not to be asked for again?"""
        return self.get("verdict", key).get("state", UNANSWERED[0]) not in UNANSWERED

    def pixels(self, image: str) -> np.ndarray:
        """The picture as 8-bit values. Raises StoreError for a damaged one."""
        return to_uint8(self._store.get_image(image))

    def put(self, kind: str, keys: Sequence[Key], values: Sequence[dict[str, Any]]) -> None:
        """Keep what was made, pictures first, then all documents at once."""
        kept = []
        for value in values:
            if "pixels" in value:
                value = {"image": self._store.put_image(from_uint8(value["pixels"])), **value}
                del value["pixels"]
            kept.append(value)
        with self._store.together():
            for key, value in zip(keys, kept, strict=True):
                self._store.put(kind, key, value)
                self._store.remove("failed", key)
                self._store.remove("adopted", key)
                self._known[kind, key] = value

    def fail(self, phase: str, keys: Sequence[Key], reason: str) -> None:
        """Keep why these were not made."""
        with self._store.together():
            for key in keys:
                self.failed[key] = f"{phase}: {reason}"
                self._store.put("failed", key, {"phase": phase, "reason": reason})

    def failed_before(self, keys: Sequence[Key]) -> bool:
        """Did all of these fail before? Then their reasons are known here too."""
        reasons = {key: self._store.get("failed", key, Failed) for key in keys}
        if not all(reasons.values()):
            return False
        self.failed |= {key: f"{value['phase']}: {value['reason']}" for key, value in reasons.items() if value}
        return True

    def _adopt(self, kind: str, key: Key) -> dict[str, Any]:
        """What another run has under the key, now this run's too."""
        for other in self._reuse:
            try:
                value = other.get(kind, key, SHAPES[kind])
                if value is None or value.get("state") in UNANSWERED:
                    continue
                if "image" in value:
                    self._store.put_image(other.get_image(value["image"]))
            except StoreError:  # damaged there: made anew here
                continue
            self._store.put(kind, key, value)
            self._store.put("adopted", key, {"kind": kind, "run": other.folder.name})
            return value
        return {}


class Made:
    """What has been made of an attack so far, by its pictures' ids in the store; "" for what is not there."""

    def __init__(self, keys: Keys, artefacts: Artefacts) -> None:
        self._keys, self._artefacts = keys, artefacts

    def protected(self, a: Attack) -> str:
        """The protected picture, or the source where nothing protects it."""
        return self._image("immunize", self._keys.protected(a)) if a.row.method else a.source

    def purified(self, a: Attack) -> str:
        """The same after the attacker's purifiers."""
        protected = self.protected(a)
        return self._image("purify", self._keys.purified(a, protected)) if a.chain else protected

    def edited(self, a: Attack) -> str:
        """The edit."""
        return self._image("edit", self._keys.edited(a, self.purified(a)))

    def pairs(self, a: Attack, clean: str) -> list[Pair]:
        """The edit against ``clean``, that of the unprotected picture; the protected picture against its source."""
        pairs = []
        if clean and a.row.name != CLEAN and (edited := self.edited(a)):
            pairs.append(Pair(clean, edited))
        if a.row.method and (protected := self.protected(a)):
            pairs.append(Pair(a.source, protected, FIDELITY))
        return pairs

    def _image(self, kind: str, key: Key) -> str:
        return self._artefacts.get(kind, key).get("image", "")
