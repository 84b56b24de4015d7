r"""MATH-500: competition problems whose answer is an expression; graded by equivalence.

    {"problem": "Convert the point $(0,3)$ in rectangular coordinates to polar coordinates. ...",
     "solution": "We have that $r = \\sqrt{0^2 + 3^2} = 3.$ ... $\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}.$",
     "answer": "\\left( 3, \\frac{\\pi}{2} \\right)", "subject": "Precalculus", "level": 2,
     "unique_id": "test/precalculus/807.json"}

Sources: https://huggingface.co/datasets/HuggingFaceH4/MATH-500, and to train on
https://huggingface.co/datasets/AI-MO/NuminaMath-CoT (problem and solution).
"""

from __future__ import annotations

from xtf.tasks.math import read

__all__ = ["read"]
