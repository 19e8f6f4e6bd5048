"""A chat's messages to one text, by the model's own template.

Templates are Jinja, as transformers runs them (`trim_blocks`, `lstrip_blocks`, loop controls, `raise_exception`,
`strftime_now`, a `tojson` that keeps letters, `generation` blocks). They come with models from anywhere, so they run
in Jinja's sandbox, which keeps them from Python, and within bounds on steps and sizes, which it does not have.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stic.compiler.decoder.model import Text
from stic.runtime.errors import InputError

MOST_STEPS = 200_000  # turns of loops and calls of macros
MOST_SIZE = 1 << 22  # characters of any value, with what is in it
_ITEM = 16  # characters that a number, or a list without its items, counts as
_WIDE = re.compile(r"\d{6,}|\*|\{[^{}]*:[^{}]*\{")  # widths in formats that are large, or values themselves


class ChatTemplate:
    """The template of a model, ready to be filled."""

    def __init__(self, text: Text, where: str) -> None:
        """Compile it. Raises InputError if the model has none, or if it is damaged."""
        if text.template is None:
            raise InputError(f"{where} has no chat template: give a prompt as the model was trained on it")
        if len(text.template) > MOST_SIZE:
            raise InputError(f"{where}: its chat template has {len(text.template)} characters, more than {MOST_SIZE}")
        self.where = where
        self._environment = _Sandbox()
        self._tokens = {"bos_token": text.bos or "", "eos_token": text.eos or ""}
        try:
            self._template = self._environment.from_string(text.template)
        except (TemplateError, SyntaxError, RecursionError, MemoryError, ValueError) as error:
            raise InputError(f"{where}: its chat template is damaged: {_reason(error)}") from error

    def render(self, messages: Sequence[Mapping[str, Any]], prompt: bool = True, **variables: Any) -> str:
        """Return the text of a chat; `prompt` opens the turn that the model answers in.

        `variables` are others that the template knows, such as `tools`. Raises InputError if the template refuses the
        messages, fails, or does not come to an end.
        """
        self._environment.steps = 0
        size, parts = 0, []
        given = {"messages": [dict(message) for message in messages], "add_generation_prompt": prompt}
        try:
            for part in self._template.generate(**{**self._tokens, "tools": None, **given, **variables}):
                size += len(part)
                if size > MOST_SIZE:
                    raise SecurityError(f"it writes more than {MOST_SIZE} characters")
                parts.append(part)
        except Exception as error:  # whatever a template does wrong is not stic's fault
            raise InputError(f"the chat template of {self.where} fails: {_reason(error)}") from error
        return "".join(parts)

    def end_of_turn(self) -> str:
        """What follows an answer in its turn; nothing if the template does not say."""
        question, answer = {"role": "user", "content": "question"}, {"role": "assistant", "content": _ANSWER}
        try:
            text = self.render([question, answer], prompt=False)
        except InputError:
            return ""
        return text.rpartition(_ANSWER)[2] if _ANSWER in text else ""


_ANSWER = "an answer that ends here"


class _Generation(Extension):
    """`generation` marks what an assistant says, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with bounds: loops and macros count steps, and no value grows without end."""

    intercepted_binops = frozenset(("*", "**", "+", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _Generation])
        self.steps = 0
        self.filters["tojson"] = _to_json
        self.filters = {name: _guarded(function) for name, function in self.filters.items()}
        self.globals |= {"raise_exception": _raise, "strftime_now": _now}
        self.globals.pop("lipsum")  # random words, which transformers does not have in mind either

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.body.insert(0, nodes.ExprStmt(_call("step")))
            if loop.test is not None:
                loop.test = nodes.And(_call("step"), loop.test)
        for macro in tree.find_all(nodes.Macro):
            macro.body.insert(0, nodes.ExprStmt(_call("step")))
        for block in tree.find_all(nodes.CallBlock):
            block.body.insert(0, nodes.ExprStmt(_call("step")))
        for output in tree.find_all(nodes.Output):
            output.nodes = [n if isinstance(n, nodes.TemplateData) else _call("bounded", n) for n in output.nodes]
        for join in list(tree.find_all(nodes.Concat)):
            join.nodes = [_call("bounded", node) for node in join.nodes]
        tree.set_environment(self)
        return tree

    def step(self) -> bool:
        """Count a turn of a loop, or a call."""
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise SecurityError(f"it takes more than {MOST_STEPS} steps")
        return True

    def bounded(self, value: Any) -> Any:
        """A value that is not too large."""
        return _bounded(value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            _check(_weight(left) + _weight(right))
        if operator == "*":
            repeats = [value for value in (left, right) if isinstance(value, int)]
            _check(_weight(left if repeats[:1] == [right] else right) * max(repeats, default=1))
        if operator == "**" and (abs(left) > 1 << 16 or abs(right) > 64):
            raise SecurityError("it makes a number that is too large")
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        found = super().call_binop(context, operator, left, right)
        if isinstance(found, int) and found.bit_length() > 1 << 12:
            raise SecurityError("it makes a number that is too large")
        return found

    def call(self, context: Context, function: Any, *values: Any, **named: Any) -> Any:
        owner = getattr(function, "__self__", None)
        given = (owner, *values) if isinstance(owner, str) else values
        _check_given(getattr(function, "__name__", ""), given, named)
        return _bounded(super().call(context, function, *values, **named))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """As Jinja's, which sees every `format` of a text before it is called."""
        found = super().wrap_str_format(value)
        if found is not None:
            _check_format(value.__self__)
        return found


def _call(name: str, *values: nodes.Expr) -> nodes.Call:
    """A call of a method of the sandbox, which no variable of a template can stand before."""
    return nodes.Call(nodes.EnvironmentAttribute(name), list(values), [], None, None)


def _guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that is given, and gives, no value that is too large."""

    @functools.wraps(function)  # with its attributes, by which Jinja knows what to pass
    def guarded(*values: Any, **named: Any) -> Any:
        _check_given(function.__name__.removeprefix("do_"), values, named)
        return _bounded(function(*values, **named))

    return guarded


def _check_given(name: str, values: Sequence[Any], named: Mapping[str, Any]) -> None:
    """Refuse what a function or filter could make too large a value of."""
    given = (*values, *named.values())
    if any(isinstance(value, int) and abs(value) > MOST_SIZE for value in given):
        _check(MOST_SIZE + 1)
    weights = [_weight(value) for value in given if isinstance(value, str | list | tuple | dict)]
    _check(sum(weights))
    if name in ("replace", "join"):  # one goes into every gap of another
        _check(math.prod(sorted(weights)[-2:]) if len(weights) > 1 else 0)
    if name == "format" and values and isinstance(values[0], str):
        _check_format(values[0])


def _weight(value: Any, most: int = MOST_SIZE + 1) -> int:
    """Characters of a value and of all that is in it, counted up to `most`; anything else counts as _ITEM."""
    if isinstance(value, str):
        return len(value)
    if not isinstance(value, list | tuple | dict):
        return _ITEM
    total = _ITEM
    for item in value.values() if isinstance(value, dict) else value:
        total += _weight(item, most - total)
        if total >= most:
            break
    return total


def _bounded(value: Any) -> Any:
    _check(_weight(value))
    return value


def _check(size: int) -> None:
    if size > MOST_SIZE:
        raise SecurityError(f"it makes a value of more than {MOST_SIZE} characters")


def _check_format(form: str) -> None:
    if _WIDE.search(form):
        raise SecurityError("it formats a value in more than 99999 characters, or in as many as another value says")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is; Jinja's own would escape what HTML does not like."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _reason(error: BaseException) -> str:
    line = getattr(error, "lineno", None)
    said = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    return f"{said} (its line {line})" if line else said
