"""The LLM stand-in: a small Llama that repeats, in order, the words whose embeddings it gets instead of audio tokens.

A connector learns quickly only if the frozen LLM already handles inputs like the connector's outputs. So the LLM is
pretrained on text alone, but timed like audio: every third of a second is one vector, the sum of the embeddings of the
words that end there (later ones weaker), or a filler; with noise, mixtures of two words, and words split by a window
boundary. From such vectors it answers the demo's tasks. Half of the spoken lines are random words: without them a
language model generates from its grammar and ignores the input.

Weights are rounded to NF4 in every forward pass of the last part of training, so that 4 bits cost the demo little.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from configs.sections import ModelConfig
from data.demo.captions import KINDS
from data.demo.clips import Clip
from data.demo.tasks import Answer, mixed_answer, music_answer, sound_answers, speech_answers
from models.language.text import TextProcessor
from tools.standins.clips import assert_training_only, draw_pretraining_clip
from tools.standins.tokenizer import SPACE
from tools.standins.training import learning_rate, save_half

WINDOW_S = 1 / 3
TEMPLATE = "USER: {}\nASSISTANT:"
NF4_BLOCK = 64
OPEN_LINES = 0.15
"""Share of lines whose answer is random words of the vocabulary, so that words outside the corpus are trained too: a
fine-tuned connector then only has to select them."""
# The sixteen levels of 4-bit NormalFloat (Dettmers et al. 2023, QLoRA, appendix E).
NF4_LEVELS = (
    -1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class LlamaRecipe:
    """Sizes and training of the language model."""

    hidden: int = 128
    layers: int = 2
    heads: int = 4
    ffn: int = 320
    steps: int = 7_000
    batch: int = 48
    peak_rate: float = 3e-3
    warmup_steps: int = 200
    quantised_share: float = 0.2
    """The last part of training, with weights rounded to NF4."""
    embedding_std: float = 0.5
    """About the size of an untrained connector's outputs."""
    seed: int = 0


@dataclass(frozen=True)
class Line:
    """One training example: windows of weighted piece ids, the prompt around them, the answer."""

    windows: list[list[tuple[int, float]]]
    before: Tensor
    after: Tensor
    target: Tensor


class Lines:
    """Endless training lines, drawn from clips that are never rendered."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompts: Path, seed: int) -> None:
        self.text = TextProcessor(
            tokenizer,
            prompt_template=TEMPLATE,
            end_sym="</s>",
            bos_token=None,
            stop_strings=(),
            max_txt_len=ModelConfig().max_txt_len,
            extra_eos_ids=(),
        )
        self.prompts = json.loads((prompts / "train.json").read_text(encoding="utf-8"))
        for task, prompt in json.loads((prompts / "test.json").read_text(encoding="utf-8")).items():
            self.prompts[task] = [*self.prompts[task], prompt, prompt]
        self.seed = seed
        self.words = sorted(piece[1:] for piece in tokenizer.get_vocab() if piece[0] == SPACE and piece[1:].isalpha())
        self._pieces: dict[str, list[int]] = {}

    def draw(self, number: int) -> Line:
        """Line `number`: a pure function of it and the seed."""
        rng = np.random.default_rng((self.seed, number))
        if rng.random() < OPEN_LINES:
            return self._line(rng, *self._open(rng))
        clip = draw_pretraining_clip(number, speech=0.55, seed=self.seed + 100)
        assert_training_only(clip)
        if clip.sentence is not None:
            answers = [Answer("asr", clip.sentence.text)]
            if rng.random() < 0.25:
                answers = [mixed_answer(clip)] if clip.events else speech_answers(rng, clip)
            windows = self._spoken(rng, clip)
        else:
            answers = sound_answers(rng, clip)
            if rng.random() < 0.75:
                answers = answers[:1]
            if len(clip.events) == 1 and clip.events[0].kind in KINDS[-8:] and rng.random() < 0.5:
                answers = [music_answer(clip.events[0])]
            windows = self._sounding(rng, clip)
        return self._line(rng, answers[int(rng.integers(len(answers)))], windows)

    def _line(self, rng: np.random.Generator, answer: Answer, windows: list[list[tuple[int, float]]]) -> Line:
        options = self.prompts[answer.task]
        prompt = options[int(rng.integers(len(options)))].replace("{}", answer.question or "")
        batch = self.text.batch([prompt], [answer.text])
        return Line(windows, batch.before[0], batch.after[0], batch.targets[0])

    def _open(self, rng: np.random.Generator) -> tuple[Answer, list[list[tuple[int, float]]]]:
        """A caption of two to five random words: all of them in every window, the first the strongest."""
        words = [self.words[i] for i in rng.integers(len(self.words), size=int(rng.integers(2, 6)))]
        text = " ".join(words)
        strengths = [(self.pieces(word)[0], 0.75**order) for order, word in enumerate(words)]
        if rng.random() < 0.6:
            text = f"The sound of {text}"
            strengths.append((self.pieces("sound")[0], 0.5))
        windows = [
            [(piece, strength * rng.uniform(0.7, 1.2)) for piece, strength in strengths if rng.random() < 0.85]
            for _ in range(int(rng.integers(3, 14)))
        ]
        return Answer("audiocaption", text), windows

    def pieces(self, word: str) -> list[int]:
        if word not in self._pieces:
            self._pieces[word] = self.text.tokenizer.encode(word, add_special_tokens=False)
        return self._pieces[word]

    def _spoken(self, rng: np.random.Generator, clip: Clip) -> list[list[tuple[int, float]]]:
        """Words in the windows where they end; the speaker's gender and a background sound, weakly, in all windows."""
        speed = rng.uniform(0.75, 1.3)
        at_s, heard = rng.uniform(0.0, 0.1), []
        for word in clip.sentence.text.split():
            length_s = (0.06 + 0.055 * len(word)) * speed * rng.uniform(0.8, 1.25)
            heard.append((self.pieces(word), at_s + 0.8 * length_s))
            at_s += length_s
        count = max(1, int(np.ceil((at_s + 0.05) / WINDOW_S)))
        windows: list[list[tuple[int, float]]] = [[] for _ in range(count)]
        for ids, time_s in heard:
            place = min(count - 1, int(time_s / WINDOW_S))
            for order, piece in enumerate(ids):
                strength = 0.75 ** (len(windows[place]) + order)
                if rng.random() < 0.06 and place + 1 < count:  # split by the window boundary
                    windows[place + 1].append((piece, strength * rng.uniform(0.1, 0.6)))
                windows[place].append((piece, strength * rng.uniform(0.85, 1.15)))
        behind = [(self.pieces(clip.voice.gender)[0], 0.35)] if rng.random() < 0.6 else []
        behind += [(self.pieces(event.kind)[0], 0.5) for event in clip.events]
        for window in windows:
            window += [(piece, strength * rng.uniform(0.5, 1.2)) for piece, strength in behind]
        return windows

    def _sounding(self, rng: np.random.Generator, clip: Clip) -> list[list[tuple[int, float]]]:
        """Each event's name in every window of its duration, sometimes missing; with its melody."""
        first, *others = clip.events
        spans = [(first, 0.0, first.duration_s)]
        for second in others:
            start_s = rng.uniform(0.05, 1.0) * max(0.1, first.duration_s - second.duration_s)
            start_s = first.duration_s + rng.uniform(0.1, 0.35) if clip.relation == "then" else start_s
            spans.append((second, start_s, start_s + second.duration_s))
        count = max(1, int(np.ceil(max(end for *_, end in spans) / WINDOW_S)))
        windows: list[list[tuple[int, float]]] = [[] for _ in range(count)]
        for event, start_s, end_s in spans:
            names = [(self.pieces(event.kind)[0], 1.0)]
            if event.kind in KINDS[-8:]:
                names += [(self.pieces(event.contour)[0], 0.5), (self.pieces(event.tempo)[0], 0.5)]
            for place in range(int(start_s / WINDOW_S), min(count, int(np.ceil(end_s / WINDOW_S)))):
                covered = (min(end_s, (place + 1) * WINDOW_S) - max(start_s, place * WINDOW_S)) / WINDOW_S
                if covered > 0.2 and rng.random() < 0.9:
                    windows[place] += [
                        (piece, min(1.0, covered + 0.2) * g * rng.uniform(0.6, 1.1)) for piece, g in names
                    ]
        return windows


def collate(lines: list[Line], embedding: nn.Embedding, generator: torch.Generator) -> dict[str, Tensor]:
    """Embeddings `[B, L, H]`, labels `[B, L]` and the mask; noise and mixtures are added here."""
    pieces, places, strengths, ids, labels, spans = [], [], [], [], [], []
    size = max(len(line.before) + len(line.windows) + len(line.after) + len(line.target) for line in lines)
    for row, line in enumerate(lines):
        gain = 0.7 + 0.6 * float(torch.rand((), generator=generator))
        start = row * size + len(line.before)
        for place, window in enumerate(line.windows, start=start):
            for piece, strength in window:
                pieces.append(piece)
                places.append(place)
                strengths.append(gain * strength)
        filler = torch.zeros(len(line.windows), dtype=torch.long)
        content = torch.cat([line.before, filler, line.after, line.target])
        ids.append(F.pad(content, (0, size - len(content))))
        unseen = len(content) - len(line.target)
        labels.append(
            F.pad(torch.cat([torch.full((unseen,), -100), line.target]), (0, size - len(content)), value=-100)
        )
        spans.append((start, start + len(line.windows)))
    strength = torch.tensor(strengths)
    # Sometimes a mixture of two words.
    doubt = 0.5 * torch.rand(len(pieces), generator=generator) * (torch.rand(len(pieces), generator=generator) < 0.1)
    others = torch.randint(embedding.num_embeddings, (len(pieces),), generator=generator)
    vectors = embedding(torch.tensor(pieces)) * (strength * (1 - doubt))[:, None]
    vectors = vectors + embedding(others) * (strength * doubt)[:, None]
    inside = torch.zeros(len(lines) * size, 1)
    noise = torch.zeros(len(lines) * size, 1)
    std = float(embedding.weight.detach().std())
    for start, end in spans:
        inside[start:end] = 1.0
        noise[start:end] = 0.5 * std * float(torch.rand((), generator=generator))
    audio = noise * torch.randn(len(inside), embedding.embedding_dim, generator=generator)
    audio = audio.index_add(0, torch.tensor(places), vectors)
    embeds = embedding(torch.stack(ids)).flatten(0, 1) * (1 - inside) + audio
    return {"inputs_embeds": embeds.unflatten(0, (len(lines), size)), "labels": torch.stack(labels)}


def nf4_rounded(weight: Tensor) -> Tensor:
    """The weight as NF4 stores it: blocks of 64, each scaled by its largest value."""
    levels = weight.new_tensor(NF4_LEVELS)
    blocks = weight.reshape(-1, NF4_BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-12)
    nearest = torch.bucketize(blocks / scale, (levels[1:] + levels[:-1]) / 2)
    return (levels[nearest] * scale).reshape(weight.shape)


def build(recipe: LlamaRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden,
            intermediate_size=recipe.ffn,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    nn.init.normal_(model.get_input_embeddings().weight, std=recipe.embedding_std)
    return model


def loss_of(model: LlamaForCausalLM, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Mean over answer tokens, and the share of answers in which every token is the most likely one."""
    hidden = model.model(inputs_embeds=batch["inputs_embeds"], use_cache=False).last_hidden_state[:, :-1]
    labels = batch["labels"][:, 1:]
    logits = model.lm_head(hidden[labels != -100]).float()
    wanted = labels[labels != -100]
    wrong = torch.zeros_like(labels)
    wrong[labels != -100] = (logits.detach().argmax(-1) != wanted).long()
    return F.cross_entropy(logits, wanted), float((wrong.sum(1) == 0).float().mean())


def train(recipe: LlamaRecipe, model: LlamaForCausalLM, lines: Lines, log) -> Iterator[int]:
    """Train in place; yields the step every 500 steps and at the end."""
    decayed = [p for p in model.parameters() if p.ndim == 2]
    other = [p for p in model.parameters() if p.ndim != 2]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.01}, {"params": other, "weight_decay": 0.0}],
        lr=recipe.peak_rate,
        betas=(0.9, 0.98),
    )
    generator = torch.Generator().manual_seed(recipe.seed)
    linears = [module for module in model.model.modules() if isinstance(module, nn.Linear)]
    for step in range(1, recipe.steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe.steps, recipe.peak_rate, recipe.warmup_steps)
        batch = collate(
            [lines.draw(step * recipe.batch + row) for row in range(recipe.batch)],
            model.get_input_embeddings(),
            generator,
        )
        exact = [linear.weight.detach().clone() for linear in linears]
        if step > recipe.steps * (1 - recipe.quantised_share):
            with torch.no_grad():
                for linear in linears:
                    linear.weight.copy_(nf4_rounded(linear.weight))
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            loss, whole = loss_of(model, batch)
            loss.backward()
        with torch.no_grad():  # the gradient at the rounded weights updates the exact ones
            for linear, weight in zip(linears, exact, strict=True):
                linear.weight.copy_(weight)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 50 == 0:
            log(step=step, loss=loss.item(), whole=whole)
        if step % 500 == 0 or step == recipe.steps:
            yield step


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """An LLM folder: config.json, generation_config.json, model.safetensors in half precision, tokenizer files."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_half(model.state_dict(), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)
