"""Parts of the `shapes-wan` denoiser as first weights of another family's: what both students' warm starts share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel

Plan = Sequence[tuple[int, str]]
"""What each of a student's blocks stands for, see `students.stretches`."""
KEYS_RIDGE = 0.05
"""Keeps keys and values to what text has, so that the latents, which pass the same weights, give little."""


@dataclass(frozen=True, slots=True)
class Words:
    """The tokens of some captions."""

    ours: torch.Tensor
    """As the student gets them, [captions, tokens, width]."""
    theirs: torch.Tensor
    """As the teacher's blocks get them, [captions, tokens, width]."""
    attended: torch.Tensor
    """Which of them the student attends, bool [captions, tokens]."""


def copy_linear(to: torch.nn.Module, source: torch.nn.Module, rows: slice | torch.Tensor = slice(None)) -> None:
    to.weight.copy_(source.weight[rows].reshape(to.weight.shape))
    to.bias.copy_(source.bias[rows])


def close(linear: torch.nn.Linear) -> None:
    """A layer that gives nothing at first; of modulations, closed gates."""
    linear.weight.zero_()
    linear.bias.zero_()


def copy_last_layer(to: torch.nn.Linear, source: torch.nn.Linear, channels: int) -> None:
    """Wan has a patch's numbers with the channel last, the others with the channel first."""
    to.weight.copy_(source.weight.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1))
    to.bias.copy_(source.bias.unflatten(0, (-1, channels)).T.flatten())


def times(teacher: WanTransformer3DModel, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's embeddings of timesteps, [T, width], and the modulations that its blocks share, [T, 6 * width]."""
    embedder = teacher.condition_embedder
    embedded = embedder.time_embedder(embedder.timesteps_proj(timesteps).to(embedder.time_proj.weight.dtype))
    return embedded, embedder.time_proj(embedder.act_fn(embedded))


def last_modulation(teacher: WanTransformer3DModel, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and scale, each [T, width], before the teacher's last layer."""
    shift, scale = (teacher.scale_shift_table + embedded[:, None]).unbind(1)
    return shift, scale


def fold_norm(linear: torch.nn.Linear, norm: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of queries or keys with the weights of the norm behind them worked in."""
    return linear.weight * norm.weight[:, None], linear.bias * norm.weight


def mean_weight(norm: torch.nn.Module) -> float:
    return float(norm.weight.square().mean().sqrt())


@torch.enable_grad()
def fit(
    weights: Iterable[torch.nn.Parameter], loss_of: Callable[[], torch.Tensor], num_steps: int, learning_rate: float
) -> float:
    """Trains the weights on a loss that is asked for anew at every step, and returns the last one."""
    stepper = torch.optim.Adam(weights, lr=learning_rate)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, num_steps)
    for _ in range(num_steps):
        loss = loss_of()
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        plan.step()
    return float(loss.detach())


def fit_linear(to: torch.nn.Linear, inputs: torch.Tensor, wanted: torch.Tensor, ridge: float, rows: slice) -> None:
    """Sets rows of a layer so that it gives `wanted`, [T, rows], from `inputs`, [T, width], in the least squares."""
    ones = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    penalty = ridge * torch.eye(ones.shape[1])
    penalty[-1, -1] = 0.0
    gram = ones.T @ ones / len(ones)
    solution = torch.linalg.solve(gram + penalty, ones.T @ wanted / len(ones))
    to.weight[rows], to.bias[rows] = solution[:-1].T, solution[-1]


def copy_attention(to: torch.nn.Module, source: torch.nn.Module, in_head: torch.Tensor | None = None) -> None:
    """Queries, keys and values; `in_head` says which of a head's channels queries and keys take.

    A student normalises every head by itself and weighs all heads alike: the teacher's weights of the norm are worked
    into queries and keys.
    """
    size = len(source.norm_q.weight) // to.heads
    in_head = torch.arange(size) if in_head is None else in_head
    rows = (torch.arange(to.heads)[:, None] * size + in_head).flatten()
    for part, norm, its, its_norm in (
        (to.to_q, to.norm_q, source.to_q, source.norm_q),
        (to.to_k, to.norm_k, source.to_k, source.norm_k),
    ):
        weight, bias = fold_norm(its, its_norm)
        part.weight.copy_(weight[rows])
        part.bias.copy_(bias[rows])
        norm.weight.fill_(mean_weight(its_norm))
    copy_linear(to.to_v, source.to_v)


def copy_cross_attention(
    to: torch.nn.Module, source: torch.nn.Module, theirs: torch.Tensor, text: torch.Tensor, slowest: torch.Tensor
) -> None:
    """Queries from the latents, keys and values from the text.

    `theirs` are words as the teacher's blocks get them, `text` the same ones as they reach the student's keys and
    values, both [words, width].

    A student turns its queries by place, as the teacher does not: what tells keys apart most goes to the channels of
    a head that turn the `slowest`. That latents are not to be attended is left to be learnt.
    """
    size = len(source.norm_q.weight) // to.heads
    queries, queries_bias = fold_norm(source.to_q, source.norm_q)
    weight, bias = fold_norm(source.to_k, source.norm_k)
    keys = theirs @ weight.T + bias
    for head in range(to.heads):
        rows = slice(head * size, (head + 1) * size)
        _, directions = torch.linalg.eigh(torch.cov(keys[:, rows].T))
        turn = torch.empty(size, size)
        turn[slowest] = directions.flip(1).T
        to.to_q.weight[rows], to.to_q.bias[rows] = turn @ queries[rows], turn @ queries_bias[rows]
        fit_linear(to.to_k, text, keys[:, rows] @ turn.T, KEYS_RIDGE, rows)
    fit_linear(to.to_v, text, source.to_v(theirs), KEYS_RIDGE, slice(None))
    to.norm_q.weight.fill_(mean_weight(source.norm_q))
    to.norm_k.weight.fill_(mean_weight(source.norm_k))


def slowest_channels(sizes: Sequence[int], theta: float = 10000.0) -> torch.Tensor:
    """A head's channels, those first that turn least from place to place."""
    turns = [theta ** (-(channel // 2 * 2) / size) for size in sizes for channel in range(size)]
    return torch.tensor(turns).argsort(stable=True)
