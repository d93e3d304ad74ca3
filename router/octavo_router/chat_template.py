"""Renders a chat with the model's own template, inside a sandbox that bounds its output and time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from octavo.errors import InvalidRequest

MAX_TEMPLATE_BYTES = 1 << 20
_TEXT_FILE = "chat_template.jinja"
_CONFIG_FILE = "tokenizer_config.json"
_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat."""

    role: str
    content: str


class ChatTemplate:
    """A compiled template. Rendering is pure: the same messages give the same text (but for `strftime_now`).

    Output and time are checked whenever the template gives out text. Templates come with the model, so they are the
    operator's choice; requests bring none.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        max_chars: int = 16 << 20,
        max_s: float = 2.0,
    ) -> None:
        if len(source) > MAX_TEMPLATE_BYTES:
            raise ValueError(f"the chat template has {len(source)} characters; the limit is {MAX_TEMPLATE_BYTES}")
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens)
        self._max_chars = max_chars
        self._max_s = max_s

    @classmethod
    def load(cls, directory: Path) -> ChatTemplate | None:
        """Return the template of a model directory, or None if the model has none."""
        config = _json_object(directory / _CONFIG_FILE)
        text_file = directory / _TEXT_FILE
        source = text_file.read_text("utf-8") if text_file.is_file() else _default_template(config.get("chat_template"))
        return None if source is None else cls(source, _special_tokens(config))

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt's text, up to where the answer begins.

        Raises:
            InvalidRequest: the template refuses these messages, or its output or time passes the limit.
        """
        pieces: list[str] = []
        num_chars = 0
        deadline = time.monotonic() + self._max_s
        try:
            for piece in self._template.generate(
                messages=[{"role": message.role, "content": message.content} for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self._special_tokens,
            ):
                pieces.append(piece)
                num_chars += len(piece)
                if num_chars > self._max_chars or time.monotonic() > deadline:
                    raise InvalidRequest(
                        "chat_too_large",
                        f"rendering the chat passed {self._max_chars} characters or {self._max_s} s; send less",
                        field="input.chat.messages",
                    )
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InvalidRequest(
                "chat_refused",
                "the model's chat template refuses these messages; check the order of their roles",
                field="input.chat.messages",
            ) from error
        return "".join(pieces)


class _Generation(Extension):
    """Accepts `{% generation %}` blocks, which mark the assistant's text for training, and renders their body."""

    tags = {"generation"}  # noqa: RUF012  the base class declares a plain set

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002  templates pass it by position
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    # Jinja's own filter escapes HTML characters, which models have not been trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)  # noqa: DTZ005  templates expect local time


def _default_template(entry: object) -> str | None:
    """Return the template in a tokenizer_config.json: a string, or a list of named ones."""
    if isinstance(entry, str):
        return entry
    if isinstance(entry, list):
        named = {each.get("name"): each.get("template") for each in entry if isinstance(each, dict)}
        chosen = named.get("default")
        return chosen if isinstance(chosen, str) else None
    return None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name in _TOKEN_NAMES:
        entry = config.get(name)
        content = entry.get("content") if isinstance(entry, dict) else entry
        if isinstance(content, str):
            tokens[name] = content
    return tokens


def _json_object(path: Path) -> dict[str, Any]:
    loaded = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if not isinstance(loaded, dict):
        raise TypeError(f"{path.name} holds no JSON object")
    return loaded
