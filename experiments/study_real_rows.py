"""The rows of study_real.md, from the public files: short ones, so that a study fits a machine without a GPU.

    python experiments/study_real_rows.py gsm8k FOLDER_OF_THE_PUBLISHED_FILES rows/gsm8k

FOLDER holds the files as published: `train.jsonl` and `test.jsonl` (GSM8K), `ori_pqal.json` and
`test_ground_truth.json` (PubMedQA), `mbpp.jsonl` (MBPP). Written are `train.jsonl`, `held_out.jsonl` (for choices),
`eval.jsonl`, and `forgetting.jsonl`: training rows of the other domain, as texts.

Rows are taken in the file's order; a row is short by the characters of its question and answer, so that the choice does
not depend on a tokenizer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SIZES = {  # characters at most; rows for training, held out of it, for evaluation
    "gsm8k": (420, 128, 48, 64),
    "pubmedqa": (1500, 80, 32, 64),
    "mbpp": (480, 128, 48, 64),
}


def lines(path: Path) -> list[Row]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def published(task: str, folder: Path) -> tuple[list[Row], list[Row]]:
    """Training and test rows in the order and with the split of their authors."""
    if task == "gsm8k":
        return lines(folder / "train.jsonl"), lines(folder / "test.jsonl")
    if task == "pubmedqa":
        rows = json.loads((folder / "ori_pqal.json").read_text(encoding="utf-8"))
        test = json.loads((folder / "test_ground_truth.json").read_text(encoding="utf-8"))
        numbered = [{"pubid": key, **row} for key, row in rows.items()]
        return [row for row in numbered if row["pubid"] not in test], [row for row in numbered if row["pubid"] in test]
    rows = lines(folder / "mbpp.jsonl")  # task ids 11 to 510 are the test set, 601 to 974 the training set
    return [row for row in rows if row["task_id"] > 600], [row for row in rows if 10 < row["task_id"] <= 510]


def text(task: str, row: Row) -> str:
    """What a row's length is measured on."""
    if task == "gsm8k":
        return row["question"] + row["answer"]
    if task == "pubmedqa":
        return "\n".join([*row["CONTEXTS"], row["QUESTION"], row["LONG_ANSWER"]])
    return "\n".join([row["text"], row["code"], *row["test_list"]])


def short(task: str, rows: Iterable[Row], most: int) -> Iterator[Row]:
    """Those of at most so many characters."""
    return (row for row in rows if len(text(task, row)) <= most)


def write(path: Path, rows: Iterable[Row]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=SIZES)
    parser.add_argument("published", type=Path, help="the folder of the published files")
    parser.add_argument("to", type=Path)
    parser.add_argument("--other", nargs=2, metavar=("TASK", "FOLDER"), help="whose training texts measure forgetting")
    arguments = parser.parse_args()
    most, trained, held_out, graded = SIZES[arguments.task]
    train, test = (list(short(arguments.task, rows, most)) for rows in published(arguments.task, arguments.published))
    if len(train) < trained + held_out or len(test) < graded:
        parser.exit(2, f"error: only {len(train)} training and {len(test)} test rows are short enough\n")
    arguments.to.mkdir(parents=True, exist_ok=True)
    write(arguments.to / "train.jsonl", train[:trained])
    write(arguments.to / "held_out.jsonl", train[trained : trained + held_out])
    write(arguments.to / "eval.jsonl", test[:graded])
    if arguments.other:
        name, folder = arguments.other
        rows = list(short(name, published(name, Path(folder))[0], SIZES[name][0]))[:24]
        write(arguments.to / "forgetting.jsonl", ({"text": text(name, row)} for row in rows))


if __name__ == "__main__":
    main()
