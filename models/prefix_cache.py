"""Keys and values of the fixed text before the audio, computed once and reused by every prefill.

They depend on the text's token ids and on the language model's weights, on nothing else: an entry is looked up by its
ids, and all entries go as soon as any weight has changed, been replaced, merged or moved.
"""

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from models.kv_cache import KeyValueCache

if TYPE_CHECKING:
    from models.llm import LanguageModel

MAX_BYTES = 32 * 2**20
MAX_TEXTS_NOTED = 1024  # texts seen once are noted by their ids alone

_PLAIN = frozenset({Tensor, nn.Parameter})  # others may stand for several tensors and have no memory of their own


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
    clip only costs nothing extra. A copy of the cache, as of its model, starts empty.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        """Rows that were given keys and values at hand."""
        self._entries: OrderedDict[tuple, Prefix] = OrderedDict()
        self._met: OrderedDict[tuple, int] = OrderedDict()  # how often
        self._weights: list[tuple] = []

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
        self._weights = []

    def of_rows(self, llm: "LanguageModel", texts: Sequence[tuple[int, ...]] | None) -> list[Prefix] | None:
        """A prefix for each row's `texts`, ids from position 0 on; None if a row has none, or gradients are taken."""
        if not texts or not all(texts) or self.max_bytes <= 0 or torch.is_grad_enabled() or llm.training:
            return None
        if not self._up_to_date(llm):
            return None
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

    def _entry(self, llm: "LanguageModel", key: tuple) -> Prefix:
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

    def _up_to_date(self, llm: nn.Module) -> bool:
        """Empty the cache if the weights are others than those it was filled with. False where that cannot be told."""
        try:
            weights = _state_of(llm)
        except RuntimeError:  # tensors made in inference mode do not count what is written to them
            self.clear()
            return False
        if len(weights) != len(self._weights) or not all(map(_same, self._weights, weights)):
            self.clear()
            self._weights = weights
        return True


def _state_of(llm: nn.Module) -> list[tuple]:
    """Each weight and buffer with a count of writes to it and its place, and how each LoRA layer is applied."""
    state: list[tuple] = []
    waiting = [llm]
    while waiting:  # not `modules()`: it takes several times as long, and this runs before each prefill
        module = waiting.pop()
        waiting.extend(child for child in module._modules.values() if child is not None)
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    place = tensor.data_ptr() if type(tensor) in _PLAIN else 0
                    state.append((weakref.ref(tensor), tensor._version, place))
        if isinstance(module, BaseTunerLayer):
            applied = (tuple(module.merged_adapters), tuple(module.active_adapters), module.disable_adapters)
            state.append((None, applied, tuple(getattr(module, "scaling", {}).items())))
    return state


def _same(before: tuple, now: tuple) -> bool:
    # Weak references are equal if their tensors are, which tensors take for a question about each element.
    return before[0] is now[0] and before[1:] == now[1:]
