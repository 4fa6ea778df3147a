"""The curve of a system's test error over what was bought and the corpus, and its fit.

    err(B, N) = floor + scale B^-exponent + corpus_scale (rho N)^-corpus_exponent

with B the teacher queries, N the training rows and rho the share of them that amplification explained. What direct
learns from does not grow with N, so its curve has no last term; nor has any curve of cells of a single N, where that
term cannot be told from the floor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from bridge_ray.forecast.cells import Cell

Numbers = NDArray[np.float64]

USE_CORPUS = ("bridge", "direct_labels")  # systems that learn from all rows, bought or not
SLOWEST, FASTEST = 0.05, 2.0  # exponents
CENTRE, SPREAD = 0.5, 1.0  # of the prior of an exponent's logarithm: 0.2 to 1.4 is within one spread
STARTS = (0.25, 1.0)
TINY = 1e-12


@dataclass(frozen=True)
class Curve:
    """A fitted curve; ``corpus_exponent`` is None without a term in N."""

    floor: float
    scale: float
    exponent: float
    corpus_scale: float = 0.0
    corpus_exponent: float | None = None

    def error(self, queries: float, corpus: float) -> float:
        return self.asymptote(corpus) + self.scale * queries**-self.exponent

    def asymptote(self, corpus: float) -> float:
        """The error that no number of queries gets below, with this corpus."""
        if self.corpus_exponent is None:
            return self.floor
        return self.floor + self.corpus_scale * corpus**-self.corpus_exponent

    def queries_for(self, error: float, corpus: float) -> float:
        """The queries at which the error is reached, ((error - asymptote) / scale)^(-1/exponent); inf: never."""
        above = error - self.asymptote(corpus)
        if above <= 0:
            return math.inf
        logarithm = (math.log(self.scale) - math.log(above)) / self.exponent
        return math.exp(logarithm) if logarithm < 700 else math.inf


def has_corpus_term(cells: Sequence[Cell]) -> bool:
    return cells[0].system in USE_CORPUS and len({cell.rows for cell in cells}) > 1


def fit(cells: Sequence[Cell], bound: float, centres: tuple[float, float] = (CENTRE, CENTRE)) -> Curve:
    """The curve of one system's cells, by least squares weighted with the cells' binomial variance.

    All parameters are positive, the floor is not below ``bound``, the exponents are between 0.05 and 2. A few sizes
    can leave an exponent open, so its logarithm has a weak normal prior around ``centres`` (in B, in N); the bootstrap
    draws those too, so that what rests on the prior alone has a wide interval. For given exponents the problem is
    linear with bounds, hence convex: only the exponents need several starts.
    """
    from scipy.optimize import least_squares

    error, logs = np.array([cell.error for cell in cells]), [_logs([cell.queries for cell in cells])]
    if has_corpus_term(cells):
        logs.append(_logs([cell.corpus for cell in cells]))
    terms, count = np.stack(logs), len(logs)  # (count, cells)
    middles = terms.mean(axis=1)
    centred = terms - middles[:, None]  # so that a scale is the term's size amid the cells, whatever the exponent
    weight = 1 / np.array([_deviation(cell) for cell in cells])
    prior = np.log(centres[:count])

    def residuals(parameters: Numbers) -> Numbers:
        floor, scales, exponents = parameters[0], parameters[1 : count + 1], parameters[count + 1 :]
        fitted = floor + scales @ np.exp(-exponents[:, None] * centred)
        return np.concatenate([(fitted - error) * weight, (np.log(exponents) - prior) / SPREAD])

    def jacobian(parameters: Numbers) -> Numbers:
        scales, exponents = parameters[1 : count + 1], parameters[count + 1 :]
        powers = np.exp(-exponents[:, None] * centred)
        slopes = np.vstack([np.ones(len(cells)), powers, -scales[:, None] * centred * powers]) * weight
        pulls = np.hstack([np.zeros((count, count + 1)), np.diag(1 / (exponents * SPREAD))])
        return np.vstack([slopes.T, pulls])

    low = [bound, *[TINY] * count, *[SLOWEST] * count]
    high = [bound + 1, *[1.0] * count, *[FASTEST] * count]
    half = max(float(error.mean()) - bound, 0.02) / 2
    starts = [[bound + half, *[half / count] * count, *exponents] for exponents in product(STARTS, repeat=count)]
    tried = [least_squares(residuals, start, jacobian, (low, high), method="dogbox") for start in starts]
    found = min(tried, key=lambda one: one.cost).x
    exponents = found[count + 1 :]
    scales = found[1 : count + 1] * np.exp(exponents * middles)
    second = (float(scales[1]), float(exponents[1])) if count > 1 else (0.0, None)
    return Curve(float(found[0]), float(scales[0]), float(exponents[0]), *second)


def _logs(values: Sequence[float]) -> Numbers:
    return np.log(np.array(values, np.float64))


def _deviation(cell: Cell) -> float:
    """Binomial standard deviation of the cell's error; one right and one wrong answer are added, so it is not 0."""
    share = (cell.correct + 1) / (cell.n + 2)
    return math.sqrt(share * (1 - share) / cell.n)
