"""stage=evaluate: one model's completions of the evaluation prompts, graded, and its other figures."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.identity import digest, grader_identity
from xtf.config.schema import Backend, Config, Stage
from xtf.evaluation.decoding import Decoding
from xtf.evaluation.evaluate import Request, evaluate
from xtf.evaluation.general import check_general, general_figures
from xtf.evaluation.teacher_forced import held_out_rows, teacher_forced_figures
from xtf.evaluation.vllm_engine import VLLMEngine
from xtf.runtime.artifacts import intact, locked, read_json, write_json
from xtf.runtime.heads import position_table
from xtf.runtime.models import context_of, fingerprint, inference_dtype, load_config, load_model
from xtf.runtime.pace import announce, measured
from xtf.runtime.progress import bar, say, stopwatch
from xtf.runtime.run_folder import OutputDir, RunFolder, forgetting_source
from xtf.runtime.shapes import FORWARD

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from xtf.data.encode import Encoded
    from xtf.data.examples import Example
    from xtf.evaluation.evaluate import Generator
    from xtf.tasks import Task


class Which(Enum):
    """The model that is evaluated; the value is the stage's name in a run's manifest."""

    base = "evaluate_base"  # untouched, shared between runs
    tuned = "evaluate"


@dataclass(frozen=True)
class Items:
    """What the models of a run are evaluated on."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[Example]
    sha256: str  # of the evaluation rows

    @functools.cached_property
    def prompts(self) -> list[list[int]]:
        """Token ids of every prompt."""
        from xtf.data.encode import encode_prompts
        from xtf.data.templates import Chat

        return encode_prompts(self.tokenizer, self.examples, Chat.of(self.task.config))

    def responses(self, max_length: int) -> list[Encoded]:
        """The rows with their reference responses, encoded as training rows are.

        Raises:
            ValueError: a row has no response.
        """
        from xtf.data.encode import encode
        from xtf.data.templates import Chat

        without = [example.example_id for example in self.examples if not example.response.strip()]
        if without:
            raise ValueError(
                f"evaluate.losses needs a response in every evaluation row; {len(without)} have none: "
                f"{', '.join(without[:5])}"
            )
        rows, report = encode(self.tokenizer, self.examples, max_length, Chat.of(self.task.config))
        if report.no_room:
            say(f"no loss of {len(report.no_room)} evaluation rows: their prompts fill model.max_length")
        return rows


def check_evaluation(config: Config, items: Callable[[], Items]) -> None:
    """Refuse, before any training, a set-up in which the evaluation at its end could not work.

    Raises:
        ValueError: naming what is missing.
    """
    items().task.check(items().examples)
    check_context(config, items())
    if config.evaluate.general:
        check_general(config.evaluate.general)
    if config.evaluate.losses:
        items().responses(config.model.max_length)
        held_out_rows(config, items().tokenizer)


def check_context(config: Config, items: Items) -> None:
    """Refuse prompts that leave no room for an answer among the model's positions; say how many leave little.

    A model that learned an embedding for each position has nothing behind the last: there the longest answer
    (`task.max_new_tokens`) must fit. Others (RoPE) go on, in a range that they were not trained for.

    Raises:
        ValueError: with the number of these prompts, the longest and the ids of the first.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from xtf.data.rows import first_few

    shape = load_config(config.model)
    context, new = context_of(shape), config.task.max_new_tokens
    if context is None or max(map(len, items.prompts), default=0) + new <= context:
        return
    with torch.device("meta"):
        learned = position_table(AutoModelForCausalLM.from_config(shape)) is not None
    need = new - 1 if learned else 1
    ids = [example.example_id for example in items.examples]
    long = [name for name, prompt in zip(ids, items.prompts, strict=True) if len(prompt) + need > context]
    if long:
        answer = f"an answer of {new} tokens (task.max_new_tokens)" if learned else "an answer"
        raise ValueError(
            f"{len(long):,} of {len(ids):,} evaluation prompts leave no room for {answer} in the {context:,} tokens "
            f"that model={config.model.name} has positions for; the longest has {max(map(len, items.prompts)):,}: "
            f"leave them out (task.eval.exclude_ids), or take a model with a longer context: examples {first_few(long)}"
        )
    little = sum(len(prompt) + new > context for prompt in items.prompts)
    say(
        f"{little:,} of {len(ids):,} evaluation prompts leave less than task.max_new_tokens={new} of the {context:,} "
        f"tokens that model={config.model.name} was made for: a longer answer goes on beyond them"
    )


def evaluate_model(
    which: Which,
    config: Config,
    run: RunFolder,
    items: Items,
    trained: Mapping[str, Any] | None,
    base_model: Callable[[], PreTrainedModel],
    free_memory: Callable[[], None],
) -> dict[str, Any]:
    """Generate and grade with the untouched model or with the run's own; what is there already is not made again.

    Args:
        trained: the training record of the run's own model.
        base_model: gives the untouched model.
        free_memory: lets go of it, where another engine needs the memory.

    Returns:
        What the manifest says of the stage: seconds, grader, path, metrics, grading, and with losses `forgetting`.
    """
    from xtf.data.encode import stop_strings
    from xtf.data.templates import turn_end

    decoding, grader = Decoding.of(config.task, config.seed), grader_identity(config)
    dtype = inference_dtype(config.trainer)
    what: dict[str, Any] = {"eval": items.sha256, "dtype": str(dtype)}
    if config.evaluate.backend is not Backend.hf:
        what["backend"] = config.evaluate.backend.value
    if (end := turn_end(items.tokenizer)) != items.tokenizer.eos_token_id:
        what["end"] = end  # versions that did not know it went on behind it
    tuned = None
    if which is Which.base:
        what |= {"model": fingerprint(config.model)}
        folder = OutputDir(Path(config.output_dir)).base / digest([what, decoding, items.prompts])
        load = base_model
    else:
        assert trained is not None
        what |= {"model": "tuned", "loss": trained["final_loss"]}
        folder, tuned = run.path, run.model
        # In memory once, for completions and losses.
        load = functools.cache(lambda: load_model(config.model, config.trainer, dtype, tuned))
    generator: Callable[[], Generator] = load
    if config.evaluate.backend is Backend.vllm:
        free_memory()
        generator = functools.partial(VLLMEngine, config, max(map(len, items.prompts)), tuned)

    name = "base" if which is Which.base else "tuned"
    with locked(folder, say) if which is Which.base else contextlib.nullcontext():
        entry_file, stored = folder / "evaluation.json", folder / "generations.jsonl"
        entry = read_json(entry_file) if intact(entry_file) else {}
        if entry.get("grader") != grader or config.stage is Stage.evaluate or not intact(stored):
            tokens = sum(map(len, items.prompts)) * decoding.samples
            answers = len(items.prompts) * decoding.samples * _answer_length(config, items)
            cost = FORWARD * tokens + answers
            announce(config, f"evaluating the {name} model", tokens + round(answers), cost, "evaluate")
            with stopwatch() as seconds, bar(f"evaluating the {name} model", tokens) as progress:
                request = Request(
                    items.tokenizer,
                    items.examples,
                    items.prompts,
                    decoding,
                    config.trainer.tokens_per_eval_batch,
                    folder,
                    stop_strings(items.tokenizer),
                    progress,
                )
                result = evaluate(generator, request, items.task, what)
                entry = {"grader": grader, "seconds": round(seconds(), 3), **result}
                measured(config, cost, seconds(), "evaluate")
            write_json(entry_file, entry, sealed=True)
        metrics = entry["metrics"] | general_figures(config, tuned, folder)
        if config.evaluate.losses:
            rows = functools.partial(items.responses, config.model.max_length)
            metrics |= teacher_forced_figures(config, name, folder, what, items.tokenizer, rows, load)
    found = {name: entry[name] for name in ("seconds", "grader", "grading")} | {"path": str(stored), "metrics": metrics}
    return found | ({"forgetting": forgetting_source(config)} if config.evaluate.losses else {})


def _answer_length(config: Config, items: Items) -> float:
    """Tokens that an answer may take: twice a reference response's where the rows have them, as stage=plan counts."""
    with_response = [example.response for example in items.examples[:100] if example.response.strip()]
    if not with_response:
        return min(config.task.max_new_tokens, 2 * config.task.size.response)
    ids = items.tokenizer(with_response, add_special_tokens=False, verbose=False)["input_ids"]
    return min(config.task.max_new_tokens, 2 * sum(map(len, ids)) / len(ids))
