"""Turns text and chats into the token ids that the model was trained on; never imports torch or transformers.

Special tokens written inside a message are text, not control: before rendering they are replaced by marks, the rendered
text is cut at the template's own special tokens, and the marks become plain text again in the cut pieces.

Texts are encoded piece by piece (`segments`), and pieces seen before come from a cache: the next turn of a chat costs the
encoding of what is new in it.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from octavo.errors import InvalidRequest
from octavo.revision import tokenizer_revision
from tokenizers import Tokenizer as FastTokenizer

from octavo_router.chat_template import ChatTemplate, Message
from octavo_router.detokenizer import Detokenizer, Vocabulary
from octavo_router.segments import Cuts, alternatives
from octavo_router.token_cache import TokenCache

# Encoding no more new characters than these takes less time than a change of thread does.
_INLINE_CHARS = 4096
# Longer texts, and chats of more messages, take long even if all of them is found in the cache.
_MAX_INLINE_CHARS = 1 << 16
_MAX_INLINE_MESSAGES = 256
_PROBE = "page"


class Tokenizer:
    """The tokenizer and chat template of one model directory. All methods may run in any thread.

    Args:
        directory: the model directory.
        cache_bytes: memory for the ids of texts seen before.
    """

    def __init__(self, directory: Path, *, cache_bytes: int = 64 << 20) -> None:
        path = str(directory / "tokenizer.json")
        self.revision = tokenizer_revision(directory)
        self._fast = FastTokenizer.from_file(path)
        # A second copy that reads special tokens as text: the switch is a property, and threads share the object.
        self._plain = FastTokenizer.from_file(path)
        self._plain.encode_special_tokens = True
        for each in (self._fast, self._plain):
            each.no_padding()
            each.no_truncation()
        added = self._fast.get_added_tokens_decoder()
        self._specials = {token.content: (token_id, token) for token_id, token in added.items() if token.special}
        self._special_pattern = alternatives(self._specials)
        self._cuts = Cuts(added.values())
        self._frame = _frame(self._fast)
        self.cache = TokenCache(cache_bytes)
        self._template = ChatTemplate.load(directory)
        self._vocabulary = Vocabulary(self._fast, byte_level=_is_byte_level(directory))
        self.vocab_size = self._fast.get_vocab_size()

    def encode_text(self, text: str) -> list[int]:
        """Return the ids of plain text, with the special tokens that the tokenizer adds by itself."""
        if self._frame is None or not text:
            return _ids(self._fast, text, add_special_tokens=True)
        before, after = self._frame
        return before + self._encode_pieces(text) + after

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a chat, up to where the answer begins.

        Raises:
            InvalidRequest: the model has no chat template, or its template refuses the messages.
        """
        rendered = self.render_plain(messages)
        if rendered is not None:
            return self.encode_rendered(rendered)
        marks = _Marks(self._special_pattern)
        marked = [Message(message.role, marks.hide(message.content)) for message in messages]
        return self._encode_marked(self._chat_template.render(marked), marks.reveal)

    def render_plain(self, messages: Sequence[Message]) -> str | None:
        """Return the text of a chat, for `encode_rendered`; None if special tokens are written inside a message.

        Raises:
            InvalidRequest: as in `encode_chat`.
        """
        template = self._chat_template
        if any(self._special_pattern.search(message.content) for message in messages):
            return None
        return template.render(messages)

    def encode_rendered(self, rendered: str) -> list[int]:
        """Return the ids of a chat that `render_plain` made text."""
        return self._encode_pieces(rendered)

    def num_new_chars(self, text: str) -> int:
        """Return how many characters of a text the cache does not know, so that they are to be encoded."""
        if self._frame is None:
            return len(text)
        return sum(len(piece) for piece in self._cuts.pieces(text) if not self.cache.knows("control", piece))

    def detokenizer(self) -> Detokenizer:
        """Return a detokenizer for one choice."""
        return self._vocabulary.detokenizer()

    @property
    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            raise InvalidRequest(
                "no_chat_template", "this model has no chat template; send input.text instead", field="input.chat"
            )
        return self._template

    def _encode_pieces(self, text: str) -> list[int]:
        """Return the ids of a text without what the tokenizer adds by itself."""
        ids: list[int] = []
        for piece in self._cuts.pieces(text):
            ids.extend(self.cache.encode("control", piece, self._encode_control))
        return ids

    def _encode_control(self, piece: str) -> list[int]:
        return _ids(self._fast, piece, add_special_tokens=False)

    def _encode_text_only(self, piece: str) -> list[int]:
        return _ids(self._plain, piece, add_special_tokens=False)

    def _encode_marked(self, rendered: str, reveal: Callable[[str], str]) -> list[int]:
        ids: list[int] = []
        start = 0
        strip_start = False
        for found in self._special_pattern.finditer(rendered):
            token_id, token = self._specials[found.group()]
            ids += self._encode_plain(rendered[start : found.start()], reveal, strip_start, token.lstrip)
            ids.append(token_id)
            start = found.end()
            strip_start = token.rstrip
        return ids + self._encode_plain(rendered[start:], reveal, strip_start, False)

    def _encode_plain(self, piece: str, reveal: Callable[[str], str], strip_start: bool, strip_end: bool) -> list[int]:  # noqa: FBT001
        piece = piece.lstrip() if strip_start else piece
        piece = piece.rstrip() if strip_end else piece
        return self.cache.encode("text", reveal(piece), self._encode_text_only).tolist() if piece else []


class TokenizerThreads:
    """Runs a tokenizer off the event loop where much of a text is new. The caller bounds the requests in flight."""

    def __init__(self, tokenizer: Tokenizer, *, num_threads: int) -> None:
        self.tokenizer = tokenizer
        self._executor = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")

    async def encode_text(self, text: str) -> list[int]:
        """Like `Tokenizer.encode_text`."""
        return await self._encode(text, self.tokenizer.encode_text)

    async def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Like `Tokenizer.encode_chat`."""
        num_chars = sum(len(message.content) for message in messages)
        if num_chars <= _MAX_INLINE_CHARS and len(messages) <= _MAX_INLINE_MESSAGES:
            rendered = self.tokenizer.render_plain(messages)
            if rendered is not None:
                return await self._encode(rendered, self.tokenizer.encode_rendered)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.tokenizer.encode_chat, messages)

    async def _encode(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        if len(text) <= _INLINE_CHARS or (
            len(text) <= _MAX_INLINE_CHARS and self.tokenizer.num_new_chars(text) <= _INLINE_CHARS
        ):
            return encode(text)
        return await asyncio.get_running_loop().run_in_executor(self._executor, encode, text)

    def close(self) -> None:
        """Let the threads end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class _Marks:
    """Replaces special tokens in text by marks that no tokenizer or template knows, and back."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._hidden: list[str] = []
        nonce = secrets.token_hex(8)  # so that no message can contain a mark
        self._open = f"\ue000{nonce}:"
        self._mark = re.compile(re.escape(self._open) + r"(\d+)\ue001")

    def hide(self, text: str) -> str:
        return self._pattern.sub(self._hide_one, text)

    def reveal(self, text: str) -> str:
        return self._mark.sub(lambda found: self._hidden[int(found.group(1))], text)

    def _hide_one(self, found: re.Match[str]) -> str:
        self._hidden.append(found.group())
        return f"{self._open}{len(self._hidden) - 1}\ue001"


def _ids(fast: FastTokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    # The "fast" kind leaves out where in the text each token lies: a fifth of the time. It exists for batches only.
    return list(fast.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


def _frame(fast: FastTokenizer) -> tuple[list[int], list[int]] | None:
    """Return the ids that a tokenizer puts before and after every text by itself; None if it does something else."""
    bare = _ids(fast, _PROBE, add_special_tokens=False)
    framed = _ids(fast, _PROBE, add_special_tokens=True)
    for start in range(len(framed) - len(bare) + 1 if bare else 0):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    return None


def _is_byte_level(directory: Path) -> bool:
    """Whether tokens are bytes written as characters: the decoder of tokenizer.json is ByteLevel alone."""
    loaded = json.loads((directory / "tokenizer.json").read_text("utf-8"))
    decoder = loaded.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    return [step.get("type") for step in steps] == ["ByteLevel"]
