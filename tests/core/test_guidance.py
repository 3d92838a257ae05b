"""Guidance against Bayes' rule: Gaussian classes, where every score is known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import chain, float64, gaussian_denoiser
from scipy import special

from ddpm_jax import schedules
from ddpm_jax.forward import convert
from ddpm_jax.samplers import ancestral, ddim, dynamic_threshold, sample, static_threshold
from ddpm_jax.samplers.guidance import classifier, classifier_free

T = 50
SCHEDULE = schedules.cosine(T)
A, B = (np.sqrt(float64(chain("cosine", T)[i])) for i in (1, 2))
# Two classes of one deviation, equally likely in each pixel.
MEANS, DEVIATION = (-0.5, 0.6), 0.3
KINDS = ("eps", "x0", "v")
X_T = jnp.linspace(-2.0, 2.0, 24).reshape(6, 4)
TIMES = jnp.array([0, 3, 10, 25, 40, 48])


def of_class(mean, predicts, deviation=DEVIATION):
    return gaussian_denoiser(A**2, mean, deviation, predicts)


def log_densities(x_t, t, xp=np, a=A, b=B):
    """log p(x_t, y) of each pixel, but for a constant, for the two classes."""
    a, b = xp.asarray(a)[t].reshape(-1, 1), xp.asarray(b)[t].reshape(-1, 1)
    variance = a**2 * DEVIATION**2 + b**2
    return [-0.5 * (x_t - a * mean) ** 2 / variance for mean in MEANS]


def of_both(predicts):
    """The unconditional denoiser: the classes' x0_hat, weighted by how likely they are."""

    def predict(x_t, t):
        first, second = log_densities(x_t, t, jnp, A.astype(np.float32), B.astype(np.float32))
        share = jax.nn.sigmoid(second - first)
        zero, one = (of_class(mean, "x0")(x_t, t) for mean in MEANS)
        x0_hat = (1.0 - share) * zero + share * one
        return convert(SCHEDULE, x0_hat, x_t, t, source="x0", target=predicts)

    return predict


def log_prob(x_t, t):
    """log p(y = second | x_t), the sum over independent pixels."""
    first, second = log_densities(x_t, t, jnp, A.astype(np.float32), B.astype(np.float32))
    return jnp.sum(jax.nn.log_sigmoid(second - first), axis=1)


@pytest.mark.parametrize("predicts", KINDS)
def test_a_classifier_turns_the_unconditional_into_the_conditional(predicts):
    guided = classifier(SCHEDULE, of_both(predicts), log_prob, predicts=predicts)
    actual = convert(SCHEDULE, guided(X_T, TIMES), X_T, TIMES, source=predicts, target="x0")
    expected = of_class(MEANS[1], "x0")(X_T, TIMES)
    np.testing.assert_allclose(actual, expected, atol=3e-5)


@pytest.mark.parametrize("scale", [0.0, 2.5])
def test_classifier_against_the_score_in_float64(scale):
    # score = sum over classes of share * score, and scale times the slope of log p(y | x_t).
    x, t = np.asarray(X_T, np.float64), np.asarray(TIMES)
    a, b = A[t][:, None], B[t][:, None]
    first, second = log_densities(x, t)
    share = special.expit(second - first)
    variance = a**2 * DEVIATION**2 + b**2
    slopes = [-(x - a * mean) / variance for mean in MEANS]
    score = (1 - share) * slopes[0] + share * slopes[1]
    score = score + scale * (1 - share) * (slopes[1] - slopes[0])
    guided = classifier(SCHEDULE, of_both("eps"), log_prob, predicts="eps", scale=scale)
    np.testing.assert_allclose(guided(X_T, TIMES), -b * score, atol=3e-5)


@pytest.mark.thorough
def test_classifier_knows_a_respaced_chain_by_its_network_times():
    kept = np.array([0, 3, 10, 25, 40, 48])
    short = schedules.respaced(SCHEDULE, kept)
    whole, of_short = (
        classifier(schedule, of_both("v"), log_prob, predicts="v", scale=2.0)
        for schedule in (SCHEDULE, short)
    )
    np.testing.assert_allclose(of_short(X_T, TIMES), whole(X_T, TIMES), atol=1e-6)
    # A time that the short chain does not visit is nobody's.
    stray = of_short(X_T, TIMES.at[2].set(11))
    assert np.isnan(stray).all(axis=1).tolist() == [False, False, True, False, False, False]
    # A sampler on the short chain tells network times, which serve either.
    x0 = [
        sample(ddim(short, guided, predicts="v"), jax.random.key(0), (5, 4), jnp.arange(6)[::-1]).x0
        for guided in (
            classifier(schedule, of_both("v"), log_prob, predicts="v", scale=2.0)
            for schedule in (SCHEDULE, short)
        )
    ]
    np.testing.assert_allclose(*x0, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("predicts", ["x0", "v"])
def test_classifier_where_no_signal_is_left(predicts):
    schedule = schedules.zero_terminal_snr(SCHEDULE)
    alpha_bar = np.asarray(schedule.alpha_bar, np.float64)
    predict = gaussian_denoiser(alpha_bar, 0.3, 0.5, predicts)
    steep = classifier(schedule, predict, lambda x, t: 3.0 * jnp.sum(x, axis=1), predicts=predicts)
    last = jnp.full(6, T - 1)
    np.testing.assert_array_equal(steep(X_T, last), predict(X_T, last))
    assert np.isfinite(steep(X_T, last - 1)).all()
    with pytest.raises(ValueError, match="predicts is 'eps'"):
        classifier(schedule, predict, lambda x, t: jnp.sum(x, axis=1), predicts="eps")


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_classifier_free_means_the_same_in_every_kind(scale):
    x0_hats = [
        convert(
            SCHEDULE,
            classifier_free(
                of_class(MEANS[1], kind), of_class(0.0, kind, deviation=0.8), scale=scale
            )(X_T, TIMES),
            X_T,
            TIMES,
            source=kind,
            target="x0",
        )
        for kind in KINDS
    ]
    one, without = of_class(MEANS[1], "x0")(X_T, TIMES), of_class(0.0, "x0", 0.8)(X_T, TIMES)
    expected = (1 - scale) * np.asarray(without) + scale * np.asarray(one)
    for x0_hat in x0_hats:
        np.testing.assert_allclose(x0_hat, expected, atol=5e-5)


@pytest.mark.thorough
def test_guided_sampling_of_gaussian_classes_has_a_closed_form():
    # Both predictions are affine in x_t, and so is every step of DDIM: x0 = P x_T + Q, told here by
    # the recursion in float64.
    scale, times = 2.0, np.arange(T)[::-1]
    guided = classifier_free(of_class(0.5, "eps"), of_class(0.0, "eps", 0.6), scale=scale)
    sampler = ddim(SCHEDULE, guided, threshold=None)
    start = jnp.linspace(-2.0, 2.0, 5).reshape(5, 1)
    x0 = sample(sampler, jax.random.key(0), (5, 1), jnp.asarray(times), start=start).x0
    x = np.asarray(start, np.float64)
    for t in times:
        a, b = A[t], B[t]
        eps = [b * (x - a * m) / (a**2 * d**2 + b**2) for m, d in ((0.5, DEVIATION), (0.0, 0.6))]
        eps = eps[1] + scale * (eps[0] - eps[1])
        a_s, b_s = (A[t - 1], B[t - 1]) if t else (1.0, 0.0)
        x = a_s * (x - b * eps) / a + b_s * eps
    np.testing.assert_allclose(x0, x, atol=1e-4)
    # Guided beyond its own mean, and narrower: that is what guidance is for.
    assert x.mean() > 0.55


def test_guidance_acts_in_its_interval_alone():
    one, without = of_class(0.5, "eps"), of_class(0.0, "eps")
    always = classifier_free(one, without, scale=4.0)(X_T, TIMES)
    guided = classifier_free(one, without, scale=4.0, interval=(3, 25), rescale=0.0)(X_T, TIMES)
    inside = np.array([False, True, True, True, False, False])
    np.testing.assert_array_equal(guided[inside], always[inside])
    np.testing.assert_array_equal(guided[~inside], one(X_T, TIMES)[~inside])


@pytest.mark.parametrize("rescale", [0.3, 1.0])
def test_rescale_by_brute_force(rescale):
    keys = jax.random.split(jax.random.key(0))
    one, without = (jax.random.normal(key, (3, 2, 4)) for key in keys)
    guided = classifier_free(
        lambda x_t, t: one, lambda x_t, t: without, scale=5.0, rescale=rescale
    )(one, TIMES[:3])
    for i in range(3):
        positive, negative = np.asarray(one[i], np.float64), np.asarray(without[i], np.float64)
        plain = negative + 5.0 * (positive - negative)
        rescaled = plain * positive.std() / plain.std()
        expected = rescale * rescaled + (1 - rescale) * plain
        np.testing.assert_allclose(guided[i], expected, rtol=1e-5, atol=1e-6)
        if rescale == 1.0:
            np.testing.assert_allclose(np.std(guided[i]), positive.std(), rtol=1e-5)
    # A prediction of one pixel has no contrast, and stays.
    flat = classifier_free(
        lambda x_t, t: x_t, lambda x_t, t: 2.0 * x_t, scale=5.0, rescale=rescale
    )(jnp.ones((2, 1)), TIMES[:2])
    np.testing.assert_array_equal(flat, -3.0)


@pytest.mark.thorough
def test_the_learned_variance_passes_through():
    def with_range(predict):
        return lambda x_t, t: (predict(x_t, t), 0.25 * jnp.ones_like(x_t))

    one, without = of_class(0.5, "eps"), of_class(0.0, "eps")
    pairs = [
        classifier_free(with_range(one), with_range(without), scale=2.0, interval=(0, 9)),
        classifier(SCHEDULE, with_range(one), log_prob, scale=2.0),
    ]
    singles = [
        classifier_free(one, without, scale=2.0, interval=(0, 9)),
        classifier(SCHEDULE, one, log_prob, scale=2.0),
    ]
    for pair, single in zip(pairs, singles, strict=True):
        guided, interpolation = pair(X_T, TIMES)
        np.testing.assert_array_equal(guided, single(X_T, TIMES))
        np.testing.assert_array_equal(interpolation, 0.25)
        sampler = ancestral(SCHEDULE, pair, variance="learned_range")
        assert np.isfinite(sample(sampler, jax.random.key(0), (2, 4), jnp.array([40, 3])).x0).all()


@pytest.mark.parametrize(("quantile", "maximum"), [(0.5, None), (0.9, 1.5), (1.0, None)])
def test_dynamic_threshold_by_brute_force(quantile, maximum):
    x0_hat = (
        2.0
        * jax.random.normal(jax.random.key(0), (4, 5, 5))
        * jnp.array([0.01, 0.5, 1.0, 5.0]).reshape(4, 1, 1)
    )
    kept = np.asarray(dynamic_threshold(quantile, maximum)(x0_hat))
    for image, before in zip(kept, np.asarray(x0_hat, np.float64), strict=True):
        s = min(max(1.0, np.quantile(np.abs(before), quantile)), maximum or np.inf)
        np.testing.assert_allclose(image, np.clip(before, -s, s) / s, atol=1e-6)
    np.testing.assert_array_equal(kept[0], x0_hat[0])  # an image inside stays as it is
    assert np.abs(kept).max() <= 1.0
    np.testing.assert_array_equal(static_threshold(x0_hat), np.clip(x0_hat, -1.0, 1.0))
    np.testing.assert_array_equal(static_threshold(x0_hat, 1.5), np.clip(x0_hat, -1.5, 1.5))


@pytest.mark.thorough
def test_the_scale_may_be_traced():
    guides = (
        lambda scale: classifier_free(of_class(0.5, "eps"), of_class(0.0, "eps"), scale=scale),
        lambda scale: classifier(SCHEDULE, of_both("eps"), log_prob, scale=scale),
    )
    scales = jnp.array([0.0, 1.0, 3.0])
    for guide in guides:
        each = [guide(float(scale))(X_T, TIMES) for scale in scales]
        together = jax.jit(jax.vmap(lambda scale, guide=guide: guide(scale)(X_T, TIMES)))(scales)
        np.testing.assert_allclose(together, jnp.stack(each), atol=1e-5)


def test_what_is_guided_has_one_shape(without_annotation_checks):
    one = of_class(0.5, "eps")
    with pytest.raises(ValueError, match=r"unconditional returned the shape \(6, 1\)"):
        classifier_free(one, lambda x_t, t: x_t[:, :1], scale=2.0)(X_T, TIMES)
    with pytest.raises(ValueError, match=r"log_prob returned the shape \(6, 4\)"):
        classifier(SCHEDULE, one, lambda x_t, t: x_t)(X_T, TIMES)
    with pytest.raises(ValueError, match=r"scale has shape \(6,\); it has to be one number"):
        classifier_free(one, one, scale=jnp.ones(6))


def test_refused():
    one = of_class(0.5, "eps")
    for scale in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="scale is"):
            classifier_free(one, one, scale=scale)
        with pytest.raises(ValueError, match="scale is"):
            classifier(SCHEDULE, one, log_prob, scale=scale)
    with pytest.raises(ValueError, match=r"interval is \(9, 3\)"):
        classifier_free(one, one, scale=1.0, interval=(9, 3))
    for rescale in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rescale is"):
            classifier_free(one, one, scale=1.0, rescale=rescale)
    for quantile in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="quantile is"):
            dynamic_threshold(quantile)
