"""Small finished runs with made-up scores, for the tests of reports and of the explorer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from xtf.config.identity import digest, plain
from xtf.config.schema import (
    PRESETS,
    Attribute,
    Config,
    LoggerConfig,
    ModelConfig,
    ScorerConfig,
    TaskConfig,
    TrainerConfig,
    Tuning,
    TuningConfig,
)
from xtf.graders.metrics import wilson
from xtf.runtime.artifacts import sha256
from xtf.scoring.masks import build_mask
from xtf.scoring.methods import METHODS

WORDS = ["Let", " me", " think", ":", " two", " plus", " four", " is", " six", ".", "\n", "So", " the", " answer"]
CSV = LoggerConfig(name="csv")
LISTS = dict.fromkeys(("ri", "kn", "tr", "logp", "prompt_tr"), pa.float32())


def scored_table(examples: int, seed: int = 0, tokens: int = 40, vocabulary: int = len(WORDS)) -> pa.Table:
    """A scored table with skewed scores: most p near 1, TR in five clumps by token id, log RI normal."""
    generator = np.random.default_rng(seed)
    clump = generator.integers(5, size=vocabulary) / 4 * 0.8 + generator.random(vocabulary) * 0.1
    rows: dict[str, list[Any]] = {
        name: [] for name in ("example_id", "input_ids", "prompt_length", *LISTS, "prompt_tr")
    }
    for number in range(examples):
        length = int(generator.integers(1, 2 * tokens))
        prompt = int(generator.integers(1, 12))
        ids = generator.integers(vocabulary, size=prompt + length)
        logp = np.log(generator.beta(2, 0.4, size=length)).astype(np.float32)
        rows["example_id"].append(f"row-{number}")
        rows["input_ids"].append(ids.tolist())
        rows["prompt_length"].append(prompt)
        rows["ri"].append(generator.normal(-5, 0.7, size=length).astype(np.float32))
        rows["kn"].append((-np.expm1(logp.astype(np.float64))).astype(np.float32))
        rows["tr"].append(clump[ids[prompt:]].astype(np.float32))
        rows["logp"].append(logp)
        rows["prompt_tr"].append(clump[ids[:prompt]].astype(np.float32))
    types = {"example_id": pa.string(), "input_ids": pa.list_(pa.int32()), "prompt_length": pa.int32()}
    types |= {name: pa.list_(kind) for name, kind in LISTS.items()}
    return pa.table({name: pa.array(values, types[name]) for name, values in rows.items()})


def generations(correct: list[bool | None], completion: str = "the answer is {}") -> list[dict[str, Any]]:
    return [
        {
            "example_id": f"item-{number}",
            "sample": 0,
            "prompt": f"What is {number} + 1?",
            "completion": completion.format(number + (1 if right else 5)),
            "extracted": str(number + (1 if right else 5)),
            "reference": str(number + 1),
            "correct": right,
            "reason": "equal numbers" if right else "other number",
        }
        for number, right in enumerate(correct)
    ]


def metric(correct: list[bool | None]) -> dict[str, Any]:
    graded = [right for right in correct if right is not None]
    return vars(wilson(sum(graded), len(graded)))


def write_run(
    root: Path,
    *,
    scored: pa.Table | None = None,
    correct: list[bool | None],
    base: list[bool | None] | None,
    logger: LoggerConfig = CSV,
    losses: dict[str, tuple[int, float]] | None = None,
    **identity: Any,
) -> Path:
    """Writes a run's folder under `root`/runs and, with `base`, the base model's completions.

    `losses`: tokens and nats of evaluation rows, as evaluate.losses leaves them.
    """
    who = {
        "task": "math",
        "model": "tiny",
        "tuning": "full",
        "method": "xtf",
        "scorer": "xtf",
        "threshold": "paper",
        "seed": 0,
        "overrides": {},
        "experiment": None,
    } | identity
    overrides: Any = who["overrides"]
    folder = root.joinpath(
        "runs",
        *(who[key] for key in ("task", "model", "tuning", "method")),
        f"{who['scorer']}-{who['threshold']}" + (f"-{digest(overrides, 8)}" if overrides else ""),
        f"seed{who['seed']}",
    )
    folder.mkdir(parents=True)
    attributes = [] if who["scorer"] == "none" else list(Attribute)
    scored = scored or scored_table(12)
    mask = build_mask(scored, PRESETS[who["threshold"]], attributes)
    pq.write_table(mask.table, folder / "mask.parquet")
    _write_lines(folder / "generations.jsonl", generations(correct))
    artifacts = {"metrics": str(folder / "metrics.json"), "base_generations": None}
    if base is not None:
        file = Path("base", digest(base), "generations.jsonl")
        artifacts["base_generations"] = str("somewhere" / file)
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        _write_lines(root / file, generations(base))
    log = "step,loss,kept_tokens,validation_loss\n" + "".join(
        f"{step},{2 / step:.4f},{100 + step},{'1.5' if step == 30 else ''}\n" for step in range(1, 31)
    )
    (folder / "train_log.csv").write_text(log)
    config = Config(
        output_dir=str(root),
        seed=who["seed"],
        experiment=who["experiment"],
        model=ModelConfig(name=who["model"], path="models/tiny"),
        task=TaskConfig(name=who["task"], grader="number"),
        scorer=ScorerConfig(name=who["scorer"], attributes=attributes),
        threshold=PRESETS[who["threshold"]],
        method=METHODS[who["method"]](),
        tuning=TuningConfig(name=Tuning(who["tuning"])),
        trainer=TrainerConfig(name="cpu"),
        logger=logger,
    )
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    record = who | {
        "schema": 1,
        "metrics": {"accuracy": metric(correct)},
        "base_metrics": None if base is None else {"accuracy": metric(base)},
        "mask": mask.stats.to_dict(),
        "training": {"steps": 30, "epochs": 3, "learning_rate": 1e-3, "final_loss": 0.0667},
        "timing": {"score": 1.25, "mask": 0.1, "train": 130.0, "evaluate_base": 3.0, "evaluate": 3.5},
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "git_commit": None,
        "data": {name: {"source": f"bundled {name}", "sha256": "ab" * 32, "rows": 10} for name in ("train", "eval")},
        "command": "python run.py -m scorer=xtf",
        "artifacts": artifacts,
    }
    if losses is not None:
        tokens, nats = (sum(part) for part in zip(*losses.values(), strict=True))
        unreadable = {"value": 0.0, "low": 0.0, "high": 0.1, "n": len(correct), "interval": "wilson", "unit": "share"}
        record["metrics"] |= {"unreadable": unreadable, "loss": unreadable | {"value": nats / tokens, "unit": "nats"}}
        (folder / "losses.json").write_text(json.dumps({"rows": losses}))
    (folder / "metrics.json").write_text(json.dumps(record))
    store = root / "scores" / "pass"
    store.mkdir(parents=True, exist_ok=True)
    pq.write_table(scored, store / "0.parquet")
    (store / "manifest.json").write_text(json.dumps({"shards": {"0.parquet": {"sha256": sha256(store / "0.parquet")}}}))
    noted = {"stats": record["mask"], "sha256": sha256(folder / "mask.parquet")}
    stages = {"score": {"paths": {"scores": str(store)}}, "mask": noted}
    (folder / "manifest.json").write_text(json.dumps({"stages": stages}))
    return folder


def _write_lines(path: Path, items: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
