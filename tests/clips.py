"""A batch of clips of different lengths, their prompts and texts, for tests of whole models."""

import torch

from tests import tiny

LENGTHS_S = (0.05, 0.3, 0.5, 1.0, 1.37, 2.0, 2.61, 3.2)
PROMPTS = [
    "<Speech><SpeechHere></Speech> Write down what is said.",
    "Describe the sound. <Speech><SpeechHere></Speech>",
    "<Speech><SpeechHere></Speech> Answer the question: is a fish red or blue?",
    "What can be heard? <Speech><SpeechHere></Speech> Transcribe the speech, word for word.",
] * 2
TEXTS = ["one two", "a steady hiss", "blue", "three four five red", "nine", "a low hum", "red", "zero fish green"]


def mixed_clips(seed=0):
    """Eight clips of different lengths in one batch, zeros after each clip's end: [8, T], [8]."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([int(seconds * tiny.SAMPLE_RATE) for seconds in LENGTHS_S])
    waveforms = torch.zeros(len(lengths), int(lengths.max()))
    for row, length in enumerate(lengths.tolist()):
        waveforms[row, :length] = 0.1 * (row + 1) * torch.randn(length, generator=generator).clamp(-1, 1)
    return waveforms.clamp(-1, 1), lengths


def alone(waveforms, lengths, row):
    return waveforms[row : row + 1, : lengths[row]], lengths[row : row + 1]
