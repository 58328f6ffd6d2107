"""Keys and values of the fixed text before the audio, computed once and reused by every prefill.

They depend only on the text's token ids and on the language model's weights: an entry is looked up by its ids, and the
cache is emptied when any weight has been changed, replaced, merged or moved.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch

from models.decoding.kv_cache import KeyValueCache, Prefix
from models.language.llm import LanguageModel
from models.runtime.cuda_graphs import precision
from models.runtime.weight_watch import WeightWatch

MAX_BYTES = 32 * 2**20
MAX_TEXTS_COUNTED = 1024  # of a text that came once only the ids are kept


class PrefixCache:
    """The most recently used prefixes of one language model, up to `max_bytes`.

    A text gets an entry when it comes a second time (twice in one batch is enough), so that a question that is asked of
    a single clip costs nothing extra. Copies of the cache start empty.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        """Rows that reused an entry."""
        self._entries: OrderedDict[tuple, Prefix] = OrderedDict()
        self._counts: OrderedDict[tuple, int] = OrderedDict()  # how often each text came
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
        self._counts.clear()

    def of_rows(self, llm: LanguageModel, texts: Sequence[tuple[int, ...]] | None) -> list[Prefix] | None:
        """A prefix for each row's text, ids from position 0 on; None if a row has none, in training, with gradients."""
        if not texts or not all(texts) or self.max_bytes <= 0 or torch.is_grad_enabled() or llm.training:
            return None
        if self._weights.changed(llm):
            self.clear()
        dtype = precision(llm.device)
        keys = [(text, dtype) for text in texts]
        for key in keys:
            self._count(key)
        if not all(key in self._entries or self._counts.get(key, 0) > 1 for key in keys):
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

    def _count(self, key: tuple) -> None:
        self._counts[key] = self._counts.pop(key, 0) + 1
        if len(self._counts) > MAX_TEXTS_COUNTED:
            self._counts.popitem(last=False)

    def _drop_oldest(self) -> None:
        size = self.nbytes
        while size > self.max_bytes:
            key, dropped = self._entries.popitem(last=False)
            self._counts.pop(key, None)
            size -= dropped.nbytes
