"""Prefill and decode step with all that pays to keep between generations: prefixes, and captured CUDA graphs."""

from torch import Tensor

from models.decoding import steps
from models.decoding.kv_cache import KeyValueCache
from models.decoding.prefix_cache import PrefixCache
from models.decoding.step_graphs import StepGraphs
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.runtime.spans import spanned


class DecodeEngine:
    """The two steps that every search is made of, for one language model.

    Args:
        llm: the language model; whether its weights have changed is checked before each prefill.
        captures: whether steps may be captured in CUDA graphs.
        graphs: the graphs to use; None makes them on a CUDA device.
    """

    def __init__(self, llm: LanguageModel, *, captures: bool = True, graphs: StepGraphs | None = None) -> None:
        self.llm = llm
        self.captures = captures
        self.prefixes = PrefixCache()
        self._graphs = graphs

    @property
    def graphs(self) -> StepGraphs | None:
        """The captured steps; None in training, without a CUDA device, and where `captures` is off."""
        if self.llm.training or not self.captures:
            return None
        if self._graphs is None and self.llm.device.type == "cuda":
            self._graphs = StepGraphs()
        return self._graphs

    @property
    def shrinks_batches(self) -> bool:
        """Whether rows that finished leave a batch before all have. Captured steps are of one number of rows; each
        other number would be captured anew, and idle rows cost a GPU next to nothing."""
        return self.graphs is None

    @spanned("prefill")
    def prefill(self, assembled: Assembled, cache: KeyValueCache) -> Tensor:
        """Run the whole prompt once: logits `[B, V]` of each row's first new token.

        Of rows whose first texts have a cached prefix, only the rest is run.
        """
        known = self.prefixes.of_rows(self.llm, assembled.prefixes)
        graphs = self.graphs
        logits = None if graphs is None else graphs.prefill(self.llm, assembled, cache, known)
        if logits is not None:
            return logits
        if known:
            cache.start(known)
        return steps.prefill(self.llm, assembled, cache)

    def step(self, token_ids: Tensor, cache: KeyValueCache) -> Tensor:
        """Append `token_ids` `[B]`, one a row: logits `[B, V]` of the token after."""
        graphs = self.graphs
        logits = None if graphs is None else graphs.step(self.llm, token_ids, cache)
        return steps.decode_step(self.llm, token_ids, cache) if logits is None else logits

    def free_graphs(self) -> None:
        """Give back the memory that captured steps work in; they are captured again when they are needed."""
        if self._graphs is not None:
            self._graphs.clear()

    def clear(self) -> None:
        """Forget everything: before the weights move, or change."""
        self.prefixes.clear()
        self._graphs = None
