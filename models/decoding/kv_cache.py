"""The key-value cache, with a write position per row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a text at positions 0 on; a layer: `[1, heads, L, head width]`."""

    keys: list[Tensor]
    values: list[Tensor]

    def __len__(self) -> int:
        return self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class KeyValueCache(Cache):
    """Keys and values of all layers, preallocated, with a write position per row.

    Every row starts at slot 0. Its next token goes to the slot after its own last token and overwrites padding there,
    so a row's keys do not depend on the other rows.
    """

    def __init__(self, rows: int, capacity: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self._rows = torch.arange(rows, device=device)[:, None]
        self._empty(capacity)

    def _empty(self, capacity: int) -> None:
        rows, device = len(self._rows), self._rows.device
        self.capacity = capacity
        self.span = 0  # slots in use in the longest row, known without a device synchronisation
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # [B], next write position
        self.valid = torch.zeros(rows, capacity, dtype=torch.bool, device=device)  # [B, S]
        self.next_positions = self.lengths  # [B], position of the next token; `prefill` sets it
        self.keys: list[Tensor] = []  # a layer: [B, heads, S, head width]
        self.values: list[Tensor] = []
        self._slots = self.lengths[:, None]  # [B, L] of the tokens being written
        self._uniform = True  # all rows end at `span`
        self._uniform_before = True  # and did before the tokens being written: plain slices are enough
        self._synchronises = True  # whether a mask may be read on the host; not while a graph is captured

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def start(self, prefixes: Sequence[Prefix]) -> None:
        """Start each row with its prefix, all cut to the length of the shortest."""
        assert self.span == 0 and len(prefixes) == len(self.lengths)
        width = min(map(len, prefixes))
        alike = all(prefix is prefixes[0] for prefix in prefixes)
        for name, layers in (("keys", self.keys), ("values", self.values)):
            for index, like in enumerate(getattr(prefixes[0], name)):
                if index == len(layers):
                    layers.append(self._allocate(like, len(prefixes)))
                given = [getattr(row, name)[index][:, :, :width] for row in prefixes[: 1 if alike else None]]
                layers[index][:, :, :width] = given[0] if alike else torch.cat(given)
        self.valid[:, :width] = True
        self.lengths = self.lengths + width
        self.span = width

    def begin(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Reserve slots for tokens with `mask` `[B, L]`: their slots `[B, L]`; which slots are valid, `[B, span]`."""
        width = mask.shape[1]
        assert self.span + width <= self.capacity, (self.span, width, self.capacity)
        steps = torch.arange(width, device=mask.device)
        self._slots = self.lengths[:, None] + steps
        self._uniform_before = self._uniform
        if width > 1 and self._uniform:  # checked once, for the prompt; a step adds one token to every row
            self._uniform = self._synchronises and bool(mask.all())
        self.valid.scatter_(1, self._slots, mask)
        self.lengths = self.lengths + ((steps + 1) * mask).amax(dim=1)
        self.span += width
        return self._slots, self.valid[:, : self.span]

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_, **__) -> tuple[Tensor, Tensor]:
        """Write a layer's new keys and values `[B, heads, L, D]`; all of the layer's so far, `[B, heads, span, D]`."""
        if layer_idx == len(self.keys):
            self.keys.append(self._allocate(key_states))
            self.values.append(self._allocate(value_states))
        for stored, new in ((self.keys[layer_idx], key_states), (self.values[layer_idx], value_states)):
            if self._uniform_before:
                stored[:, :, self.span - new.shape[2] : self.span] = new
            else:
                stored[self._rows, :, self._slots] = new.transpose(1, 2)
        return self.keys[layer_idx][:, :, : self.span], self.values[layer_idx][:, :, : self.span]

    def select(self, rows: Tensor, capacity: int | None = None) -> None:
        """Keep these rows, in this order; a row may be repeated. Allocates new memory, of `capacity` slots."""
        self.capacity = self.capacity if capacity is None else capacity
        for layers in (self.keys, self.values):
            for index, stored in enumerate(layers):
                layers[index] = self._allocate(stored, len(rows))
                layers[index][:, :, : self.span] = stored[rows, :, : self.span]
        valid = self.valid.new_zeros(len(rows), self.capacity)
        valid[:, : self.span] = self.valid[rows, : self.span]
        self.valid = valid
        self.lengths = self.lengths[rows]
        self.next_positions = self.next_positions[rows]
        self._rows = torch.arange(len(rows), device=rows.device)[:, None]

    def reorder(self, rows: Tensor, start: int) -> None:
        """Replace each row by another that is equal to it up to slot `start`, as beams of a clip are."""
        for stored in (*self.keys, *self.values):
            stored[:, :, start : self.span] = stored[rows, :, start : self.span]

    def put(self, rows: Tensor, other: "KeyValueCache") -> None:
        """Replace these rows by the rows of another cache, which fit into the capacity."""
        assert other.span <= self.capacity and len(other.keys) == len(self.keys), (other.span, self.capacity)
        missing = self.capacity - other.span  # overwrite the whole row; its old content may be longer
        for stored, new in zip((*self.keys, *self.values), (*other.keys, *other.values), strict=True):
            stored.index_copy_(0, rows, F.pad(new[:, :, : other.span], (0, 0, 0, missing)))
        self.valid.index_copy_(0, rows, F.pad(other.valid[:, : other.span], (0, missing)))
        self.lengths = self.lengths.index_copy(0, rows, other.lengths)
        self.next_positions = self.next_positions.index_copy(0, rows, other.next_positions)
        self.span = max(self.span, other.span)
        self._uniform = False

    def free(self, rows: Tensor) -> None:
        """Empty these rows; their next tokens are written from slot 0 on."""
        self.valid[rows] = False
        self.lengths = self.lengths.index_fill(0, rows, 0)
        self.next_positions = self.next_positions.index_fill(0, rows, 0)
        self._uniform = False

    def attend_to(self, span: int) -> None:
        """Attend to the first `span` slots."""
        assert span <= self.capacity, (span, self.capacity)
        self._uniform = self._uniform and span == self.span
        self.span = span

    def widen(self, capacity: int) -> None:
        """Enlarge the capacity to this, where it is smaller; only before the first token."""
        assert self.span == 0 and not self.keys
        if capacity > self.capacity:
            self._empty(capacity)

    def forget(self) -> None:
        """Start again, empty, in memory of its own."""
        self._empty(self.capacity)

    def use_memory(self, keys: Sequence[Tensor], values: Sequence[Tensor], valid: Tensor) -> None:
        """Write to this memory, all zeros, of as many rows; only before the first token."""
        assert self.span == 0 and valid.shape[0] == len(self.lengths)
        self.keys, self.values, self.valid = list(keys), list(values), valid
        self.capacity = valid.shape[1]

    def move(self, keys: Sequence[Tensor], values: Sequence[Tensor], valid: Tensor) -> None:
        """Copy everything to this memory, all zeros, of as many rows and no fewer slots, and continue there."""
        for own, given in zip((*keys, *values), (*self.keys, *self.values), strict=True):
            own[:, :, : self.span] = given[:, :, : self.span]
        valid[:, : self.span] = self.valid[:, : self.span]
        self.keys, self.values, self.valid = list(keys), list(values), valid
        self.capacity = valid.shape[1]
        self.freeze_layout()

    def freeze_layout(self, uniform: bool = False) -> None:
        """Fix the layout: writes follow the tensors alone; `uniform`: all rows end at `span`, for the next tokens."""
        self._uniform = uniform
        self._synchronises = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.span

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.span, 0

    def _allocate(self, like: Tensor, rows: int | None = None) -> Tensor:
        # Zeros, not empty memory: a masked slot has weight zero, but zero times NaN is NaN.
        return like.new_zeros(rows or like.shape[0], like.shape[1], self.capacity, like.shape[3])
