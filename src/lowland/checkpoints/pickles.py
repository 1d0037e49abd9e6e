"""Pickled data read without importing or calling anything: what is no plain data becomes an inert stand-in.

A pickle is a program for a stack machine. This machine knows the same instructions, but the only things that it makes
are numbers, texts, bytes, tuples, lists, dicts and sets, `Global` for the name of a class or function, and `Object` for
what would have been made by one. Its time and memory are bounded by the length of the pickle.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

LONGEST = 1 << 29  # bytes of a pickle
_KEY_PARTS, _KEY_DEPTH = 64, 4

# Names by which a pickle would run commands or code. A file that calls them is refused whatever else it holds.
_RUNS = frozenset(
    [
        *"os posix nt subprocess pty sys shutil socket importlib runpy ctypes commands popen2 platform".split(),
        *"webbrowser code timeit pickle pdb asyncio multiprocessing".split(),
        *(f"{home}.{name}" for home in ("builtins", "__builtin__") for name in "eval exec compile open".split()),
        *("builtins.__import__", "__builtin__.__import__", "__builtin__.execfile", "builtins.input"),
    ]
)


@dataclass(frozen=True)
class Global:
    """The name of a class or function."""

    name: str


@dataclass(eq=False)
class Object:
    """What a class or function would have made of its arguments; two are equal only if they are one."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)  # what was appended, and pairs that were set

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute of the state."""
        state = self.state[0] if isinstance(self.state, tuple) and self.state else self.state
        slots = self.state[1] if isinstance(self.state, tuple) and len(self.state) > 1 else None
        for part in (state, slots):
            if isinstance(part, dict) and key in part:
                return part[key]
        return default


Persistent = Callable[[Any], Any]
Make = Callable[[str, tuple[Any, ...]], Any]


def loads(content: bytes, *, persistent: Persistent | None = None, make: Make | None = None) -> Any:
    """Return what a pickle holds.

    Args:
        persistent: what to put in the place of an id of an object that lies elsewhere; None refuses such ids.
        make: may return something better than an `Object` for a name and its arguments, or None.

    Raises:
        ValueError: the pickle is damaged, too long, names what would run commands, or asks for more than plain data.

    >>> import argparse, pickle
    >>> loads(pickle.dumps({"lr": 0.1, "sizes": (1, 2)}))
    {'lr': 0.1, 'sizes': (1, 2)}
    >>> held = loads(pickle.dumps(argparse.Namespace(lr=0.1)))
    >>> held.name, held.get("lr")
    ('argparse.Namespace', 0.1)
    """
    if len(content) > LONGEST:
        raise ValueError(f"a pickle of {len(content)} bytes is longer than {LONGEST}")
    machine = _Machine(persistent, make)
    try:
        for code, argument, _ in pickletools.genops(content):
            if code.name == "STOP":
                return machine.pop()
            machine.step(code.name, argument)
    except (IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UnicodeError) as error:
        raise ValueError(f"a damaged pickle ({type(error).__name__})") from None
    raise ValueError("a pickle that does not end")


class _Machine:
    def __init__(self, persistent: Persistent | None, make: Make | None) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.persistent, self.make = persistent, make

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        held, self.stack = self.stack, self.marked.pop()
        return held

    def step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        if name in _VALUES:
            push(argument)
        elif name in _CONSTANTS:
            push(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            push(self.memo[int(argument)])
        elif name == "MARK":
            self.marked.append(self.stack)
            self.stack = []
        elif name == "POP":
            if self.stack:
                self.pop()
            else:
                self.since_mark()
        elif name == "POP_MARK":
            self.since_mark()
        elif name == "DUP":
            push(self.stack[-1])
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            if len(self.stack) < size:
                raise IndexError
            self.stack[-size:] = [tuple(self.stack[-size:])]
        elif name in _GATHERED:
            held = self.since_mark()
            self.stack.append(_GATHERED[name](held))
        elif name == "APPEND":
            value = self.pop()
            _listed(self.stack[-1]).append(value)
        elif name in ("APPENDS", "ADDITEMS"):
            held = self.since_mark()
            _add(self.stack[-1], held)
        elif name == "SETITEM":
            value, key = self.pop(), self.pop()
            _set(self.stack[-1], [key, value])
        elif name == "SETITEMS":
            held = self.since_mark()
            _set(self.stack[-1], held)
        else:
            self.named(name, argument)

    def named(self, name: str, argument: Any) -> None:
        if name == "GLOBAL":
            self.stack.append(Global(".".join(argument.split(" ", 1))))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            if not (isinstance(module, str) and isinstance(attribute, str)):
                raise TypeError
            self.stack.append(Global(f"{module}.{attribute}"))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, what = self.pop(), self.pop()
            self.stack.append(self.made(what, arguments))
        elif name == "NEWOBJ_EX":
            keywords, arguments, what = self.pop(), self.pop(), self.pop()
            self.stack.append(self.made(what, (*arguments, keywords)))
        elif name == "INST":
            self.stack.append(self.made(Global(".".join(argument.split(" ", 1))), tuple(self.since_mark())))
        elif name == "OBJ":
            what, *rest = self.since_mark()
            self.stack.append(self.made(what, tuple(rest)))
        elif name == "BUILD":
            state = self.pop()
            # The attributes of a state_dict, such as the versions of its modules, are not needed.
            if isinstance(self.stack[-1], Object):
                self.stack[-1].state = state
        elif name in ("PERSID", "BINPERSID"):
            if self.persistent is None:
                raise ValueError("a pickle that refers to objects outside it")
            self.stack.append(self.persistent(self.pop() if name == "BINPERSID" else argument))
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"a pickle with the instruction {name}, which plain data does not need")

    def made(self, what: Any, arguments: Any) -> Any:
        if not isinstance(what, Global) or not isinstance(arguments, tuple):
            raise ValueError("a pickle that calls what is no name")
        name = what.name
        # How protocols 0 to 2 say "a new object of this class".
        while name in _NEW and arguments and isinstance(arguments[0], Global):
            name, arguments = arguments[0].name, arguments[3:]
        if name in _RUNS or name.split(".")[0] in _RUNS:
            raise ValueError(f"it wants {name}: it would run commands when loaded")
        if self.make is not None and (made := self.make(name, arguments)) is not None:
            return made
        if name in _DICTS:
            return _dict(arguments[-1:] if arguments and isinstance(arguments[-1], list | dict) else ())
        if name in _SETS:
            held: set[Any] = set()
            _add(held, list(arguments[0]) if arguments else [])
            return held
        if name == "_codecs.encode" and arguments and isinstance(arguments[0], str):
            return arguments[0].encode("latin-1")
        if name == "torch.Size":
            return tuple(arguments[0])
        return Object(name, arguments)


def _key(value: Any, depth: int = 0, parts: int = 0) -> int:
    """Count the parts of a key; a nest of tuples that share their parts would take for ever to hash."""
    if isinstance(value, tuple | frozenset):
        if depth >= _KEY_DEPTH:
            raise ValueError("a pickle with keys that are nested too deep")
        for part in value:
            parts = _key(part, depth + 1, parts)
    parts += 1
    if parts > _KEY_PARTS:
        raise ValueError("a pickle with keys that have too many parts")
    return parts


def _dict(held: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    if held and isinstance(held[0], dict):
        made.update(held[0])
    elif held:
        for key, value in held[0]:
            _set(made, [key, value])
    return made


def _listed(value: Any) -> list[Any]:
    if isinstance(value, Object):
        return value.items
    if isinstance(value, list):
        return value
    raise TypeError


def _add(to: Any, held: list[Any]) -> None:
    if isinstance(to, set):
        for value in held:
            _key(value)
            to.add(value)
    else:
        _listed(to).extend(held)


def _set(to: Any, held: list[Any]) -> None:
    pairs = list(zip(held[::2], held[1::2], strict=True))
    if isinstance(to, Object):
        to.items.extend(pairs)
        return
    if not isinstance(to, dict):
        raise TypeError
    for key, value in pairs:
        _key(key)
        to[key] = value


def _pairs(held: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _set(made, held)
    return made


def _frozen(held: list[Any]) -> frozenset[Any]:
    for value in held:
        _key(value)
    return frozenset(held)


_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    **{"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False},
    **{"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set},
}
_GATHERED: dict[str, Callable[[list[Any]], Any]] = {"TUPLE": tuple, "LIST": list, "DICT": _pairs, "FROZENSET": _frozen}
_NEW = frozenset(
    f"{home}.{name}" for home in ("copyreg", "copy_reg") for name in ("_reconstructor", "__newobj__", "__newobj_ex__")
)
_DICTS = frozenset(("collections.OrderedDict", "collections.defaultdict", "collections.Counter"))
_SETS = frozenset(("builtins.set", "builtins.frozenset", "__builtin__.set", "__builtin__.frozenset"))

_PLAIN_PARTS, _PLAIN_DEPTH = 1_000_000, 40


def is_plain(value: Any) -> bool:
    """Return whether a value is plain data through and through: no stand-in, no tensor, not endless.

    >>> is_plain({"a": [1, (2.0, None)]}), is_plain([Object("foreign.Class")])
    (True, False)
    """
    left = _PLAIN_PARTS
    waiting = [(value, 0)]
    while waiting:
        item, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > _PLAIN_DEPTH:
            return False
        if isinstance(item, dict):
            waiting += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += [(part, depth + 1) for part in item]
        elif not (item is None or type(item) in (bool, int, float, str, bytes)):
            return False
    return True


def strangers(value: Any) -> list[str]:
    """Return the names of the classes of all stand-ins in a value.

    >>> strangers({"args": Object("argparse.Namespace")})
    ['argparse.Namespace']
    """
    found: dict[str, None] = {}
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict | list | tuple | set | frozenset | Object):
            if id(item) in seen:
                continue
            seen.add(id(item))
        if isinstance(item, dict):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += item
        elif isinstance(item, Object):
            found[item.name] = None
            waiting += [item.args, item.state, item.items]
        elif isinstance(item, Global):
            found[item.name] = None
    return list(found)
