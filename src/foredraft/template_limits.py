"""Chat templates are programs of others: how long one may run, and how much it may write.

Promises: a template that loops without end or blows up a string is one line, before it fills the memory; of any other the text is the same.
Refuses to know: what is rendered. Loops, calls, filters, operators and what is put together are counted; a single call of Python's own
cannot be broken off, so what it would write is bounded before it begins.
"""

import functools
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateRuntimeError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 10.0  # of this thread's processor time, for one rendering
CHARACTERS, ITEMS = 2**26, 2**22  # of a string, of a list
SOURCE = 2**20  # characters of a template
COUNT, INDENT, BITS = (
    10**6,
    100,
    2**16,
)  # a number that says how long something becomes, how far it is indented; of a power
_WIDTH = re.compile(r"[%{][^\s%{]{0,20}?\d{7,}")
_clock = threading.local()


@contextmanager
def limited() -> Iterator[None]:
    """Within it a template of this thread has `SECONDS`."""
    before = getattr(_clock, "deadline", None)
    _clock.deadline = before or time.thread_time() + SECONDS
    try:
        yield
    finally:
        _clock.deadline = before


def _check_time() -> None:
    deadline = getattr(_clock, "deadline", None)
    if deadline and time.thread_time() > deadline:
        raise TemplateRuntimeError(f"it runs for more than {SECONDS:g} s")


def _check_size(size: int, most: int = CHARACTERS) -> None:
    if size > most:
        raise TemplateRuntimeError(f"it writes more than {most:,} {'characters' if most == CHARACTERS else 'items'}")


def bounded(value: Any) -> Any:
    """A value that is not too large."""
    _check_time()
    if isinstance(value, str):
        _check_size(len(value))
    elif isinstance(value, list | tuple | dict):
        _check_size(len(value), ITEMS)
    return value


class _Steps:
    """What a loop goes through, its time looked at before every step."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        for item in self.items:
            _check_time()
            yield item

    def __len__(self) -> int:
        if not isinstance(self.items, Sized):
            raise TypeError("a loop over what has no length")
        return len(self.items)


def _bounded_call(
    name: str, function: Callable[..., Any], subject: Any, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    """Raise where a call would write too much: of `subject`, by numbers and strings among its arguments."""
    _check_time()
    given = [*arguments, *options.values()]
    most = INDENT if name in ("indent", "tojson") else COUNT
    if any(isinstance(value, int) and value > most for value in given):
        raise TemplateRuntimeError(f"{name} is given a number beyond {most:,}")
    if name in ("format", "strftime_now") and any(
        isinstance(text, str) and _WIDTH.search(text) for text in (subject, *given)
    ):
        raise TemplateRuntimeError(f"{name} is given a width beyond {COUNT:,}")
    if name == "replace" and isinstance(subject, str) and len(given) > 1 and isinstance(given[0], str):
        _check_size(len(subject) + subject.count(given[0]) * len(str(given[1])))
    if name == "join":
        items, mark = (
            (given[0], subject) if isinstance(subject, str) and given else (subject, given[0] if given else "")
        )
        if isinstance(items, list | tuple):
            _check_size(sum(len(item) for item in items if isinstance(item, str)) + len(items) * len(str(mark)))


class _Filters(dict[str, Any]):
    """Filters by name, each with its arguments and what it gives bounded."""

    def __getitem__(self, name: str) -> Any:
        return self.get(name) or super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        function = super().get(name, default)
        if function is None:
            return None

        @functools.wraps(function)
        def run(*arguments: Any, **options: Any) -> Any:
            at = 1 if getattr(function, "jinja_pass_arg", None) else 0
            _bounded_call(name, function, arguments[at] if len(arguments) > at else None, arguments[at + 1 :], options)
            return bounded(function(*arguments, **options))

        return run


class _BoundedTemplate(Template):
    def generate(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        size = 0
        for piece in super().generate(*args, **kwargs):
            size += len(piece)
            _check_size(size)
            yield piece


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which bounds what may be reached, with bounds of time and size."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))
    template_class = _BoundedTemplate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.filters = _Filters(self.filters)

    @staticmethod
    def steps(items: Iterable[Any]) -> _Steps:
        return _Steps(items)

    @staticmethod
    def bounded(value: Any) -> Any:
        return bounded(value)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Put a text together, unless it is too long."""
        size, kept = 0, []
        for piece in pieces:
            size += len(piece)
            _check_size(size)
            kept.append(piece)
        return "".join(kept)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > SOURCE:
            raise TemplateRuntimeError(f"it has more than {SOURCE:,} characters")
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _through("steps", loop.iter)
        return _Joined().visit(tree)

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        name = getattr(__obj, "__name__", "")
        if isinstance(subject := getattr(__obj, "__self__", None), str) or name == "strftime_now":
            _bounded_call(name, __obj, subject, args, kwargs)
        return bounded(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for one, other in ((left, right), (right, left)):
            if operator == "*" and isinstance(one, str | list | tuple) and isinstance(other, int):
                _check_size(len(one) * other, CHARACTERS if isinstance(one, str) else ITEMS)
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > BITS:
                raise TemplateRuntimeError(f"it counts beyond {BITS:,} bits")
        if operator == "%" and isinstance(left, str):
            _bounded_call("format", str, left, right if isinstance(right, tuple) else (right,), {})
        return bounded(super().call_binop(context, operator, left, right))


def _through(name: str, value: Any) -> nodes.Expr:
    """An expression whose value goes through the environment's own function of that name."""
    function = nodes.EnvironmentAttribute(name, lineno=value.lineno)
    return nodes.Call(function, [value], [], None, None, lineno=value.lineno)


class _Joined(NodeTransformer):
    """Bounds what ~ puts together."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        return _through("bounded", self.generic_visit(node))
