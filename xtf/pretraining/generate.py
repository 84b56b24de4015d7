"""Write the bundled datasets: `python -m xtf.pretraining.generate [--out DIR]`.

Eight files, {math,code,medical,finance}_{train,eval}.jsonl, in the row formats of GSM8K, HumanEval, PubMedQA and
FiQA, and held_out.jsonl, texts of the pre-training mix that the model has not read. All of it is synthetic and seeded:
the same version writes the same bytes. No question or prompt occurs twice, so the evaluation rows are disjoint from
the training rows. Responses carry planted token noise; each `*_rows.py` module states its kinds and their
shares in `NOISE`.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xtf.data.words import pick
from xtf.pretraining.code_rows import all_functions, code_row
from xtf.pretraining.corpus import held_out
from xtf.pretraining.finance_rows import DECISIONS as FINANCE_DECISIONS
from xtf.pretraining.finance_rows import finance_row
from xtf.pretraining.math_rows import math_row
from xtf.pretraining.medical_rows import DECISIONS, medical_row
from xtf.tiny import DATA_DIR

Row = dict[str, Any]

SEED = 2026
HELD_OUT_DOCUMENTS = 200  # about 20,000 tokens of the pre-training mix
SIZES = {"math": (1200, 400), "code": (1000, 300), "medical": (1000, 300), "finance": (600, 150)}


def distinct_rows(draw: Callable[[], Row], key: str, count: int) -> list[Row]:
    """Draw until there are `count` rows with different values of `key`."""
    rows: dict[str, Row] = {}
    while len(rows) < count:
        row = draw()
        rows.setdefault(row[key], row)
    return list(rows.values())


def math_rows(count: int) -> list[Row]:
    """Distinct questions."""
    rng = random.Random(f"{SEED}-math")
    return distinct_rows(lambda: math_row(rng), "question", count)


def code_rows(count: int) -> list[Row]:
    """Different functions, not one function with different examples."""
    rng = random.Random(f"{SEED}-code")
    return [code_row(rng, function, i) for i, function in enumerate(rng.sample(all_functions(), count))]


def medical_rows(count: int) -> list[Row]:
    """Distinct questions, a third of the rows for each decision on average; pubid is the row's number."""
    rng = random.Random(f"{SEED}-medical")
    rows = distinct_rows(lambda: medical_row(rng, pick(rng, DECISIONS), 0), "question", count)
    return [row | {"pubid": 10_000_000 + i} for i, row in enumerate(rows)]


def finance_rows(count: int) -> list[Row]:
    """Distinct questions, half of the rows for each decision on average."""
    rng = random.Random(f"{SEED}-finance")
    return distinct_rows(lambda: finance_row(rng, pick(rng, FINANCE_DECISIONS)), "input", count)


def datasets() -> dict[str, list[Row]]:
    """File name without suffix ("math_train", ...) -> rows."""
    made = {}
    makers = {"math": math_rows, "code": code_rows, "medical": medical_rows, "finance": finance_rows}
    for task, make in makers.items():
        train, held_out = SIZES[task]
        rows = make(train + held_out)
        made[f"{task}_train"], made[f"{task}_eval"] = rows[:train], rows[train:]
    return made


def main() -> None:
    """Write all files."""
    parser = argparse.ArgumentParser(description="Write the bundled synthetic datasets.")
    parser.add_argument("--out", type=Path, default=DATA_DIR, help="folder (default: %(default)s)")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    texts = [{"text": text} for text in held_out(HELD_OUT_DOCUMENTS)]
    for name, rows in (datasets() | {"held_out": texts}).items():
        path = out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8", newline="\n")
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
