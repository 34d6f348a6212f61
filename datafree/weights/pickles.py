"""Pickles read as data: their tensors, numbers and words; of every other object a stand-in that does nothing.

A pickle is a program for a small machine that calls whatever it can name. Here it can name nothing that is there
already: each name becomes a class made for it alone, which keeps what it is given (:class:`StandIn`) or, for the few
functions that put tensors together, calls ours. No module is imported, no attribute of any object is set, and nothing
that the file brings along is run.

torch.load takes an unpickler, too (``pickle_module``), but around it unpacks tar archives, compiles TorchScript and
writes source patches as the file wants it; so the two formats of torch.save are read here, byte by byte.
"""

import io
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import printable

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001  # how a file of torch.save before PyTorch 1.6 begins
DTYPES = {
    "UntypedStorage": torch.uint8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
}
Storage = Callable[[torch.dtype, str, int], Tensor]  # dtype, key, elements -> (elements,)


class StandIn:
    """In place of an object: what its pickle puts into it.

    Attributes:
        name: dotted, of the class or function that the pickle asks for.
        args: what it was made from.
        state: what was to become its attributes.
        entries, elements: what was set and appended, of a dictionary's kind and a list's.
    """

    __slots__ = ("args", "elements", "entries", "state")
    name = "an object"

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        self = object.__new__(cls if isinstance(cls, type) else StandIn)  # of a class that is a stand-in's value itself
        self.args, self.state, self.entries, self.elements = args, None, dict(kwargs), []
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> "StandIn":
        return StandIn(*args, **kwargs)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, element: Any) -> None:
        self.elements.append(element)

    add = append


class Unpickler(pickle._Unpickler):  # the one in C would set attributes and ask the process's register of extensions
    """Reads one pickle.

    Args:
        file: at its beginning.
        storage: gives the numbers of a tensor that lie outside the pickle, where the format has such.

    After :meth:`load`, ``strange`` names the classes and functions that stand-ins were made for.
    """

    dispatch: ClassVar = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: IO[bytes], storage: Storage | None = None):
        def read(count: int) -> bytes:
            if count > 2**20 and count > _bytes_left(file):  # no memory is asked for what a damaged length claims
                raise EOFError("the file is cut short")
            return file.read(count)

        bounded = SimpleNamespace(read=read, readline=file.readline)
        super().__init__(bounded, encoding="latin1")  # bytes of Python 2 keep their values
        self.storage, self.strange = storage, []

    def find_class(self, module: str, name: str) -> Any:
        dotted = printable(f"{module}.{name}".replace("__builtin__.", "builtins.").replace("copy_reg.", "copyreg."))
        if dotted in REBUILT:
            rebuilt = REBUILT[dotted]
            return type("Rebuilt", (), {"__slots__": (), "__new__": lambda cls, *args: rebuilt(*args)})
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):  # getattr would import
            return vars(torch)[name]
        if module.partition(".")[0] not in ("torch", "numpy") and dotted not in self.strange:
            self.strange.append(dotted)
        return type("StandIn", (StandIn,), {"__slots__": (), "name": dotted})

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension {code}: a number that stands for a name")

    def persistent_load(self, pid: Any) -> Any:
        """A tensor's numbers; or the class of a network, which the older format puts beside its source text."""
        if self.storage is None or not isinstance(pid, tuple) or len(pid) < 4:
            raise pickle.UnpicklingError("a reference to something outside the file")
        if pid[0] == "module":
            return pid[1]
        _, kind, key, _, size, *view = pid
        dtype = DTYPES.get(getattr(kind, "name", "").rpartition(".")[2])
        if dtype is None:
            return kind()  # of quantised numbers
        numbers = self.storage(dtype, str(key), int(size))
        return numbers[view[0][1] :][: view[0][2]] if view and view[0] is not None else numbers

    def load_build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], StandIn):
            self.stack[-1].state = state

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray8(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


def _tensor(numbers: Any, offset: int, size: tuple, stride: tuple, *more: Any) -> Any:
    """torch._utils._rebuild_tensor and _v2; more: requires_grad, hooks, whether it is a conjugate or negative view."""
    if not isinstance(numbers, Tensor) or more[2:3] not in ((), (None,), ({},)):
        return _named("torch._utils._rebuild_qtensor" if isinstance(numbers, StandIn) else "a view")
    first = numbers.storage_offset()  # not 0 for a part of older files' storages
    return numbers.as_strided(tuple(size), tuple(stride), first + offset)  # raises where the numbers do not suffice


def _tensor_v3(
    numbers: Any, offset: int, size: tuple, stride: tuple, grad: Any, hooks: Any, dtype: Any, *more: Any
) -> Any:
    """torch._utils._rebuild_tensor_v3: of the types that have no storage class of their own."""
    return _tensor(numbers.view(dtype) if isinstance(numbers, Tensor) else numbers, offset, size, stride, 0, 0, *more)


def _named(name: str) -> StandIn:
    return type("StandIn", (StandIn,), {"__slots__": (), "name": name})()


def _text_to_bytes(text: str, encoding: str = "latin1") -> bytes:
    """As Python 3 writes bytes in protocol 2."""
    return text.encode("latin1")


def _object(kind: Any, *_: Any) -> Any:
    """copyreg._reconstructor: an object of a class, in protocols 0 and 1."""
    return kind()


REBUILT: dict[str, Callable] = {
    "collections.OrderedDict": dict,
    "builtins.set": set,
    "copyreg._reconstructor": _object,
    "_codecs.encode": _text_to_bytes,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.nn.parameter.Parameter": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda function, kind, args, state: function(*args),
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": lambda data, *_: data,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda data, *_: as_array(data),
    "torch._utils._rebuild_xla_tensor": lambda data, *_: as_array(data),
    "torch.storage._load_from_bytes": lambda data: read_legacy(io.BytesIO(data))[0],
}


def as_array(value: StandIn) -> Tensor | None:
    """What a pickled numpy array holds; None for whatever else."""
    function = value.name.rpartition(".")[2] if value.name.startswith("numpy.") else ""
    axes = None
    if function == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, kind, is_fortran, data = value.state
        order = "F" if is_fortran else "C"
    elif function == "_frombuffer" and len(value.args) in (4, 5):  # as protocol 5 has it
        data, kind, shape, order, *rest = value.args
        order, axes = ("C", rest[0]) if order == "K" and rest else (order, None)
    else:
        return None
    if not isinstance(kind, StandIn) or not re.fullmatch("[fiub][1248]", str(kind.args[:1] and kind.args[0])):
        return None  # words or objects
    try:
        ends = kind.state[1] if kind.state and kind.state[1] in ("<", ">") else "="
        data = data.encode("latin1") if isinstance(data, str) else data
        numbers = np.frombuffer(data, np.dtype(kind.args[0]).newbyteorder(ends)).reshape(shape, order=order)
        numbers = numbers if axes is None else numbers.transpose(axes)
        return torch.from_numpy(numbers.astype(kind.args[0]))
    except Exception:  # of half a dozen types, where it is damaged
        return None


def read_plain(file: IO[bytes]) -> tuple[Any, list[str]]:
    """A pickle that is no file of torch.save: its content and what :class:`Unpickler` found strange.

    Raises:
        Exception: of a dozen types, where it is damaged.
    """
    unpickler = Unpickler(file)
    return unpickler.load(), unpickler.strange


def read_npy(file: IO[bytes]) -> tuple[Any, list[str]]:
    """What numpy.save makes of an object, such as a dictionary of arrays: a pickle of an array that holds it.

    Raises:
        Exception: of a dozen types, where it is damaged.
    """
    version = np.lib.format.read_magic(file)
    (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    array, strange = read_plain(file)
    held = array.state[-1]
    return held[0] if len(held) == 1 else held, strange


def read_zip(file: IO[bytes]) -> tuple[Any, list[str]]:
    """A file of torch.save since PyTorch 1.6: a zip archive of a pickle and, uncompressed, the numbers of each tensor.

    Raises:
        Exception: of a dozen types, where it is damaged.
    """
    with zipfile.ZipFile(file) as archive:
        records = {record.filename: record for record in archive.infolist()}
        root = next(name for name in records if is_pickle_in_zip(name)).removesuffix("data.pkl")
        order = _record(file, records[f"{root}byteorder"]) if f"{root}byteorder" in records else b"little"
        stored: dict[str, Tensor] = {}

        def storage(dtype: torch.dtype, key: str, size: int) -> Tensor:
            if key not in stored:
                data = _record(file, records[f"{root}data/{key}"])
                stored[key] = _numbers(data, dtype, swapped=order.decode() != sys.byteorder)
            return stored[key][:size]

        unpickler = Unpickler(io.BytesIO(_record(file, records[f"{root}data.pkl"])), storage)
        return unpickler.load(), unpickler.strange


def is_pickle_in_zip(name: str) -> bool:
    """Whether that is where torch.save puts the pickle."""
    return name.count("/") == 1 and name.endswith("/data.pkl")


def _record(file: IO[bytes], record: zipfile.ZipInfo) -> bytearray:
    """Its bytes as they lie in the file; the checksums are looked at elsewhere."""
    if record.compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile("a record is compressed")
    file.seek(record.header_offset + 26)
    file.seek(sum(struct.unpack("<HH", file.read(4))), io.SEEK_CUR)  # lengths of name and extra field
    data = bytearray(min(record.file_size, _bytes_left(file)))
    if file.readinto(data) != record.file_size:
        raise EOFError("a record is cut short")
    return data


def _bytes_left(file: IO[bytes]) -> int:
    here = file.tell()
    end = file.seek(0, io.SEEK_END)
    file.seek(here)
    return end - here


def _numbers(data: bytearray, dtype: torch.dtype, swapped: bool = False) -> Tensor:
    if not data:
        return torch.empty(0, dtype=dtype)
    if swapped:
        data = bytearray(torch.frombuffer(data, dtype=torch.uint8).view(-1, dtype.itemsize).flip(1).numpy().tobytes())
    return torch.frombuffer(data, dtype=dtype)


def read_legacy(file: IO[bytes]) -> tuple[Any, list[str]]:
    """A file of torch.save before PyTorch 1.6: pickles one after the other, then the numbers of each tensor.

    Raises:
        Exception: of a dozen types, where it is damaged.
    """
    if (Unpickler(file).load(), Unpickler(file).load()) != (MAGIC, VERSION):
        raise pickle.UnpicklingError("no file of torch.save")
    Unpickler(file).load()  # about the machine
    places: dict[str, bytearray] = {}
    stored: dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, size: int) -> Tensor:
        if key not in places:
            if size * dtype.itemsize > _bytes_left(file):
                raise EOFError("the file is cut short")
            places[key] = bytearray(size * dtype.itemsize)
            stored[key] = _numbers(places[key], dtype)
        return stored[key]

    unpickler = Unpickler(file, storage)
    content = unpickler.load()
    for key in Unpickler(file).load():
        place, tensor = places[str(key)], stored[str(key)]
        (size,) = struct.unpack("<q", file.read(8))
        if size != len(tensor) or file.readinto(place) != len(place):
            raise EOFError("the file is cut short")
    return content, unpickler.strange
