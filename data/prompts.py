"""Instructions by task: prompt files, their checks, and the question that some prompts take from each clip."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from configs.paths import program_file
from data.annotations import Annotation
from support.command_line import UserError
from support.file_kinds import mistaken

PLACEHOLDER = "<SpeechHere>"  # where the audio goes in a prompt
QUESTION_SLOT = "{}"


class PromptError(UserError):
    """A prompt file, or a task without a prompt, that a user must fix."""


class Prompts(Mapping[str, "str | tuple[str, ...]"]):
    """Task → one prompt (test) or several (training), and their file, for errors."""

    def __init__(self, by_task: Mapping[str, str | Sequence[str]], source: str = "prompts") -> None:
        self._by_task = {
            task: prompts if isinstance(prompts, str) else tuple(prompts) for task, prompts in by_task.items()
        }
        self.source = source
        for task in self._by_task:
            self._check(task)

    def __getitem__(self, task: str) -> str | tuple[str, ...]:
        return self._by_task[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_task)

    def __len__(self) -> int:
        return len(self._by_task)

    def choices(self, task: str) -> tuple[str, ...]:
        """All prompts of a task; raises `PromptError` if there is none."""
        if task not in self._by_task:
            raise PromptError(f"{self.source}: no prompt for task '{task}'; it has {', '.join(self._by_task)}")
        prompts = self._by_task[task]
        return (prompts,) if isinstance(prompts, str) else prompts

    def _check(self, task: str) -> None:
        choices = self.choices(task)
        if not choices:
            raise PromptError(f"{self.source}: task '{task}' has an empty list; expected at least one prompt")
        for prompt in choices:
            if not isinstance(prompt, str):
                raise PromptError(f"{self.source}: task '{task}' holds {prompt!r}; expected a text or a list of texts")
            if prompt.count(PLACEHOLDER) != 1:
                raise PromptError(
                    f"{self.source}: task '{task}': prompt {prompt!r} holds {prompt.count(PLACEHOLDER)} {PLACEHOLDER}; "
                    f"expected exactly one, as <Speech>{PLACEHOLDER}</Speech>"
                )


def load_prompts(path: str | Path) -> Prompts:
    """Read `{task: prompt}` (test) or `{task: [prompt, …]}` (training); raises `PromptError` naming file and task."""
    try:
        entries = json.loads(program_file(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise PromptError(f"{path}: no such prompt file; check model.prompt_path and model.test_prompt_path") from None
    except (OSError, UnicodeDecodeError) as error:
        found = mistaken(program_file(path), text_is_right=True) or f"cannot be read ({error})"
        raise PromptError(f"{path}: the prompt file {found}") from None
    except json.JSONDecodeError as error:
        found = mistaken(program_file(path), text_is_right=True)
        if found:
            raise PromptError(f"{path}: the prompt file {found}") from None
        raise PromptError(f"{path}, line {error.lineno}: broken JSON ({error.msg})") from None
    if not isinstance(entries, dict) or not entries:
        raise PromptError(f"{path}: expected an object {{task: prompt or list of prompts}}, with at least one task")
    for task, prompts in entries.items():
        if not isinstance(prompts, str | list):
            raise PromptError(f"{path}: task '{task}' holds {prompts!r}; expected a text or a list of texts")
    return Prompts(entries, source=str(path))


def fill_prompt(prompt: str, annotation: Annotation, source: str = "prompts") -> str:
    """Replace the prompt's `{}` by the annotation's `Q`.

    Raises:
        PromptError: there is no `Q`, or it contains the audio's placeholder.
    """
    if QUESTION_SLOT not in prompt:
        return prompt
    if annotation.Q is None:
        raise PromptError(
            f"{annotation.source or annotation.path}: no 'Q', but the prompt of task '{annotation.task}' in {source} "
            f"needs one: {prompt!r}; add the field or choose another task"
        )
    if PLACEHOLDER in annotation.Q:
        raise PromptError(
            f"{annotation.source or annotation.path}: 'Q' holds {PLACEHOLDER}, which the prompt already has: "
            f"{annotation.Q!r}; remove it"
        )
    return prompt.replace(QUESTION_SLOT, annotation.Q)
