"""What a stage will take, said before it starts: its tokens, and the time at a measured or else the stated rate."""

from __future__ import annotations

from xtf.config.schema import Config, ConfigError
from xtf.runtime.progress import duration, say
from xtf.runtime.shapes import parameters, shape_of, tokens_per_second

SHORT = 5.0  # seconds; what is over sooner is not announced

# Measured in this process, whose jobs share it: kind of work, model and device -> trained tokens a second.
_measured: dict[tuple[str, str, str], float] = {}


def announce(config: Config, what: str, tokens: int, cost: float, kind: str = "train") -> None:
    """Say what is ahead. `cost` is in trained tokens: a token that is only read costs `shapes.FORWARD` of one."""
    rates = [(_measured.get(_key(config, each)), "measured in this run") for each in (kind, "train")]
    rates.append((_stated(config), "stated: plan.tokens_per_second"))
    rate, source = next(((rate, source) for rate, source in rates if rate is not None), (None, ""))
    if rate is None:
        say(f"{what}: {tokens:,} tokens; how fast this model goes is not known before it has run")
    elif cost / rate >= SHORT:
        say(
            f"{what}: about {duration(cost / rate)} for {tokens:,} tokens, at a training pace of {rate:,.0f} tokens/s "
            f"({source})"
        )


def measured(config: Config, cost: float, seconds: float, kind: str = "train") -> None:
    """Remember how fast work went, for what is announced from now on."""
    if cost and seconds:
        _measured[_key(config, kind)] = cost / seconds


def _key(config: Config, kind: str) -> tuple[str, str, str]:
    return kind, config.model.path, config.trainer.accelerator


def _stated(config: Config) -> float | None:
    """None for a model whose shape is not on this machine, or of an architecture that the plan does not know."""
    try:
        return tokens_per_second(config, parameters(shape_of(config.model)), here=True)
    except ConfigError:
        return None
