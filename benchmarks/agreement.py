"""Two masks of the same rows: how far they drop the same tokens, and how far their scores rank them alike.

    python run.py model=llama_8b task=math output_dir=own stage=mask
    python run.py model=llama_8b task=math output_dir=carried stage=mask scorer.model=llama_1b
    python -m benchmarks.agreement own/runs/.../mask.parquet carried/runs/.../mask.parquet

For each attribute, and for all three, the shares that the two drop, the share of tokens that both treat alike, and
Cohen's kappa, which is 0 where they agree as chance would; for each score, Spearman's correlation over the response
tokens.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.table import Table
from scipy import stats

from benchmarks.measure import console
from xtf.scoring.masks import MaskedTokens
from xtf.study.probe import kappa


def agreement(first: MaskedTokens, second: MaskedTokens) -> list[list[str]]:
    """A line for each rule: its name, the shares that either drops, how many tokens are treated alike, kappa, and the
    correlation of the scores behind it.

    Raises:
        ValueError: the masks are of different rows, or of other tokens of them.
    """
    if not np.array_equal(first.lengths, second.lengths) or not np.array_equal(first.ids, second.ids):
        raise ValueError("the two masks are of different tokens: make both with one model, one task and the same rows")
    inner = ~(first.columns["end"] | first.untrained)
    drops = {"any": (~first.kept, ~second.kept)}
    drops |= {name: (first.dropped[name], second.dropped[name]) for name in first.dropped if name in second.dropped}
    lines = []
    for name, (one, other) in drops.items():
        one, other = one[inner], other[inner]
        source = {"kn": "logp"}.get(name, name)
        scores = [tokens.scores[source][inner] for tokens in (first, second) if source in tokens.scores]
        rank = float(stats.spearmanr(*scores).statistic) if len(scores) == 2 else None
        agreed = kappa(one, other)
        lines.append(
            [
                name.upper() if name != "any" else name,
                *(f"{100 * share.mean():.1f} %" for share in (one, other)),
                f"{100 * (one == other).mean():.1f} %",
                "-" if agreed is None else f"{agreed:.2f}",
                "-" if rank is None else f"{rank:.2f}",
            ]
        )
    return lines


def main() -> None:
    """The command line, `python -m benchmarks.agreement`."""
    parser = argparse.ArgumentParser(description="How far two masks of the same rows agree.")
    parser.add_argument("masks", nargs=2, type=Path, help="mask.parquet of either")
    paths = parser.parse_args().masks
    first, second = (MaskedTokens.from_mask(pq.read_table(path)) for path in paths)
    table = Table("dropped by", "first", "second", "alike", "kappa", "rank correlation")
    for line in agreement(first, second):
        table.add_row(*line)
    console.print(table)


if __name__ == "__main__":
    main()
