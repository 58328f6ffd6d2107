"""Every clip with another one's audio."""

import pytest

from data.parts import Part
from evaluation.swapped_audio import swap_audio
from tests import tiny
from tests.evaluations import annotation, outputs, run


def test_swapping_gives_every_clip_another_ones_audio() -> None:
    clips = [annotation(f"{i}.wav", f"text {i % 3}") for i in range(30)]
    clips += [annotation(f"sound{i}.wav", f"sound {i}", "audiocaption", expand_wav=(f"more{i}.wav",)) for i in range(5)]
    swap = swap_audio(clips, seed=3)
    assert all(new.path != old.path and new.text == old.text for new, old in zip(swap.annotations, clips, strict=True))
    assert sorted(new.path for new in swap.annotations) == sorted(old.path for old in clips)
    assert {new.path for new in swap.annotations[30:]} == {old.path for old in clips[30:]}
    assert all(new.expand_wav[0] == new.path.replace("sound", "more") for new in swap.annotations[30:])
    texts = {clip.path: clip.text for clip in clips}
    assert swap.same_reference == 0 == sum(texts[new.path] == new.text for new in swap.annotations)
    assert swap_audio(clips, seed=3) == swap != swap_audio(clips, seed=4)


def test_swapping_where_references_are_alike() -> None:
    swap = swap_audio([annotation(f"{i}.wav", "yes") for i in range(4)] + [annotation("n.wav", "no")], seed=0)
    assert swap.same_reference == 3
    pair = swap_audio([annotation("a.wav", "yes"), annotation("b.wav", "dog", "audiocaption")], seed=0)
    assert [clip.path for clip in pair.annotations] == ["b.wav", "a.wav"]
    with pytest.raises(ValueError, match="two different clips"):
        swap_audio([annotation("a.wav", "yes"), annotation("a.wav", "no", "QA")], seed=0)
    with pytest.raises(ValueError, match="more than half"):
        swap_audio([annotation("a.wav", "yes")] * 3 + [annotation("b.wav", "no")], seed=0)


def test_parts_of_one_recording_are_different_clips() -> None:
    clips = [annotation("long.wav", f"{i}", part=Part(float(i), i + 1.0), extra={"offset": i}) for i in range(6)]
    swap = swap_audio(clips, seed=1)
    assert all(new.part != old.part and new.text == old.text for new, old in zip(swap.annotations, clips, strict=True))
    assert {new.part for new in swap.annotations} == {old.part for old in clips}
    assert all(new.extra["offset"] == new.part.start_s for new in swap.annotations), "what is stated of the audio"
    with pytest.raises(ValueError, match="two different clips"):
        swap_audio([clips[0], annotation("long.wav", "x", part=Part(0.0, 1.0))], seed=0)


def test_swapped_evaluation_has_its_own_folder(project: tiny.TinyProject) -> None:
    assert run(project, "--mode", "submission_asr") == 0
    assert run(project, "--mode", "submission_asr", "--swap-audio") == 0
    rows, lines, scores = outputs(project, "submission_asr_swapped")
    plain_rows, plain, _ = outputs(project, "submission_asr")
    assert [row["testset_id"] for row in rows] == [row["testset_id"] for row in plain_rows]
    said = {line["path"]: line["hypothesis"] for line in plain}
    for line in lines:
        assert line["audio_path"] != line["path"] and line["hypothesis"] == said[line["audio_path"]]
    assert scores["swap"]["clips_with_a_common_reference"] == 0
