"""Classes: the network that is told them, the labels that are taken away, and what is drawn."""

import dataclasses
import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import tiny
from flax.core import meta
from marks import thorough_but
from networks import make_mixers

from ddpm_jax import config as configs
from ddpm_jax import experiment as experiments
from ddpm_jax import parallel, training
from ddpm_jax.config import DDIM, Ancestral, ConfigError, Jit
from ddpm_jax.data import Arrays, Examples, ImageSet
from ddpm_jax.experiment import Experiment, build, image_spec_of, make_drawer
from ddpm_jax.models import UNet, init_params, network_function
from ddpm_jax.plan import lower
from ddpm_jax.schedules import linear_log_snr
from ddpm_jax.training import ema
from ddpm_jax.training.objective import Labelled, Objective, draw

SMALL = {
    "channels": 8,
    "multipliers": (1, 2),
    "num_blocks": 1,
    "attention_resolutions": (4,),
    "norm_groups": 4,
    "dropout": 0.0,
}
X, T = jax.random.normal(jax.random.key(7), (3, 8, 8, 1)), jnp.array([3, 900, 40])


def replace(config, section, **values):
    changed = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: changed})


def conditional():
    """tiny.py with its ten classes."""
    return replace(tiny.get_config(), "network", classes=10)


def moved(params):
    """As training might leave them: none is zero."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), params
    )


@functools.cache
def born(num_classes):
    model = UNet(**SMALL, num_classes=num_classes)
    make = jax.jit(lambda key: meta.unbox(init_params(model, key, X.shape[1:])))
    return make(jax.random.key(0))


@pytest.fixture(scope="module")
def told():
    params, model = moved(born(4)), UNet(**SMALL, num_classes=4)
    return jax.jit(lambda labels=None: model.apply(params, X, T, labels=labels))


@pytest.fixture(scope="module", autouse=True)
def _runs_have_a_network_that_compiles_at_once():
    with pytest.MonkeyPatch.context() as patch:
        make_mixers(patch)
        yield


class TestNetwork:
    @pytest.mark.thorough
    def test_a_label_is_its_own_example_s(self, told):
        first = told(jnp.array([0, 1, 2]))
        other = told(jnp.array([0, 3, 2]))
        np.testing.assert_array_equal(first[::2], other[::2])
        assert np.abs(first[1] - other[1]).max() > 1e-3

    @pytest.mark.thorough
    def test_every_class_differs_from_every_other_and_from_none(self, told):
        outputs = [told(jnp.full(3, label)) for label in (-1, 0, 1, 2, 3)]
        for index, one in enumerate(outputs):
            for other in outputs[:index]:
                assert (np.abs(one - other).max(axis=(1, 2, 3)) > 1e-3).all()

    @pytest.mark.thorough
    def test_minus_one_is_no_label(self, told):
        np.testing.assert_array_equal(told(jnp.full(3, -1)), told())
        mixed = told(jnp.array([-1, 2, -1]))
        np.testing.assert_array_equal(mixed[::2], told()[::2])

    def test_labels_without_classes_are_refused(self):
        with pytest.raises(ValueError, match=r"network without classes \(num_classes is 0\)"):
            UNet(**SMALL).apply({}, X, T, labels=jnp.zeros(3, jnp.int32))

    @pytest.mark.thorough
    def test_classes_add_one_table_and_leave_the_rest_as_it_was(self):
        """The same bits are born, and a table of zeros changes nothing."""
        without, having = born(0)["params"], dict(born(4)["params"])
        table = having.pop("classes")
        assert table.shape == (5, 4 * SMALL["channels"])
        jax.tree.map(np.testing.assert_array_equal, having, without)
        params = {"params": moved(without)}
        with_zeros = {"params": {**params["params"], "classes": jnp.zeros_like(table)}}
        plain = jax.jit(UNet(**SMALL).apply)(params, X, T)
        labels = jnp.array([0, 3, -1])
        same = jax.jit(UNet(**SMALL, num_classes=4).apply)(with_zeros, X, T, labels=labels)
        np.testing.assert_allclose(same, plain, atol=1e-6)

    @pytest.mark.thorough
    def test_only_the_vectors_of_labels_that_came_learn(self):
        model, params = UNet(**SMALL, num_classes=4), moved(born(4))

        @jax.jit
        @jax.grad
        def slope(params):
            return jnp.sum(model.apply(params, X, T, labels=jnp.array([1, 1, -1])) ** 2)

        rows = np.abs(slope(params)["params"]["classes"]).max(axis=1)
        assert (rows[[1, 4]] > 1e-3).all()
        np.testing.assert_array_equal(rows[[0, 2, 3]], 0.0)


def objective_of(apply, *, rate, train=True, predicts="x0"):
    losses = training.make_losses(
        network_function(apply) if isinstance(apply, nn.Module) else apply,
        linear_log_snr(8),
        configs.Simple().make(),
        predicts=predicts,
        levels=17,
        label_dropout=rate,
        train=train,
    )
    return Objective(times=configs.Stratified().make(linear_log_snr(8)), losses=losses)


def shows_labels(params, x_t, t, *, train, keys, labels):
    """Of images that are zero its squared error is the label's square."""
    return jnp.broadcast_to(labels.astype(jnp.float32)[:, None], x_t.shape)


class TestLabelDropout:
    COUNT = 20_000
    """Examples; significance 1e-3 at a fixed key."""

    def taken(self, rate, *, train=True, count=COUNT, key=0):
        labels = 3 + jnp.arange(count, dtype=jnp.int32) % 5
        batch = Labelled(jnp.zeros((count, 1)), labels)
        objective = objective_of(shows_labels, rate=rate, train=train)
        drawn = draw(objective, jax.random.key(key), count, ())
        losses = jax.jit(objective.losses)((), batch, drawn)
        lost = np.asarray(losses) == 1.0
        np.testing.assert_array_equal(losses[~lost], np.square(labels)[~lost])
        return lost, labels, drawn

    @pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
    def test_takes_the_stated_share_of_each_class_and_time(self, rate):
        lost, labels, drawn = self.taken(rate)
        assert scipy.stats.binomtest(int(lost.sum()), self.COUNT, rate).pvalue > 1e-3
        for kinds in (labels, drawn.t):
            counts = [np.bincount(kinds[which], minlength=8) for which in (lost, ~lost)]
            there = (counts[0] + counts[1]) > 0
            table = np.array(counts)[:, there]
            assert scipy.stats.chi2_contingency(table).pvalue > 1e-3

    def test_takes_others_in_another_step(self):
        first, other = self.taken(0.5)[0], self.taken(0.5, key=1)[0]
        agree = int((first == other).sum())
        assert scipy.stats.binomtest(agree, self.COUNT, 0.5).pvalue > 1e-3

    def test_takes_none_of_held_out_images_or_at_rate_zero(self):
        assert not self.taken(0.9, train=False)[0].any()
        assert not self.taken(0.0)[0].any()

    def test_is_a_matter_of_the_example_alone(self):
        objective = objective_of(shows_labels, rate=0.5)
        losses = jax.jit(objective.losses)
        labels = jnp.arange(3, 19, dtype=jnp.int32)
        batch = Labelled(jnp.zeros((16, 1)), labels)
        drawn = draw(objective, jax.random.key(0), 16, ())
        whole = losses((), batch, drawn)
        order = np.random.default_rng(0).permutation(16)
        batch, drawn = jax.tree.map(lambda leaf: leaf[order], (batch, drawn))
        np.testing.assert_array_equal(losses((), batch, drawn), whole[order])
        for index in range(16):
            one = jax.tree.map(lambda leaf, i=index: leaf[i : i + 1], (batch, drawn))
            assert losses((), *one) == whole[order][index]

    def test_times_noise_and_dropout_are_those_of_a_batch_without_labels(self):
        def shows_the_rest(params, x_t, t, *, train, keys, labels=None):
            masks = jax.vmap(lambda key: jax.random.normal(key, x_t.shape[1:]))(keys)
            return x_t + masks + t[:, None].astype(jnp.float32)

        objective = objective_of(shows_the_rest, rate=0.5)
        x0, labels = jax.random.normal(jax.random.key(1), (64, 4)), jnp.zeros(64, jnp.int32)
        drawn = draw(objective, jax.random.key(0), 64, ())
        plain = objective.losses((), x0, drawn)
        np.testing.assert_array_equal(objective.losses((), Labelled(x0, labels), drawn), plain)


class Network(nn.Module):
    """Two layers and a table of classes, large enough to be split."""

    @nn.compact
    def __call__(self, x_t, t, *, train=False, keys=None, labels=None):
        def named(init, *names):
            return nn.with_logical_partitioning(init, names)

        def dense(width, name):
            init = named(nn.initializers.lecun_normal(), "in", "out")
            return nn.Dense(width, kernel_init=init, use_bias=False, name=name)

        table = self.param("classes", named(nn.initializers.normal(1.0), "in", "out"), (5, 96))
        rows = table[jnp.where(labels < 0, 4, labels)]
        h = jnp.tanh(dense(96, "first")(x_t) + rows + 0.1 * t[:, None].astype(jnp.float32))
        return dense(64, "last")(h)


BATCH = 32
EXAMPLES = Labelled(
    np.random.default_rng(0).normal(size=(BATCH, 64)).astype(np.float32),
    (np.arange(BATCH) % 4).astype(np.int32),
)
OPTIMIZER = optax.adam(1e-2, eps=1e-2)


FORMS = {
    "jit": lambda mesh, shardings: parallel.jit_form(mesh, shardings, "float32", compute="float32"),
    "shard_map": lambda mesh, shardings: parallel.shard_map_form(mesh, shardings, "float32"),
    "pmap": lambda mesh, shardings: parallel.pmap_form(mesh, "float32"),
}


class Trained(NamedTuple):
    losses: list[float]
    params: dict


@functools.cache
def trained(name, data, fsdp, accumulate=1, steps=5):
    """Of a batch of which half the labels are taken away."""
    objective = objective_of(Network(), rate=0.5, predicts="eps")
    mesh = parallel.make_mesh(data, fsdp)

    def boxed():
        none = jnp.zeros(1, jnp.int32)
        params = Network().init(jax.random.key(1), jnp.zeros((1, 64)), none, labels=none)
        return training.init_state(params, OPTIMIZER, jax.random.key(2))

    shardings = parallel.shardings(parallel.abstract(jax.eval_shape(boxed), mesh))
    form = FORMS[name](mesh, shardings)
    step = training.make_train_step(
        objective,
        OPTIMIZER,
        averages=[functools.partial(ema.decay_at, decay=0.9)],
        window_steps=1,
        accumulate=accumulate,
        form=form,
    )
    state = jax.jit(lambda: meta.unbox(boxed()), out_shardings=shardings)()
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), EXAMPLES)
    compiled = form.lower(step, state, form.abstract_batch(abstract)).compile()
    losses = []
    for _ in range(steps):
        state, metrics = compiled(state, form.place(EXAMPLES))
        losses.append(float(metrics.loss))
    return Trained(losses, jax.device_get(state.params))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "data", "fsdp", "accumulate"),
    [
        ("jit", 1, 1, 2),
        ("jit", 8, 1, 1),
        ("jit", 2, 4, 2),
        ("shard_map", 8, 1, 1),
        ("shard_map", 2, 4, 2),
        ("pmap", 8, 1, 1),
        ("pmap", 4, 1, 2),
    ],
)
def test_labels_are_the_same_on_every_mesh_and_in_parts(name, data, fsdp, accumulate):
    """Sums over examples are rounded otherwise; one label more would show in the third place."""
    run, alone = trained(name, data, fsdp, accumulate), trained("jit", 1, 1)
    np.testing.assert_allclose(run.losses, alone.losses, rtol=2e-6)
    near = functools.partial(np.testing.assert_allclose, atol=2e-6)
    jax.tree.map(near, run.params, alone.params)


@pytest.fixture(scope="module")
def experiment():
    return build(conditional(), devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def params(experiment):
    return jax.device_get(moved(experiments.initial_state(experiment).params))


def test_a_config_hands_labels_to_its_step(experiment):
    batch = next(experiments.make_batches(experiment))
    assert batch.labels.dtype == np.int32
    assert jax.tree.map(jnp.shape, batch) == jax.tree.map(
        jnp.shape, experiments.abstract_batch(experiment)
    )
    unlabelled = build(tiny.get_config(), devices=jax.devices()[:1])
    assert next(experiments.make_batches(unlabelled)).labels is None
    assert experiments.abstract_batch(unlabelled).labels is None
    # And its objective tells them to the network: another label is another loss.
    objective = experiments.make_objective(experiment, train=False)
    drawn = draw(objective, jax.random.key(0), len(batch.images), ())
    losses = jax.jit(objective.losses)
    state = moved(experiments.initial_state(experiment).params)
    shifted = Examples(batch.images, (batch.labels + 1) % 10)
    assert (losses(state, batch, drawn) != losses(state, shifted, drawn)).all()


class TestBind:
    def outputs(self, experiment, params, rows=3, labels=None, guidance=1.0):
        x_t = jax.random.normal(jax.random.key(0), (rows, 8, 8, 1))
        t = jnp.arange(rows, dtype=jnp.int32)
        params = jax.tree.map(jnp.asarray, params)
        sampler = Ancestral(guidance=guidance)
        predict = jax.jit(experiment.bind_for(sampler, params, labels).predict)
        direct = jax.jit(functools.partial(experiment.model.apply, params, x_t, t))
        return np.asarray(predict(x_t, t)), direct

    def test_guidance_is_between_and_beyond_the_two_networks(self, experiment, params):
        labels = jnp.array([3, 1, 4])
        one, direct = self.outputs(experiment, params, labels=labels, guidance=1.0)
        told, untold = np.asarray(direct(labels=labels)), np.asarray(direct())
        np.testing.assert_array_equal(one, told)
        zero, _ = self.outputs(experiment, params, labels=labels, guidance=0.0)
        np.testing.assert_array_equal(zero, untold)
        three, _ = self.outputs(experiment, params, labels=labels, guidance=3.0)
        np.testing.assert_allclose(three, 3.0 * told - 2.0 * untold, atol=1e-5)
        assert np.abs(told - untold).max() > 1e-3
        without, _ = self.outputs(experiment, params)
        np.testing.assert_array_equal(without, untold)

    def test_rows_of_one_example_have_its_label(self, experiment, params):
        labels = jnp.array([3, 1])
        found, direct = self.outputs(experiment, params, rows=6, labels=labels)
        expected = direct(labels=jnp.array([3, 3, 3, 1, 1, 1]))
        np.testing.assert_array_equal(found, expected)


def drawn_with(experiment, params, *, num, sampler, first=0, label=None):
    drawer = make_drawer(experiment, num=num, sampler=sampler, label=label)
    return drawer(params, jax.random.key(5, impl="threefry2x32"), first).images


GUIDED, TWO_STEPS = DDIM(guidance=2.0, steps=4), Ancestral(steps=2)


@pytest.fixture(scope="module")
def twelve(experiment, params):
    """Images in one batch, on one device."""
    return drawn_with(experiment, params, num=12, sampler=GUIDED)


class TestDraw:
    def test_classes_take_turns_or_are_as_asked(self, monkeypatch):
        """Of a network whose x0_hat is the level of the class's number."""
        experiment = build(replace(conditional(), "network", predicts="x0", classes=10))

        def bind(self, params, *, labels=None, with_variance=False):
            level = labels.astype(jnp.float32) / 8.0 - 1.0
            return lambda x_t, t: jnp.broadcast_to(level[:, None, None, None], x_t.shape)

        monkeypatch.setattr(Experiment, "bind", bind)
        turns = drawn_with(experiment, {}, num=23, sampler=TWO_STEPS)
        np.testing.assert_array_equal(
            turns, np.broadcast_to((np.arange(23) % 10)[:, None, None, None], (23, 8, 8, 1))
        )
        later = drawn_with(experiment, {}, num=5, first=7, sampler=TWO_STEPS)
        np.testing.assert_array_equal(later, turns[7:12])
        sevens = drawn_with(experiment, {}, num=5, sampler=TWO_STEPS, label=7)
        np.testing.assert_array_equal(sevens, 7)

    @pytest.mark.parametrize(
        ("devices", "num"),
        thorough_but([(4, 3)], [(1, 1), (1, 3), (2, 8), (4, 3), (8, 8), (8, 1)]),
    )
    def test_an_image_is_the_same_in_any_batch_on_any_mesh(self, params, twelve, devices, num):
        """To the grey level: what is rounded are differences of 1e-6 between sums."""
        config = dataclasses.replace(conditional(), mesh=Jit(data=devices))
        found = drawn_with(build(config), params, num=num, first=2, sampler=GUIDED)
        np.testing.assert_array_equal(found, twelve[2 : 2 + num])


@pytest.mark.parametrize(
    ("classes", "labelled", "said"),
    [
        (7, True, "network.classes is 7; the data set 'digits' has 10, so set it to 10"),
        (10, False, "network.classes is 10; the data set 'digits' has no labels, so set it to 0"),
    ],
)
def test_classes_that_the_images_do_not_have_are_refused(classes, labelled, said):
    images = None
    if not labelled:
        plain = Arrays(np.zeros((4, 8, 8, 1), np.uint8), levels=17)
        images = ImageSet("digits", train=plain, held_out=plain, levels=17)
    with pytest.raises(ConfigError, match=said):
        build(replace(tiny.get_config(), "network", classes=classes), images=images)


def test_guidance_without_classes_is_refused():
    with pytest.raises(ConfigError, match=r"guidance is 2\.0; it has to be 1 if"):
        build(replace(tiny.get_config(), "sampler", guidance=2.0))


def test_a_plan_is_told_of_labels():
    lowered = lower.lower_step(conditional(), jax.devices(), image_spec_of(conditional()))
    assert "tensor<16xi32>" in lowered.as_text()
    plain = lower.lower_step(tiny.get_config(), jax.devices(), image_spec_of(tiny.get_config()))
    labels = [
        sum(leaf.dtype == np.int32 for leaf in jax.tree.leaves(step.in_avals))
        for step in (lowered, plain)
    ]
    assert labels[0] == labels[1] + 1


class ShowsLabels(nn.Module):
    """Predicts the label itself, and cannot do without one."""

    @nn.compact
    def __call__(self, x_t, t, labels):
        zero = self.param("zero", nn.initializers.zeros, ())
        return zero + jnp.broadcast_to(labels[:, None, None, None], x_t.shape).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class ShowsLabelsConfig(configs.Network):
    def make(self, images):
        return ShowsLabels()


def test_a_network_of_ones_own_always_has_labels_and_minus_one_is_no_class():
    own = build(dataclasses.replace(tiny.get_config(), network=ShowsLabelsConfig(classes=10)))
    params = {"params": {"zero": jnp.float32(0.0)}}
    assert jax.eval_shape(lambda: experiments.initial_state(own).params) is not None
    labels = jnp.array([0, 3, 9])
    for guidance, expected in ((1.0, [0, 3, 9]), (0.0, [-1, -1, -1]), (2.0, [1, 7, 19])):
        predict = own.bind_for(Ancestral(guidance=guidance), params, labels).predict
        np.testing.assert_allclose(predict(X, T)[:, 0, 0, 0], expected)
    np.testing.assert_array_equal(own.bind(params)(X, T)[:, 0, 0, 0], [-1, -1, -1])
