"""The two steps that every search is made of: prefill and decode step."""

from torch import Tensor

from models.decoding.kv_cache import KeyValueCache
from models.decoding.steps import run_prompt, single_step
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from models.runtime.spans import spanned


@spanned("prefill")
def prefill(llm: LanguageModel, assembled: Assembled, cache: KeyValueCache) -> Tensor:
    """Run the whole prompt once: logits `[B, V]` of each row's first new token. The head sees one token a row.

    Of rows whose first texts were met before, only what follows is run.
    """
    known = llm.prefixes.of_rows(llm, assembled.prefixes)
    logits = None if llm.graphs is None else llm.graphs.prefill(llm, assembled, cache, known)
    if logits is not None:
        return logits
    start = cache.start(known) if known else 0
    embeds, mask, positions = (part[:, start:] for part in (assembled.embeds, assembled.mask, assembled.positions))
    return run_prompt(llm, embeds, mask, positions, cache, assembled.ends)


def decode_step(llm: LanguageModel, token_ids: Tensor, cache: KeyValueCache) -> Tensor:
    """Append `token_ids` `[B]`, one a row: logits `[B, V]` of the token after."""
    logits = None if llm.graphs is None else llm.graphs.step(llm, token_ids, cache)
    return single_step(llm, token_ids, cache) if logits is None else logits
