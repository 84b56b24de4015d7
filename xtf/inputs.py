"""What the stages of one run share, each made on first use: rows, token ids, the base model."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xtf.config.schema import Config, ConfigError, Engine, Protect
from xtf.data.planting import plant, with_truth
from xtf.data.rows import Rows, first_few, is_tokenized, load_rows
from xtf.evaluation.stage import Items
from xtf.runtime.artifacts import sha256
from xtf.runtime.models import BUNDLED, fingerprint, inference_dtype, load_model, load_tokenizer
from xtf.runtime.progress import say
from xtf.runtime.run_folder import Manifest, OutputDir
from xtf.scoring.passes import Pass, Scorer, training_rows
from xtf.scoring.store import scoring_pass
from xtf.tasks import load_task
from xtf.training.reference import reference_model

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from xtf.data.batches import Batches
    from xtf.data.examples import Example
    from xtf.data.stored import StoredRows
    from xtf.tasks import Task

ANSWERS_OF = 1000  # responses, at least, in which the tokens that the grader reads are counted


class Inputs:
    """The inputs of a run; `manifest` notes where they came from, and refuses others than the run was begun with."""

    def __init__(self, config: Config, manifest: Manifest) -> None:
        self.config, self.manifest = config, manifest
        self._model: PreTrainedModel | None = None

    @functools.cached_property
    def task(self) -> Task:
        """The task's reader and grader."""
        task = load_task(self.config.task, self.config.output_dir)
        if self.config.threshold.protect is Protect.answer:
            task.check_names_answers()
        return task

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

    def _rows(self, which: str) -> Rows:
        source = getattr(self.config.task, which)
        rows = load_rows(source)
        entry = {"source": rows.source, "rows": len(rows), "sha256": rows.sha256}
        if source.path:
            entry |= {"source": Path(source.path).name, "file_sha256": sha256(Path(source.path))}
        self.manifest.note_rows(which, entry)
        return rows

    @functools.cached_property
    def train_rows(self) -> Rows:
        """The training rows as they were read."""
        return self._rows("train")

    @functools.cached_property
    def train_examples(self) -> Sequence[Example]:
        """The training examples, with planted noise and what the method makes of them, in memory."""
        examples = self.task.examples(self.train_rows)
        if self.config.plant.share:
            examples = plant(examples, self.config.plant, self.tokenizer, self.config.task)
        return self.config.method.examples(examples)

    @functools.cached_property
    def encoded(self) -> StoredRows:
        """The training examples as token ids, in a file that goes with the process.

        Rows that another tool has tokenised are taken as they are.
        """
        from xtf.data.encode import Encoder
        from xtf.data.stored import StoredRows
        from xtf.data.templates import Chat
        from xtf.data.tokenized import encode_tokenized

        config = self.config
        limit, folder = config.model.max_length, Path(config.output_dir)
        if is_tokenized(self.train_rows.rows[0]):
            self._refuse_what_needs_texts()
            found, report = encode_tokenized(self.tokenizer, self.train_rows, limit)
            rows = StoredRows.write([found], folder)
            if asked := Chat.of(config.task).asked():
                say(f"task.{', task.'.join(asked)}: not for tokenised training rows, which no chat template writes")
            for what, ids in (
                (f"cut to model.max_length={limit}", report.truncated),
                (f"left out, without room within model.max_length={limit}", report.no_room),
                ("left out, without a label", report.unlabelled),
            ):
                if ids:
                    say(f"{len(ids)} of {report.rows} tokenised rows {what}: {first_few(ids)}")
        else:
            encoder = Encoder(self.tokenizer, limit, Chat.of(config.task))
            rows, report = StoredRows.write(encoder.batches(self._examples()), folder), encoder.report()
        self.manifest.note(encoding=dataclasses.asdict(report))
        return rows

    def _refuse_what_needs_texts(self) -> None:
        config = self.config
        asked = [
            (config.plant.share > 0, f"plant.share={config.plant.share}"),
            (config.threshold.protect is Protect.answer, "threshold.protect=answer"),
            (config.method.changes_rows, f"method={config.method.name}"),
            (config.scorer.model is not None, "scorer.model"),
        ]
        if found := [name for wanted, name in asked if wanted]:
            raise ConfigError(
                f"{self.train_rows.source} holds token ids (input_ids, labels), and {', '.join(found)} works on texts: "
                "give the texts that they were made from, or unset it"
            )

    def _examples(self) -> Iterable[Example]:
        """The training examples one after the other, unless something reads all of them, or reads them again."""
        config = self.config
        whole = config.plant.share or config.threshold.protect is Protect.answer or config.method.changes_rows
        return self.train_examples if whole else self.task.iterate(self.train_rows)

    def scored_by_another(self, columns: set[str], also: Iterable[str]) -> Path:
        """The folder of the pass of `scorer.model` over the training rows, carried over to the model's tokens.

        Raises:
            ValueError: see `xtf.scoring.carried.carried_pass`.
        """
        from xtf.data.encode import Encoder
        from xtf.data.stored import StoredRows
        from xtf.data.templates import Chat
        from xtf.scoring.carried import carried_pass

        config = dataclasses.replace(self.config, model=self.config.scorer.model)
        tokenizer, model = load_tokenizer(config.model), fingerprint(config.model)
        encoder = Encoder(tokenizer, config.model.max_length, Chat.of(config.task))
        rows = StoredRows.write(encoder.batches(self._examples()), Path(config.output_dir))
        store = OutputDir(Path(config.output_dir)).scores
        load = functools.partial(load_model, config.model, config.trainer, inference_dtype(config.trainer))
        scored = scoring_pass(
            store, rows, columns, also=also, config=config, model=model, load=load, tokenizer=tokenizer
        )
        found = carried_pass(
            store,
            self.encoded,
            scored=scored,
            scored_rows=rows,
            examples=self._examples,
            tokenizer=self.tokenizer,
            scored_tokenizer=tokenizer,
            columns=columns,
            scorer=config.scorer,
            shard_examples=config.trainer.shard_examples,
        )
        note = {"model": dict(model), "scores": str(scored), "carried": found != scored}
        self.manifest.note(scored_by=note, scored_encoding=dataclasses.asdict(encoder.report()))
        return found

    @functools.cached_property
    def items(self) -> Items:
        """The evaluation rows with what reads and grades them."""
        examples = self.task.examples(self._rows("eval"), training=False)
        return Items(self.task, self.tokenizer, examples, self.manifest.data["eval"]["sha256"])

    def scorer(self, kind: Pass) -> Scorer:
        """The model of a scoring pass; a reference model is trained unless it is there."""
        config = self.config
        if kind is Pass.reference:
            reference = reference_model(config, self.encoded)
            if reference.folder is not None:
                self.manifest.note(reference=str(reference.folder))
                if reference.seconds is not None:
                    self.manifest.done("reference", reference.seconds)
            return Scorer(reference.identity, reference.load)
        if config.trainer.devices > 1 or config.trainer.engine is Engine.ray:  # every process loads its own
            own = functools.partial(load_model, config.model, config.trainer, inference_dtype(config.trainer))
            return Scorer(fingerprint(config.model), own)
        return Scorer(fingerprint(config.model), self.base_model)

    def table(self, passes: Mapping[Pass, Path]) -> Batches:
        """The training rows with every column that the method reads."""
        from xtf.data.batches import Batches, spooled

        config = self.config
        if config.method.own_rows:
            return Batches.of(spooled(config.method.own_table(self.train_rows), Path(config.output_dir)))
        rows = training_rows(lambda: self.encoded, passes)
        if config.method.masked and config.threshold.protect is Protect.answer:
            rows = rows.with_column("protected", self._protected())
        if not config.plant.share:
            return rows
        table, report = with_truth(rows.table(), config.plant, self.tokenizer, self.train_examples, self.encoded)
        self.manifest.note(planting=report)
        return Batches.of(table)

    def _protected(self) -> pa.Array:
        """Which response tokens the grader reads, list<bool>.

        Raises:
            ValueError: it reads nothing in any response.
        """
        import pyarrow as pa

        from xtf.data.encode import tokens_within

        found = tokens_within(self.tokenizer, self.train_examples, self.encoded, self.task.answer_spans)
        if not any(map(any, found)):
            raise ValueError(
                f"threshold.protect=answer: task.grader={self.config.task.grader} finds no answer in any of "
                f"{len(found)} training responses, so there is nothing to protect; unset it"
            )
        return pa.array(found, pa.list_(pa.bool_()))

    def answers(self, mask: Path) -> dict[str, dict[str, int]]:
        """How many tokens the task's grader reads in the first responses, and how many of those a mask drops.

        {"answers": {"responses", "tokens", "dropped"}}; {} where that cannot be said: no attribute drops anything, the
        grader does not say what it reads, or the rows are not the task's own texts.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from xtf.data.batches import parquet_batches
        from xtf.data.encode import Encoded, tokens_within
        from xtf.data.ragged import Sequences

        config = self.config
        if not (config.method.masked and config.scorer.attributes and self.task.names_answers):
            return {}
        if is_tokenized(self.train_rows.rows[0]):
            return {}
        names = ["example_id", "input_ids", "prompt_length", "end_tokens", "labels", "dropped"]
        names = [name for name in pq.read_schema(mask).names if name in names]
        parts: list[pa.RecordBatch] = []
        for batch in parquet_batches([mask], names):
            parts.append(batch)
            if sum(part.num_rows for part in parts) >= ANSWERS_OF:
                break
        table = pa.Table.from_batches(parts)
        rows = [
            Encoded(row["example_id"], row["input_ids"], row["prompt_length"], row["end_tokens"])
            for row in table.to_pylist()
        ]
        wanted, examples = {row.example_id for row in rows}, []
        for example in self._examples():
            if example.example_id in wanted:
                examples.append(example)
                if len(examples) == len(wanted):
                    break
        try:
            read = np.concatenate(tokens_within(self.tokenizer, examples, rows, self.task.answer_spans))
        except ValueError as error:
            say(f"how many of the tokens that the grader reads are dropped is not counted: {error}")
            return {}
        dropped = Sequences(table).dropped & read
        counts = {"tokens": int(np.count_nonzero(read)), "dropped": int(np.count_nonzero(dropped))}
        return {"answers": {"responses": len(rows)} | counts} if counts["tokens"] else {}

    def base_model(self) -> PreTrainedModel:
        """The untouched base model, for scoring and generation."""
        if self._model is None:
            config = self.config
            self._model = load_model(config.model, config.trainer, inference_dtype(config.trainer))
        return self._model

    def free_memory(self) -> None:
        """Let go of the base model."""
        self._model = None
