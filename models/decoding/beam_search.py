"""Beam search for the slots of a continuous batch: transformers' own hypotheses, with less work.

The scoring follows `GenerationMixin._beam_search` of transformers 5 (early_stopping=False) step by step, the order of
its float32 operations included. Different here: the prompt is run once a clip, not once a beam, and only the generated
part of the cache moves when beams are reordered.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from models.decoding.hypothesis import Generation, hits_stop_string
from models.decoding.scores import GenerateOptions, draw, process_scores, seeded_rows
from models.language.text import TextProcessor

NEVER = -1.0e9  # a score that no hypothesis reaches


class BeamSearch:
    """The beams of each slot, which has `num_beams` rows of the cache."""

    def __init__(self, logits: Tensor, text: TextProcessor, options: GenerateOptions) -> None:
        """Choose the first tokens from `logits` `[S·P, V]`, which are equal for all beams of a slot."""
        self.beams = options.num_beams
        self._groups = [_Group(list(range(len(logits) // self.beams)), text, options, logits.device)]
        self.advance(logits)

    def advance(self, logits: Tensor) -> Tensor:
        """Continue every slot by a token: `[S·P]`, for each row of the cache the row that it continues."""
        self._groups = [group for group in self._groups if not group.is_over]
        by_slot = logits.unflatten(0, (-1, self.beams))
        if len(self._groups[0].slots) == len(by_slot):  # all were added together: fewer kernels
            (group,) = self._groups
            sources = group.first_rows + group.advance(logits)
            self.next_ids = group.state.tokens[:, :, -1].flatten().clone()
            """`[S·P]`, the tokens that the next step runs."""
            return sources.flatten()
        sources = torch.arange(len(logits), device=logits.device).view(-1, self.beams)
        for group in self._groups:
            sources[group.index] = group.first_rows + group.advance(by_slot[group.index].flatten(0, 1))
            self.next_ids.view_as(sources)[group.index] = group.state.tokens[:, :, -1]
        return sources.flatten()

    def tokens(self, slot: int) -> list[int]:
        """What the best running beam has generated."""
        group, clip = self._find(slot)
        return group.state.tokens[clip, 0].tolist()

    def result(self, slot: int, *, stop: bool = False) -> Generation | None:
        """The best hypothesis of a slot that has just ended, or that is to `stop` here; None while it is running."""
        group, clip = self._find(slot)
        return group.result(clip, stop=stop)

    def select(self, slots: Sequence[int]) -> None:
        """Keep these slots, in this order; a slot may be repeated, to be replaced by `put`."""
        index = torch.tensor(slots, device=self.next_ids.device)
        self.next_ids = self.next_ids.view(-1, self.beams)[index].flatten()
        self._keep({slot: slots.index(slot) for slot in slots})

    def put(self, slots: Sequence[int], other: "BeamSearch") -> None:
        """Replace these slots by those of a search that has just begun."""
        others = {slot for group in self._groups for slot in group.slots}.difference(slots)
        self._keep({slot: slot for slot in others})
        (group,) = other._groups
        group.move_to(list(slots))
        self._groups.append(group)
        self.next_ids.view(-1, self.beams)[group.index] = other.next_ids.view(-1, self.beams)

    def _find(self, slot: int) -> "tuple[_Group, int]":
        """The group of a slot, and which of its clips the slot is."""
        return next((group, group.slots.index(slot)) for group in self._groups if slot in group.slots)

    def _keep(self, slots: dict[int, int]) -> None:
        """Keep the slots that are keys of `slots`; the values are where they are from now on."""
        self._groups = [group for group in self._groups if not slots.keys().isdisjoint(group.slots)]
        for group in self._groups:
            group.keep([clip for clip, slot in enumerate(group.slots) if slot in slots])
            group.move_to([slots[slot] for slot in group.slots])


class _Group:
    """Slots that were added together, so that their clips have generated equally many tokens."""

    def __init__(self, slots: list[int], text: TextProcessor, options: GenerateOptions, device: torch.device) -> None:
        self.text = text
        self.options = options
        self.state = _Beams.start(len(slots), options.num_beams, options.max_new_tokens, device)
        self.ended = [False] * len(slots)
        """Whether a clip's search is complete."""
        self.stopped = [False] * len(slots)
        """Whether a clip's best running beam has generated `stop_id`."""
        self._generators = seeded_rows(options, len(slots), device)
        self.move_to(slots)

    @property
    def count(self) -> int:
        """Generated tokens."""
        return self.state.tokens.shape[2]

    @property
    def is_over(self) -> bool:
        return all(ended or stopped for ended, stopped in zip(self.ended, self.stopped, strict=True))

    def move_to(self, slots: list[int]) -> None:
        """The clips are in these slots from now on."""
        self.slots = slots
        adjacent = slots == list(range(slots[0], slots[0] + len(slots)))
        index = torch.tensor(slots, device=self.state.scores.device)
        self.index = slice(slots[0], slots[-1] + 1) if adjacent else index
        self.first_rows = index[:, None] * self.options.num_beams

    def keep(self, clips: list[int]) -> None:
        if len(clips) < len(self.slots):
            self.slots, self.ended, self.stopped = (
                [values[clip] for clip in clips] for values in (self.slots, self.ended, self.stopped)
            )
            self.state = self.state.select(torch.tensor(clips, device=self.state.scores.device))
            if len(self._generators) > 1:
                self._generators = [self._generators[clip] for clip in clips]

    def advance(self, logits: Tensor) -> Tensor:
        """Continue each clip by a token from `logits` `[B·P, V]`: the beams that were continued, `[B, P]`."""
        last_step = self.count + 1 == self.options.max_new_tokens
        candidates = _candidates(logits, self.state, self.text, self.options, last_step, self._generators)
        _collect_done(self.state, candidates, self.options)
        sources = _continue(self.state, candidates)
        ended = ~_can_improve(self.state, self.options) | candidates.ended.all(dim=1)
        self.ended = [before or now for before, now in zip(self.ended, ended.tolist(), strict=True)]
        if self.options.stop_id is not None:
            newest = self.state.tokens[:, 0, -1].tolist()
            self.stopped = [
                before or token == self.options.stop_id for before, token in zip(self.stopped, newest, strict=True)
            ]
        return sources

    def result(self, clip: int, *, stop: bool) -> Generation | None:
        """`BeamSearch.result` of one of the clips; its running beams count as finished where they are stopped."""
        stopped = not self.ended[clip] and (stop or self.stopped[clip])
        if not (stopped or self.ended[clip]):
            return None
        state = self.state.select(slice(clip, clip + 1))
        if stopped:
            _close(state, self.options)
        length = int(state.done_lengths[0, 0])
        tokens, logprobs = (part[0, 0, :length].tolist() for part in (state.done_tokens, state.done_logprobs))
        return Generation.of(tokens, logprobs, self.text, stopped=stopped)


@dataclass
class _Beams:
    """State of some clips: `P` beams a clip, `G` tokens so far."""

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
    """`[B, P]` bool, a hypothesis rather than nothing yet"""

    @classmethod
    def start(cls, clips: int, beams: int, longest: int, device: torch.device) -> "_Beams":
        scores = torch.zeros(clips, beams, device=device)
        scores[:, 1:] = NEVER  # all beams are equal at first: only one may be continued
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

    def select(self, clips: Tensor | slice) -> "_Beams":
        return _Beams(**{field.name: getattr(self, field.name)[clips] for field in fields(self)})


@dataclass(frozen=True)
class _Candidates:
    """The best continuations of a step: `C` a clip, more than there are beams, so that enough remain when some end."""

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


def _collect_done(state: _Beams, candidates: _Candidates, options: GenerateOptions) -> None:
    """Add those of the first `P` candidates that ended to the finished hypotheses, where they are better."""
    beams, length = state.done_scores.shape[1], candidates.tokens.shape[2]
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


def _close(state: _Beams, options: GenerateOptions) -> None:
    """Add the running beams to the finished hypotheses."""
    running = _Candidates(
        sources=torch.zeros_like(state.done_lengths),
        tokens=state.tokens,
        logprobs=state.logprobs,
        scores=state.scores,
        ended=torch.ones_like(state.is_done),
    )
    _collect_done(state, running, options)


def _can_improve(state: _Beams, options: GenerateOptions) -> Tensor:
    """`[B]` bool: a running beam might still beat the worst finished one; transformers' early_stopping=False."""
    best_running = state.scores[:, 0] / state.tokens.shape[2] ** options.length_penalty
    worst_done = torch.where(state.is_done, state.done_scores.amin(dim=1, keepdim=True), NEVER)
    return (best_running[:, None] > worst_done).any(dim=1)


def _gather(values: Tensor, index: Tensor) -> Tensor:
    """Rows of `values` `[B, P, ...]` at `index` `[B, C]`."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]
