"""Rows that cover the corpus, hard or not: the bridge objective with every weight at 1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from bridge_ray.selection.problem import Problem
from bridge_ray.selection.strategies import bridge


def rank(problem: Problem, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    return bridge.rank(replace(problem, difficulty_weight=0.0), count)
