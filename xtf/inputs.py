"""What the stages of one run share, each made on first use: rows, token ids, the base model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from xtf.config.schema import Config
from xtf.data.planting import plant
from xtf.data.rows import load_rows
from xtf.evaluation.stage import Items
from xtf.runtime.artifacts import sha256
from xtf.runtime.models import BUNDLED, inference_dtype, load_model, load_tokenizer
from xtf.runtime.progress import say
from xtf.runtime.run_folder import Manifest
from xtf.tasks import load_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from xtf.data.encode import Encoded
    from xtf.data.examples import Example
    from xtf.tasks import Task


class Inputs:
    """The inputs of a run; `manifest` notes where they came from, and refuses others than the run was begun with."""

    def __init__(self, config: Config, manifest: Manifest) -> None:
        self.config, self.manifest = config, manifest
        self._model: PreTrainedModel | None = None

    @functools.cached_property
    def task(self) -> Task:
        """The task's reader and grader."""
        return load_task(self.config.task, self.config.output_dir)

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        from xtf.data.encode import PLAIN_CUE, PLAIN_TURN

        tokenizer = load_tokenizer(self.config.model)
        if tokenizer.chat_template is None and self.config.model.path != BUNDLED:
            say(
                f"model={self.config.model.name} has no chat template: each turn of a prompt is written as "
                f"{PLAIN_TURN!r}, and {PLAIN_CUE!r} comes before the answer"
            )
        return tokenizer

    def _rows(self, which: str) -> list[Example]:
        source = getattr(self.config.task, which)
        rows = load_rows(source)
        entry = {"source": rows.source, "rows": len(rows), "sha256": rows.sha256}
        if source.path:
            entry |= {"source": Path(source.path).name, "file_sha256": sha256(Path(source.path))}
        self.manifest.note_rows(which, entry)
        return self.task.examples(rows, training=which == "train")

    @functools.cached_property
    def train_examples(self) -> Sequence[Example]:
        """The training examples, with planted noise and what the method makes of them."""
        examples = self._rows("train")
        if self.config.plant.share:
            examples = plant(examples, self.config.plant, self.tokenizer, self.config.task)
        return self.config.method.examples(examples)

    @functools.cached_property
    def encoded(self) -> list[Encoded]:
        """The training examples as token ids."""
        from xtf.data.encode import encode

        rows, report = encode(self.tokenizer, self.train_examples, self.config.model.max_length)
        self.manifest.note(encoding=dataclasses.asdict(report))
        return rows

    @functools.cached_property
    def items(self) -> Items:
        """The evaluation rows with what reads and grades them."""
        examples = self._rows("eval")
        return Items(self.task, self.tokenizer, examples, self.manifest.data["eval"]["sha256"])

    def base_model(self) -> PreTrainedModel:
        """The untouched base model, for scoring and generation."""
        if self._model is None:
            config = self.config
            self._model = load_model(config.model, config.trainer, inference_dtype(config.trainer))
        return self._model

    def free_memory(self) -> None:
        """Let go of the base model."""
        self._model = None
