"""Spans of frames that training hides (Park et al. 2019, "SpecAugment", section 2, applied to an encoder's outputs)."""

import torch
import torch.nn.functional as F

from models.frames import Frames


def hide_spans(fused: Frames, share: float, span: int) -> Frames:
    """The frames with zeros in random spans of `span` frames, which cover about `share` of them and may overlap."""
    frames = fused.frames
    starts = torch.rand(frames.shape[:2], device=frames.device) < share / span
    hidden = F.max_pool1d(F.pad(starts.float(), (span - 1, 0))[:, None], span, stride=1)[:, 0] > 0  # [B, N]
    return Frames(frames.masked_fill(hidden[..., None], 0), fused.lengths)
