"""What limits take away is counted before a run starts."""

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from configs.schema import load_config
from configs.sections import DatasetsConfig, ModelConfig
from data.annotations import Annotation
from models import build_model
from models.released_rules import rules_of
from support.command_line import UserError
from tests import tiny
from tests.parts import text_processor
from training.content_limits import clips_cut_by_rules, clips_to_skip, lost_text, require_positions


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.write_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def clips(*texts: str) -> list[Annotation]:
    return [
        Annotation(path=f"{n}.wav", text=text, task="asr", source=f"a.json#{n}", index=n, texts=(text,))
        for n, text in enumerate(texts)
    ]


def test_texts_that_fit_need_no_word(tokenizer):
    assert lost_text(clips("one", "two words"), text_processor(tokenizer, max_txt_len=20)) == []


def test_cut_texts_are_counted_with_the_worst(tokenizer):
    text = text_processor(tokenizer, max_txt_len=12)
    annotations = clips("one", "two " * 30, "three " * 90)
    (note,) = lost_text(annotations, text)
    assert "max_txt_len = 12 cuts 2 of 3 texts" in note and note.index("a.json#2") < note.index("a.json#1")
    needed = int(note.split("Set model.max_txt_len to ")[1].split(",")[0])
    assert lost_text(annotations, text_processor(tokenizer, max_txt_len=needed)) == []
    assert lost_text(annotations, text_processor(tokenizer, max_txt_len=needed - 1))


def test_a_text_that_fits_exactly_is_not_cut(tokenizer):
    length = len(tokenizer.encode("one two three", add_special_tokens=False))
    assert text_processor(tokenizer, max_txt_len=length + 1).cut_tokens("one two three") == 0
    assert text_processor(tokenizer, max_txt_len=length).cut_tokens("one two three") == 1


def test_every_reference_counts(tokenizer):
    annotation = replace(clips("one")[0], texts=("one", "two " * 30))
    (note,) = lost_text([annotation], text_processor(tokenizer, max_txt_len=12))
    assert "1 of 2 texts" in note


def test_end_symbols_and_special_tokens_in_texts_are_named(tokenizer):
    (note,) = lost_text(clips("one ### two", "three"), text_processor(tokenizer, end_sym="###"))
    assert "1 of 2 texts hold an end symbol ('###')" in note and "a.json#0" in note
    (note,) = lost_text(clips("one </s> two", "three"), text_processor(tokenizer))
    assert "1 of 2 texts spell special tokens (</s>)" in note and "plain text" in note


def test_characters_without_a_token_are_named():
    pieces = ["<unk>", "</s>", *" enotw"]
    letters = Tokenizer(models.BPE({piece: id for id, piece in enumerate(pieces)}, [], unk_token="<unk>"))
    few = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>", eos_token="</s>")
    unknown = "\u4e2d"
    assert text_processor(few).plain.unknown_tokens(unknown) == 1
    (note,) = lost_text(clips(f"one {unknown}", "two"), text_processor(few))
    assert "1 of 2 texts" in note and unknown in note
    assert lost_text(clips("one", "two"), text_processor(few)) == []


def test_prompts_are_made_once_for_a_question_not_once_a_clip(tmp_path):
    model = build_model(load_config(tiny.write_project(tmp_path).config).model)
    asked = []

    def prompts_of(annotation: Annotation) -> list[str]:
        asked.append(annotation.Q)
        return ["<Speech><SpeechHere></Speech> x"]

    annotations = [replace(clip, Q="a" if clip.index % 2 else None) for clip in clips(*["one"] * 50)]
    require_positions(model, annotations, [1.0] * 50, prompts_of, training=True)
    assert sorted(map(str, asked)) == ["None", "a"]


def test_long_training_clips_are_refused_skipped_or_cut():
    annotations, durations = clips("a", "b", "c"), [1.0, 45.0, 31.0]
    datasets = DatasetsConfig(max_audio_s=30.0)
    with pytest.raises(UserError, match=r"2 of 3 training clips.*a\.json#1: 45 s; a\.json#2: 31 s.*long_clips"):
        clips_to_skip(annotations, durations, datasets)
    skipped, (note,) = clips_to_skip(annotations, durations, replace(datasets, long_clips="skip"))
    assert skipped == [1, 2] and "left out" in note
    skipped, (note,) = clips_to_skip(annotations, durations, replace(datasets, long_clips="cut"))
    assert skipped == [] and "whole text" in note
    assert clips_to_skip(annotations, durations, DatasetsConfig()) == ([], [])


def test_clips_that_exact_rules_cut_are_counted():
    (note,) = clips_cut_by_rules(clips("a", "b"), [31.0, 2.0], rules_of(ModelConfig(legacy="exact")).cuts_at_s)
    assert "cuts 1 of 2 training clips to 30 s" in note and "a.json#0: 31 s" in note
    assert clips_cut_by_rules(clips("a"), [31.0], rules_of(ModelConfig()).cuts_at_s) == []


def test_more_tokens_than_positions(tmp_path):
    project = tiny.write_project(tmp_path)
    model = build_model(load_config(project.config).model)
    limit = model.llm.positions
    annotations = clips("one", "two")
    arguments = {"prompts_of": lambda annotation: ["<Speech><SpeechHere></Speech> x"]}
    require_positions(model, annotations, [1.0, 2.0], **arguments, training=False, new_tokens=200)
    with pytest.raises(UserError, match=rf"1 of 2 clips need more than the language model's {limit:,} positions.*#1"):
        require_positions(model, annotations, [1.0, 3600.0], **arguments, training=True)
    with pytest.raises(UserError, match=r"2 of 2 clips.*max_new_tokens = 5000"):
        require_positions(model, annotations, [1.0, 2.0], **arguments, training=False, new_tokens=5000)


def test_generate_refuses_more_tokens_than_positions(tmp_path):
    import torch

    project = tiny.write_project(tmp_path)
    model = build_model(load_config(project.config).model)
    clip, prompt = torch.zeros(1, 16_000), "<Speech><SpeechHere></Speech> x"
    with pytest.raises(UserError, match=r"clip 0 of the batch .* positions"):
        model.generate(clip, torch.tensor([16_000]), [prompt], max_new_tokens=5000)
    with pytest.raises(UserError, match=r"positions"):
        list(model.stream(clip[0], prompt, max_new_tokens=5000))
