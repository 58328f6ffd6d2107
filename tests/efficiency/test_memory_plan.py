"""The memory plan against what small models really allocate, and against what back-ends really store."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from configs.schema import load_config
from configs.sections import GenerateConfig
from efficiency.memory_plan import AllocationTracker, PlannedClip, plan_inference, plan_training
from models import build_model
from models.quantization.stored_shapes import PackedLinear, stored_tensors
from models.sizes import part_sizes
from tests import tiny

SECONDS = 2.5
CLOSE = 0.10


class LiveBytes(TorchDispatchMode):
    """The measure: bytes of the real storages that operations return and that are still alive, and their peak."""

    def __init__(self, known):
        super().__init__()
        self.keep = [tensor.untyped_storage() for tensor in known]
        self.seen = {storage.data_ptr() for storage in self.keep}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return result

    def add(self, storage):
        address, size = storage.data_ptr(), storage.nbytes()
        if not size or address in self.seen:
            return
        self.seen.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.remove, address, size)

    def remove(self, address, size):
        self.seen.discard(address)
        self.now -= size


def tensors_of(model):
    return [*model.parameters(), *model.buffers()]


def clip(seconds=SECONDS, batch=1):
    samples = round(seconds * 16_000)
    return 0.1 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(0)), torch.full((batch,), samples)


def prompt_length(model, prompt):
    text = model.text.batch([prompt])
    return len(text.before[0]) + len(text.after[0])


PROMPT = "<Speech><SpeechHere></Speech> Write down what is said."
FAMILIES = ("llama", "gemma2")


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """A real small model, and the same without weights."""
    project = tiny.write_project(tmp_path_factory.mktemp(request.param), family=request.param)
    config = load_config(project.config).model
    return build_model(config), build_model(config, "cpu", weights=False)


def test_a_planned_model_has_the_sizes_and_types_of_the_model(pair):
    model, on_meta = pair
    assert part_sizes(on_meta) == part_sizes(model)
    for (name, real), (_, planned) in zip(
        sorted(model.named_parameters()), sorted(on_meta.named_parameters()), strict=True
    ):
        assert (real.shape, real.dtype, real.requires_grad) == (planned.shape, planned.dtype, planned.requires_grad), (
            name
        )
    assert all(tensor.is_meta for tensor in on_meta.parameters())


@pytest.mark.parametrize(
    ("seconds", "beams", "tokens", "parts"),
    [(SECONDS, 1, 24, {"encoders"}), (0.1, 8, 160, {"prefill", "decode"}), (0.1, 1, 400, {"prefill", "decode"})],
    ids=["long clip", "beams", "long answer"],
)
def test_inference_is_planned_within_a_tenth(pair, seconds, beams, tokens, parts):
    """In each case another part is what sets the peak."""
    model, on_meta = pair
    options = GenerateConfig(num_beams=beams, max_new_tokens=tokens, min_length=tokens)
    waveforms, lengths = clip(seconds)
    model.generate(waveforms, lengths, [PROMPT], max_new_tokens=1)  # filters and windows are made once
    measure = LiveBytes(tensors_of(model))
    with measure:
        model.generate(waveforms, lengths, [PROMPT], **dataclasses.asdict(options))
    workload = PlannedClip(seconds=seconds, prompt_tokens=prompt_length(model, PROMPT), generate=options)
    plan = plan_inference(on_meta, workload)
    peak = max(plan.activations.values())
    assert next(part for part, size in plan.activations.items() if size == peak) in parts
    assert peak == pytest.approx(measure.peak + waveforms.nbytes, rel=CLOSE)


@pytest.mark.parametrize("batch", [1, 3])
def test_training_is_planned_within_a_tenth(pair, batch):
    model, on_meta = pair
    waveforms, lengths = clip(batch=batch)
    texts = ["one two three"] * batch
    text = model.text.batch([PROMPT] * batch, texts)
    model.train()
    for parameter in model.parameters():
        parameter.grad = None
    measure = LiveBytes(tensors_of(model))
    with measure:
        model(waveforms, lengths, text_batch=text).loss_sum.backward()
    model.eval()
    workload = PlannedClip(
        seconds=SECONDS, prompt_tokens=prompt_length(model, PROMPT), answer_tokens=len(text.targets[0])
    )
    plan = plan_training(on_meta, workload, batch=batch)
    assert plan.activations + plan.gradients == pytest.approx(measure.peak + waveforms.nbytes, rel=CLOSE)
    assert plan.optimizer == 8 * sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_plan_leaves_the_model_as_it_was(pair):
    _, on_meta = pair
    before = dict(on_meta.named_parameters())
    plan_training(on_meta, PlannedClip(seconds=1.0), batch=1)
    assert all(tensor is before[name] and tensor.is_meta for name, tensor in on_meta.named_parameters())
    assert not on_meta.training


def test_longer_clips_and_more_beams_take_more(pair):
    _, on_meta = pair
    small = plan_inference(on_meta, PlannedClip(seconds=1.0, generate=GenerateConfig(num_beams=1)))
    longer = plan_inference(on_meta, PlannedClip(seconds=4.0, generate=GenerateConfig(num_beams=1)))
    beams = plan_inference(on_meta, PlannedClip(seconds=1.0, generate=GenerateConfig(num_beams=4)))
    assert small.peak < longer.peak and small.audio_tokens < longer.audio_tokens
    assert beams.cache == 4 * small.cache
    config = on_meta.llm.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 4
    assert small.cache == a_token * (small.sequence + GenerateConfig().max_new_tokens - 1)


@pytest.mark.parametrize("back_end", ["nf4", "int8"])
def test_stored_bytes_are_those_of_bitsandbytes(back_end, tmp_path):
    pytest.importorskip("bitsandbytes")
    project = tiny.write_project(tmp_path)
    options = [f"model.quantization={back_end}", "model.allow_slow_kernels=true"]
    config = load_config(project.config, options).model
    model, on_meta = build_model(config), build_model(config, "cpu", weights=False)
    for real, planned in zip(part_sizes(model), part_sizes(on_meta), strict=True):
        assert (real.part, real.parameters, real.trainable) == (planned.part, planned.parameters, planned.trainable)
        assert planned.bytes == pytest.approx(real.bytes, rel=0.005), real.part


@pytest.mark.parametrize(
    ("back_end", "bits"),
    [("nf4", 4.127), ("int8", 8.004), ("gptq", 4.188), ("torchao_int4", 4.25), ("torchao_int8", 8.002)],
)
def test_bits_a_weight(back_end, bits):
    rows, columns = 2048, 8192
    stored = stored_tensors(back_end, rows, columns, torch.float16)
    size = sum(torch.empty(shape, dtype=dtype, device="meta").nbytes for shape, dtype in stored.values())
    assert 8 * size / (rows * columns) == pytest.approx(bits, abs=0.01)


def test_an_unknown_back_end_is_named():
    with pytest.raises(ValueError, match=r"'awq'.*nf4, int8, gptq"):
        stored_tensors("awq", 8, 8, torch.float16)


def test_a_packed_layer_unpacks_its_weight_only_while_it_multiplies():
    with torch.device("meta"):
        linear = nn.Linear(256, 512, bias=False)
    layer = PackedLinear(linear, "nf4", torch.float32)
    tracker = AllocationTracker([*layer.parameters(), *layer.buffers()])
    with tracker:
        inputs = torch.empty(4, 256, device="meta", requires_grad=True)
        outputs = layer(inputs)
        assert outputs.shape == (4, 512)
        assert tracker.live == inputs.nbytes + outputs.nbytes
        assert tracker.peak == tracker.live + 4 * 256 * 512
        outputs.sum().backward()
    assert inputs.grad.shape == inputs.shape


def test_shared_storages_count_once():
    tracker = AllocationTracker()
    with tracker:
        values = torch.zeros(1000)
        views = [values[:500], values.view(10, 100)]
        assert tracker.live == 4000
        del values, views
    assert (tracker.live, tracker.peak) == (0, 4000)


def test_mixed_precision_is_planned_for_gemma_in_bfloat16(tmp_path):
    project = tiny.write_project(tmp_path, family="gemma2")
    on_meta = build_model(load_config(project.config, ["model.dtype=bfloat16"]).model, "cuda", weights=False)
    full = plan_training(on_meta, PlannedClip(seconds=1.0), batch=2)
    mixed = plan_training(on_meta, PlannedClip(seconds=1.0), batch=2, amp=torch.float16)
    assert 0 < mixed.activations < 1.5 * full.activations
