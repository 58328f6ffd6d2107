"""What several tests of decoding need: a language model with its engine, prompts of given lengths, rows of a batch."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from models.decoding.engine import DecodeEngine
from models.language.llm import LanguageModel
from models.language.sequence import Assembled
from tests import tiny

ENDS = (2, 9, 21, 33, 47, 60, 71, 88, 93)
"""Several ids that end an answer, so that a random model does end some answers."""


def engine_of(folder: Path, family: str = "llama", device: str = "cpu") -> tuple[DecodeEngine, PreTrainedTokenizerBase]:
    """A tiny language model of a family, in evaluation, and its tokenizer."""
    tiny.write_llm(folder, family=family)
    llm = LanguageModel(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)).eval()
    return DecodeEngine(llm), AutoTokenizer.from_pretrained(folder)


def prompts(llm: LanguageModel, lengths: tuple[int, ...], seed: int = 0) -> Assembled:
    """Random prompts of these lengths, right-padded; the padding is junk, which must not matter."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(100, 300, (len(lengths), longest), generator=generator)
    positions = torch.arange(longest, device=llm.device).expand(len(lengths), -1)
    mask = positions < torch.tensor(lengths, device=llm.device)[:, None]
    with torch.no_grad():
        return Assembled(llm.embed(ids.to(llm.device)), mask, positions)


def row_of(assembled: Assembled, row: int) -> Assembled:
    """A row of a batch, without padding."""
    length = int(assembled.lengths[row])
    cut = slice(row, row + 1), slice(0, length)
    return Assembled(assembled.embeds[cut], assembled.mask[cut], assembled.positions[cut])
