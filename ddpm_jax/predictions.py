r"""What a network predicts: a sum of the data and the noise, and all that follows from it.

A kind of prediction is a sum of the data and the noise, with factors alpha and beta that depend on
the levels of signal a and noise b alone, in each mode of the process:

.. math::

    y = \alpha x_0 + \beta \epsilon, \qquad x_t = a x_0 + b \epsilon \tag{1}

These are two linear equations for x_0 and eps. Their determinant is

.. math::

    D = \alpha b - \beta a \tag{2}

and where it is not 0, y and x_t determine both: :math:`x_0 = (b y - \beta x_t) / D` and
:math:`\epsilon = (\alpha x_t - a y) / D`. A prediction of another kind, with primes, is therefore

.. math::

    y' = \frac{D' y + (\beta' \alpha - \alpha' \beta)\, x_t}{D} \tag{3}

The last term is the same for a prediction and its target, so squared errors differ by a factor:

.. math::

    |y - \hat y|^2 = \frac{D^2}{b^2}\, |x_0 - \hat x_0|^2 \tag{4}

Every conversion, target, weight of a loss and weight of the ELBO in this library is one of these
equations. The kinds by name, with :math:`s^2 = b^2 + a^2 \sigma_d^2`:

============  =========================  =========================  =====================
name          alpha                      beta                       D
============  =========================  =========================  =====================
``"eps"``     0                          1                          -a
``"x0"``      1                          0                          b
``"v"``       -b                         a                          :math:`-(a^2 + b^2)`
``"score"``   0                          -1 / b                     a / b
``"flow"``    -1                         1                          -(a + b)
``"edm"``     :math:`b / (\sigma_d s)`   :math:`-a \sigma_d / s`    :math:`s / \sigma_d`
============  =========================  =========================  =====================

- eps is the noise (Ho et al. 2020) and x0 the data.
- v is the velocity of Salimans & Ho 2022.
- score is the gradient of log q(x_t | x_0) (Song et al. 2021).
- flow is the velocity eps - x0 of flow matching and rectified flow (Liu et al. 2023; Esser et al.
  2024).
- edm is the network F of Karras et al. 2022, equation 7 and table 1: x0_hat is a part of the input
  plus a multiple of F, such that F has variance 1 for data of the standard deviation sigma_d. By
  name sigma_d is 0.5; `edm` has others. With sigma_d = 1 it is -v / r, with
  :math:`r^2 = a^2 + b^2`: EDM with unit variance is v of the input x_t / r.

A kind of your own is a `Prediction`, and works wherever `predicts` is an argument.

References:
    - Ho et al. 2020, https://arxiv.org/abs/2006.11239
    - Salimans & Ho 2022, https://arxiv.org/abs/2202.00512
    - Song et al. 2021, https://arxiv.org/abs/2011.13456
    - Liu et al. 2023, https://arxiv.org/abs/2209.03003
    - Esser et al. 2024, https://arxiv.org/abs/2403.03206
    - Karras et al. 2022, https://arxiv.org/abs/2206.00364
"""

import dataclasses
import functools
import math
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ddpm_jax.checks import check_vector
from ddpm_jax.processes.modal import Modal, check_modal

__all__ = [
    "Prediction",
    "PredictionName",
    "Predicts",
    "Weights",
    "conversion",
    "edm",
    "error_ratio",
    "resolve",
    "weights_at",
    "weights_of",
]


@dataclasses.dataclass(frozen=True)
class Prediction:
    r"""A kind of prediction, :math:`y = \alpha x_0 + \beta \epsilon`, as functions of a and b.

    It is hashable, so it can be a static argument of jit. The functions get JAX arrays, and NumPy
    arrays in float64 where tables are made on the host: write them with operators. A factor that
    is always the same is best returned as a number: a kind whose alpha is the number 0 is a
    multiple of the noise, and is converted to another one of these where no signal is left, too.

    Raises:
        TypeError: `weights` does not return two factors.
        ValueError: y is a multiple of x_t and does not determine the data, or `determinant` is not
            that of `weights`.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import losses, predictions, schedules
        >>> minus_v = predictions.Prediction("minus_v", lambda a, b: (b, -a))
        >>> x0, eps, t = jnp.ones((1, 2)), jnp.zeros((1, 2)), jnp.array([1])
        >>> schedule = schedules.constant(3, beta=0.2)
        >>> y = losses.target(schedule, x0, t, eps, predicts=minus_v)
        >>> [f"{value:.2f}" for value in y[0].tolist()]  # b = 0.6
        ['0.60', '0.60']
    """

    name: str
    """The name in error messages."""
    weights: Callable[[Any, Any], tuple[Any, Any]] = dataclasses.field(repr=False)
    """`(a, b) -> (alpha, beta)`."""
    determinant: Callable[[Any, Any, Any], Any] | None = dataclasses.field(default=None, repr=False)
    """`(a, b, a^2 + b^2) -> D`, for a form with fewer roundings; by default alpha b - beta a."""

    def __post_init__(self) -> None:
        """Checks the functions at one pair of levels."""
        with jax.ensure_compile_time_eval():  # `weights` may call JAX
            try:
                alpha, beta, determinant = map(float, weights_of(self, *map(np.float64, _PROBE)))
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"weights of the prediction {self.name!r} has to return two factors,"
                    f" (alpha, beta), for two levels (a, b): {error}"
                ) from error
        a, b, _ = _PROBE
        exact, size = alpha * b - beta * a, abs(alpha * b) + abs(beta * a)
        if not abs(exact) > 1e-5 * size:  # NaN, too
            raise ValueError(
                f"the prediction {self.name!r} is {alpha:g} x0 + {beta:g} eps at a = {a}, b = {b},"
                " which does not determine the data: alpha b - beta a must not be 0"
            )
        if not abs(determinant - exact) <= 1e-5 * size:
            raise ValueError(
                f"determinant of the prediction {self.name!r} is {determinant:g} at a = {a},"
                f" b = {b}; it has to be alpha b - beta a = {exact:g}"
            )

    @property
    def needs_signal(self) -> bool:
        """Whether y does not determine the data where no signal is left, a = 0."""
        with jax.ensure_compile_time_eval(), np.errstate(all="ignore"):
            determinant = float(weights_of(self, *map(np.float64, (0.0, 1.0, 1.0))).determinant)
        return not (math.isfinite(determinant) and determinant != 0.0)


_PROBE = (0.6, 0.7, 0.85)
"""a, b and a^2 + b^2 at which a kind is checked: no kind of use has D = 0 there by chance."""

PredictionName = Literal["eps", "x0", "v", "score", "flow", "edm"]
"""The kinds of predictions that have a name; see `ddpm_jax.predictions`."""

Predicts = PredictionName | Prediction
"""What a network predicts: a name, or a `Prediction` of your own."""


class Weights(NamedTuple):
    """Factors of a kind in each mode: arrays, or numbers where they are the same everywhere."""

    alpha: Any
    """Of the data."""
    beta: Any
    """Of the noise."""
    determinant: Any
    """D = alpha b - beta a."""

    @property
    def noise_alone(self) -> bool:
        """Whether y is a multiple of the noise at all times."""
        return _is_number(self.alpha) and self.alpha == 0


def weights_of(prediction: Prediction, a: Any, b: Any, power: Any) -> Weights:
    """The factors of a kind at given levels, eq. (1) and (2) of `ddpm_jax.predictions`.

    Args:
        prediction: the kind.
        a: level of the signal, an array of JAX or NumPy.
        b: level of the noise.
        power: a^2 + b^2, which a schedule knows without rounding.

    Returns:
        alpha, beta and D.
    """
    alpha, beta = prediction.weights(a, b)
    if prediction.determinant is None:
        return Weights(alpha, beta, alpha * b - beta * a)
    return Weights(alpha, beta, prediction.determinant(a, b, power))


def edm(sigma_data: float = 0.5) -> Prediction:
    r"""The network F of Karras et al. 2022, for data of a given standard deviation.

    .. math::

        F = \frac{b x_0 / \sigma_d - a \sigma_d \epsilon}{s}, \qquad s^2 = b^2 + a^2 \sigma_d^2

    It solves equation 7 of the paper, with :math:`\sigma = b / a`, the input :math:`x_t / a` and
    the coefficients of table 1, for F. `ddpm_jax.models.Preconditioned` scales the input of a
    network accordingly.

    Args:
        sigma_data: standard deviation of the data.

    Returns:
        The kind; equal for equal `sigma_data`.

    Raises:
        ValueError: `sigma_data` is not positive and finite.

    Example:
        >>> from ddpm_jax import predictions
        >>> predictions.edm(0.25)
        Prediction(name='edm(0.25)')

    References:
        Karras et al. 2022, https://arxiv.org/abs/2206.00364
    """
    if not 0.0 < sigma_data < math.inf:
        raise ValueError(f"sigma_data is {sigma_data}; it has to be positive and finite")
    return _edm(float(sigma_data))


@functools.cache
def _edm(sigma_data: float) -> Prediction:
    def scale(a: Any, b: Any) -> Any:
        square = b**2 + (sigma_data * a) ** 2
        return jnp.sqrt(square) if isinstance(square, jax.Array) else np.sqrt(square)

    def weights(a: Any, b: Any) -> tuple[Any, Any]:
        s = scale(a, b)
        return b / (sigma_data * s), -sigma_data * a / s

    return Prediction(f"edm({sigma_data:g})", weights, lambda a, b, power: scale(a, b) / sigma_data)


_NAMED: dict[PredictionName, Prediction] = {
    "eps": Prediction("eps", lambda a, b: (0.0, 1.0), lambda a, b, power: -a),
    "x0": Prediction("x0", lambda a, b: (1.0, 0.0), lambda a, b, power: b),
    "v": Prediction("v", lambda a, b: (-b, a), lambda a, b, power: -power),
    "score": Prediction("score", lambda a, b: (0.0, -1.0 / b), lambda a, b, power: a / b),
    "flow": Prediction("flow", lambda a, b: (-1.0, 1.0), lambda a, b, power: -(a + b)),
    "edm": edm(0.5),
}


def resolve(name: str, predicts: Predicts) -> Prediction:
    """The kind that an argument stands for.

    Args:
        name: of the argument, for the error.
        predicts: a name, or a `Prediction`.

    Returns:
        The `Prediction`.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(predicts, Prediction):
        return predicts
    if predicts not in typing.get_args(PredictionName):
        names = ", ".join(map(repr, typing.get_args(PredictionName)))
        raise ValueError(
            f"{name} is {predicts!r}; it is one of {names}, or a ddpm_jax.predictions.Prediction"
        )
    return _NAMED[predicts]


def weights_at(process: Modal, t: Int[Array, " batch"], predicts: Predicts) -> Weights:
    """The factors of a kind at the times of a process, in each mode.

    Args:
        process: a schedule, or another process of modes.
        t: times in [0, T), int32 `[batch]`.
        predicts: the kind.

    Returns:
        alpha, beta and D, float32 `[batch, *modes]` each, or a number.

    Raises:
        TypeError, ValueError: `t` of the wrong dtype or shape, or an unknown kind.
        NoClosedForm: a chain without modes.
    """
    check_modal("process", process)
    check_vector("t", t)
    prediction = resolve("predicts", predicts)
    return weights_of(prediction, process.signal(t), process.noise(t), process.power(t))


def conversion(source: Weights, target: Weights) -> tuple[Any, Any, Any]:
    r"""The factors of y and x_t in another kind, and what their sum is divided by.

    .. math::

        y' = \frac{D' y + (\beta' \alpha - \alpha' \beta)\, x_t}{D}

    Eq. (3) of `ddpm_jax.predictions`. For two multiples of the noise it is y' = (beta' / beta) y,
    also where a = 0 and with it D and D'.

    Args:
        source: factors of the kind that is given.
        target: factors of the kind that is wanted.

    Returns:
        Factor of y, factor of x_t, and divisor: arrays or numbers.
    """
    if source.noise_alone and target.noise_alone:
        return target.beta, 0.0, source.beta
    of_x_t = target.beta * source.alpha - target.alpha * source.beta
    return target.determinant, of_x_t, source.determinant


def error_ratio(
    process: Modal, t: Int[Array, " batch"], predicts: Predicts
) -> Float[Array, "batch *modes"]:
    r"""The squared error of a kind over that of x0, in each mode.

    .. math::

        \frac{|y - \hat y|^2}{|x_0 - \hat x_0|^2} = \frac{D^2}{b^2}

    Eq. (4) of `ddpm_jax.predictions`. It is SNR for eps, 1 for x0, and (a^2 + b^2)^2 / b^2 for v,
    which is SNR + 1 for a schedule that preserves variance.

    Args:
        process: a schedule, or another process of modes.
        t: times in [0, T), int32 `[batch]`.
        predicts: the kind.

    Returns:
        The ratio, float32 `[batch, *modes]`.

    Raises:
        TypeError, ValueError: `t` of the wrong dtype or shape, or an unknown kind.
        NoClosedForm: a chain without modes.

    Example:
        >>> import jax.numpy as jnp
        >>> from ddpm_jax import predictions, schedules
        >>> schedule, t = schedules.constant(3, beta=0.2), jnp.array([0])
        >>> [round(float(predictions.error_ratio(schedule, t, kind)[0]), 5)
        ...  for kind in ("eps", "x0", "v")]  # alpha_bar = 0.8
        [4.0, 1.0, 5.0]
    """
    weights = weights_at(process, t, predicts)
    if weights.noise_alone:  # SNR is known where a^2 is less than float32 holds
        return process.snr(t) * weights.beta**2
    return jnp.square(weights.determinant / process.noise(t))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
