"""Attention rollout: what the tokens of the last layer hold of those that entered the first."""

from collections.abc import Sequence

import torch
from torch import Tensor


def attention_rollout(attentions: Sequence[Tensor], readers: Tensor | None = None) -> Tensor:
    """
    Attention rollout, the product of the layers' attention with the residual connection counted in.

    With `A_l` layer `l`'s attention averaged over its heads, `M_l = (A_l + I) / 2` with its rows normalised to sum 1,
    and `M_L` the last layer's: `rollout = readers @ M_L @ ... @ M_1`. Multiplied from the left, so that a few readers
    cost a few vectors, not matrices of `L × L`.

    Args:
        attentions (`Sequence[Tensor]`, each of shape `(B, heads, L, L)`): attention from row to column, the rows of
            the softmax, the first layer's first; not negative. The number of heads may differ between the layers.
        readers (`Tensor` of shape `(R, L)`, *optional*): weights of the last layer's tokens, for each of R results;
            default: one result a token, the whole matrix.

    Returns:
        `Tensor` of shape `(B, R, L)`: for each reader its shares of the first layer's tokens. Not negative; each row
        sums to what the reader's weights sum to. Differentiable with respect to the attention.

    Raises:
        ValueError: if there is no layer, or shapes do not match.

    Source: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020.
    """
    if not attentions:
        raise ValueError("attentions is empty; give the attention of one layer at least.")
    batch, tokens = attentions[0].shape[0], attentions[0].shape[-1]
    for index, attention in enumerate(attentions):
        if attention.ndim != 4 or (attention.shape[0], *attention.shape[2:]) != (batch, tokens, tokens):
            raise ValueError(
                f"attentions[{index}] has shape {tuple(attention.shape)}; give (B, heads, L, L), with B = {batch} and "
                f"L = {tokens} as in the first layer."
            )
    if readers is None:
        readers = torch.eye(tokens, device=attentions[0].device)
    if readers.ndim != 2 or readers.shape[1] != tokens:
        raise ValueError(f"readers has shape {tuple(readers.shape)}; give (R, L) with L = {tokens} tokens.")
    result = readers.to(attentions[0]).expand(batch, -1, -1)
    for attention in reversed(attentions):
        mean = attention.mean(dim=1)
        halves = result / (1 + mean.sum(dim=2)).unsqueeze(1)
        result = halves @ mean + halves
    return result
