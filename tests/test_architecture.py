"""The plan of the house: imports run one way, and names are handed out on purpose."""

import ast
import pathlib
import subprocess
import sys

import pytest
from rooms import CORE, ROOMS

import ddpm_jax
import ddpm_jax.gaussians
import ddpm_jax.samplers

PACKAGE = pathlib.Path(ddpm_jax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

PUBLIC = {
    *("gaussians", "losses", "reverse", "samplers", "schedules", "timesteps"),
    *("Schedule", "convert", "q_chain", "q_posterior", "q_sample", "q_step", "q_transition"),
    *("bits_per_dim", "elbo_loss", "hybrid_loss", "kl_weight", "simple_loss", "vlb_terms"),
    "weighted_loss",
}
PUBLIC_GAUSSIANS = {
    *("kl_diagonal", "kl_full", "kl_shared_variance", "kl_standardized", "kl_to_standard_normal"),
    *("entropy_diagonal", "entropy_full", "log_density_diagonal", "log_density_full"),
    "discretized_log_likelihood",
}
PUBLIC_SAMPLERS = {
    *("ancestral", "ddim", "sample", "time_grid"),
    *("Predict", "Sampler", "SamplerState", "Samples", "StepInfo"),
}


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
def test_the_core_needs_jax_numpy_and_chex_alone(path):
    libraries = {name.split(".")[0] for name in imported(path)} - set(sys.stdlib_module_names)
    assert libraries <= {"ddpm_jax", "jax", "numpy", "chex", "jaxtyping"}


def test_importing_the_package_loads_no_more_than_the_core():
    program = """
import sys, ddpm_jax
heavy = {"flax", "optax", "orbax", "grain", "tyro", "tensorflow_datasets", "tensorflow", "PIL"}
print(*sorted(heavy & {name.split(".")[0] for name in sys.modules}))
print(*sorted({n.split(".")[1] for n in sys.modules if n.startswith("ddpm_jax.")}))
"""
    run = subprocess.run(
        [sys.executable, "-c", program],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    heavy, rooms = run.stdout.splitlines()
    assert heavy == ""
    assert set(rooms.split()) <= set(CORE)


def handed_out(module):
    """Names of `import x as x` in an `__init__`, which is how this package makes them public."""
    nodes = ast.walk(ast.parse(pathlib.Path(module.__file__).read_text()))
    aliases = [a for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names]
    return {alias.asname for alias in aliases}


def test_public_names():
    assert handed_out(ddpm_jax) == PUBLIC
    assert handed_out(ddpm_jax.gaussians) == PUBLIC_GAUSSIANS
    assert handed_out(ddpm_jax.samplers) == PUBLIC_SAMPLERS
    assert all(hasattr(ddpm_jax, name) for name in PUBLIC)
    assert all(hasattr(ddpm_jax.samplers, name) for name in PUBLIC_SAMPLERS)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_assert_and_no_postponed_annotations(path):
    # python -O drops asserts; postponed annotations defeat the shape checker.
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(path.read_text())))
    assert "__future__.annotations" not in imported(path)
