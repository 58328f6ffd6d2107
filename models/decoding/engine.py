"""Prefill and decode steps as generation, evaluation and the efficiency report run them: with a prefix cache, and on
CUDA with captured graphs."""

from torch import Tensor

from models.decoding import steps
from models.decoding.kv_cache import KeyValueCache
from models.decoding.prefix_cache import PrefixCache
from models.decoding.step_graphs import StepGraphs
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.runtime.spans import spanned


class DecodeEngine:
    """`steps.prefill` and `steps.decode_step` of one language model, and what is kept to make them faster.

    What is kept is used only while the weights are those that it was computed with. Copies start without it.

    Args:
        captures: whether steps may be captured in CUDA graphs (`model.cuda_graphs`).
        graphs: the captured steps, on any device; None captures them on CUDA.
    """

    def __init__(self, llm: LanguageModel, *, captures: bool = True, graphs: StepGraphs | None = None) -> None:
        self.llm = llm
        self.captures = captures
        self.prefixes = PrefixCache()
        self._graphs = graphs

    def __getstate__(self) -> dict:
        return {**vars(self), "_graphs": None}

    @property
    def graphs(self) -> StepGraphs | None:
        """The captured steps, from the first prefill on; None in training, without CUDA, and if `captures` is off."""
        return self._graphs if self.captures and not self.llm.training else None

    @property
    def shrinks_batches(self) -> bool:
        """Whether finished rows leave a batch before the others finish. A graph is captured for one number of rows:
        every other number would be captured anew, and idle rows cost a GPU next to nothing."""
        return self.graphs is None

    @spanned("prefill")
    def prefill(self, assembled: Assembled, cache: KeyValueCache) -> Tensor:
        """Run the prompts once: logits `[B, V]` of each row's first new token. Rows with a cached prefix skip it."""
        if self.llm.training:
            self.clear()
        elif self.captures and self._graphs is None and self.llm.device.type == "cuda":
            self._graphs = StepGraphs()
        prefixes, graphs = self.prefixes.of_rows(self.llm, assembled.prefixes), self.graphs
        logits = None if graphs is None else graphs.prefill(self.llm, assembled, cache, prefixes)
        if logits is not None:
            return logits
        if prefixes:
            cache.start(prefixes)
        return steps.prefill(self.llm, assembled, cache)

    def step(self, token_ids: Tensor, cache: KeyValueCache) -> Tensor:
        """Append `token_ids` `[B]`, one a row: logits `[B, V]` of the token after."""
        graphs = self.graphs
        logits = None if graphs is None else graphs.step(self.llm, token_ids, cache)
        return steps.decode_step(self.llm, token_ids, cache) if logits is None else logits

    def free_graphs(self) -> None:
        """Free the memory of the captured steps, which are captured again when they are needed."""
        if self._graphs is not None:
            self._graphs.clear()

    def clear(self) -> None:
        """Free all that is kept. A cache in use keeps its content."""
        self.prefixes.clear()
        self._graphs = None
