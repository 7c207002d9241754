"""Union-find over channels: what is tied lives or dies together, what is frozen must stay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]  # one identity per row of a channel axis


class Identities:
    """Union-find over channel identities; a frozen identity freezes all it is tied to."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reason: dict[int, str] = {}

    def new(self, count: int) -> Ids:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count, dtype=np.int64)

    def frozen(self, count: int, reason: str) -> Ids:
        """`count` rows of one identity that must stay."""
        one = self.new(1)
        self._reason[int(one[0])] = reason
        return np.repeat(one, count)

    def root(self, identity: int) -> int:
        while self._parent[identity] != identity:
            self._parent[identity] = self._parent[self._parent[identity]]
            identity = self._parent[identity]
        return identity

    def roots(self, ids: Ids) -> Ids:
        """The root of each identity, in the same shape."""
        unique, where = np.unique(ids, return_inverse=True)
        found = np.array([self.root(int(i)) for i in unique], dtype=np.int64)
        return found[where].reshape(ids.shape)

    def tie(self, first: Ids, second: Ids) -> None:
        for one, other in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            if low != high:
                self._parent[high] = low
                if high in self._reason:
                    self._reason.setdefault(low, self._reason.pop(high))

    def freeze(self, ids: Ids, reason: str) -> None:
        for identity in np.unique(ids).tolist():
            self._reason.setdefault(self.root(identity), reason)

    def reason(self, identity: int) -> str | None:
        return self._reason.get(self.root(identity))
