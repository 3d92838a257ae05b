"""The plan of the house: imports run one way, and names are handed out on purpose."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest
from paths import TESTS
from rooms import CORE, ROOMS

import ddpm_jax
from ddpm_jax.cli.main import COMMANDS

PACKAGE = pathlib.Path(ddpm_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

PUBLIC = {
    "ddpm_jax": {
        *("analytic", "bases", "gaussians", "likelihood", "litmus", "losses", "predictions"),
        *("processes", "reverse", "samplers", "schedules", "timesteps"),
        *("Schedule", "convert", "q_chain", "q_posterior", "q_sample", "q_step", "q_transition"),
        *("simple_loss", "weighted_loss", "elbo_loss", "hybrid_loss", "kl_weight", "vlb_terms"),
        *("bits_per_dim", "estimate_bits_per_dim", "flow_bits_per_dim"),
        *("load_run", "train"),
    },
    "ddpm_jax.schedules": {
        *("Schedule", "linear", "quadratic", "constant", "cosine", "sigmoid", "linear_log_snr"),
        *("from_betas", "from_alpha_bar", "from_log_snr", "from_signal_noise"),
        *("variance_exploding", "rectified_flow"),
        *("variance_preserving", "sub_variance_preserving"),
        *("zero_terminal_snr", "shifted", "respaced"),
        *("Endpoints", "Monotone", "from_monotone", "monotone", "monotone_steps"),
    },
    "ddpm_jax.processes": {
        *("Chain", "Modal", "NoClosedForm", "Process"),
        *("Spectral", "isotropic", "spectral", "correlated", "equal_snr", "blurring", "per_pixel"),
        *("AffineChain", "affine_chain", "GammaChain", "gamma"),
        *("CustomChain", "check_step", "custom_chain"),
    },
    "ddpm_jax.gaussians": {
        *("kl_diagonal", "kl_full", "kl_shared_variance", "kl_standardized"),
        *("kl_to_standard_normal", "entropy_diagonal", "entropy_full"),
        *("log_density_diagonal", "log_density_full", "discretized_log_likelihood"),
    },
    "ddpm_jax.losses": {
        *("simple_loss", "weighted_loss", "elbo_loss", "hybrid_loss"),
        *("kl_weight", "prior_term", "vlb_terms", "error_weight"),
        *("Weighting", "constant", "min_snr", "p2", "target", "truncated_snr"),
        "distillation_target",
    },
    "ddpm_jax.likelihood": {
        *("bits_per_dim", "estimate_bits_per_dim", "flow_bits_per_dim", "dequantize"),
        *("BitsPerDim", "BitsEstimate", "FlowLikelihood"),
        *("BitsAtTimes", "bits_at_times", "spread_times"),
        *("ContinuousBits", "continuous_bits_per_dim"),
    },
    "ddpm_jax.samplers": {
        *("ancestral", "ddim", "ddim_inversion", "dpm_solver_pp", "heun", "probability_flow"),
        *("dpm_solver_pp_single", "midpoint", "unipc", "UniPCVariant"),
        *("stochastic_heun", "time_grid", "density_grid", "level_grid"),
        *("guidance", "inpaint", "sample", "dynamic_threshold", "static_threshold"),
        *("Predict", "Sampler", "SamplerState", "Samples", "Spacing", "StepInfo", "Threshold"),
    },
    "ddpm_jax.analytic": {
        *("Mixture", "gaussian", "mixture", "sample", "mean", "covariance"),
        *("denoise", "predictor", "log_density"),
        *("ElboTerms", "Estimate", "elbo_terms", "entropy", "entropy_estimate"),
    },
    "ddpm_jax.litmus": {"Evidence", "Row", "Verdict", "litmus"},
}
"""What each package hands out on purpose."""


FRONT_DOOR = PACKAGE / "__init__.py"
IMPORTS = (ast.Import, ast.ImportFrom)


def name_of(path):
    return str(path.relative_to(PACKAGE))


def room_of(path):
    """The room a file is in; None for the package's own front door."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return None if first in ("__init__", "__main__") else first


def imported(path):
    """Absolute dotted names of all that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ("ddpm_jax", *path.relative_to(PACKAGE).parent.parts)
                base = ".".join([*package[: len(package) - node.level + 1], *base.split(".")])
            yield from (f"{base.rstrip('.')}.{alias.name}" for alias in node.names)


def imported_rooms(path):
    for name in imported(path):
        top, *rest = name.split(".")
        if top == "ddpm_jax" and rest:
            if path == FRONT_DOOR and rest[0] == "experiment":
                continue  # of `train` and `load_run`, for type checkers; loaded when asked for
            # What is no room comes from the front door, which opens on the core.
            yield rest[0] if rest[0] in ROOMS else CORE[-1]


def test_every_file_is_in_a_room():
    assert {room_of(path) for path in FILES} <= {None, *ROOMS}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_one_way(path):
    allowed = CORE if room_of(path) is None else ROOMS[: ROOMS.index(room_of(path)) + 1]
    assert set(imported_rooms(path)) <= set(allowed)


@pytest.mark.parametrize(
    "path", [path for path in FILES if room_of(path) in (None, *CORE)], ids=name_of
)
def test_the_core_needs_jax_and_what_jax_needs_and_chex(path):
    libraries = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
    assert libraries <= {"ddpm_jax", "jax", "numpy", "scipy", "chex", "jaxtyping"}


def printed(program):
    """What a process of its own prints, that has imported nothing yet."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_importing_the_package_loads_no_more_than_the_core():
    program = """
import sys, jax
before = set(sys.modules)
import ddpm_jax
after = set(sys.modules) - before
print(*{name.split(".")[0] for name in after} - set(sys.stdlib_module_names))
print(*sorted({name.split(".")[1] for name in after if name.startswith("ddpm_jax.")}))
"""
    libraries, rooms = printed(program).splitlines()
    assert libraries == "ddpm_jax"
    assert set(rooms.split()) <= set(CORE)


def test_all_names_import_few_libraries_beyond_jax():
    program = """
import sys, jax, scipy.stats  # jax needs scipy
before = set(sys.modules)
import ddpm_jax
for name in set(dir(ddpm_jax)) - {"load_run", "train"}:
    getattr(ddpm_jax, name)
libraries = {name.split(".")[0] for name in set(sys.modules) - before}
print(*libraries - set(sys.stdlib_module_names))
"""
    needed = {"ddpm_jax", "jax", "numpy", "chex", "absl", "toolz", "jaxtyping", "wadler_lindig"}
    assert set(printed(program).split()) <= needed | {"typing_extensions"}


def test_heavy_libraries_of_few_commands_are_imported_inside_functions():
    heavy = {"grain", "matplotlib", "sklearn", "tensorflow_datasets"}
    for path in FILES:
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, IMPORTS)]
        modules = {getattr(node, "module", None) or "" for node in top}
        modules |= {alias.name for node in top for alias in node.names}
        assert not heavy & {name.split(".")[0] for name in modules}, path


def names_of(path):
    """Names of `import x as x` in an `__init__`, which is how this package makes them public."""
    nodes = ast.walk(ast.parse(path.read_text()))
    aliases = [a for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names]
    return {alias.asname for alias in aliases}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names(package):
    module = importlib.import_module(package)
    assert names_of(pathlib.Path(module.__file__)) == PUBLIC[package]
    assert all(hasattr(module, name) for name in PUBLIC[package])


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_assert_and_no_postponed_annotations(path):
    # python -O drops asserts; postponed annotations defeat the shape checker.
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))
    assert "__future__.annotations" not in imported(path)


FILES_OF_TESTS = sorted(TESTS.rglob("*.py"))
THOROUGH = "pytest.mark.thorough"
SERVANTS = {"checks", "arrays", "npz"}
"""Rooms without tests of their own: the tests of the rooms that call them are theirs."""


def quick(path):
    """The text of a file of tests without what is left out of the quick tests."""
    lines, tree = path.read_text().splitlines(), ast.parse(path.read_text())
    whole = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    if any(text.startswith("pytestmark") and THOROUGH in text for text in whole):
        return ""
    for node in ast.walk(tree):
        if THOROUGH in map(ast.unparse, getattr(node, "decorator_list", ())):
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines)


def test_every_room_every_public_function_and_every_command_is_in_a_quick_test():
    tests = [quick(path) for path in FILES_OF_TESTS if path.name != pathlib.Path(__file__).name]
    imports = re.findall(r"^ *(?:from|import) (ddpm_jax.*)$", "\n".join(tests), re.MULTILINE)
    assert set(ROOMS) - SERVANTS <= set(re.findall(r"\w+", "\n".join(imports)))
    words = set(re.findall(r"\w+", "\n".join(tests)))
    functions = {name for names in PUBLIC.values() for name in names if name.islower()}
    assert functions <= words
    assert set(COMMANDS) <= set(re.findall(r'"(\w+)"', "\n".join(tests)))
