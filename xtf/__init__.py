"""XTF: find which label tokens of a fine-tuning set teach a language model, and train without the rest.

scored = xtf.score(model, tokenizer, examples)
masked = xtf.mask(scored, threshold="paper")
xtf.summary(masked)
xtf.show(masked)
xtf.preview(masked, tokenizer, "preview.html")
xtf.export(masked, to="trl", folder="for-trl")
xtf.grade("number", "The answer is 1,000.", reference="1000")
"""

from __future__ import annotations

TYPE_CHECKING = False  # to import typing takes longer than all that is before `__main__.main` hears Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from xtf.api import export, mask, score
    from xtf.data.provenance import provenance
    from xtf.graders import grade
    from xtf.reporting.explorer import preview, summary
    from xtf.reporting.shown import preview_text as show

__version__ = "0.1.0"
__all__ = ["export", "grade", "mask", "preview", "provenance", "score", "show", "summary"]


def __getattr__(name: str) -> Any:
    # On first use: `import xtf` must not import torch, which the command line's --help and checks go without.
    if name in ("export", "mask", "score"):
        from xtf import api

        return getattr(api, name)
    if name == "provenance":
        from xtf.data.provenance import provenance

        return provenance
    if name == "grade":
        from xtf.graders import grade

        return grade
    if name in ("preview", "summary"):
        from xtf.reporting import explorer

        return getattr(explorer, name)
    if name == "show":
        from xtf.reporting.shown import preview_text

        return preview_text
    raise AttributeError(f"module 'xtf' has no attribute {name!r}")
