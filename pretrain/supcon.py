"""Supervised contrastive pretraining: all beats of a class attract (Khosla et al. 2020, arXiv 2004.11362)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.contrastive import Contrastive, similarities
from pretrain.task import Batch, labels_of
from pretrain.views import two_views


class SupervisedContrastive(Contrastive):
    """SupCon between projections of two views; the source's own labels say what attracts."""

    def views(self, batch: Batch) -> tuple[Tensor, ...]:
        other = batch.partner if self.of == "patient" and batch.partner else batch
        return *two_views(batch, self.of), labels_of(batch), labels_of(other)

    def objective(self, outputs: Sequence[Tensor], views: Sequence[Tensor]) -> Tensor:
        return supcon(self.project(torch.cat(tuple(outputs))), torch.cat(tuple(views[2:])), self.temperature)


def supcon(projection_VD: Tensor, target_V: Tensor, temperature: float) -> Tensor:
    """The loss L_out of Khosla et al. 2020, equation 2, averaged over the views that have another of their class.

    Args:
        projection_VD: (num_views, dim).
        target_V: (num_views,), class of each.
    """
    similarity_VV = similarities(projection_VD, temperature)
    attracts = (target_V[:, None] == target_V).fill_diagonal_(False)
    log_share = similarity_VV - similarity_VV.logsumexp(1, keepdim=True)
    count = attracts.sum(1)
    losses = -log_share.masked_fill(~attracts, 0.0).sum(1) / count.clamp(min=1)
    return losses.sum() / (count > 0).sum().clamp(min=1)
