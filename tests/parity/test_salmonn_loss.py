"""A complete tiny SALMONN from its released checkpoint: tokens, assembly, loss, gradients, training steps, text."""

import json

import pytest
import torch
from safetensors.torch import load_file

from configs.schema import load_config
from models import build_model
from models.checkpoint.adapter_tensors import named_tensors
from models.checkpoint.released import load_legacy
from models.checkpoint.released_names import released_name
from models.language.text import TextBatch
from tests.vectors import (
    cases,
    generation_prompts,
    matches,
    rows_of,
    salmonn_config,
    salmonn_modes,
    settings,
    tensor_names,
    train_prompts,
)

ATOL = 1e-4  # the vectors' tolerance for embeddings


@pytest.fixture(scope="module")
def folder(parity_dir):
    return parity_dir / "salmonn_loss"


@pytest.fixture(scope="module")
def facts(folder):
    return settings(folder)


@pytest.fixture(scope="module")
def outputs(folder):
    return load_file(folder / "output.safetensors")


@pytest.fixture(scope="module")
def texts(folder):
    return json.loads((folder / "batch.json").read_text())["text"]


@pytest.fixture(scope="module")
def clips(folder):
    inputs = load_file(folder / "input.safetensors")
    return inputs["raw_wav"], (~inputs["padding_mask"]).sum(dim=1)


def loaded(folder, legacy):
    model = build_model(salmonn_config(folder, f"model.legacy={legacy}", "model.ckpt="))
    load_legacy(model, folder / "checkpoint_0.pth", pad_rows=folder / "pad_rows.safetensors")
    return model.eval()


@pytest.fixture(scope="module")
def exact(folder):
    return loaded(folder, "exact")


@pytest.fixture(scope="module")
def weights(folder):
    return loaded(folder, "weights")


def text_batch_of(model, folder, mode, facts, texts):
    prompts = train_prompts(folder, mode)
    targets = model.text.batch(["<SpeechHere>"] * len(prompts), [texts[row] for row in rows_of(facts, mode)]).targets
    if mode == "no_prompt":
        bos, nothing = torch.tensor(model.text.bos_ids), torch.tensor([], dtype=torch.long)
        return TextBatch([bos] * len(prompts), [nothing] * len(prompts), targets)
    wrapped = model.text.batch(prompts)
    return TextBatch(wrapped.before, wrapped.after, targets)


def test_report(folder, facts):
    model = build_model(salmonn_config(folder, "model.legacy=weights", "model.ckpt="))
    report = load_legacy(model, folder / "checkpoint_0.pth")
    state = torch.load(folder / "checkpoint_0.pth", weights_only=True)["model"]
    assert {*report.matched, *report.ignored} == set(state)
    assert set(facts["trainable_parameters"]) <= set(report.matched)
    assert not (report.missing or report.unexpected or report.misshapen)


def test_audio_tokens_of_the_batch(exact, clips, outputs):
    with torch.no_grad():
        tokens, mask = exact.encode_audio(*clips)
    assert mask.all()
    torch.testing.assert_close(tokens, outputs["encode_speech.tokens"], atol=ATOL, rtol=0)


@cases(
    "row",
    "salmonn_loss",
    lambda folder: matches(r"encode_speech\.tokens_row(\d+)_alone", tensor_names(folder / "output.safetensors")),
)
def test_audio_tokens_of_a_clip_alone_and_of_every_row_under_weights(exact, weights, clips, outputs, row):
    waveforms, lengths = clips
    expected, row = outputs[f"encode_speech.tokens_row{row}_alone"][0], int(row)
    alone = waveforms[row : row + 1, : lengths[row]], lengths[row : row + 1]
    with torch.no_grad():
        for tokens, mask in (exact.encode_audio(*alone), weights.encode_audio(*alone)):
            torch.testing.assert_close(tokens[0][mask[0]], expected, atol=ATOL, rtol=0)
        tokens, mask = weights.encode_audio(waveforms, lengths)
    torch.testing.assert_close(tokens[row][mask[row]], expected, atol=ATOL, rtol=0)


@cases("mode", "salmonn_loss", salmonn_modes)
def test_assembly_and_loss(exact, folder, facts, clips, texts, outputs, mode):
    text_batch = text_batch_of(exact, folder, mode, facts, texts)
    rows = list(rows_of(facts, mode))
    waveforms, lengths = clips[0][rows], clips[1][rows]
    with torch.no_grad():
        assembled = exact.assemble(*exact.encode_audio(waveforms, lengths), text_batch)
        loss = exact(waveforms, lengths, text_batch=text_batch).loss
    torch.testing.assert_close(assembled.embeds, outputs[f"{mode}.inputs_embeds"], atol=ATOL, rtol=0)
    assert torch.equal(assembled.mask.long(), outputs[f"{mode}.attention_mask"])
    assert torch.equal(assembled.labels, outputs[f"{mode}.labels"])
    assert torch.equal(assembled.positions, torch.arange(assembled.embeds.shape[1]).expand(len(rows), -1))
    assert text_batch.target_tokens == facts[mode]["total"]
    assert loss.item() == pytest.approx(facts[mode]["loss"], rel=1e-4)


@cases("mode", "salmonn_loss", lambda folder: [mode for mode in salmonn_modes(folder) if "_row" in mode])
def test_loss_of_a_clip_alone_under_weights(weights, folder, facts, clips, texts, mode):
    text_batch, rows = text_batch_of(weights, folder, mode, facts, texts), list(rows_of(facts, mode))
    with torch.no_grad():
        loss = weights(clips[0][rows], clips[1][rows], text_batch=text_batch).loss
    assert loss.item() == pytest.approx(facts[mode]["loss"], rel=1e-4)


def test_loss_of_a_batch_is_the_sum_of_its_clips_under_weights(weights, folder, clips, texts):
    prompts = train_prompts(folder, "multi_prompt")
    with torch.no_grad():
        together = weights(*clips, prompts, texts).loss_sum
        alone = [
            weights(clips[0][r : r + 1], clips[1][r : r + 1], prompts[r : r + 1], texts[r : r + 1])
            for r in range(len(texts))
        ]
    assert together.item() == pytest.approx(sum(part.loss_sum.item() for part in alone), rel=1e-4)


def test_gradients_and_training_steps(folder, facts, clips, texts, outputs):
    model = loaded(folder, "exact")
    trace = json.loads((folder / "train_trace.json").read_text())
    text_batch = text_batch_of(model, folder, "multi_prompt", facts, texts)
    trained = {
        released_name(name): tensor for name, (tensor, _) in named_tensors(model).items() if tensor.requires_grad
    }
    assert set(trained) == set(facts["trainable_parameters"])
    plain = [p for name, p in trained.items() if p.ndim < 2 or "bias" in name or "ln" in name or "bn" in name]
    decayed = [p for p in trained.values() if not any(p is other for other in plain)]
    optims = load_config(folder / "train.yaml").run.optims
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optims.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, optims.beta2),
    )
    frames = model.encode_frames(*clips)  # the encoders are frozen
    for step in trace["steps"]:
        for group in optimizer.param_groups:
            group["lr"] = step["lr"]
        loss = model(None, None, text_batch=text_batch, frames=frames).loss
        assert loss.item() == pytest.approx(step["loss"], rel=1e-4)
        optimizer.zero_grad()
        loss.backward()
        if step["step"] == 0:
            for name, norm in facts["grad_norms"].items():
                assert trained[name].grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-5), name
            for name, expected in outputs.items():
                if name.startswith("grad."):
                    torch.testing.assert_close(trained[name[5:]].grad, expected, atol=1e-3, rtol=1e-3)
        optimizer.step()
    with torch.no_grad():
        after = model(None, None, text_batch=text_batch, frames=frames).loss
    assert after.item() == pytest.approx(trace["loss_after"], rel=1e-4)
    for name, norm in trace["param_norms_after"].items():
        assert trained[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-5), name


def test_greedy_tokens_alone_and_of_every_row_under_weights(exact, weights, folder, clips):
    facts = json.loads((folder / "generate.json").read_text())
    prompts, options = generation_prompts(folder), {"num_beams": 1, "max_new_tokens": facts["max_new_tokens"]}
    waveforms, lengths = clips
    expected = [one["tokens"][0] for one in facts["greedy_one_by_one"]]
    together = weights.generate(waveforms, lengths, prompts, return_details=True, **options)
    assert [row.tokens for row in together] == expected
    for row in range(len(lengths)):
        size = int(lengths[row])
        (alone,) = exact.generate(
            waveforms[row : row + 1, :size],
            lengths[row : row + 1],
            prompts[row : row + 1],
            return_details=True,
            **options,
        )
        assert alone.tokens == expected[row]


def test_greedy_tokens_of_the_batch(exact, folder, clips, outputs):
    facts = json.loads((folder / "generate.json").read_text())
    prompts = generation_prompts(folder)
    with torch.no_grad():
        assembled = exact.assemble(*exact.encode_audio(*clips), exact.text.batch(prompts))
    assert torch.equal(assembled.mask.long(), outputs["generate.batch_attention_mask"])
    results = exact.generate(*clips, prompts, return_details=True, num_beams=1, max_new_tokens=facts["max_new_tokens"])
    assert [row.tokens for row in results] == facts[f"greedy_batch_of_{len(prompts)}"]["tokens"]


def test_hypotheses_as_the_evaluator_writes_them(exact, weights, folder):
    facts = json.loads((folder / "generate.json").read_text())
    kinds = matches("(.+_one_by_one)", list(facts))
    assert "greedy_one_by_one" in kinds
    for kind in kinds:
        for one in facts[kind]:
            tokens, expected = one["tokens"][0], one["hyp_by_evaluator"][0]
            assert exact.text.decode(tokens).lower() == expected.strip()
