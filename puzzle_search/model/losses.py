"""Distances between the predictions of two models."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def token_kl(teacher_BLV: torch.Tensor, student_BLV: torch.Tensor) -> torch.Tensor:
    """KL(teacher || student) of every token in nats, (B, L), from logits."""
    return kl_to_log_probs(log_probs(teacher_BLV), student_BLV)


def log_probs(logits_BLV: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in fp32, (B, L, V)."""
    return F.log_softmax(logits_BLV.float(), dim=-1)


def kl_to_log_probs(teacher_BLV: torch.Tensor, student_BLV: torch.Tensor) -> torch.Tensor:
    """The same from the teacher's log-probabilities, for a teacher that is compared with often."""
    student = log_probs(student_BLV)
    return F.kl_div(student, teacher_BLV, reduction="none", log_target=True).sum(dim=-1)
