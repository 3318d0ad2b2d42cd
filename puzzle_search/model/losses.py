"""Distances between the predictions of two models."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def token_kl(teacher_BLV: torch.Tensor, student_BLV: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of every token in nats, (B, L), from logits."""
    teacher = F.log_softmax(teacher_BLV.float(), dim=-1)
    student = F.log_softmax(student_BLV.float(), dim=-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)
