"""Mixtures of Gaussians in float64, without the library: what `analytic` is compared with."""

import numpy as np
import scipy.special
import scipy.stats

# A line: two components that overlap. Space: three, one of them flat.
LINE = (np.array([0.3, 0.7]), np.array([[-1.0], [0.5]]), np.array([[[0.04]], [[0.3]]]))
SPACE = (
    np.array([0.2, 0.5, 0.3]),
    np.array([[0.5, -1.0, 0.0], [1.5, 0.5, 0.5], [-0.5, 0.5, -1.0]]),
    np.array(
        [
            [[0.5, 0.3, 0.0], [0.3, 0.4, -0.1], [0.0, -0.1, 0.2]],
            [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
            [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.1]],
        ]
    ),
)
ONE = (SPACE[1][0], SPACE[2][0])


def marginal(parts, a, b):
    """Weights and frozen scipy normals of x_t."""
    weights, means, covariances = parts
    noise = b**2 * np.eye(means.shape[1])
    return weights, [
        scipy.stats.multivariate_normal(a * m, a**2 * c + noise)
        for m, c in zip(means, covariances, strict=True)
    ]


def log_density_float64(parts, a, b, x_t):
    weights, normals = marginal(parts, a, b)
    each = [normal.logpdf(x_t).reshape(len(x_t)) for normal in normals]
    return scipy.special.logsumexp(np.stack(each, axis=1), b=weights, axis=1)


def denoise_float64(parts, a, b, x_t):
    """E[x_0 | x_t] by conditioning each joint Gaussian of (x_0, x_t), then Bayes' rule."""
    weights, normals = marginal(parts, a, b)
    each = np.stack([normal.logpdf(x_t).reshape(len(x_t)) for normal in normals], axis=1)
    posterior = weights * np.exp(each - each.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    x0_hat = np.zeros_like(x_t)
    for k, (m, c) in enumerate(zip(*parts[1:], strict=True)):
        covariance_t = a**2 * c + b**2 * np.eye(len(m))
        conditional = m + a * np.linalg.solve(covariance_t, (x_t - a * m).T).T @ c
        x0_hat += posterior[:, k, None] * conditional
    return x0_hat


def random_mixture(rng, components, dimensions):
    """Weights, means and covariances, every second covariance singular."""
    roots = rng.normal(size=(components, dimensions, dimensions))
    roots[1::2, :, 0] = 0.0
    weights = rng.dirichlet(np.full(components, 3.0))
    means = rng.normal(size=(components, dimensions))
    return weights, means, roots @ roots.transpose(0, 2, 1) / dimensions


def rotation(rng, dimensions):
    return np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
