"""What is installed: little for the core alone, and each room names the extra that it needs."""

import ast
import configparser
import functools
import re
import subprocess
import sys

import pytest
from paths import ROOT
from rooms import CORE, ROOMS

from ddpm_jax.errors import MissingExtra, UserError, require

PACKAGE = ROOT / "ddpm_jax"
OF_JAX = {"jax", "numpy", "scipy", "chex", "jaxtyping"}
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "orbax": "orbax-checkpoint"}


@pytest.fixture(scope="module")
def metadata():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def printed(program):
    """What a process of its own prints, that has imported nothing yet."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_wheel_has_each_room_and_the_configs(metadata):
    rooms = [path.parent.relative_to(ROOT) for path in PACKAGE.rglob("__init__.py")]
    names = {".".join(path.parts) for path in rooms} | {"ddpm_jax.configs"}
    assert set(metadata["options"]["packages"].split()) == names


def names_of(lines):
    """Distributions, and extras of this one as `[name]`."""
    for line in lines.split("\n"):
        name, extras = re.match(r"([\w-]*)(?:\[(.*?)\])?", line).groups()
        if name == "ddpm_jax":
            yield from (f"[{extra}]" for extra in extras.split(","))
        elif name:
            yield name


def brought(metadata, extra):
    result = set(names_of(metadata["options.extras_require"][extra]))
    for name in [name for name in result if name.startswith("[")]:
        result |= brought(metadata, name[1:-1])
    return result | set(names_of(metadata["options"]["install_requires"]))


def top_level_imports(room):
    """Modules that are imported when the room is."""
    folder = PACKAGE / room
    files = folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]
    for path in files:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".") for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module != "ddpm_jax":
                yield node.module.split(".")
            elif isinstance(node, ast.ImportFrom):
                yield from (["ddpm_jax", alias.name] for alias in node.names)


@functools.cache
def needs(room):
    """Packages beside those of the core that its files, and those of the rooms below, import."""
    result, below = set(), set()
    for top, *rest in top_level_imports(room):
        if top == "ddpm_jax":
            below |= set(rest[:1]) & set(ROOMS) - {room}
        else:
            result |= {top} - set(sys.stdlib_module_names) - OF_JAX
    return result.union(*map(needs, below))


def required(room):
    """Extra and modules of the room's call of `require`."""
    path = PACKAGE / room
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            values = [ast.literal_eval(arg) for arg in node.value.args[:2]]
            modules = [arg.value for arg in ast.walk(node.value) if isinstance(arg, ast.Constant)]
            assert values[0] == f"ddpm_jax.{room}"
            return values[1], {module.split(".")[0] for module in modules[2:]}
    return None, set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_what_it_needs_and_its_extra_has_it(room, metadata):
    extra, modules = required(room)
    assert needs(room) <= modules or room == "cli"  # which says so in `main`
    if room in CORE:
        assert extra is None
    if modules:
        assert {DISTRIBUTIONS.get(name, name) for name in modules} <= brought(metadata, extra)


@pytest.mark.parametrize("extra", ["models", "evaluate", "train", "tfds", "hub"])
def test_all_has_each_extra(extra, metadata):
    assert brought(metadata, extra) <= brought(metadata, "all")


def test_nothing_has_an_upper_bound_but_tools_and_peers(metadata):
    extras = metadata["options.extras_require"]
    lines = [extras[name] for name in extras if name not in ("peers", "docs", "dev")]
    lines.append(metadata["options"]["install_requires"])
    bounds = [line.split(";")[0] for line in "\n".join(lines).splitlines()]
    assert not [line for line in bounds if "<" in line or "==" in line]


def test_a_missing_package_is_one_sentence():
    with pytest.raises(MissingExtra) as caught:
        require("ddpm_jax.models", "models", "jax", "absent.module")
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ImportError)
    assert str(caught.value) == (
        "ddpm_jax.models needs absent.module, which is not installed:"
        " pip install 'ddpm_jax[models]'"
    )


OUTSIDE = [room for room in ROOMS if room not in (*CORE, "files", "npz", "cli")]


def test_each_room_outside_the_core_says_so_where_only_the_core_is():
    lines = printed(f"""
import importlib, sys
sys.modules |= dict.fromkeys(["flax", "optax", "orbax", "rich", "PIL", "safetensors", "tyro"])
for room in {OUTSIDE}:
    try:
        importlib.import_module(f"ddpm_jax.{{room}}")
    except ImportError as error:
        print(error)
""").splitlines()
    for room, line in zip(OUTSIDE, lines, strict=True):
        sentence = rf"ddpm_jax\.{room} needs [\w-]+, which is not installed: pip install (.*)"
        assert re.fullmatch(sentence, line)[1] == f"'ddpm_jax[{required(room)[0]}]'"


@pytest.mark.parametrize("absent", ["tyro", "rich", "grain"])
def test_the_command_says_so_and_ends_with_exit_code_2(absent):
    program = f"""
import sys
sys.modules[{absent!r}] = None
from ddpm_jax.cli import main
sys.exit(main(["train", "digits"]))
"""
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr == (
        f"ddpm-jax: ddpm-jax needs {absent}, which is not installed:"
        " pip install 'ddpm_jax[train]'\n"
    )
