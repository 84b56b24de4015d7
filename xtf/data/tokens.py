"""Token ids as readable text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
LONGEST_CHARACTER = 16  # tokens; a run of bytes that is still no character after so many is shown as it is


def visible(text: str) -> str:
    """Text with its blanks and control characters shown, for tables and one-line lists."""
    marks = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(marks.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text) or "(empty)"


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of `ids` as it is: special tokens shown, blanks left alone."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


class Pieces:
    """Cuts the text of a token sequence into one piece per token; together they are the decoded text.

    A token alone does not decode to its piece: SentencePiece drops a leading blank, and a byte-level token
    may hold only part of a character. So every token is decoded after an anchor token, and where a character
    is spread over several tokens the last one gets it and the others get "".
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
        self._prefix = decoded(tokenizer, self._anchor)
        self._alone: dict[int, str] = {}

    def text(self, ids: list[int]) -> str:
        """The text of `ids` as it follows on other text."""
        return decoded(self._tokenizer, [*self._anchor, *ids])[len(self._prefix) :]

    def alone(self, token: int) -> str:
        """The text of one token id, with U+FFFD for bytes that are no whole character."""
        if token not in self._alone:
            self._alone[token] = self.text([token])
        return self._alone[token]

    def __call__(self, ids: list[int]) -> list[str]:
        """One piece of text per token."""
        pieces = [self.alone(token) for token in ids]
        broken = [REPLACEMENT in piece for piece in pieces]
        start = 0
        while start < len(ids):
            end = start + 1
            if broken[start]:
                while end < len(ids) and broken[end]:
                    end += 1
                pieces[start:end] = self._incremental(ids[start:end])
            start = end
        # A decoder that looks at neighbours (blanks between words, say) is followed token by token.
        return pieces if "".join(pieces) == self.text(ids) else self._incremental(ids)

    def _incremental(self, ids: list[int]) -> list[str]:
        """Decodes growing prefixes; a piece is what a token adds to the text that can no longer change."""
        pieces, start, said = [], 0, 0
        for end in range(1, len(ids) + 1):
            text = self.text(ids[start:end])
            final = end == len(ids) or end - start == LONGEST_CHARACTER
            settled = text if final else text.rstrip(REPLACEMENT)
            pieces.append(settled[said:])
            said = len(settled)
            if settled == text:
                start, said = end, 0
        return pieces
