"""Which clips a mode evaluates, and which modes a command line asks for."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from configs.parsing import ConfigError
from configs.schema import Config
from data.annotations import Annotation, AnnotationError, load_annotations
from evaluation.predictions import row_ids, shared_ids

MODES = ("submission_asr", "submission_aac", "valid_asr", "valid_aac", "valid_all", "test_all")
FAMILIES = {"asr": "asr", "aac": "audiocaption"}
"""Family -> the stem of its tasks' names."""


def in_family(task: str, family: str) -> bool:
    """Whether a task belongs to `asr` (`asr`, `asr_zh`, …) or `aac` (`audiocaption`, `audiocaption_v2`, …)."""
    stem = FAMILIES[family]
    return task == stem or task.startswith(f"{stem}_")


def select_annotations(config: Config, mode: str, *, announce: bool = False) -> list[Annotation]:
    """The annotations that a mode evaluates, each with its row's name in `testset_id`. With `announce` it is said where
    a name is not the one in the file.

    Raises:
        ConfigError: the YAML names no file for the mode, or the file has no clip of the family.
        AnnotationError: two clips of a submission have one `testset_id`.
    """
    which, _, family = mode.partition("_")
    keys = annotation_keys(config, mode)
    if not keys:
        expected = "valid_ann_path" if which == "valid" else f"test_ann_path_{family}".removesuffix("_all")
        also = " (or datasets.test_ann_path)" if which != "valid" else " (or a test file)"
        raise ConfigError(
            f"{config.path}: datasets.{expected}: not given{also}; --mode {mode} evaluates the clips of that file"
        )
    datasets = config.datasets
    paths = [path for key in keys for path in _as_list(getattr(datasets, key.removeprefix("datasets.")))]
    if which == "valid" and announce and keys != ["datasets.valid_ann_path"]:
        print(f"{mode}: datasets.valid_ann_path is not given; the clips of {', '.join(keys)} are evaluated")
    filtered = family != "all" and keys != [f"datasets.test_ann_path_{family}"]
    everything = load_annotations(paths, datasets.prefix, require_text=which == "valid")
    chosen = [a for a in everything if not filtered or in_family(a.task, family)]
    if not chosen:
        tasks = ", ".join(f"{task} ({count})" for task, count in Counter(a.task for a in everything).items())
        raise ConfigError(
            f"{', '.join(paths)}: no clip for --mode {mode}, which takes tasks named {FAMILIES[family]}…; "
            f"the file has {tasks}"
        )
    shared = shared_ids(chosen)
    if shared and which == "submission":
        before, again = shared[0]
        raise AnnotationError(
            f"{again.source}: field 'testset_id': {again.testset_id!r} was used before, at {before.source} "
            f"({len(shared)} such in all); a submission needs a name of its own for every row. Change one, or evaluate "
            "the files one at a time"
        )
    if shared and announce:
        before, again = shared[0]
        print(
            f"{mode}: {len(shared)} clips have a testset_id that another file has too, first {again.testset_id!r} in "
            f"{before.source} and {again.source}; their rows are named FILE/ID"
        )
    return [
        dataclasses.replace(annotation, testset_id=name, index=position)
        for position, (annotation, name) in enumerate(zip(chosen, row_ids(chosen), strict=True))
    ]


def annotation_keys(config: Config, mode: str) -> list[str]:
    """The keys whose files a mode evaluates. A validation mode falls back to the test files that the YAML names."""
    which, _, family = mode.partition("_")
    named = [f"test_ann_path_{family}", "test_ann_path"]
    choices = (
        [[name] for name in named] if family != "all" else [["test_ann_path"], [f"test_ann_path_{f}" for f in FAMILIES]]
    )
    if which == "valid":
        choices.insert(0, ["valid_ann_path"])
    given = ([f"datasets.{name}" for name in names if getattr(config.datasets, name)] for names in choices)
    return next(filter(None, given), [])


def _as_list(paths: str | Sequence[str] | None) -> list[str]:
    return [] if paths is None else [paths] if isinstance(paths, str) else list(paths)


def chosen_modes(
    config: Config, mode: str | None = None, *, family: str | None = None, scoring: bool = True
) -> list[str]:
    """The mode asked for, by its name or as a family (its submission where nothing is to be scored); else a submission
    for every test file that the YAML names.

    Raises:
        ConfigError: nothing is asked for and the YAML names no test file.
    """
    if mode:
        return [mode]
    if family:
        return [f"{'valid' if scoring else 'submission'}_{family}"]
    named = {"submission_asr": config.datasets.test_ann_path_asr, "submission_aac": config.datasets.test_ann_path_aac}
    modes = [mode for mode, paths in named.items() if paths]
    if not modes and config.datasets.test_ann_path:
        modes = ["test_all"]
    if not modes:
        raise ConfigError(
            f"{config.path}: datasets.test_ann_path_asr, test_ann_path_aac and test_ann_path: none is given; "
            f"name one, or say --mode {' | '.join(MODES)}"
        )
    return modes
