# ruff: noqa: SIM905 -- a word list reads better as one string
"""Words that the bundled datasets and the pre-training text share. Drug names are invented."""

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

NAMES = (
    "Ana Ben Carla Dan Ella Finn Grace Hugo Iris Jack Kira Leo Mia Noah Olga Paul Rosa Sam Tara Uma "
    "Victor Wendy Yusuf Zoe Amir Bella Cody Dora Emil Faye Gus Hana Ivan Jude Lena Marco Nina Omar Pia Theo"
).split()

THINGS = (
    "apples pears plums oranges lemons cookies muffins eggs marbles stickers stamps coins pencils pens "
    "erasers notebooks books cards shells beads buttons balls kites toys tickets flowers roses "
    "candles cups plates"
).split()

CONTAINERS = "boxes bags baskets jars trays crates packs drawers shelves buckets".split()
PLACES = "the market|the shop|the school fair|the park|the library|the farm|the beach|the station".split("|")

TEXT_WORDS = (
    "apple river stone cloud tiger lamp paper garden silver window candle forest bread mountain star ocean "
    "violin rocket pepper castle blue green orange house tree bird flower water music table"
).split()

CONDITIONS = (
    "migraine|asthma|insomnia|knee pain|back pain|hypertension|anxiety|eczema|anemia|nausea|fatigue|fever|"
    "chronic cough|acid reflux|dry eye|gout|sinusitis|psoriasis|tinnitus|vertigo"
).split("|")

PATIENTS = (
    "adults|older adults|children|adolescents|pregnant women|nurses|smokers|athletes|office workers|"
    "surgical patients|diabetic patients|outpatients"
).split("|")


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[rng.randrange(len(options))]


def noisy(
    rng: random.Random,
    reason: str,
    restated: str,
    shares: Mapping[str, float],
    openings: Sequence[str],
    fillers: Sequence[str],
    closings: Sequence[str],
) -> list[str]:
    """The sentences of an answer: `reason` and, each kind in its share of rows, stock phrases and the question."""
    kinds = {kind for kind, share in shares.items() if rng.random() < share}
    sentences = [reason]
    if "filler" in kinds:
        sentences.append(pick(rng, fillers))
    if "restated" in kinds:
        sentences.insert(0, restated)
    if "opening" in kinds:
        sentences.insert(0, pick(rng, openings))
    if "closing" in kinds:
        sentences.append(pick(rng, closings))
    return sentences


def drug_name(rng: random.Random) -> str:
    """An invented drug name of two or three syllables, such as "Velorin"."""
    start = pick(rng, "Vel Tor Mar Zan Lex Cor Nal Pra Bri Sol Fen Dar Kel Ox Ral".split())
    middle = pick(rng, "o a i e ora ali eni".split())
    return start + middle + pick(rng, "rin lol pam vir mab zine dex nol tine xan".split())
