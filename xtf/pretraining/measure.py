"""How a base model stands to the bundled training sets: `python -m xtf.pretraining.measure [--model FOLDER]`.

For each task, with the last 200 rows of the training set held out and the evaluation set untouched:

- over all responses of the training set: nats a token, shares of tokens with p > 0.95 and with p < 0.1
- on the held-out rows, greedy: accuracy of the base model and after plain fine-tuning on the other rows by the recipe
- by how much fine-tuning raises the loss on pre-training text
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from xtf.config.schema import Config
from xtf.runtime.artifacts import read_json
from xtf.tiny import DATA_DIR, HELD_OUT, MODEL_DIR

ROOT = Path(__file__).parents[2]
TASKS = ("math", "code", "medical", "finance")
HELD_OUT_ROWS = 200


def compose(overrides: Sequence[str]) -> Config:
    """The resolved configuration of `python run.py *overrides`."""
    import hydra

    from xtf.config.checks import resolve
    from xtf.config.compose import register, to_config

    os.environ.setdefault("XTF_ROOT", str(ROOT))
    register()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return resolve(to_config(hydra.compose("config", list(overrides))))


def split(task: str, folder: Path) -> tuple[Path, Path]:
    """The bundled training rows of `task` as two files in `folder`: all but the last ones, and those."""
    lines = (DATA_DIR / f"{task}_train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    fit, rest = folder / f"{task}_fit.jsonl", folder / f"{task}_held_out.jsonl"
    fit.write_text("".join(lines[:-HELD_OUT_ROWS]), encoding="utf-8")
    rest.write_text("".join(lines[-HELD_OUT_ROWS:]), encoding="utf-8")
    return fit, rest


def expectation(config: Config) -> dict[str, float]:
    """What the base model thinks of the tokens of all bundled training responses.

    `loss` in nats a token; the shares `sure` (p > 0.95) and `surprised` (p < 0.1).
    """
    import numpy as np

    from xtf.data.encode import encode
    from xtf.data.rows import load_rows
    from xtf.runtime.models import inference_dtype, load_model, load_tokenizer
    from xtf.scoring.scorers import score_rows
    from xtf.tasks import load_task

    source = dataclasses.replace(config.task.train, path=str(DATA_DIR / f"{config.task.bundled}_train.jsonl"))
    examples = load_task(config.task, config.output_dir).examples(load_rows(source), training=True)
    rows, _ = encode(load_tokenizer(config.model), examples, config.model.max_length)
    model = load_model(config.model, config.trainer, inference_dtype(config.trainer))
    scorer = dataclasses.replace(config.scorer, attributes=[], compute=[])
    table = score_rows(model, rows, scorer, logp=True, tokens_per_batch=config.trainer.tokens_per_score_batch)
    p = np.exp(np.concatenate(table["logp"].to_pylist()))
    return {"loss": float(-np.log(p).mean()), "sure": float((p > 0.95).mean()), "surprised": float((p < 0.1).mean())}


def fine_tuned(overrides: Sequence[str], output: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Runs `python run.py *overrides` with the results in `output`; the figures of the model before and after."""
    command = [sys.executable, str(ROOT / "run.py"), *overrides, f"output_dir={output}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (file,) = output.glob("runs/**/metrics.json")
    record = read_json(file)
    return {"base": record["base_metrics"], "tuned": record["metrics"]}


def shown(metrics: dict[str, dict[str, float]]) -> str:
    """The accuracy, or what the task has in its place, with its interval, and the loss on pre-training text."""
    name = next(name for name in ("accuracy", "pass@1") if name in metrics)
    found, text = metrics[name], metrics["forgetting_loss"]["value"]
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}], pre-training text {text:.2f} nats"


def most_frequent(config: Config, file: Path) -> str:
    """What the most frequent answer would reach on the rows of `file`."""
    from xtf.data.rows import load_rows
    from xtf.tasks import load_task

    task = load_task(config.task, config.output_dir)
    examples = task.examples(load_rows(dataclasses.replace(config.task.eval, path=str(file))), training=False)
    answers = Counter(task.reference(example) for example in examples)
    answer, count = answers.most_common(1)[0]
    return f"  always {answer!r}: {count / answers.total():.1%}"


def main() -> None:
    """Print the figures of each task."""
    parser = argparse.ArgumentParser(description="How a base model stands to the bundled training sets.")
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="folder (default: the bundled model)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--rates", nargs="+", help="learning rates (default: the recipe's)")
    parser.add_argument("--base", action="store_true", help="no fine-tuning")
    parser.add_argument("--sampled", action="store_true", help="decode as the task does by default, not greedily")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task in arguments.tasks:
            fit, rest = split(task, folder)
            given = [
                f"task={task}", "method=normal", "evaluate.losses=true", f"evaluate.forgetting={HELD_OUT}",
                f"model.path={arguments.model}", f"task.train.path={fit}", f"task.eval.path={rest}",
            ]  # fmt: skip
            if task == "code" and not arguments.sampled:
                given += ["task.samples=1", "task.temperature=0", "task.pass_at=[1]"]
            if task == "finance":
                given.append("task.grader=decision")
            config = compose([*given, f"output_dir={folder}"])
            found = expectation(config)
            print(
                f"{task}: {found['loss']:.2f} nats, p > 0.95: {found['sure']:.1%}, p < 0.1: {found['surprised']:.1%}",
                flush=True,
            )
            if config.task.grader == "decision":
                print(most_frequent(config, rest))
            for rate in [] if arguments.base else arguments.rates or [str(config.tuning.learning_rate)]:
                made = fine_tuned([*given, f"tuning.learning_rate={rate}"], folder / f"{task}-{rate}")
                print(f"  base {shown(made['base'])}\n  tuned at {rate} {shown(made['tuned'])}", flush=True)


if __name__ == "__main__":
    main()
