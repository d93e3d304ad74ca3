"""Turns one choice's journal into what its client sees: text, chunks in order, the end. Sans-IO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from octavo_router.detokenizer import Detokenizer
from octavo_router.journal import ChoiceJournal, Ending
from octavo_router.stop_strings import StopStrings


@dataclass(slots=True, kw_only=True)  # nobody changes it; frozen, it would take several times as long to make
class Chunk:
    """New output of one choice; `position` is that of its first token."""

    index: int
    text: str
    position: int
    token_ids: Sequence[int]
    logprobs: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceEnded:
    """The end of one choice. `stopped_by` is a stop string or a decimal token id."""

    index: int
    ending: Ending
    stopped_by: str


class TextMismatch(Exception):
    """A client says that it has text which its tokens do not mean. The message has no text in it."""


class ChoiceOutput:
    """Reads a choice's journal, as far as it goes, and remembers how much the client has been given."""

    def __init__(self, journal: ChoiceJournal, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._journal = journal
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops)
        self._has_stops = bool(stops)
        self._stop: str | None = None  # stop string that ended output delivered elsewhere
        self._owed = ""  # text of such output that the client lacks
        self._surplus_bytes = 0  # text that it has beyond such output
        self.num_delivered = 0
        self.is_over = False

    def replay(self, text_bytes: int) -> None:
        """Pass over the journal's tokens, which the client has with so many bytes of text. What else they mean comes next.

        Raises:
            TextMismatch: the text cannot be cut there, or a stop string ends it before the last token.
        """
        self._stop, pieces = self._read(0)
        text = "".join(pieces).encode()
        self._surplus_bytes = max(0, text_bytes - len(text))
        try:
            self._owed = text[text_bytes:].decode()
        except UnicodeDecodeError:
            raise TextMismatch(f"byte {text_bytes} of the text is within a character") from None
        if self._stop is not None:
            if self.num_delivered < len(self._journal.token_ids):
                raise TextMismatch(f"a stop string ends the text at token {self.num_delivered}")
            self._truncate()

    @property
    def has_surplus(self) -> bool:
        """Whether the client has more text than its tokens mean: right only if the choice ended and what it held left."""
        return self._surplus_bytes > 0

    def close(self) -> None:
        """Say nothing more: the client has all of this choice."""
        self.num_delivered = len(self._journal.token_ids)
        self.is_over = True

    def take(self) -> tuple[Chunk | None, ChoiceEnded | None]:
        """Return what has come since the last call: a chunk, the end, both or neither.

        A stop string ends the choice: its later tokens are taken out of the journal, for they were never output.
        """
        if self.is_over:
            return None, None
        start = self.num_delivered
        stop, pieces = self._read(start) if self._stop is None else (self._stop, [])
        ending = self._journal.ending
        if stop is None and ending is not None:
            last = self._stops.feed(self._detokenizer.flush())
            stop = last.stop
            pieces += [last.text] if stop is not None else [last.text, self._stops.flush()]
        if stop is not None:
            ending = Ending.STOP
            self._truncate()
        text = self._unseen("".join(pieces))
        token_ids = self._journal.token_ids[start : self.num_delivered]
        chunk = None
        if token_ids or text:
            logprobs = self._journal.logprobs[start : self.num_delivered]
            chunk = Chunk(index=self._journal.index, text=text, position=start, token_ids=token_ids, logprobs=logprobs)
        if ending is None:
            return chunk, None
        self.is_over = True
        return chunk, ChoiceEnded(index=self._journal.index, ending=ending, stopped_by=self._stopped_by(stop))

    def _read(self, start: int) -> tuple[str | None, list[str]]:
        token_ids = self._journal.token_ids
        if not self._has_stops:
            self.num_delivered = len(token_ids)
            return None, [self._detokenizer.feed(token_ids[start:])]
        pieces: list[str] = []
        # One by one: the token that completes a stop string is the last that counts.
        for token_id in token_ids[start:]:
            self.num_delivered += 1
            matched = self._stops.feed(self._detokenizer.feed((token_id,)))
            pieces.append(matched.text)
            if matched.stop is not None:
                return matched.stop, pieces
        return None, pieces

    def _unseen(self, text: str) -> str:
        if self._surplus_bytes:
            text = text.encode()[self._surplus_bytes :].decode(errors="ignore")
            self._surplus_bytes = 0
        owed, self._owed = self._owed, ""
        return owed + text

    def _truncate(self) -> None:
        del self._journal.token_ids[self.num_delivered :]
        del self._journal.logprobs[self.num_delivered :]
        self._journal.ending = Ending.STOP
        self._journal.stop_token_id = None

    def _stopped_by(self, stop: str | None) -> str:
        if stop is not None:
            return stop
        return "" if self._journal.stop_token_id is None else str(self._journal.stop_token_id)
