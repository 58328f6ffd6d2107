"""How much memory a model takes, before any weight is loaded.

The plan runs the model's own code, from waveform to logits and back through the loss, on PyTorch's fake tensors, which
have a shape, a type and a size but no numbers, and counts the bytes of those that are alive. So every intermediate
result counts, whatever the encoders and the language model. What it cannot see: the scratch memory of kernels, the CUDA
context, and gaps between allocations.
"""

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from configs.sections import GenerateConfig
from models.decoding.kv_cache import KeyValueCache
from models.language.text import TextBatch
from models.salmonn import SALMONN
from models.sizes import part_sizes
from support.units import SAMPLE_RATE

CPU = torch.device("cpu")
ADAM_BYTES = 8  # two float32 moments a trained parameter
INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it is active and still alive, without those of `known`.

    `live` is their sum now, `peak` the most it has been since `reset_peak`. A storage that several tensors share counts
    once.
    """

    def __init__(self, known: Iterator[Tensor] | list[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}
        self._watches: dict[int, weakref.ref] = {}
        for tensor in known:
            self._watch(tensor, counted=False)

    def reset_peak(self) -> None:
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in INDEXING:
            # How many entries of a mask are True is a number, which fake tensors do not have; masks are real.
            args = (args[0], _as_positions(args[1]), *args[2:])
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf)
        return result

    def _watch(self, tensor: Tensor, *, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes() if counted else 0
        self._watches[key] = weakref.ref(storage, lambda _: self._forget(key))
        self.live += self._sizes[key]
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)
        self._watches.pop(key, None)


def _as_positions(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Masks among indices, as the positions of their True entries."""
    positions: list[Tensor | None] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            positions += index.nonzero(as_tuple=True)
        else:
            positions.append(index)
    return positions


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """What a plan is for: clips, prompt, answer."""

    seconds: float = 10.0
    prompt_tokens: int = 40
    """Text tokens around the audio: template, instruction and BOS."""
    answer_tokens: int = 40
    """Target tokens of a clip, in training."""
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    """Beams, and how many tokens the cache must hold."""

    @property
    def samples(self) -> int:
        return round(self.seconds * SAMPLE_RATE)


@dataclass(frozen=True, kw_only=True)
class InferencePlan:
    """Bytes that generating text for one clip takes."""

    weights: int
    activations: dict[str, int]
    """Part -> most bytes alive, weights aside, while it runs; caches and results for the next part are included."""
    cache: int
    """Keys and values of all beams, at their longest."""
    sequence: int
    """Tokens of the prompt, the audio's among them."""
    audio_tokens: int

    @property
    def peak(self) -> int:
        return self.weights + max(self.activations.values())


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """Bytes that a training step takes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    """Most bytes alive, the three others aside."""
    batch: int
    sequence: int

    @property
    def peak(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations


def plan_inference(model: SALMONN, clip: PlannedClip) -> InferencePlan:
    """The memory of generating text for one clip with a model of `build_model(…, weights=False)`, left unchanged."""
    weights = part_sizes(model)[-1].bytes
    with _on_fake_tensors(model) as tracker, torch.no_grad():
        activations: dict[str, int] = {}
        with tracker:
            waveforms, lengths = _clips(model, 1, clip)
            frames = model.encode_frames(waveforms, lengths)
            activations["encoders"] = tracker.peak
            tracker.reset_peak()
            tokens, mask = model.encode_audio(None, None, frames)
            activations["connector"] = tracker.peak
            audio_tokens = tokens.shape[1]
            assembled = model.assemble(tokens, mask, _text(1, clip.prompt_tokens))
            sequence = assembled.embeds.shape[1]
            tracker.reset_peak()
            cache_bytes = _decode(model, assembled, clip.generate, tracker, activations)
    return InferencePlan(
        weights=weights, activations=activations, cache=cache_bytes, sequence=sequence, audio_tokens=audio_tokens
    )


def _decode(
    model: SALMONN,
    assembled: Any,
    options: GenerateConfig,
    tracker: AllocationTracker,
    activations: dict[str, int],
) -> int:
    """Prefill, then the last step of the longest answer, as in beam or greedy search; bytes of the cache."""
    sequence = assembled.embeds.shape[1]
    capacity = sequence + options.max_new_tokens - 1
    cache = KeyValueCache(1, sequence if options.num_beams > 1 else capacity, CPU)
    logits = model.engine.prefill(assembled, cache)
    if options.num_beams > 1:
        cache.select(torch.zeros(options.num_beams, dtype=torch.long), capacity)
        logits = logits.repeat_interleave(options.num_beams, dim=0)
    activations["prefill"] = tracker.peak
    tracker.reset_peak()
    cache.span = capacity - 1
    cache.lengths = torch.full_like(cache.lengths, capacity - 1)
    cache.valid.fill_(True)
    _choose(logits)
    if options.num_beams > 1:
        cache.reorder(torch.arange(options.num_beams), sequence)
    logits = model.engine.step(torch.zeros(options.num_beams, dtype=torch.long), cache)
    _choose(logits)
    activations["decode"] = tracker.peak
    return cache.nbytes


def _choose(logits: Tensor) -> None:
    """What a search computes from logits `[P, V]`: log-probabilities, penalised scores, sums."""
    logprobs = F.log_softmax(logits, dim=-1)
    processed = logprobs.clone()
    (processed + processed[:, :1]).flatten().topk(1)


def plan_training(model: SALMONN, clip: PlannedClip, *, batch: int, amp: torch.dtype | None = None) -> TrainingPlan:
    """The memory of a training step on `batch` clips, from the second one on, when the optimiser has its moments.

    `amp` is the type of mixed precision, None for none. `model` comes without weights, and is left unchanged.
    """
    sizes = part_sizes(model)[-1]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
    with _on_fake_tensors(model) as tracker:
        model.train()
        with tracker:
            waveforms, lengths = _clips(model, batch, clip)
            text = _text(batch, clip.prompt_tokens, clip.answer_tokens)
            with torch.autocast("cpu", dtype=amp or torch.float16, enabled=amp is not None):
                output = model(waveforms, lengths, text_batch=text)
            output.loss_sum.backward()
    sequence = model.connector.token_count(model.encoders.frame_count(clip.samples))
    return TrainingPlan(
        weights=sizes.bytes,
        gradients=gradients,
        optimizer=ADAM_BYTES * sizes.trainable,
        # Gradients are made one by one while activations are freed; at the peak few of them exist.
        activations=max(0, tracker.peak - gradients),
        batch=batch,
        sequence=sequence + clip.prompt_tokens + clip.answer_tokens,
    )


def _clips(model: SALMONN, batch: int, clip: PlannedClip) -> tuple[Tensor, Tensor]:
    """Waveforms `[B, T]`, fake, and their lengths `[B]`, real."""
    weight = model.connector.to_llm.weight
    waveforms = weight.detach().new_empty(batch, clip.samples, dtype=torch.float32)
    return waveforms, torch.full((batch,), clip.samples)


def _text(batch: int, prompt_tokens: int, answer_tokens: int | None = None) -> TextBatch:
    def rows(count: int) -> list[Tensor]:
        return [torch.zeros(count, dtype=torch.long) for _ in range(batch)]

    before = prompt_tokens // 2
    targets = None if answer_tokens is None else rows(answer_tokens)
    return TextBatch(before=rows(before), after=rows(prompt_tokens - before), targets=targets)


@contextlib.contextmanager
def _on_fake_tensors(model: SALMONN) -> Iterator[AllocationTracker]:
    """The model gets fake tensors in place of its meta tensors; gives a tracker that does not count these.

    Fake tensors claim to be on the CPU, so that every line runs unchanged. Masks, lengths and ids are real: what
    depends on them is computed.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            inner = FakeTensor(mode, tensor.detach(), CPU)
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(inner, requires_grad=tensor.requires_grad) if is_parameter else inner
        return made[id(tensor)]

    originals = []
    was_training = model.training
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    originals.append((tensors, name, tensor))
    try:
        for tensors, name, tensor in originals:
            tensors[name] = fake(tensor)
        yield AllocationTracker(list(made.values()))
    finally:
        for tensors, name, tensor in originals:
            tensors[name] = tensor
        model.train(was_training)
