"""Masked rows for the trainers that people use. A trainer is a class in a file of its own, and a line here."""

from __future__ import annotations

from xtf.exports.axolotl import Axolotl
from xtf.exports.base import Trainer
from xtf.exports.hf import HuggingFace
from xtf.exports.llamafactory import LlamaFactory
from xtf.exports.megatron import Megatron
from xtf.exports.ms_swift import MsSwift
from xtf.exports.trl import TRL
from xtf.runtime.imports import installed_classes

_KINDS: tuple[type[Trainer], ...] = (HuggingFace, TRL, Axolotl, LlamaFactory, MsSwift, Megatron)

# By the name that export.to gives them; those of installed packages too.
TRAINERS: dict[str, type[Trainer]] = {kind.name: kind for kind in _KINDS}
TRAINERS |= installed_classes("xtf.exports", Trainer, TRAINERS)
