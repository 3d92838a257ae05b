r"""A chain of noise that is not Gaussian and still has a shortcut: gamma noise.

The chain of Nachmani et al. 2021, Denoising Diffusion Gamma Models, with the betas of a schedule
and one scale theta_0:

.. math::

    x_t = \sqrt{1 - \beta_t}\, x_{t-1} + g_t - \mathrm{E}\, g_t, \qquad
    g_t \sim \mathrm{Gamma}(\text{shape } k_t, \text{scale } \theta_t)

.. math::

    \theta_t = \sqrt{\bar\alpha_t}\, \theta_0, \qquad
    k_t = \frac{\beta_t}{\bar\alpha_t\, \theta_0^2}

so that Var g_t = k_t theta_t^2 = beta_t. What a step scales down, sqrt(1 - beta_t) g_{t-1}, has the
scale theta_t of the next noise, and gammas of one scale add up by their shapes:

.. math::

    x_t = \sqrt{\bar\alpha_t}\, x_0 + \theta_t (G_t - \bar{k}_t), \qquad
    G_t \sim \mathrm{Gamma}(\bar{k}_t, 1), \qquad
    \bar{k}_t = \sum_{i \le t} k_i = \frac{1 - \bar\alpha_t}{\bar\alpha_t\, \theta_0^2} \tag{1}

because beta_i / alpha_bar_i = 1 / alpha_bar_i - 1 / alpha_bar_{i-1} telescopes. In units of its
deviation the noise is eps = (G_t - k_bar_t) / sqrt(k_bar_t), of mean 0 and variance 1:

.. math::

    x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon \tag{2}

.. math::

    q(x_t \mid x_s):\ \text{the same with } \bar\alpha_t / \bar\alpha_s, \qquad
    \epsilon \text{ from the shape } \bar{k}_t - \bar{k}_s \tag{3}

.. math::

    q(x_s \mid x_t, x_0):\ G_s = B\, G_t, \qquad
    B \sim \mathrm{Beta}(\bar{k}_s,\ \bar{k}_t - \bar{k}_s) \tag{4}

Eq. (4) holds because, for two independent gammas of one scale, the share of the first is
independent of their sum (Lukacs 1955): x_t and x_0 determine G_t, and B how it is split. With
r = SNR_t / SNR_s = E B and kappa = 1 / k_bar_t = SNR_t theta_0^2, the mean of the posterior is the
Gaussian chain's, with the same weights of x_0 and x_t, and its variance

.. math::

    \mathrm{Var}[x_s \mid x_t, x_0]
    = b_s^2 (1 - r)\, \frac{(G_t / \bar{k}_t)^2}{1 + \kappa} \tag{5}

the Gaussian chain's times a factor. What does not hold: the posterior is a beta law whose variance
depends on x_t, so the KL shortcut, and with it `vlb_terms` and bits per dimension, do not hold for
this chain. As theta_0 goes to 0 the chain becomes the Gaussian one; theta_0^2 SNR_t measures how
far it is from it. The paper's theta_0 is 0.001.

References:
    - Nachmani et al. 2021, https://arxiv.org/abs/2110.05948
    - Lukacs 1955, https://doi.org/10.1214/aoms/1177728549
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ddpm_jax.arrays import Value, on_every_device, per_example, register_with_nnx, widened
from ddpm_jax.checks import check_draw, check_images, check_key, check_same_shape, check_scalar
from ddpm_jax.processes.modal import (
    mix,
    one_minus_snr_ratio,
    posterior_weights,
    step_weights,
    transition_weights,
)
from ddpm_jax.schedules.tables import Schedule, check_preserves_variance, check_schedule

__all__ = ["GammaChain", "gamma"]

LARGE_SHAPE = 1e4
"""Above it a gamma's deviate comes in one go: see `_standardized`."""


class GammaChain(NamedTuple):
    """A schedule and the scale of its gamma noise, a frozen pytree. Make one with `gamma`.

    It has no modes, because its noise is not Gaussian. Its schedule has the same mean and variance
    at every step and takes its place in what needs no more.

    Times are int32 `[batch]`, -1 <= s < t < T; one outside of that gives NaN. Images are
    `[batch, ...]`, any float dtype, which the result keeps; noise is drawn in float32. An argument
    of the wrong dtype or shape is a TypeError or a ValueError that names it.
    """

    schedule: Schedule
    """The Gaussian chain of the same first two moments, for `simple_loss` and its like."""
    theta_0: Float[Array, ""]
    """The scale of the noise before the first step, a scalar above 0."""

    __eq__, __ne__ = Value.__eq__, Value.__ne__  # type: ignore[misc]
    __hash__, __repr__ = Value.__hash__, Value.__repr__  # type: ignore[misc]

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return self.schedule.num_steps

    def q_sample(
        self,
        x0: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        eps: Float[Array, "batch *data"],
    ) -> Float[Array, "batch *data"]:
        """x_t given x_0 in one expression, eq. (2).

        Args:
            x0: data, `[batch, ...]`.
            t: times in [0, T).
            eps: noise from `draw_noise`, shaped as `x0`.

        Returns:
            x_t, shaped as `x0`.
        """
        check_images("x0", x0, t=t)
        check_same_shape("eps", eps, "x0", x0)
        return self._weigh(self.schedule.signal(t), x0, self.schedule.noise(t), eps)

    def q_step(
        self,
        x_prev: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        eps: Float[Array, "batch *data"],
    ) -> Float[Array, "batch *data"]:
        """One step, x_{t-1} to x_t.

        Args:
            x_prev: x_{t-1}, `[batch, ...]`.
            t: times in [0, T).
            eps: noise from `draw_step_noise`, shaped as `x_prev`.

        Returns:
            x_t, shaped as `x_prev`.
        """
        check_images("x_prev", x_prev, t=t)
        check_same_shape("eps", eps, "x_prev", x_prev)
        keep, add = step_weights(self.schedule, t)
        return self._weigh(keep, x_prev, add, eps)

    def q_transition(
        self,
        x_s: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
        eps: Float[Array, "batch *data"],
    ) -> Float[Array, "batch *data"]:
        """x_t given x_s in one expression, eq. (3).

        Args:
            x_s: images at s, `[batch, ...]`.
            t: times in [0, T).
            s: earlier times, at least -1.
            eps: noise from `draw_transition_noise`, shaped as `x_s`.

        Returns:
            x_t, shaped as `x_s`.
        """
        check_images("x_s", x_s, t=t, s=s)
        check_same_shape("eps", eps, "x_s", x_s)
        keep, add = transition_weights(self.schedule, t, s)
        return self._weigh(keep, x_s, add, eps)

    def q_posterior(
        self,
        x0: Float[Array, "batch *data"],
        x_t: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
    ) -> tuple[Float[Array, "batch *data"], Float[Array, "batch *data"]]:
        """Mean and variance of q(x_s | x_t, x_0), eq. (5), for any s < t.

        Each element is theta_s times a beta variable, shifted: see `posterior_sample` for draws.

        Args:
            x0: data, `[batch, ...]`.
            x_t: noised data, shaped as `x0`.
            t: times in [0, T).
            s: earlier times, at least -1; at -1, the data, the mean is `x0` and the variance 0.

        Returns:
            The mean and the variance, both shaped as `x0`. NaN where `x_t` is below what the chain
            can reach from `x0`, by more than the rounding of its dtype.
        """
        mean, share, parts = self._posterior(x0, x_t, t, s)
        gaussian = parts.variance_s * parts.one_minus_ratio
        variance = per_example(gaussian / (1.0 + parts.kappa), mean) * jnp.square(share)
        return mean.astype(x0.dtype), variance.astype(x0.dtype)

    def posterior_sample(
        self,
        key: Key[Array, ""],
        x0: Float[Array, "batch *data"],
        x_t: Float[Array, "batch *data"],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
    ) -> Float[Array, "batch *data"]:
        """x_s drawn from q(x_s | x_t, x_0), eq. (4): the share of G_t that had come by s.

        Args:
            key: typed random key.
            x0: data, `[batch, ...]`.
            x_t: noised data, shaped as `x0`.
            t: times in [0, T).
            s: earlier times, at least -1.

        Returns:
            x_s, shaped as `x0`.
        """
        check_key("key", key)
        mean, share, parts = self._posterior(x0, x_t, t, s)
        # What is drawn on an explicit mesh is whole on every device, and so is what it is made of.
        t, s = on_every_device(t), on_every_device(s)
        kappa, kappa_s, one_minus_ratio = (
            self._kappa(t),
            self._kappa(s),
            one_minus_snr_ratio(self.schedule, t, s),
        )
        ratio = jnp.exp(self.schedule.log_snr_difference(t, s))
        key_s, key_rest = jax.random.split(key)

        def fill(values: Array) -> Array:
            return _fill(values, mean.shape)

        z_s, log_s = _standardized(key_s, kappa_s, mean.shape)
        z_rest, log_rest = _standardized(key_rest, kappa / one_minus_ratio, mean.shape)

        # (B - r) k_bar_t / sqrt(k_bar_s), of the deviates: two large gammas do not cancel.
        a, b = fill(jnp.sqrt(ratio)), fill(jnp.sqrt(one_minus_ratio))
        total = 1.0 + fill(jnp.sqrt(kappa)) * (a * z_s + b * z_rest)
        of_deviates = b * (b * z_s - a * z_rest) / total
        # Of two shapes so small that both gammas may underflow, by their logarithms.
        unit = jnp.sqrt(kappa * jnp.where(s == -1, 1.0, ratio))
        of_logarithms = (jax.nn.sigmoid(log_s - log_rest) - fill(ratio)) / fill(unit)

        deviate = jnp.where(fill(kappa) > 0.1, of_logarithms, of_deviates)
        deviate = jnp.where(fill(s) == -1, 0.0, deviate).astype(mean.dtype)
        moved = mean + per_example(jnp.sqrt(parts.variance_s), mean) * share * deviate
        return moved.astype(x0.dtype)

    def draw_noise(
        self, key: Key[Array, ""], shape: tuple[int, ...], t: Int[Array, " batch"]
    ) -> Float[Array, "batch *data"]:
        """eps for `q_sample`: Gamma(k_bar_t), of mean 0 and variance 1.

        Args:
            key: typed random key.
            shape: `[batch, ...]`.
            t: times in [0, T), one for each example.

        Returns:
            The noise, float32 of `shape`.
        """
        check_draw(key, shape, t=t)
        return self._draw(key, shape, t, jnp.full_like(t, -1))

    def draw_step_noise(
        self, key: Key[Array, ""], shape: tuple[int, ...], t: Int[Array, " batch"]
    ) -> Float[Array, "batch *data"]:
        """eps for `q_step`: Gamma(k_t), of mean 0 and variance 1.

        Args:
            key: typed random key.
            shape: `[batch, ...]`.
            t: times in [0, T), one for each example.

        Returns:
            The noise, float32 of `shape`.
        """
        check_draw(key, shape, t=t)
        return self._draw(key, shape, t, t - 1)

    def draw_transition_noise(
        self,
        key: Key[Array, ""],
        shape: tuple[int, ...],
        t: Int[Array, " batch"],
        s: Int[Array, " batch"],
    ) -> Float[Array, "batch *data"]:
        """eps for `q_transition`: Gamma(k_bar_t - k_bar_s), of mean 0 and variance 1.

        Args:
            key: typed random key.
            shape: `[batch, ...]`.
            t: times in [0, T), one for each example.
            s: earlier times, at least -1.

        Returns:
            The noise, float32 of `shape`.
        """
        check_draw(key, shape, t=t, s=s)
        return self._draw(key, shape, t, s)

    def _draw(self, key: Array, shape: tuple[int, ...], t: Array, s: Array) -> Array:
        kappa = on_every_device(self._kappa(t) / one_minus_snr_ratio(self.schedule, t, s))
        return _standardized(key, kappa, shape)[0]

    def _weigh(self, keep: Array, x: Array, add: Array, eps: Array) -> Array:
        # Noise comes in float32, whatever the images are.
        return mix(self.schedule, (keep, x), (add, eps.astype(x.dtype)))

    def _kappa(self, t: Array) -> Array:
        """1 / k_bar_t; 0 where no signal is left, and the noise is Gaussian."""
        return self.schedule.snr(t) * jnp.square(self.theta_0)

    def _posterior(
        self, x0: Array, x_t: Array, t: Array, s: Array
    ) -> tuple[Array, Array, "_Posterior"]:
        """The mean, and G_t / k_bar_t, at least in float32; the rest per example."""
        check_images("x0", x0, t=t, s=s)
        check_same_shape("x_t", x_t, "x0", x0)
        x0, x_t = widened(x0), widened(x_t)
        schedule = self.schedule
        one_minus_ratio = one_minus_snr_ratio(self.schedule, t, s)
        weight_x0, weight_x_t = posterior_weights(schedule, t, s)
        mean = mix(schedule, (weight_x0, x0), (weight_x_t, x_t))

        # G_t / k_bar_t = 1 + sqrt(kappa) eps, in units in which x_t is what was rounded.
        kappa = self._kappa(t)
        signal = per_example(schedule.signal(t), x0) * x0
        per_deviation = per_example(jnp.sqrt(kappa / schedule.noise_variance(t)), x0)
        share = 1.0 + per_deviation * (x_t - signal)
        epsilon = float(jnp.finfo(x_t.dtype).eps)
        rounding = 4.0 * epsilon * (1.0 + per_deviation * (jnp.abs(x_t) + jnp.abs(signal)))
        share = jnp.where(share >= -rounding, jnp.maximum(share, 0.0), jnp.nan)
        mean = jnp.where(jnp.isnan(share), jnp.nan, mean)
        return mean, share, _Posterior(kappa, one_minus_ratio, schedule.noise_variance(s))


class _Posterior(NamedTuple):
    """Of q(x_s | x_t, x_0), what depends on the times alone, `[batch]`."""

    kappa: jax.Array
    one_minus_ratio: jax.Array
    variance_s: jax.Array


def gamma(schedule: Schedule, theta_0: float | Array) -> GammaChain:
    r"""The chain of gamma noise that has the betas of `schedule`.

    .. math::

        x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{\bar\alpha_t}\, \theta_0 (G_t - \bar{k}_t), \qquad
        G_t \sim \mathrm{Gamma}(\bar{k}_t, 1)

    Eq. (1) of `ddpm_jax.processes.gamma`; Nachmani et al. 2021.

    Args:
        schedule: of the Gaussian chain with the same mean and variance at every step.
        theta_0: scale of the noise before the first step, above 0. The noise at t has the skewness
            2 theta_0 sqrt(SNR_t): it is nearly Gaussian where that is small.

    Returns:
        The chain.

    Raises:
        TypeError: `schedule` is not a Schedule.
        ValueError: `theta_0` is not one number above 0, or a schedule that does not preserve
            variance.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from ddpm_jax import schedules
        >>> from ddpm_jax.processes import gamma
        >>> chain, x0, t = gamma(schedules.linear(1000), 0.1), jnp.zeros((2, 8)), jnp.array([0, 9])
        >>> eps = chain.draw_noise(jax.random.key(0), x0.shape, t)
        >>> chain.q_sample(x0, t, eps).shape
        (2, 8)

    References:
        Nachmani et al. 2021, https://arxiv.org/abs/2110.05948
    """
    check_schedule(schedule)
    check_preserves_variance("schedule", schedule)
    value = check_scalar("theta_0", theta_0)
    least = float(jnp.finfo(jnp.float32).tiny) ** 0.5  # its square is in every shape
    if value is not None and not least <= value <= 1.0 / least:
        raise ValueError(
            f"theta_0 is {value:g}; the scale of gamma noise has to be above 0, and its square"
            " within float32's range"
        )
    register_with_nnx(GammaChain)
    return GammaChain(schedule, jnp.asarray(theta_0, jnp.float32))


def _standardized(key: Array, kappa: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """(G - k) / sqrt(k), G ~ Gamma(k), float32 of `shape`, and log G; kappa = 1 / k is per example.

    G - k in float32 has an error of 1e-7 k, of 1e-7 sqrt(k) deviations. So above k = 10^4 it is
    expanded before it is rounded, in the proposal of Marsaglia & Tsang 2000,

        G = d (1 + z / (3 sqrt(d)))^3,   d = k - 1/3,   z ~ N(0, 1)

    which their test would accept but for one in 36 k. Without the test the law is another by less
    than 0.02 / k in total variation, below 2e-6, and for k to infinity it is z, as it should be.
    log G is for small k, which it is right for where G is 0 to float32; it stops at k = 10^4.
    """
    key_moderate, key_boost, key_large = jax.random.split(key, 3)
    tiny = float(jnp.finfo(jnp.float32).tiny)
    k = _fill(jnp.maximum(1.0 / jnp.maximum(kappa, 1.0 / LARGE_SHAPE), tiny), shape)
    # Gamma(k + 1) U^{1/k} is Gamma(k).
    above = jax.random.gamma(key_moderate, k + 1.0, shape, jnp.float32)
    log_boost = -jax.random.exponential(key_boost, shape, jnp.float32) / k
    moderate = (above * jnp.exp(log_boost) - k) / jnp.sqrt(k)

    kappa = _fill(kappa, shape)
    small = jnp.minimum(kappa, 1.0 / LARGE_SHAPE)
    z = jax.random.normal(key_large, shape, jnp.float32)
    root = jnp.sqrt(1.0 - small / 3.0)  # of d / k
    cubic = small / (27.0 * root) * z**3
    large = root * z + jnp.sqrt(small) * (jnp.square(z) - 1.0) / 3.0 + cubic
    deviate = jnp.where(kappa < 1.0 / LARGE_SHAPE, large, moderate)
    return deviate, jnp.log(above) + log_boost


def _fill(values: Array, shape: tuple[int, ...]) -> Array:
    return jnp.broadcast_to(values.reshape(-1, *(1,) * (len(shape) - 1)), shape)
