"""PyTorch's two formats, written by hand."""

import io
import pickle
import zipfile
from typing import NamedTuple

import numpy as np

# ---- opcodes of pickle's protocol 2


class Named(NamedTuple):
    module: str
    name: str


class Call(NamedTuple):
    function: Named
    arguments: tuple


class Stored(NamedTuple):
    pid: tuple


def code(value):
    """The opcodes that leave `value` on the stack."""
    match value:
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return b"J" + value.to_bytes(4, "little", signed=True)
        case str():
            return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()
        case Named(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            return code(function) + code(arguments) + b"R"
        case Stored(pid):
            return code(pid) + b"Q"
        case dict():
            pairs = b"".join(code(key) + code(item) for key, item in value.items())
            return b"}(" + pairs + b"u"
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"


def pickled(value):
    return b"\x80\x02" + code(value) + b"."


TYPES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
}


def tensor(key, array, *, legacy=True, offset=0, shape=None, strides=None, length=None, view=None):
    """A window on the storage `key`, by default all of `array`."""
    kind, length = Named("torch", TYPES[array.dtype.name]), array.size if length is None else length
    pid = ("storage", kind, key, "cpu", length, *((view,) if legacy else ()))
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(s // array.itemsize for s in np.empty(shape, array.dtype).strides)
    hooks = Call(Named("collections", "OrderedDict"), ())
    window = (Stored(pid), offset, shape, strides, False, hooks)
    return Call(Named("torch._utils", "_rebuild_tensor_v2"), window)


def legacy_file(value, storages):
    """`value` is what is pickled: tensors, or anything else. Storages are arrays by key."""
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    head = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, machine)]
    tail = [a.size.to_bytes(8, "little") + a.tobytes() for a in storages.values()]
    return b"".join([*head, pickled(value), pickle.dumps(list(storages), 2), *tail])


def zip_file(value, storages, *, order=b"little", compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        archive.writestr("archive/byteorder", order)
        for key, array in storages.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return file.getvalue()


def as_file(state, *, legacy=True):
    """A file that holds `state`, a storage for each array."""
    storages = {str(number): array for number, array in enumerate(state.values())}
    named = zip(state.items(), storages, strict=True)
    value = {name: tensor(key, array, legacy=legacy) for (name, array), key in named}
    return (legacy_file if legacy else zip_file)(value, storages)
