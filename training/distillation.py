"""Distillation: a model, the student, learns from a frozen teacher in addition to the true texts.

Terms, each with a weight in `distillation`:

    labels   cross-entropy with the true text, as without a teacher
    logits   KL(teacher || student) over the next token, both at `temperature`, times temperature squared
    hidden   squared distance of the last hidden states, each normalised to mean 0 and variance 1
    qformer  squared distance of what the Q-Formers return

The first three are sums over the target's tokens. `qformer` is a mean over a clip's own audio tokens, counted once for
each of its target's tokens. So every term is a sum over target tokens as the plain loss is: neither padding, nor the
split into batches, nor the number of processes changes what is learned.

Logits and hidden states are compared at the same tokens: the teacher reads the student's targets, after its own
prompt template.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import LongTensor, Tensor, nn

from configs.schema import Config
from configs.sections import DistillationConfig, ModelConfig
from data.batch import Batch
from models.build import build_model
from models.encoders.frame_cache import FrameCache
from models.encoders.stack import EncoderStack
from models.encoders.table import ENCODERS
from models.frames import Frames
from models.language.text import TextBatch
from models.salmonn import SALMONN, LossOutput
from models.sizes import part_sizes
from support.command_line import UserError
from support.units import GIB

logger = logging.getLogger(__name__)

TERMS = ("labels", "logits", "hidden", "qformer")
LANGUAGE_TERMS = ("logits", "hidden")  # need the teacher's language model


@dataclass(frozen=True)
class Losses:
    """A batch's loss, and what it is made of."""

    loss_sum: Tensor
    """The weighted sum of the terms, each a sum over target tokens."""
    parts: dict[str, Tensor]
    """Term -> its sum before weighting, without gradient."""


@dataclass
class ConnectorOutputs:
    """What a connector returned."""

    queries: Tensor | None = None  # [M, Q, D] of the Q-Former, a row for each window that is not padding
    mask: Tensor | None = None  # [B, A]


class Distiller:
    """Losses of `student` under `teacher`, which stays in eval and gets no gradient.

    Where both have the same frozen encoders, these are loaded, and run, once.

    Raises:
        UserError: a term with a weight compares what teacher and student do not have in common.
    """

    def __init__(
        self, student: SALMONN, teacher: SALMONN, config: DistillationConfig, *, cache_folder: str | None = None
    ) -> None:
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval()
        self.config = config
        self.weights = _weights(config)
        problems = misfits(student, teacher, self.weights)
        if problems:
            raise UserError("\n  ".join(["distillation: teacher and student do not fit:", *problems]))
        self.shares_encoders = share_encoders(student, teacher)
        self._cache = None if self.shares_encoders else FrameCache.where_possible(cache_folder, teacher.encoders)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the terms that count, in order."""
        return tuple(self.weights)

    def losses(
        self,
        forward: Callable[..., LossOutput],
        batch: Batch,
        waveforms: Tensor,
        lengths: LongTensor,
        frames: list[Frames] | None = None,
    ) -> Losses:
        """Run both models over a batch.

        Args:
            forward: the student's forward pass, as training wraps it.
            waveforms, lengths: the batch's, on the device.
            frames: the student's encoders' outputs, where they are cached.
        """
        if frames is None and self.shares_encoders:
            frames = self.student.encode_frames(waveforms, lengths)
        with _connector_outputs(self.student) as student_outputs:
            output = forward(waveforms, lengths, text_batch=batch.text_batch, frames=frames)
        with torch.no_grad(), _connector_outputs(self.teacher) as teacher_outputs:
            taught = self._teach(batch, waveforms, lengths, frames)
        terms = {}
        for term in self.weights:
            if term == "labels":
                terms[term] = output.loss_sum
            elif term == "logits":
                terms[term] = divergence(output.logits, taught.logits, self.config.temperature)
            elif term == "hidden":
                terms[term] = hidden_distance(output.hidden, taught.hidden)
            else:
                counts = torch.tensor([len(target) for target in batch.text_batch.targets], device=waveforms.device)
                terms[term] = query_distance(student_outputs, teacher_outputs, counts)
        loss_sum = sum(self.weights[term] * value for term, value in terms.items())
        if "labels" not in terms:  # processes that train together wait for a gradient of every trained parameter
            loss_sum = loss_sum + 0.0 * output.loss_sum
        return Losses(loss_sum, {term: value.detach() for term, value in terms.items()})

    def describe(self) -> str:
        """For a dry run: what is compared with what weight, and how large the teacher is."""
        shared = tuple(self.student.encoders.encoders) if self.shares_encoders else ()
        return _description(self.config, self.teacher, shared)

    def _teach(
        self, batch: Batch, waveforms: Tensor, lengths: LongTensor, frames: list[Frames] | None
    ) -> LossOutput | None:
        """The teacher's pass over the batch, as far as the terms need it."""
        if not self.weights.keys() - {"labels"}:
            return None
        if not self.shares_encoders:
            frames = self._cache and self._cache.encode(waveforms, lengths)
        if not self.weights.keys() & set(LANGUAGE_TERMS):
            self.teacher.encode_audio(waveforms, lengths, frames)
            return None
        prompted = self.teacher.text.batch(batch.prompts)
        text_batch = TextBatch(prompted.before, prompted.after, batch.text_batch.targets)
        return self.teacher(waveforms, lengths, text_batch=text_batch, frames=frames)


def build_distiller(config: Config, student: SALMONN) -> Distiller | None:
    """The distiller that `config.distillation` asks for, with its teacher on the student's device; None without one.

    Raises:
        UserError: the teacher has no adapter, cannot be built, or does not fit the student.
    """
    described = config.distillation.teacher
    if described is None:
        return None
    if not described.ckpt:
        raise UserError(
            "distillation.teacher.ckpt is not set: a fresh adapter would teach noise. Name the teacher's adapter, or "
            "set distillation.teacher to null to train without one."
        )
    try:
        teacher = build_model(frozen(described), student.device)
    except UserError as error:
        raise type(error)(f"distillation.teacher: {error}") from error
    return Distiller(student, teacher, config.distillation, cache_folder=config.datasets.cache_encoder_outputs)


def describe_plan(config: Config, device: torch.device) -> str:
    """`Distiller.describe` from architecture facts alone, where weights are missing.

    Raises:
        UserError: nothing is known of a part's architecture, or widths do not fit.
    """
    described = config.distillation.teacher
    student = build_model(config.model, device, weights=False)
    try:
        teacher = build_model(frozen(described), device, weights=False)
    except UserError as error:
        raise type(error)(f"distillation.teacher: {error}") from error
    problems = misfits(student, teacher, _weights(config.distillation))
    if problems:
        raise UserError("\n  ".join(["distillation: teacher and student do not fit:", *problems]))
    paths = [entry.path_key for entry in ENCODERS.values()]
    same = all(getattr(config.model, key) == getattr(described, key) for key in paths)
    alike = same and _are_alike(student, teacher)
    return _description(config.distillation, teacher, tuple(student.encoders.encoders) if alike else ())


def _weights(config: DistillationConfig) -> dict[str, float]:
    return {term: getattr(config, term) for term in TERMS if getattr(config, term) > 0}


def _description(config: DistillationConfig, teacher: SALMONN, shared: Sequence[str]) -> str:
    """`shared` are the parts that the teacher takes from the student."""
    weights = _weights(config)
    words = ", ".join(f"{term} {weight:g}" for term, weight in weights.items())
    if "logits" in weights:
        words += f" (temperature {config.temperature:g})"
    lines = [f"distillation: {words}", f"teacher {teacher.config.llama_path}, adapter {teacher.config.ckpt}"]
    rows = part_sizes(teacher)[:-1]
    for row in rows:
        size = "the student's own" if row.part in shared else f"{row.bytes / GIB:.3f} GiB"
        lines.append(f"  {row.part:<12}{row.parameters:>16,}  {size}")
    more = sum(row.bytes for row in rows if row.part not in shared)
    return "\n".join([*lines, f"  in addition to the student: {more / GIB:.3f} GiB"])


def frozen(config: ModelConfig) -> ModelConfig:
    """The same model with every `freeze_…` switch on."""
    switches = [field.name for field in fields(config) if field.name.startswith("freeze_")]
    return replace(config, **dict.fromkeys(switches, True))


def misfits(student: SALMONN, teacher: SALMONN, weights: dict[str, float]) -> list[str]:
    """Why weighted terms cannot be compared: what was found, what was expected, how to fix it."""
    problems = []
    if weights.keys() & set(LANGUAGE_TERMS) and teacher.text is not None:  # a planned model has no tokenizer
        problems += _text_misfits(student, teacher, " and ".join(term for term in LANGUAGE_TERMS if term in weights))
    if "hidden" in weights and student.llm.hidden_size != teacher.llm.hidden_size:
        problems.append(
            f"distillation.hidden: the student's hidden states are {student.llm.hidden_size} wide, the teacher's "
            f"{teacher.llm.hidden_size}; expected the same width. Set distillation.hidden to 0."
        )
    if "qformer" in weights:
        if student.connector.window_jitter:
            problems.append(
                "distillation.qformer: model.window_jitter moves the student's windows away from the teacher's; set "
                "distillation.qformer to 0 or model.window_jitter to false."
            )
        for key, of in QFORMER_FACTS.items():
            got, expected = of(student), of(teacher)
            if got != expected:
                problems.append(
                    f"distillation.qformer: the student has {key} {got}, the teacher {expected}; expected the same. "
                    f"Set model.{key.split()[0]} to the teacher's, or distillation.qformer to 0."
                )
    return problems


QFORMER_FACTS: dict[str, Callable[[SALMONN], object]] = {
    "qformer_hidden_size": lambda model: model.connector.qformer.config.hidden_size,
    "num_speech_query_token": lambda model: model.connector.num_queries,
    "second_per_window (in frames)": lambda model: model.connector.window,
    "second_stride (in frames)": lambda model: model.connector.stride,
    "legacy (last windows that are not full are kept)": lambda model: model.connector.keep_partial_window,
}
"""Key, as an error shows it -> what must be equal for the Q-Formers' outputs to be compared."""


def _text_misfits(student: SALMONN, teacher: SALMONN, terms: str) -> list[str]:
    ours, theirs = student.text.tokenizer.get_vocab(), teacher.text.tokenizer.get_vocab()
    if ours != theirs:
        differing = sum(ours.get(token) != place for token, place in theirs.items())
        return [
            f"distillation.{terms}: the student's tokenizer has {len(ours)} tokens, the teacher's {len(theirs)}, and "
            f"{differing} of the teacher's are others here; expected the same tokenizer. Take a teacher of the same "
            f"family, or set {terms} to 0 and keep qformer."
        ]
    if student.text.end_ids != teacher.text.end_ids:
        return [
            f"distillation.{terms}: the student's end symbol is {student.text.end_sym!r}, the teacher's "
            f"{teacher.text.end_sym!r}; expected the same. Set model.end_sym to the teacher's."
        ]
    return []


def share_encoders(student: SALMONN, teacher: SALMONN) -> bool:
    """Let the teacher use the student's encoders if both are frozen and alike in rules, settings and weights."""
    ours, theirs = student.encoders, teacher.encoders
    if not _are_alike(student, teacher) or ours.fingerprint != theirs.fingerprint:
        return False
    teacher.encoders = ours
    return True


def _are_alike(student: SALMONN, teacher: SALMONN) -> bool:
    """Whether the encoders are frozen and, but for their weights, the same."""

    def described(encoders: EncoderStack) -> list[object]:
        settings = {name: encoder.settings() for name, encoder in encoders.encoders.items()}
        return [settings, encoders.min_samples, encoders.rules.depends_on_batch]

    ours, theirs = student.encoders, teacher.encoders
    return all(ours.frozen.values()) and described(ours) == described(theirs)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of logits `[S, V]`, summed over tokens, times temperature squared.

    Rows that only one of two vocabularies of the same tokenizer has (padding to a round number) are left out.
    """
    size = min(student.shape[-1], teacher.shape[-1])
    log_student = F.log_softmax(student[:, :size].float() / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher[:, :size].float() / temperature, dim=-1)
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) * temperature**2


def hidden_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of normalised hidden states `[S, H]`, summed over tokens."""
    width = student.shape[-1:]
    gap = F.layer_norm(student.float(), width) - F.layer_norm(teacher.float(), width)
    return gap.square().mean(dim=-1).sum()


def query_distance(student: ConnectorOutputs, teacher: ConnectorOutputs, counts: LongTensor) -> Tensor:
    """Mean squared difference of Q-Former outputs over each clip's windows, times its `counts` `[B]`, summed.

    Raises:
        UserError: the two cut the clips in different numbers of windows.
    """
    ours, theirs = student.queries, teacher.queries
    if ours.shape != theirs.shape:
        raise UserError(
            f"distillation.qformer: the student cuts the batch in {len(ours)} windows, the teacher in {len(theirs)}; "
            "expected the same. Give both the same model.window and encoders of the same frame rate, or set "
            "distillation.qformer to 0."
        )
    gaps = (ours.float() - theirs.float()).square().flatten(1).mean(dim=1)  # [M]
    if len(counts) == 1:
        return gaps.mean() * counts[0]
    windows = student.mask.sum(dim=1) // ours.shape[1]  # [B]
    means = torch.stack([part.mean() for part in gaps.split(windows.tolist())])
    return (means * counts).sum()


@contextmanager
def _connector_outputs(model: SALMONN) -> Iterator[ConnectorOutputs]:
    """Record what the model's connector returns within the block."""
    outputs = ConnectorOutputs()

    def keep_queries(module: nn.Module, inputs: tuple, queries: Tensor) -> None:
        outputs.queries = queries

    def keep_mask(module: nn.Module, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
        outputs.mask = output[1]

    hooks = [
        model.connector.qformer.register_forward_hook(keep_queries),
        model.connector.register_forward_hook(keep_mask),
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
