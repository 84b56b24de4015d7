"""Hydra's sweeper, except that it looks at all jobs before it starts the first one. Its work: xtf.sweeps.jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override


class CheckedSweeper(BasicSweeper):
    """Runs the jobs that are not finished yet; refuses the whole sweep if one of its jobs is wrong."""

    queue: Any = None  # Slurm's, where the jobs go there

    def split_arguments(  # type: ignore[override]  # a static method there; the base class calls it on self
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[list[list[str]]]:
        from xtf.sweeps.jobs import compose_jobs, launcher_settings, list_jobs, say_what_runs, share_scoring, unfinished

        (every,) = BasicSweeper.split_arguments(overrides, None)
        if all("stage=plan" in arguments for arguments in every):
            from xtf.sweeps.plan import show_plan

            planned = compose_jobs([[a for a in arguments if a != "stage=plan"] for arguments in every])
            show_plan(share_scoring(planned))
            return []
        self.jobs = share_scoring(compose_jobs(every))
        assert self.config is not None and self.launcher is not None, "Hydra has set the sweeper up"
        if settings := launcher_settings(self.jobs, self.config.hydra.launcher):
            from xtf.sweeps.slurm import watched

            slurm: Any = self.launcher
            slurm.params |= settings
            self.queue = watched()
        say_what_runs(self.jobs)
        list_jobs(self.jobs)
        self.sent = unfinished(self.jobs)
        batch = [list(job.overrides) for job in self.sent]
        return list(self.split_overrides_to_chunks(batch, max_batch_size)) if batch else []

    def validate_batch_is_legal(self, batch: Sequence[Sequence[str]]) -> None:
        """Nothing: `split_arguments` has composed every job, and checked more than Hydra would."""

    def sweep(self, arguments: list[str]) -> Any:
        from hydra.core.hydra_config import HydraConfig

        from xtf.sweeps.jobs import raise_failures, without_given
        from xtf.sweeps.reports import write_reports
        from xtf.sweeps.slurm import settle

        self.jobs, self.sent = [], []
        assert self.config is not None, "Hydra has set the sweeper up"
        HydraConfig.instance().set_config(self.config)  # `compose` reads the search path there
        self.params = without_given(self.params or {}, arguments)
        try:
            returns = super().sweep(arguments)
        except Exception as error:
            if self.jobs:  # a launcher that broke down, or a job of Slurm's that is lost: say what became of the jobs
                launcher: Any = self.launcher
                told = self.queue is not None and settle(self.queue, self.sent, launcher.params["submitit_folder"])
                write_reports(self.jobs)
                raise_failures(self.jobs, None if told else error)
            raise
        write_reports(self.jobs)
        raise_failures(self.jobs)
        return returns
