"""From completions to programs, and every reference solution of HumanEval and MBPP in the sandbox."""

# ruff: noqa: E501 - programs as one-line strings

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from xtf.config.schema import SandboxConfig, SourceConfig, TaskConfig
from xtf.data.examples import Example
from xtf.data.rows import load_rows
from xtf.graders.base import Grade
from xtf.graders.code import CodeGrader, extract_program, suite
from xtf.tasks import Task, load_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}")

PROMPT = 'import math\n\n\ndef area(r):\n    """Area of a circle."""\n'
ROW = {
    "task_id": "T/0",
    "prompt": PROMPT,
    "canonical_solution": "    return math.pi * r ** 2\n",
    "entry_point": "area",
    "test": "def check(candidate):\n    assert candidate(0) == 0\n    assert abs(candidate(1) - 3.14159) < 1e-4\n",
}


def code(samples: int = 1) -> Task:
    limits = SandboxConfig(cpu_seconds=20, wall_seconds=120)  # the slowest reference takes seconds
    return load_task(TaskConfig(name="code", grader="code", samples=samples, sandbox=limits))


RIGHT = {
    "continuation": "    return math.pi * r ** 2\n",
    "continuation, first indentation lost": "return math.pi * r ** 2",
    "several lines, first indentation lost": "if r == 0:\n        return 0\n    return math.pi * r ** 2",
    "all indentation lost": "if r == 0:\n    return 0\nreturn math.pi * r ** 2",
    "then prose": "    return math.pi * r ** 2\n\nThis works because it's the formula.",
    "then another function": "    return square(r) * math.pi\n\n\ndef square(x):\n    return x * x\n",
    "then the function anew, wrong": "    return math.pi * r ** 2\n\n\ndef area(r):\n    return 0\n",
    "then its own tests": "    return math.pi * r ** 2\n\nassert area(1) == 3\nprint(area('x'))\ncheck(area)\n",
    "then a main block": "    return math.pi * r ** 2\n\nif __name__ == '__main__':\n    area(None)\n",
    "cut off by the token limit": "    return math.pi * r ** 2\n\n\ndef other(x):\n    return (x +",
    "whole function": PROMPT + "    return math.pi * r ** 2\n",
    "whole function, no imports": "def area(r):\n    return math.pi * r ** 2\n",
    "chat": f"Sure! Here it is:\n\n```python\n{PROMPT}    return math.pi * r ** 2\n```\nIt uses pi.",
    "chat, fence without a name": "```\ndef area(r):\n    return math.pi * r ** 2\n```",
    "chat, fence with the body only": "```python\n    return math.pi * r ** 2\n```",
    "chat, fence not closed": "```python\ndef area(r):\n    return math.pi * r ** 2\n",
    "chat, two blocks": "```python\ndef sq(x):\n    return x * x\n```\nand\n```python\ndef area(r):\n    return math.pi * sq(r)\n```",
    "chat, a usage block after": "```python\ndef area(r):\n    return math.pi * r ** 2\n```\nUse:\n```python\narea()\n```",
    "chat, a shell block before": "```bash\npip install x\n```\n```python\ndef area(r):\n    return math.pi * r ** 2\n```",
    "chat, indented fence": "1. Do:\n   ```python\n   def area(r):\n       return math.pi * r ** 2\n   ```",
    "bare, after prose": "Here is the code.\nimport math\ndef area(r):\n    return math.pi * r ** 2\nHope it helps!",
    "bare, with a constant": "PI = 3.14159265\ndef area(r):\n    return PI * r ** 2\n",
    "several returns": "    if r == 0:\n        return 0.0\n    if r < 0:\n        return None\n    return math.pi * r ** 2\n",
    "whole function, every line indented": "  def area(r):\n      return math.pi * r ** 2\n",
    "whole function after one space": " def area(r):\n    return math.pi * r ** 2\n",
    "a line separator in a string": "    name = '\u2028'\n    return math.pi * r ** 2\n",
    "chat, tildes": "~~~python\ndef area(r):\n    return math.pi * r ** 2\n~~~\nIt uses pi.",
    "chat, four backticks": "````python\ndef area(r):\n    return math.pi * r ** 2\n````\nIt uses pi.",
    "then a test case that is run": "    return math.pi * r ** 2\n\n\nimport unittest\n\nclass T(unittest.TestCase):\n    def test(self):\n        self.fail()\n\nunittest.main()\n",
    "then a runner of tests": "    return math.pi * r ** 2\n\n\nimport unittest, doctest\nunittest.TextTestRunner().run(None)\ndoctest.testmod()\n",
    "then a runner under another name": "    return math.pi * r ** 2\n\n\nimport unittest as ut\n\nclass T(ut.TestCase):\n    def test(self):\n        self.fail()\n\nut.main()\n",
    "then a runner that is kept": "    return math.pi * r ** 2\n\n\nimport unittest\nr = unittest.main()\nif r.result.errors:\n    raise SystemExit(1)\n",
    "then a runner's function under another name": "    return math.pi * r ** 2\n\n\nfrom unittest import main as go\ngo()\n",
    "then an exit": "    return math.pi * r ** 2\n\n\nimport sys\nsys.exit(1)\n",
    "thinking first": "<think>def area(r): return 0</think>    return math.pi * r ** 2",
}
WRONG = {
    "nothing": "",
    "prose": "I cannot do that.",
    "None": "    return None\n",
    "another name": "```python\ndef volume(r):\n    return math.pi * r ** 2\n```",
    "a class that equals everything": "    class Same:\n        def __eq__(self, other):\n            return True\n"
    "        def __sub__(self, other):\n            return 0\n    return Same()\n",
    "a null byte": "    return 0\0",
    "nested too deep": "    return " + "(" * 3000 + "1" + ")" * 3000,
}


def test_every_style_of_right_answer_passes_and_every_wrong_one_fails() -> None:
    task = code()
    example = Example("T/0", ({"role": "user", "content": PROMPT},), "", ROW)
    answers = RIGHT | WRONG
    grades = task.grade([(example, completion) for completion in answers.values()])
    passed = {name for name, grade in zip(answers, grades, strict=True) if grade.correct}
    assert passed == set(RIGHT)


def test_the_extracted_program_is_what_ran_and_no_code_is_unreadable() -> None:
    assert extract_program(RIGHT["continuation"], ["area"], PROMPT) == PROMPT + RIGHT["continuation"]
    assert extract_program("Sorry.", ["area"]) is None
    assert extract_program("    return 1", ["area"]) is None  # nothing to continue
    assert extract_program("def area(r):\n    return 1\n", ["area"]) == "def area(r):\n    return 1\n"


@pytest.mark.parametrize(
    "end",
    [
        "import unittest as ut\nut.main()\n",
        "import unittest\nr = unittest.main()\nprint(r)\n",
        "from unittest import main as go\ngo()\n",
        "import unittest\nrunner = unittest.TextTestRunner()\nresult = runner.run(None)\nif not result.wasSuccessful():\n    exit(1)\n",
        "import doctest\nfailed, _ = doctest.testmod()\n",
        "import pytest, sys as s\ns.exit(pytest.main())\n",
        "import unittest\ndef run_all():\n    unittest.main()\nrun_all()\n",
        "import unittest\ntry:\n    unittest.main()\nexcept SystemExit:\n    raise\n",
        "raise SystemExit(0)\n",
    ],
)
def test_what_runs_tests_is_left_out_by_whatever_name(end: str) -> None:
    program = extract_program(f"def area(r):\n    return 1\n\n{end}", ["area"])
    assert program is not None
    scope: dict[str, object] = {"__name__": "program"}
    exec(program, scope)
    assert callable(scope["area"])


def test_what_only_looks_like_running_tests_stays() -> None:
    program = "import subprocess\nmain = 3\nrun = subprocess.run\ntry:\n    import numpy\nexcept ImportError:\n    numpy = None\n\ndef area(r):\n    return main\n"
    assert extract_program(program, ["area"]) == program


def test_humaneval_and_mbpp_and_codeexercise_rows_become_prompts_and_responses() -> None:
    mbpp = {
        "task_id": 2,
        "text": "Add.",
        "code": "def add(a, b):\r\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
        "test_setup_code": "",
    }
    chat = {"id": 5, "chat_rounds": [{"role": "human", "content": "Go"}, {"role": "bot", "content": "```python\n```"}]}
    readings = [code().read(row).messages for row in (ROW, mbpp, chat)]
    assert [[turn["content"] for turn in reading] for reading in readings] == [
        ["Complete the following Python function.\n\n" + PROMPT, ROW["canonical_solution"]],
        [
            "Add.\nYour code should pass these tests:\nassert add(1, 2) == 3\nassert add(0, 0) == 0",
            "def add(a, b):\n    return a + b",
        ],
        ["Go", "```python\n```"],
    ]
    with pytest.raises(ValueError, match="has no tests"):
        code().reference(Example("5", (), "", chat))


def test_the_names_and_imports_that_mbpp_tests_need_come_from_the_reference() -> None:
    row = {
        "code": "import math, sys\nN = 3\ndef area(r):\n    return math.pi\ndef unused():\n    return 1",
        "test_list": ["assert math.isclose(area(1), math.pi)"],
    }
    assert (suite(row).names, suite(row).preamble) == (("area",), "import math, sys")


def test_pass_at_k_is_reported_for_each_k_with_an_interval_over_problems() -> None:
    def grades(correct: int) -> list[Grade]:
        return [Grade(place < correct, "x", "") for place in range(4)]

    metrics = CodeGrader(SandboxConfig(), [2, 1], 4).metrics([""] * 3, [grades(0), grades(1), grades(4)])
    assert list(metrics)[:2] == ["pass@1", "pass@2"]
    assert metrics["pass@1"].value == pytest.approx((0 + 1 / 4 + 1) / 3)
    assert metrics["pass@2"].value == pytest.approx((0 + 1 / 2 + 1) / 3)
    assert metrics["pass@2"].interval == "bootstrap over problems" and metrics["pass@2"].n == 3
    draws = np.random.default_rng(0).choice([0, 0.5, 1], (20000, 3)).mean(axis=1)
    assert metrics["pass@2"].low == pytest.approx(np.quantile(draws, 0.025), abs=0.2)


def test_with_one_sample_pass_at_1_is_a_proportion() -> None:
    metrics = CodeGrader(SandboxConfig(), [1], 1).metrics([""] * 2, [[Grade(True, "x", "")], [Grade(False, None, "")]])
    assert (metrics["pass@1"].value, metrics["pass@1"].interval) == (0.5, "wilson")
    assert metrics["unreadable"].value == 0.5
    assert math.isclose(metrics["pass@1"].low, 0.0945, abs_tol=1e-3)


@needs_data
def test_all_humaneval_solutions_pass_in_every_style_and_returning_none_fails() -> None:
    task = code()
    examples = task.examples(
        load_rows(SourceConfig(path=str(SHARED / "humaneval" / "HumanEval.jsonl.gz"))), training=False
    )
    assert len(examples) == 164
    styles = [
        lambda example: example.response,
        lambda example: f"Of course.\n```python\n{example.row['prompt']}{example.response}```\nDone.",
        lambda example: example.response.strip() + "\n\nThat is all.",
    ]
    for style in styles:
        grades = task.grade([(example, style(example)) for example in examples])
        assert [example.example_id for example, grade in zip(examples, grades, strict=True) if not grade.correct] == []
    grades = task.grade([(example, "    return None\n") for example in examples])
    assert [example.example_id for example, grade in zip(examples, grades, strict=True) if grade.correct] == []


@needs_data
def test_all_mbpp_solutions_pass_their_own_tests_and_returning_none_fails() -> None:
    task = code()
    examples = task.examples(load_rows(SourceConfig(path=str(SHARED / "mbpp" / "mbpp.jsonl"))), training=False)
    assert len(examples) == 974
    grades = task.grade([(example, example.response) for example in examples])
    assert [example.example_id for example, grade in zip(examples, grades, strict=True) if not grade.correct] == []
    nothing = [
        (example, "".join(f"def {name}(*args, **kwargs):\n    return None\n" for name in suite(example.row).names))
        for example in examples[::4]
    ]
    grades = task.grade(nothing)
    assert not any(grade.correct for grade in grades)
