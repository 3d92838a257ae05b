"""Docstrings of the public names have one form and name what the code has; nothing is imported."""

import ast
import functools
import re

import pytest
from paths import ROOT

ROOMS = [
    "analytic",
    "bases",
    "cli",
    "config",
    "data",
    "errors",
    "evaluation",
    "experiment",
    "forward",
    "gaussians",
    "likelihood",
    "litmus",
    "losses",
    "models",
    "parallel",
    "plan",
    "predictions",
    "processes",
    "reverse",
    "samplers",
    "samplers.guidance",
    "schedules",
    "timesteps",
    "training",
    "weights",
]
"""A room is listed here as soon as all of its names are documented; "room.module" is one, too."""

MORE = ["arrays.register_with_nnx"]
"""Public names of rooms that are not public."""

SECTIONS = ["Args", "Returns", "Yields", "Raises", "Example", "References"]
"""In this order."""

FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def syntax(module):
    """The module's tree, and for a package that of its `__init__`."""
    path = ROOT.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(source.read_text()), path.is_dir()


def names_of(module):
    """Where each public name of a module is from: `{name: module}`."""
    tree, is_package = syntax(module)
    if not is_package:
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                return dict.fromkeys(ast.literal_eval(node.value), module)
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("ddpm_jax"):
            for alias in node.names:
                if alias.name == "*":
                    names |= names_of(node.module)
                elif alias.asname and not is_module(f"{node.module}.{alias.name}"):
                    names[alias.asname] = node.module
    return names


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


@functools.cache
def names_defined(module):
    """`{name: (node, docstring)}` of what a module defines; an alias has a string below it."""
    body, names = syntax(module)[0].body, {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, FUNCTIONS | ast.ClassDef):
            names[node.name] = node, ast.get_docstring(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names[ast.unparse(targets[0])] = node, text_of(after)
    return names


@functools.cache
def names_imported(module):
    nodes = [node for node in ast.walk(syntax(module)[0]) if isinstance(node, ast.ImportFrom)]
    of_package = [node for node in nodes if node.module.startswith("ddpm_jax")]
    return {alias.name: node.module for node in of_package for alias in node.names}


def home_of(module, name):
    """The module that defines a name which `module` has."""
    while name not in names_defined(module):
        module = names_imported(module)[name]
    return module


def definition(module, name):
    return names_defined(home_of(module, name))[name]


def text_of(node):
    """The text of a statement that is a string, or None."""
    value = getattr(node, "value", None) if isinstance(node, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else None


def sections(docstring):
    """`{title: lines}` of what Sphinx reads as sections, in order; "" is what stands before."""
    parts = {"": []}
    title = ""
    for line in docstring.splitlines():
        if line.removesuffix(":") in SECTIONS:
            title = line.removesuffix(":")
            parts[title] = []
        else:
            parts[title].append(line)
    return parts


def arguments_of(docstring):
    """The names that the section Args describes, `name: text` each."""
    lines = sections(docstring).get("Args", [])
    heads = [re.match(r"    (\*{0,2}\w+)( \([^)]*\))?: \S", line) for line in lines]
    return [head[1].lstrip("*") for head in heads if head]


def listed(docstring):
    """The fields that a list describes, "- `name`: text", where a string below would show in help.

    The command line shows such a string in place of what the member of the field says of itself.
    """
    return re.findall(r"^- `(\w+)`: \S", docstring, re.MULTILINE)


def parameters_of(function):
    a = function.args
    rest = [argument for argument in (a.vararg, a.kwarg) if argument]
    names = [argument.arg for argument in [*a.posonlyargs, *a.args, *a.kwonlyargs, *rest]]
    bound = "cls" if "classmethod" in decorators(function) else "self"
    return [name for name in names if name != bound and not name.startswith("_")]


def decorators(function):
    return {ast.unparse(node).split("(")[0].split(".")[-1] for node in function.decorator_list}


def faults_of_text(docstring):
    """What is wrong with any docstring, of whatever kind."""
    if not docstring:
        return ["no docstring"]
    faults = []
    first, *rest = docstring.strip().splitlines()
    if not first.endswith(".") or (rest and rest[0].strip()):
        faults.append("its first line is no sentence of one line, with a blank line below")
    titles = [title for title in sections(docstring) if title]
    if titles != sorted(titles, key=SECTIONS.index):
        faults.append(f"its sections are {titles}; the order is {SECTIONS}")
    return faults


def faults_of_function(function, docstring):
    faults = faults_of_text(docstring)
    if not docstring:
        return faults
    documented, parameters = arguments_of(docstring), parameters_of(function)
    if sorted(documented) != sorted(parameters):
        faults.append(f"Args has {documented}; the parameters are {parameters}")
    returns = "None" if function.returns is None else ast.unparse(function.returns)
    if returns not in ("None", "NoReturn") and not {"Returns", "Yields"} & set(sections(docstring)):
        faults.append(f"no Returns; it returns {returns}")
    return faults


def is_documented_by_a_base(cls, method, module):
    """Whether a class of this package, from which `cls` inherits, has a method of that name."""
    for base in cls.bases:
        name = ast.unparse(base).split("[")[0]
        if name in names_imported(module) or name in names_defined(module):
            node, _ = definition(module, name)
            own = [n.name for n in getattr(node, "body", ()) if isinstance(n, FUNCTIONS)]
            if method in own or is_documented_by_a_base(node, method, home_of(module, name)):
                return True
    return False


def faults_of_class(node, docstring, module):
    faults, methods = faults_of_text(docstring), [n for n in node.body if isinstance(n, FUNCTIONS)]
    documented = arguments_of(docstring or "") + listed(docstring or "")
    for init in (method for method in methods if method.name == "__init__"):
        documented += arguments_of(ast.get_docstring(init) or "")
        if sorted(documented) != sorted(parameters_of(init)):
            faults.append(f"Args has {documented}; __init__ takes {parameters_of(init)}")
    for field, after in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(field, ast.AnnAssign) or "ClassVar" in ast.unparse(field.annotation):
            continue
        name = ast.unparse(field.target)
        if not name.startswith("_") and name not in documented and not text_of(after):
            faults.append(f"the field {name} has no docstring")
    for method in methods:
        if not method.name.startswith("_") and not {"setter", "overload"} & decorators(method):
            text = ast.get_docstring(method)
            short = {"property", "cached_property"} & decorators(method)
            short = short or is_documented_by_a_base(node, method.name, module)
            found = faults_of_text(text) if short else faults_of_function(method, text)
            faults += [f"{method.name}: {fault}" for fault in found]
    return faults


def faults(module, name):
    node, docstring = definition(module, name)
    if isinstance(node, FUNCTIONS):
        return faults_of_function(node, docstring)
    if isinstance(node, ast.ClassDef):
        return faults_of_class(node, docstring, home_of(module, name))
    return [] if docstring else ["no string below it that says what it is"]


PUBLIC = {
    f"{room}.{name}": (home, name)
    for room in ROOMS
    for name, home in names_of(f"ddpm_jax.{room}").items()
} | {path: (f"ddpm_jax.{path.rpartition('.')[0]}", path.rpartition(".")[2]) for path in MORE}


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_has_the_form_and_names_what_the_code_has(name):
    assert faults(*PUBLIC[name]) == []


@pytest.mark.parametrize("room", ROOMS)
def test_each_module_says_what_it_is(room):
    homes = {f"ddpm_jax.{room}", *names_of(f"ddpm_jax.{room}").values()}
    texts = {home: ast.get_docstring(syntax(home)[0]) for home in homes}
    assert {home: found for home in homes if (found := faults_of_text(texts[home]))} == {}


def test_faults_are_detected():
    source = '''
def f(x, *, y=1) -> int:
    """One line.

    Raises:
        ValueError: always.

    Args:
        x: a number.
    """

class C:
    """A class."""

    field: int
    other: int
    """It has one."""

    def method(self, z) -> None:
        """Of z"""
'''
    function, cls = ast.parse(source).body
    assert faults_of_function(function, ast.get_docstring(function)) == [
        f"its sections are ['Raises', 'Args']; the order is {SECTIONS}",
        "Args has ['x']; the parameters are ['x', 'y']",
        "no Returns; it returns int",
    ]
    assert faults_of_class(cls, ast.get_docstring(cls), "ddpm_jax") == [
        "the field field has no docstring",
        "method: its first line is no sentence of one line, with a blank line below",
        "method: Args has []; the parameters are ['z']",
    ]
