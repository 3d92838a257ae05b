"""A Sphinx extension: how the API reference shows what this package declares in its own ways."""

import dataclasses
import importlib
import inspect
import re
import typing

from sphinx.pycode import ModuleAnalyzer

from ddpm_jax import config


def setup(app):
    """Called by Sphinx."""
    for kind in vars(config).values():
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
            separate_notes(kind)
    app.connect("autodoc-process-signature", leave_out_fields)
    app.connect("autodoc-process-docstring", describe_alias, priority=300)
    app.connect("autodoc-process-docstring", describe_field, priority=400)  # before napoleon
    app.connect("missing-reference", resolve_other_path)
    return {"parallel_read_safe": True}


NOTES = {}
"""`{(class, field): notes}` of fields that are annotated with what they have to be."""


def separate_notes(kind):
    """Makes the annotations of a class plain types, and stores the notes that they had."""
    for name, hint in vars(kind).get("__annotations__", {}).items():
        if typing.get_origin(hint) is typing.Annotated:
            kind.__annotations__[name] = hint.__origin__
            NOTES[kind, name] = hint.__metadata__


def leave_out_fields(app, what, name, obj, options, signature, returns):
    """No signature for a class whose fields are described below it, each with type and default."""
    if what != "class" or "Args:" in (obj.__doc__ or ""):
        return None
    fields = dataclasses.is_dataclass(obj) or hasattr(obj, "_fields")
    return ("", returns) if fields else None


def describe_alias(app, what, name, obj, options, lines):
    """The string below an alias of a type, which autodoc reads only where the alias is defined."""
    module, _, alias = name.rpartition(".")
    home = module
    while what == "data":
        source = inspect.getsource(importlib.import_module(home))
        imported = re.search(rf"^ *from (\S+) import {alias} as {alias}$", source, re.MULTILINE)
        if imported is None:
            break
        home = imported[1]
    if home != module:
        docs = ModuleAnalyzer.for_module(home).find_attr_docs()
        lines[:] = docs.get(("", alias), lines)


def describe_field(app, what, name, obj, options, lines):
    """What a value of a config's field has to be, and what another value would change."""
    if what not in ("attribute", "property", "data"):
        return
    kind, _, field = name.rpartition(".")
    notes = NOTES.get((find(kind), field), ())
    text = [f"It has to be {note.wanted}." for note in notes if isinstance(note, config.Bound)]
    text += [f"Affects `{note.name}`." for note in notes if isinstance(note, config.Affects)]
    lines += ["", " ".join(text)]
    lines.insert(0, "\\ ")  # else napoleon takes "a word:" for the type of what follows


def resolve_other_path(app, env, node, contnode):
    """A link by another path to an object than the one in the reference: ddpm_jax.forward.q_sample.

    A type in a signature may also be of a module that is not public; it stays text.
    """
    if node.get("refdomain") != "py" or not node["reftarget"].startswith("ddpm_jax."):
        return None
    target = find(node["reftarget"])
    if target is None:
        return None
    objects, last = env.domains["py"].objects, node["reftarget"].rpartition(".")[2]
    for name, entry in objects.items():
        if entry.objtype != "module" and name.endswith(f".{last}") and find(name) is target:
            arguments = (app.builder, node["reftype"], name, node, contnode)
            return env.domains["py"].resolve_xref(env, node["refdoc"], *arguments)
    return contnode if node["refdoc"].startswith("api/") else None


def find(path):
    """The object of that path, or None."""
    module, _, name = path.rpartition(".")
    if not module:
        return None
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return getattr(find(module), name, None)
