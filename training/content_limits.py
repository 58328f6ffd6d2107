"""What limits take away from the data: counted before anything is trained or decoded, with the worst entries."""

from collections.abc import Callable, Sequence
from math import ceil

from configs.sections import DatasetsConfig
from data.annotations import Annotation
from models.language.text import TextProcessor
from models.salmonn import SALMONN
from support.command_line import UserError
from support.units import SAMPLE_RATE

WORST_SHOWN = 3


def clips_to_skip(
    annotations: Sequence[Annotation], durations_s: Sequence[float], datasets: DatasetsConfig
) -> tuple[list[int], list[str]]:
    """Positions of the training clips to leave out because `max_audio_s` would cut them, and what to say of them.

    A text describes the whole of its clip: training on the beginning of a clip teaches the model to invent the rest.

    Raises:
        UserError: there are such clips, and `datasets.long_clips` is `refuse`.
    """
    limit_s = datasets.max_audio_s
    long = [] if limit_s is None else [place for place, length in enumerate(durations_s) if length > limit_s]
    if not long:
        return [], []
    worst = _worst([(durations_s[place], annotations[place]) for place in long], "s")
    found = (
        f"{len(long):,} of {len(annotations):,} training clips are longer than datasets.max_audio_s = {limit_s:g} s "
        f"(longest: {worst})"
    )
    if datasets.long_clips == "refuse":
        raise UserError(
            f"{found}. Cut, they would be trained under the text of the whole clip. Set datasets.long_clips to 'skip' "
            "to leave them out, or to 'cut' to train on them nevertheless, or raise max_audio_s"
        )
    if datasets.long_clips == "cut":
        return [], [f"warning: {found}; they are cut to it and trained under their whole text"]
    return long, [f"warning: {found}; they are left out"]


def clips_cut_by_rules(
    annotations: Sequence[Annotation], durations_s: Sequence[float], limit_s: float | None
) -> list[str]:
    """A sentence where `model.legacy` cuts clips, as the public code that it follows does; else nothing."""
    cut = [pair for pair in zip(durations_s, annotations, strict=True) if limit_s is not None and pair[0] > limit_s]
    if not cut:
        return []
    return [
        f"warning: model.legacy cuts {len(cut):,} of {len(annotations):,} training clips to {limit_s:g} s, as the "
        f"public code does, and trains them under their whole text (longest: {_worst(cut, 's')})"
    ]


def lost_text(annotations: Sequence[Annotation], text: TextProcessor) -> list[str]:
    """A sentence for each way in which targets differ from the annotations' texts; empty where they are equal."""
    targets = [(target, annotation) for annotation in annotations for target in annotation.texts or (annotation.text,)]
    return [*_cut_texts(targets, text), *_end_symbols(targets, text), *_special_spellings(targets, text),
            *_unknown_characters(targets, text)]  # fmt: skip


def require_positions(
    model: SALMONN,
    annotations: Sequence[Annotation],
    durations_s: Sequence[float],
    prompts_of: Callable[[Annotation], Sequence[str]],
    *,
    training: bool,
    new_tokens: int = 0,
) -> None:
    """Raise UserError where prompt, audio and answer of a clip are longer than the language model's positions.

    Args:
        prompts_of: the prompts that a clip may get, questions filled in.
        training: the answer is the longest of a clip's texts, as for every loss; else it has up to `new_tokens`.
    """
    limit = model.llm.positions
    if limit is None:
        return
    audio_of: dict[int, int] = {}  # whole seconds -> audio tokens
    prompt_bytes: dict[tuple[str, str | None], int] = {}  # task and question -> of the longest prompt
    too_long: list[tuple[float, Annotation]] = []
    for annotation, duration_s in zip(annotations, durations_s, strict=True):
        seconds = ceil(duration_s)
        if seconds not in audio_of:
            audio_of[seconds] = model.audio_tokens(seconds * SAMPLE_RATE)
        asked = (annotation.task, annotation.Q)
        if asked not in prompt_bytes:
            prompt_bytes[asked] = max(_bytes(model.text.in_template(prompt)) for prompt in prompts_of(annotation))
        # A token is a byte or more, so that few clips need the tokenizer.
        bound = audio_of[seconds] + prompt_bytes[asked] + new_tokens + (model.text.max_txt_len if training else 0)
        if bound <= limit:
            continue
        texts = (annotation.texts or (annotation.text,)) if training else ()
        prompts = prompts_of(annotation)
        rows = model.text.batch(list(prompts))
        tokens = model.audio_tokens(round(duration_s * SAMPLE_RATE)) + new_tokens
        tokens += max(len(before) + len(after) for before, after in zip(rows.before, rows.after, strict=True))
        if texts:
            tokens += max(map(len, model.text.batch([prompts[0]] * len(texts), list(texts)).targets))
        if tokens > limit:
            too_long.append((tokens, annotation))
    if too_long:
        answer = "text" if training else f"generate.max_new_tokens = {new_tokens}"
        raise UserError(
            f"{len(too_long):,} of {len(annotations):,} clips need more than the language model's {limit:,} positions "
            f"for prompt, audio and {answer} (longest: {_worst(too_long, 'tokens')}). Shorten them with "
            f"datasets.max_audio_s or {'model.max_txt_len' if training else 'generate.max_new_tokens'}, or take "
            "another language model"
        )


def _cut_texts(targets: Sequence[tuple[str, Annotation]], text: TextProcessor) -> list[str]:
    cut = [(tokens, annotation) for target, annotation in targets if (tokens := text.cut_tokens(target))]
    if not cut:
        return []
    needed = text.max_txt_len + max(tokens for tokens, _ in cut)
    return [
        f"warning: model.max_txt_len = {text.max_txt_len} cuts {len(cut):,} of {len(targets):,} texts and puts the end "
        f"symbol after the cut, which teaches the model to stop early (most is lost of {_worst(cut, 'tokens')}). Set "
        f"model.max_txt_len to {needed}, or shorten the texts"
    ]


def _end_symbols(targets: Sequence[tuple[str, Annotation]], text: TextProcessor) -> list[str]:
    """Texts that hold what ends an answer, where it is not a special token: their end would never be decoded."""
    every = dict.fromkeys((text.end_sym, *text.stop_strings))
    ends = [end for end in every if end.strip() and not text.plain.spelled_in(end)]
    found = [annotation for target, annotation in targets if any(end in target for end in ends)]
    if not found:
        return []
    return [
        f"warning: {len(found):,} of {len(targets):,} texts hold an end symbol ({', '.join(map(repr, ends))}), where "
        f"generation stops: {_named(found)}. Change model.end_sym or model.stop_strings, or the texts"
    ]


def _special_spellings(targets: Sequence[tuple[str, Annotation]], text: TextProcessor) -> list[str]:
    found = [(annotation, spelled) for target, annotation in targets if (spelled := text.plain.spelled_in(target))]
    if not found:
        return []
    spellings = ", ".join(sorted({word for _, words in found for word in words}))
    return [
        f"note: {len(found):,} of {len(targets):,} texts spell special tokens ({spellings}); they are trained as plain "
        f"text: {_named([annotation for annotation, _ in found])}. Remove them if they are markup"
    ]


def _unknown_characters(targets: Sequence[tuple[str, Annotation]], text: TextProcessor) -> list[str]:
    """Texts with characters that the tokenizer does not know, by looking at each character once."""
    characters = sorted(set().union(*(target for target, _ in targets)))
    unknown = {character for character in characters if text.plain.unknown_tokens(character)}
    found = [annotation for target, annotation in targets if not unknown.isdisjoint(target)] if unknown else []
    if not found:
        return []
    shown = " ".join(sorted(unknown)[:20])
    return [
        f"warning: {len(found):,} of {len(targets):,} texts have characters that the tokenizer lacks ({shown}): "
        f"they become its unknown token and are never decoded: {_named(found)}"
    ]


def _worst(found: Sequence[tuple[float, Annotation]], unit: str) -> str:
    worst = sorted(found, key=lambda each: -each[0])[:WORST_SHOWN]
    return "; ".join(f"{_place(annotation)}: {amount:,.10g} {unit}" for amount, annotation in worst)


def _named(found: Sequence[Annotation]) -> str:
    more = f" and {len(found) - WORST_SHOWN:,} more" if len(found) > WORST_SHOWN else ""
    return ", ".join(map(_place, found[:WORST_SHOWN])) + more


def _place(annotation: Annotation) -> str:
    return annotation.source or annotation.path


def _bytes(text: str) -> int:
    return len(text.encode()) + 1  # and a token for a leading space
