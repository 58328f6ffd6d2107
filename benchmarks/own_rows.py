"""Rows of this program: an adapter as `evaluate.py` evaluates it, with swapped audio, untrained, and by CTC alone."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.clip_by_clip import ClipByClip, waveform_of
from benchmarks.clip_sets import ClipSet
from benchmarks.rows import Answers, LeftOut, Row
from configs.recorded import CONFIG_FILE
from configs.schema import Config, load_config
from data.annotations import Annotation
from data.prompts import load_prompts
from efficiency.gauges import clock
from efficiency.timing import TimedClip, decode, first_token, reuse_prefix
from evaluation.hypotheses import evaluate_annotations
from evaluation.processes import Processes
from evaluation.run import load_for_evaluation
from evaluation.swapped_audio import swap_audio
from models.build import build_model
from models.salmonn import SALMONN
from models.sizes import part_sizes


def configured(row: Row) -> Config:
    """The configuration in the adapter's folder, with the row's options; clips are loaded in this process."""
    assert row.adapter is not None
    config = load_config(Path(row.adapter) / CONFIG_FILE, ["model.ckpt=", *row.options])
    if row.kind != "untrained":
        config = config.with_adapter(row.adapter)
    run = {"num_workers": 0} | ({} if row.batch is None else {"batch_size_eval": row.batch})
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **run))


def loaded(row: Row, config: Config) -> tuple[SALMONN, dict[str, Any]]:
    """The model as `evaluate.py` loads it, and what the report says of it."""
    model = load_for_evaluation(config, Processes(), row.device)
    about = {
        "kernel": model.llm.kernel,
        "bytes": sizes(model),
        "encoder_quantization": config.model.encoder_quantization,
        "clips_at_once": config.run.batch_size_eval,
    }
    return model, about


def sizes(model: SALMONN) -> dict[str, int]:
    """Part -> its bytes."""
    return {row.part: row.bytes for row in part_sizes(model)}


class System:
    """An adapter, or an untrained connector, through the code of `evaluate.py`."""

    def __init__(self, row: Row) -> None:
        self.row, self.config = row, configured(row)
        self.prompts = load_prompts(self.config.model.test_prompt_path)
        self.model, self.about = loaded(row, self.config)
        self.about |= {"num_beams": self.config.generate.num_beams}

    def answer(self, clips: ClipSet) -> Answers:
        annotations = list(clips.clips)
        result = evaluate_annotations(
            self.model,
            self.given(annotations),
            self.prompts,
            self.config,
            processes=Processes(),
            original_annotations=annotations,
            scoring=False,
            progress=f"{self.row.name}: {clips.name}",
        )
        sources = [clip.source for clip in annotations]
        made = list(zip(sources, result.predictions, strict=True))
        return Answers(
            texts={source: prediction.hypothesis for source, prediction in made},
            problems={source: prediction.error for source, prediction in made if prediction.error is not None},
            audio_s=sum(prediction.seconds for prediction in result.predictions),
        )

    def given(self, annotations: list[Annotation]) -> list[Annotation]:
        """The clips that the model gets for these."""
        return annotations

    def token_times(self, clip: Annotation) -> tuple[float, float | None]:
        now = clock(self.model.device)
        prompt = self.prompts.choices(clip.task)[0]
        work = TimedClip(waveform=waveform_of(clip), prompt=prompt, decode_steps=self.row.decode_steps)
        reuse_prefix(self.model, work)
        start = now()
        token, cache = first_token(self.model, work)
        first = now() - start
        return first, statistics.fmean(decode(self.model, token, cache, work.decode_steps, now))


class Swapped(System):
    """The same with another clip's audio for every clip of a set."""

    def given(self, annotations: list[Annotation]) -> list[Annotation]:
        return swap_audio(annotations, self.config.run.seed).annotations


class CtcPath(ClipByClip):
    """The greedy CTC path of an adapter's audio tokens; of the language model, the embedding table alone is loaded."""

    def __init__(self, row: Row) -> None:
        config = configured(row)
        super().__init__(row.name, config.run.batch_size_eval)
        self.model = build_model(config.model, row.device, aligning=True)
        if self.model.alignment is None:
            raise LeftOut("the adapter has no alignment head (run.stage: align, model.ctc_weight)")
        self.about |= {"kernel": "CTC, greedy", "bytes": sizes(self.model)}

    def texts(self, waveforms: list[Tensor]) -> list[str]:
        lengths = torch.tensor([len(waveform) for waveform in waveforms])
        return self.model.ctc_texts(pad_sequence(waveforms, batch_first=True), lengths)

    def token_times(self, clip: Annotation) -> tuple[float, float | None]:
        """The whole text comes at once: its time, and none of further tokens."""
        waveform, now = waveform_of(clip), clock(self.model.device)
        start = now()
        self.texts([waveform])
        return now() - start, None
