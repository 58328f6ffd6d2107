"""Beam search: transformers' own hypotheses, with less work.

The scoring follows `GenerationMixin._beam_search` of transformers 5 (early_stopping=False) step by step, the order of
its float32 operations included. Different here: the prompt is run once a clip, not once a beam; only the generated part
of the cache moves when beams are reordered; a clip leaves the batch when it is done.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoding.hypothesis import hits_stop_string
from models.decoding.scores import GenerateOptions, draw, process_scores, seeded_rows
from models.language.text import TextProcessor

NEVER = -1.0e9  # a score that no hypothesis reaches


@dataclass
class _Beams:
    """State of all clips still in the batch; `P` beams a clip, `G` tokens so far."""

    tokens: Tensor
    """`[B, P, G]`, running beams"""
    logprobs: Tensor
    """`[B, P, G]`"""
    scores: Tensor
    """`[B, P]`, summed log-probabilities"""
    done_tokens: Tensor
    """`[B, P, max_new_tokens]`, finished hypotheses, best first"""
    done_logprobs: Tensor
    done_lengths: Tensor
    """`[B, P]`"""
    done_scores: Tensor
    """`[B, P]`, divided by length"""
    is_done: Tensor
    """`[B, P]` bool, a hypothesis rather than an empty place"""

    @classmethod
    def start(cls, clips: int, beams: int, longest: int, device: torch.device) -> "_Beams":
        scores = torch.zeros(clips, beams, device=device)
        scores[:, 1:] = NEVER  # all beams are equal as yet: only the first may be continued
        return cls(
            tokens=torch.zeros(clips, beams, 0, dtype=torch.long, device=device),
            logprobs=torch.zeros(clips, beams, 0, device=device),
            scores=scores,
            done_tokens=torch.zeros(clips, beams, longest, dtype=torch.long, device=device),
            done_logprobs=torch.zeros(clips, beams, longest, device=device),
            done_lengths=torch.zeros(clips, beams, dtype=torch.long, device=device),
            done_scores=torch.full((clips, beams), NEVER, device=device),
            is_done=torch.zeros(clips, beams, dtype=torch.bool, device=device),
        )

    def select(self, clips: Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[clips])


@dataclass(frozen=True)
class _Candidates:
    """The best continuations of a step: `C` a clip, more than there are beams, so that enough remain if some end."""

    sources: Tensor
    """`[B, C]`, the beam each continues"""
    tokens: Tensor
    """`[B, C, G]`, the new token included"""
    logprobs: Tensor
    """`[B, C, G]`"""
    scores: Tensor
    """`[B, C]`"""
    ended: Tensor
    """`[B, C]` bool"""


@dataclass
class RunningBeams:
    """The beams of clips that have generated equally many tokens."""

    state: _Beams
    text: TextProcessor
    options: GenerateOptions
    generators: list[torch.Generator | None]
    tokens: int = 0
    """Generated so far."""

    @classmethod
    def start(cls, clips: int, text: TextProcessor, options: GenerateOptions, device: torch.device) -> "RunningBeams":
        state = _Beams.start(clips, options.num_beams, options.max_new_tokens, device)
        return cls(state, text, options, seeded_rows(options, clips, device))

    @property
    def next_ids(self) -> Tensor:
        """`[B·P]`, the last token of each running beam."""
        return self.state.tokens[:, :, -1].flatten()

    def advance(self, logits: Tensor, halt_id: int | None = None) -> tuple[Tensor, list[bool], list[bool]]:
        """Continue each clip by a token from `logits` `[B·P, V]`: the beams that were continued, `[B, P]`, which clips
        are done, and which of them because their best running beam has generated `halt_id`; their running beams then
        count as finished."""
        last_step = self.tokens + 1 == self.options.max_new_tokens
        candidates = _candidates(logits, self.state, self.text, self.options, last_step, self.generators)
        self.tokens += 1
        _collect_done(self.state, candidates, self.tokens, self.options)
        sources = _continue(self.state, candidates)
        done = ~_can_improve(self.state, self.tokens, self.options) | candidates.ended.all(dim=1)
        halted = torch.zeros_like(done)
        if halt_id is not None:
            halted = (self.state.tokens[:, 0, -1] == halt_id) & ~done
            self.close(halted)
        return sources, (done | halted).tolist(), halted.tolist()

    def close(self, clips: Tensor) -> None:
        """Take the running beams of these clips, `[B]` bool, into the finished hypotheses."""
        running = _Candidates(
            sources=torch.zeros_like(self.state.done_lengths),
            tokens=self.state.tokens,
            logprobs=self.state.logprobs,
            scores=self.state.scores,
            ended=clips[:, None].expand_as(self.state.is_done),
        )
        _collect_done(self.state, running, self.tokens, self.options)

    def best(self, clip: int) -> tuple[list[int], list[float]]:
        """The best finished hypothesis of a clip: its ids and their log-probabilities."""
        length = int(self.state.done_lengths[clip, 0])
        ids, logprobs = self.state.done_tokens[clip, 0, :length], self.state.done_logprobs[clip, 0, :length]
        return ids.tolist(), logprobs.tolist()

    def keep(self, clips: list[int]) -> None:
        """Continue with these clips only."""
        self.state.select(torch.tensor(clips, device=self.state.scores.device))
        self.generators = self.generators if len(self.generators) == 1 else [self.generators[clip] for clip in clips]


def rows_of(clips: Sequence[int], beams: int, device: torch.device) -> Tensor:
    """The rows of the cache that hold the beams of these clips, `[B·P]`."""
    return (torch.tensor(clips, device=device)[:, None] * beams + torch.arange(beams, device=device)).flatten()


def _candidates(
    logits: Tensor,
    state: _Beams,
    text: TextProcessor,
    options: GenerateOptions,
    last_step: bool,
    generators: Sequence[torch.Generator | None],
) -> _Candidates:
    clips, beams = state.scores.shape
    vocabulary = logits.shape[-1]
    minimum = max(2, 1 + len(text.eos_ids))
    keep = min(minimum * beams, beams * vocabulary)
    logprobs = F.log_softmax(logits, dim=-1)
    processed = process_scores(logprobs, state.tokens.flatten(0, 1), text.eos_ids, options, keep=minimum)
    totals = (processed.view(clips, beams, -1) + state.scores[:, :, None]).flatten(1)  # [B, P·V]
    if options.do_sample:
        chosen = draw(F.softmax(totals, dim=-1), keep, generators)
        scores = totals.gather(1, chosen)
    else:
        scores, chosen = totals.topk(keep)
    sources = chosen // vocabulary
    ids = chosen % vocabulary
    tokens = torch.cat([_gather(state.tokens, sources), ids[:, :, None]], dim=2)
    new_logprobs = logprobs.view(clips, -1).gather(1, chosen)
    ended = torch.isin(ids, torch.tensor(sorted(text.eos_ids), device=ids.device)) | last_step
    if text.stop_strings and not last_step:
        stopped = [[hits_stop_string(row, text) for row in clip] for clip in tokens[..., -text.stop_span :].tolist()]
        ended = ended | torch.tensor(stopped, device=ended.device)
    return _Candidates(
        sources=sources,
        tokens=tokens,
        logprobs=torch.cat([_gather(state.logprobs, sources), new_logprobs[:, :, None]], dim=2),
        scores=scores,
        ended=ended,
    )


def _continue(state: _Beams, candidates: _Candidates) -> Tensor:
    """Make the best unfinished candidates the running beams; the beams they continue, `[B, P]`."""
    scores = candidates.scores + candidates.ended.float() * NEVER
    state.scores, chosen = scores.topk(state.scores.shape[1])
    state.tokens = _gather(candidates.tokens, chosen)
    state.logprobs = _gather(candidates.logprobs, chosen)
    return candidates.sources.gather(1, chosen)


def _collect_done(state: _Beams, candidates: _Candidates, length: int, options: GenerateOptions) -> None:
    """Take candidates that ended among the first `P` into the finished hypotheses, where they are better."""
    beams = state.done_scores.shape[1]
    ended = candidates.ended.clone()
    ended[:, beams:] = False
    scores = candidates.scores / length**options.length_penalty + (~ended).float() * NEVER
    state.done_scores, chosen = torch.cat([state.done_scores, scores], dim=1).topk(beams)
    padding = (0, state.done_tokens.shape[2] - length)
    merged = {
        "done_tokens": F.pad(candidates.tokens, padding),
        "done_logprobs": F.pad(candidates.logprobs, padding),
        "done_lengths": torch.full_like(candidates.sources, length),
        "is_done": ended,
    }
    for name, new in merged.items():
        setattr(state, name, _gather(torch.cat([getattr(state, name), new], dim=1), chosen))


def _can_improve(state: _Beams, length: int, options: GenerateOptions) -> Tensor:
    """`[B]` bool: a running beam might still beat the worst finished one; transformers' early_stopping=False."""
    best_running = state.scores[:, 0] / length**options.length_penalty
    worst_done = torch.where(state.is_done, state.done_scores.amin(dim=1, keepdim=True), NEVER)
    return (best_running[:, None] > worst_done).any(dim=1)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Rows of `values` `[B, P, ...]` at `index` `[B, C]`."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]
