"""Keys and values of the fixed text before the audio, computed once and reused by every prefill.

They depend on the text's token ids and on the language model's weights, on nothing else: an entry is looked up by its
ids, and all entries go as soon as any weight has changed, been replaced, merged or moved.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.decoding.kv_cache import KeyValueCache
from models.language.llm import LanguageModel
from models.runtime.weight_watch import WeightWatch

MAX_BYTES = 32 * 2**20
MAX_TEXTS_NOTED = 1024  # texts seen once are noted by their ids alone


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a text at positions 0 on; a layer: `[1, heads, L, head width]`."""

    keys: list[Tensor]
    values: list[Tensor]

    def __len__(self) -> int:
        return self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


class PrefixCache:
    """The prefixes of one language model, those used last, up to `max_bytes`.

    A text is computed apart the second time it is met (twice in one batch will do), so that a question asked of one
    clip only costs nothing extra. Copies start empty.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        """Rows that began with a cached prefix."""
        self._entries: OrderedDict[tuple, Prefix] = OrderedDict()
        self._met: OrderedDict[tuple, int] = OrderedDict()  # how often
        self._weights = WeightWatch()

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple:
        return PrefixCache, (self.max_bytes,)

    @property
    def nbytes(self) -> int:
        return sum(prefix.nbytes for prefix in self._entries.values())

    def clear(self) -> None:
        self._entries.clear()
        self._met.clear()

    def of_rows(self, llm: LanguageModel, texts: Sequence[tuple[int, ...]] | None) -> list[Prefix] | None:
        """A prefix for each row's `texts`, ids from position 0 on; None if a row has none, or gradients are taken."""
        if llm.training:
            self.clear()
        if not texts or not all(texts) or self.max_bytes <= 0 or torch.is_grad_enabled() or llm.training:
            return None
        if self._weights.changed(llm):
            self.clear()
        kind = llm.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        keys = [(text, precision) for text in texts]
        for key in keys:
            self._meet(key)
        if not all(key in self._entries or self._met.get(key, 0) > 1 for key in keys):
            return None
        found = {key: self._entry(llm, key) for key in dict.fromkeys(keys)}
        self._drop_oldest()
        self.hits += len(keys)
        return [found[key] for key in keys]

    def _entry(self, llm: LanguageModel, key: tuple) -> Prefix:
        if key not in self._entries:
            ids = torch.tensor([key[0]], device=llm.device)
            cache = KeyValueCache(1, ids.shape[1], llm.device)
            positions = torch.arange(ids.shape[1], device=llm.device)[None]
            llm(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool), positions, cache)
            self._entries[key] = Prefix(cache.keys, cache.values)
        self._entries.move_to_end(key)
        return self._entries[key]

    def _meet(self, key: tuple) -> None:
        self._met[key] = self._met.pop(key, 0) + 1
        if len(self._met) > MAX_TEXTS_NOTED:
            self._met.popitem(last=False)

    def _drop_oldest(self) -> None:
        size = self.nbytes
        while size > self.max_bytes:
            key, dropped = self._entries.popitem(last=False)
            self._met.pop(key, None)
            size -= dropped.nbytes
