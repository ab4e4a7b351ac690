"""The Gaussian process behind the proposals: scikit-optimize's, with a prior over its length scales.

Matern 5/2 with one length scale per dimension and white noise (Snoek, Larochelle, Adams 2012, arXiv 1206.2944). With
a hundred points in twenty dimensions the likelihood alone leaves the length scales open; the log-normal prior that
grows with the dimension is that of Hvarfner, Hellsten, Nardi 2024 (arXiv 2402.02229), the noise prior is our choice.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize
from skopt.learning import GaussianProcessRegressor
from skopt.learning.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

_LENGTH_BOUNDS = (0.05, 200.0)
_NOISE_BOUNDS = (1e-6, 1.0)
_NOISE_PRIOR = (math.log(1e-2), 2.0)  # mean and standard deviation of the log of the noise, in variances of the values
_CAP = 2.5  # values further than this many times (median - best) above the median are capped: how bad does not matter


class Surrogate:
    """A fit to points (N, D) and values (N,), lower is better."""

    def __init__(self, points: np.ndarray, values: np.ndarray, seed: int) -> None:
        middle = float(np.median(values))
        ceiling = middle + _CAP * max(middle - float(np.min(values)), 1e-12)
        capped = np.minimum(values, ceiling)
        self.offset, self.scale = float(np.mean(capped)), float(np.std(capped)) or 1.0
        targets = (capped - self.offset) / self.scale
        dimensions = points.shape[1]
        kernel = ConstantKernel(1.0, (0.05, 50.0)) * Matern(
            np.full(dimensions, 0.5 * math.sqrt(dimensions)), [_LENGTH_BOUNDS] * dimensions, nu=2.5
        ) + WhiteKernel(1e-2, _NOISE_BOUNDS)
        model = GaussianProcessRegressor(
            kernel, optimizer=_most_probable(dimensions), random_state=seed, noise="gaussian"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "close to the bound": an unused group's length scale is meant to be
            model.fit(points, targets)
        self.kernel = model.kernel_
        self.noise = float(model.noise_)
        self._condition(points, targets)

    def _condition(self, points: np.ndarray, targets: np.ndarray) -> None:
        """Take in points and normalised values at the kernel as it is."""
        self.points, self.targets = points, targets
        covariance = self.kernel(points) + (self.noise + 1e-10) * np.eye(len(points))
        self.factor = np.linalg.cholesky(covariance)
        self.weights = cho_solve((self.factor, True), targets)

    def believing(self, pending: np.ndarray) -> Surrogate:
        """A copy that takes pending points (P, D) to turn out as predicted, so that a batch spreads.

        This is the kriging believer of Ginsbourger, Le Riche, Carraro 2010; unlike a constant lie it needs no refit.
        """
        copied = copy.copy(self)
        predicted = (self.predict(pending)[0] - self.offset) / self.scale
        copied._condition(np.concatenate([self.points, pending]), np.concatenate([self.targets, predicted]))
        return copied

    def predict(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (N,), (N,) of the noiseless loss at points (N, D)."""
        shared = self.kernel(points, self.points)
        explained = solve_triangular(self.factor, shared.T, lower=True)
        variance = np.maximum(self.kernel.diag(points) - np.sum(explained**2, axis=0), 1e-12)
        return self.offset + self.scale * (shared @ self.weights), self.scale * np.sqrt(variance)


def _most_probable(dimensions: int) -> Callable[..., tuple[np.ndarray, float]]:
    """An optimizer of the kernel's log parameters (amplitude, length scales, noise) with the priors added."""
    means = np.array([0.0, *[math.sqrt(2) + math.log(dimensions) / 2] * dimensions, _NOISE_PRIOR[0]])
    spreads = np.array([2.0, *[math.sqrt(3)] * dimensions, _NOISE_PRIOR[1]])

    def optimizer(objective: Callable, initial: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, float]:
        def penalised(theta: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = objective(theta)
            away = (theta - means) / spreads
            return float(value + 0.5 * np.sum(away**2)), gradient + away / spreads

        found = minimize(
            penalised, initial, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 40, "ftol": 1e-6}
        )
        return found.x, float(found.fun)

    return optimizer
