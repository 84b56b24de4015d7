"""More training examples from the ones there are: other prompts for the same response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from xtf.data.examples import Example, Message
from xtf.data.rows import read_file

REWORDINGS = (  # of a prompt, for data augmentation without a file of paraphrases
    "Please help me with the following.\n\n{}",
    "{}\n\nPlease answer.",
    "Here is what I would like to know:\n{}",
    "I have a question for you. {}",
)


def augment(examples: Sequence[Example], factor: int, path: Path | None = None) -> list[Example]:
    """The examples and, behind each, up to `factor` - 1 more with another prompt and the same response.

    The last turn of the prompt is replaced: by the paraphrases that the rows of the file at `path` hold for the
    example (`example_id`, `prompt`), or without a file by the wordings of `REWORDINGS` around it.

    Raises:
        ValueError: more rewordings wanted than there are, a line of the file lacks a field or names no example.
    """
    if path is None:
        if not 1 <= factor <= 1 + len(REWORDINGS):
            raise ValueError(f"method.factor={factor}: without method.path it must be 1 to {1 + len(REWORDINGS)}")
        prompts = {e.example_id: [w.format(e.messages[-1]["content"]) for w in REWORDINGS] for e in examples}
    else:
        prompts = _paraphrases(path, {example.example_id for example in examples})
    grown = []
    for example in examples:
        grown.append(example)
        for number, prompt in enumerate(prompts.get(example.example_id, [])[: factor - 1], 1):
            last = Message(role=example.messages[-1]["role"], content=prompt)
            turns = (*example.messages[:-1], last)
            source = example.source or example.example_id
            grown.append(replace(example, example_id=f"{example.example_id}/{number}", messages=turns, source=source))
    return grown


def _paraphrases(path: Path, known: set[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, row in read_file(path):
        prompt = row.get("prompt")
        if not isinstance(prompt, str) or not prompt.strip() or str(row.get("example_id")) not in known:
            raise ValueError(f"{path}, row {number}: wanted the `example_id` of a training example and a `prompt`")
        found.setdefault(str(row["example_id"]), []).append(prompt)
    return found
