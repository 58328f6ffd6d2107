"""Whether a model's weights have changed since something was computed with them."""

import weakref

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

_PLAIN = frozenset({Tensor, nn.Parameter})  # others may contain several tensors and have no memory of their own


class WeightWatch:
    """Detects weights and buffers that were written, replaced or moved, and merged, scaled or disabled LoRA."""

    def __init__(self) -> None:
        self._state: list[tuple] | None = None

    def changed(self, module: nn.Module) -> bool:
        """Whether anything has changed since the last call; True the first time, and where it is unknown."""
        before = self._state
        try:
            self._state = _state_of(module)
        except RuntimeError:  # tensors made in inference mode do not count writes
            self._state = None
        if before is None or self._state is None or len(before) != len(self._state):
            return True
        return not all(map(_same, before, self._state))


def _state_of(module: nn.Module) -> list[tuple]:
    """Each weight and buffer with its count of writes and its address, and how each LoRA layer is applied."""
    state: list[tuple] = []
    waiting = [module]
    while waiting:  # not `modules()`: several times slower, and this runs before each prefill
        module = waiting.pop()
        waiting.extend(child for child in module._modules.values() if child is not None)
        for tensors in (module._parameters, module._buffers):
            for tensor in tensors.values():
                if tensor is not None:
                    address = tensor.data_ptr() if type(tensor) in _PLAIN else 0
                    state.append((weakref.ref(tensor), tensor._version, address))
        if isinstance(module, BaseTunerLayer):
            applied = (tuple(module.merged_adapters), tuple(module.active_adapters), module.disable_adapters)
            state.append((None, applied, tuple(getattr(module, "scaling", {}).items())))
    return state


def _same(before: tuple, now: tuple) -> bool:
    # Comparing weak references would compare their tensors, element by element.
    return before[0] is now[0] and before[1:] == now[1:]
