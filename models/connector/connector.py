"""The connector: encoder frames become audio tokens in the LLM's space.

Each encoder's frames pass a LayerNorm of their own. They are joined and cut into short windows (a third of a second by
default). The Q-Former's queries attend to each window, and a linear layer projects their outputs to the LLM's width
(SALMONN, Tang et al. 2024, section 3.1, "window-level Q-Former").
"""

from typing import Literal

import torch
from torch import Tensor, nn

from models.connector.context import Context
from models.connector.fusion import align_outputs
from models.connector.masking import hide_spans
from models.connector.qformer import QFormer, QFormerConfig
from models.frames import Frames
from models.runtime.spans import spanned
from support.command_line import UserError

HIDDEN_S = 0.2  # a span of hidden frames: about a syllable
FULL_S = 30  # the family's rule divides its frames by their time: 1,500 at 50 Hz


def frames_in(seconds: float, frame_rate_hz: float) -> int:
    """How many frames the family counts in so many seconds: 17 in 0.333333 s at 50 Hz.

    Its arithmetic, in its order, `round(1500 * seconds / 30)`: 0.17 s are 9 frames, although 50 * 0.17 is just 8.5.
    """
    return max(1, round(FULL_S * frame_rate_hz * seconds / FULL_S))


class Connector(nn.Module):
    """Several encoders' frames -> audio tokens `[B, A, H]` and their mask.

    A clip has `W = ceil(frames / stride)` windows, the last one partial with its missing frames masked, and `Q` tokens
    a window. `keep_partial_window=False` is the released models' rule: full windows only. Up to a window of sound at
    the end is then lost, and sound between windows where the stride is longer than a window (an error otherwise).
    `window_s=None` makes one window of the whole clip.

    Args:
        encoder_names: a name for each encoder, in the order of their outputs; LayerNorms have them in checkpoints.
        encoder_dims: `D` of each encoder.
        frame_rates_hz: frame rate of each encoder; slower outputs are resampled to the fastest.
        llm_hidden_size: `H`.
        fusion: `concat` concatenates the outputs on the channel axis; `project` projects each to the Q-Former's width
            by a linear layer of its own and adds them.
        context_layers: layers over all tokens of a clip between Q-Former and projection; 0 as in SALMONN.
        window_jitter: in training, the windows start up to a stride before the clip, drawn for each batch. Window
            boundaries differ every epoch, and nothing is cut off.
        mask_frames: in training, the share of frames that are set to zero, in spans of `HIDDEN_S`.
    """

    def __init__(
        self,
        encoder_names: list[str],
        encoder_dims: list[int],
        frame_rates_hz: list[float],
        llm_hidden_size: int,
        *,
        hidden_size: int,
        num_heads: int,
        num_layers: int,
        intermediate_size: int | None,
        num_queries: int,
        dropout: float,
        context_layers: int = 0,
        window_s: float | None,
        stride_s: float,
        keep_partial_window: bool,
        window_jitter: bool,
        mask_frames: float = 0.0,
        fusion: Literal["concat", "project"],
    ) -> None:
        super().__init__()
        self.frame_rates_hz = list(frame_rates_hz)
        self.num_queries = num_queries
        self.keep_partial_window = keep_partial_window
        rate_hz = max(frame_rates_hz)
        self.mask_frames = mask_frames
        self.window_jitter = window_jitter and window_s is not None and keep_partial_window
        self.window = None if window_s is None else frames_in(window_s, rate_hz)  # K, in frames
        self.stride = None if window_s is None else frames_in(stride_s, rate_hz)
        if self.window is not None and self.stride > self.window and keep_partial_window:
            raise UserError(
                f"model.second_stride = {stride_s} is longer than model.second_per_window = {window_s}: sound between "
                "two windows would be lost. Use a stride no longer than the window."
            )
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(dim) for name, dim in zip(encoder_names, encoder_dims, strict=True)}
        )
        self.projections = None
        if fusion == "project":
            self.projections = nn.ModuleDict(
                {name: nn.Linear(dim, hidden_size) for name, dim in zip(encoder_names, encoder_dims, strict=True)}
            )
        self.qformer = QFormer(
            QFormerConfig(
                encoder_width={"concat": sum(encoder_dims), "project": hidden_size}[fusion],
                hidden_size=hidden_size,
                num_heads=num_heads,
                num_layers=num_layers,
                intermediate_size=intermediate_size or 4 * hidden_size,
                num_queries=num_queries,
                dropout=dropout,
            )
        )
        self.context = Context(context_layers, hidden_size, num_heads, dropout) if context_layers else None
        self.to_llm = nn.Linear(hidden_size, llm_hidden_size)

    def train(self, mode: bool = True) -> "Connector":
        """A frozen Q-Former stays in eval: its dropout would only be noise."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.qformer.parameters()):
            self.qformer.eval()
            if self.context is not None:
                self.context.eval()
        return self

    @property
    def dtype(self) -> torch.dtype:
        return self.to_llm.weight.dtype

    @property
    def token_rate_hz(self) -> float:
        """Audio tokens a second; of a single window for the whole clip, 0."""
        return 0.0 if self.stride is None else self.num_queries * max(self.frame_rates_hz) / self.stride

    def window_count(self, frames: int) -> int:
        """`W` of a clip with so many frames; at least one with partial windows."""
        if self.window is None:
            return 1
        if self.keep_partial_window:
            return max(1, -(-frames // self.stride))
        return max(0, frames - self.window) // self.stride + 1 if frames >= self.window else 0

    def token_count(self, frames: int) -> int:
        """`A` of a clip with so many frames."""
        return self.window_count(frames) * self.num_queries

    def fuse(self, outputs: list[Frames]) -> Frames:
        """Normalise encoder outputs and join them: frames `[B, N, sum of D]` (`[B, N, H]` if projected)."""
        normed = []
        for (name, norm), output in zip(self.norms.items(), outputs, strict=True):
            frames = norm(output.frames.to(self.dtype))
            if self.projections is not None:
                frames = self.projections[name](frames)
            normed.append(Frames(frames, output.lengths))
        # Zeros after a clip's end are set behind the norm: the norm of zeros is its bias.
        aligned, lengths = align_outputs(normed, self.frame_rates_hz)
        fused = torch.cat(aligned, dim=-1) if self.projections is None else sum(aligned)
        return Frames(fused, lengths)

    @spanned("connector")
    def forward(self, outputs: list[Frames]) -> tuple[Tensor, Tensor]:
        """Encoder outputs -> audio tokens `[B, A, H]` and their mask `[B, A]`, False where a token is padding."""
        fused = self.fuse(outputs)
        if self.mask_frames and self.training:
            fused = hide_spans(fused, self.mask_frames, frames_in(HIDDEN_S, max(self.frame_rates_hz)))
        windows, frame_mask = self._windows(fused)  # [B, W, K, D], [B, W, K]
        batch, count = frame_mask.shape[:2]
        window_mask = frame_mask.any(dim=-1)  # [B, W]
        token_mask = window_mask.repeat_interleave(self.num_queries, dim=1)  # [B, A]
        if batch == 1:  # a clip alone has no padded windows: no gather, no synchronisation
            tokens = self._projected(self.qformer(windows[0], frame_mask[0]))[None]
        else:
            # A softmax over no key is NaN: windows of padding never reach attention.
            rows = self._projected(self.qformer(windows[window_mask], frame_mask[window_mask]))
            tokens = rows.new_zeros(batch, count, *rows.shape[1:])
            tokens[window_mask] = rows
        tokens = tokens.flatten(1, 2)
        if self.context is not None:
            tokens = self.to_llm(self.context(tokens, token_mask)).masked_fill(~token_mask[..., None], 0)
        return tokens, token_mask

    def _projected(self, queried: Tensor) -> Tensor:
        """The Q-Former's outputs in the language model's width, unless context layers come between."""
        return self.to_llm(queried) if self.context is None else queried

    def _windows(self, fused: Frames) -> tuple[Tensor, Tensor]:
        """Cut `[B, N, D]` in windows `[B, W, K, D]`, with a mask of the frames that belong to the clip."""
        frames, lengths = fused.frames, fused.lengths
        total = frames.shape[1]
        mask = torch.arange(total, device=frames.device) < lengths[:, None]  # [B, N]
        if self.window is None:
            return frames[:, None], mask[:, None]
        if self.window_jitter and self.training:
            early = int(torch.randint(self.stride, ()))
            frames, mask = nn.functional.pad(frames, (0, 0, early, 0)), nn.functional.pad(mask, (early, 0))
            total += early
        count = self.window_count(total)
        if count == 0:
            raise UserError(
                f"a clip of {total} frames is shorter than one window of {self.window} frames, and partial windows are "
                "off (the released models' rule); use model.window: full or model.legacy: off."
            )
        missing = (count - 1) * self.stride + self.window - total
        if missing > 0:
            frames = nn.functional.pad(frames, (0, 0, 0, missing))
            mask = nn.functional.pad(mask, (0, missing))
        windows = frames.unfold(1, self.window, self.stride)[:, :count].transpose(2, 3)
        mask = mask.unfold(1, self.window, self.stride)[:, :count]
        if not self.keep_partial_window:  # a padded row keeps the windows that are full without padding
            ends = torch.arange(count, device=frames.device) * self.stride + self.window
            mask = mask & (ends <= lengths[:, None])[..., None]
        return windows, mask
