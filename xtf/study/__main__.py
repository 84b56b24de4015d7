"""`python -m xtf.study`: the analysis of experiments/history/study.md (`xtf.study.analysis`)."""

from xtf.study.analysis import main

main()
