"""A rank's share of every global batch, as tensors: packed one row after another, or padded to the longest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from bridge_ray.config import Training
from bridge_ray.training.curriculum import Plan, batch_at, easiest_first
from bridge_ray.training.packing import pack
from bridge_ray.training.tokens import TokenRows

TokenRow = tuple[np.ndarray, int]  # token ids (length,) int32, and how many of them are the prompt


@dataclass(frozen=True)
class Micro:
    """Rows that go through the model at once.

    ``ids`` (sequences, length) int64; ``completion``, of the same shape and bool, says which tokens are learnt;
    ``positions``, int64, count each row's tokens from 0. ``segments`` are the lengths of the rows that stand one after
    another in a single sequence; None where every row is a sequence, padded on the right.
    """

    ids: torch.Tensor
    completion: torch.Tensor
    positions: torch.Tensor
    segments: tuple[int, ...] | None
    tokens: int  # without padding


@dataclass(frozen=True)
class Feed:
    """What one rank of ``world`` trains on: a pure function of the update's number."""

    rows: Mapping[str, TokenRows]  # of each pool
    plan: Plan
    rank: int
    world: int
    training: Training

    @property
    def capacity(self) -> int:
        """Tokens at once, packed."""
        return self.training.micro_batch * self.training.seq_len

    @property
    def one_at_most(self) -> bool:
        """Whether no update can need more than one micro-batch, be every row as long as it may."""
        return self.plan.batch // self.world <= self.training.micro_batch

    @cached_property
    def _order(self) -> dict[int, np.ndarray]:
        return easiest_first(self.plan, {pool: rows.difficulty for pool, rows in self.rows.items()})

    def update(self, step: int) -> tuple[list[Micro], int]:
        """This rank's micro-batches of an update, and the completion tokens of the whole global batch.

        Every rank has the same number of micro-batches.
        """
        batch = [self.rows[pool].row(index) for pool, index in batch_at(self.plan, step, self._order)]
        completions = sum(len(ids) - prompt for ids, prompt in batch)
        if self.training.packing:
            parts = pack([len(ids) for ids, _ in batch], self.world, self.capacity)[self.rank]
            return [packed([batch[index] for index in part]) for part in parts], completions
        batch.sort(key=lambda row: len(row[0]))  # like lengths together: less padding
        share, size = batch[self.rank :: self.world], self.training.micro_batch
        return [padded(share[start : start + size]) for start in range(0, len(share), size)], completions


def packed(rows: list[TokenRow]) -> Micro:
    """One sequence of all rows."""
    lengths = tuple(len(ids) for ids, _ in rows)
    ids = torch.from_numpy(np.concatenate([ids for ids, _ in rows]).astype(np.int64))
    positions = torch.cat([torch.arange(length) for length in lengths])
    prompts = torch.tensor([prompt for _, prompt in rows]).repeat_interleave(torch.tensor(lengths))
    return Micro(ids[None], (positions >= prompts)[None], positions[None], lengths, len(ids))


def padded(rows: list[TokenRow]) -> Micro:
    """One sequence per row."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    completion = torch.zeros(len(rows), length, dtype=torch.bool)
    for number, (row, prompt) in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
        completion[number, prompt : len(row)] = True
    positions = torch.arange(length).expand(len(rows), length)
    return Micro(ids, completion, positions, None, sum(len(ids) for ids, _ in rows))
