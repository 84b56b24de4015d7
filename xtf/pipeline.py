"""The stages in order, each skipped if its artifact is there: score, mask, train, evaluate, record, report.

This is the only module that knows where things lie:

    <output_dir>/scores/<key>/           one scoring pass, shared by every run that needs the same scores
    <output_dir>/base/<key>/             the untouched model's completions, shared likewise
    <output_dir>/runs/.../seed<k>/       one run; metrics.json is written last, so it marks a finished run
    <output_dir>/reports/                what people read
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xtf.config.identity import differing_keys, digest, grader_identity, identity, plain
from xtf.config.schema import Backend, Config, ConfigError, SourceConfig, Stage
from xtf.runtime.artifacts import command, git_commit, locked, read_json, sha256, versions, write_atomic, write_json
from xtf.runtime.models import BUNDLED
from xtf.runtime.progress import bar, console, say, stopwatch
from xtf.runtime.run_folder import run_folder
from xtf.scoring.store import Load, read_pass, scoring_pass, unscored
from xtf.scoring.thresholds import SOURCE

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from xtf.data.encode import Encoded
    from xtf.data.examples import Example
    from xtf.evaluation.evaluate import Generator

SCHEMA = 1  # of metrics.json
HELD_OUT_DOCUMENTS = 200  # about 20,000 tokens of the tiny model's pre-training mix
ORDER = (Stage.score, Stage.mask, Stage.train, Stage.evaluate, Stage.report)


def run(config: Config, changed: Mapping[str, Any]) -> dict[str, Any] | None:
    """Run the stages that `config.stage` asks for; returns the finished run's record, None after an earlier stage.

    Args:
        config: resolved (`xtf.config.checks.resolve`).
        changed: the overridden keys that name the run's folder (`xtf.config.identity.overrides`).

    Raises:
        ValueError: something that the user can mend; the message says what.
    """
    if config.stage is Stage.dashboard:
        from xtf.reporting.published import create_dashboards

        for place in create_dashboards(config, Path(config.output_dir) / "reports"):
            say(f"dashboard: {place}")
        return None
    if config.stage is Stage.pretrain:
        from xtf.pretraining.pretrain import pretrain

        say(f"base model: {pretrain(config)}")
        return None
    folder = Path(config.output_dir) / run_folder(config, changed)
    with locked(folder, say):
        job = Job(config, changed, folder)
        if config.stage is Stage.report and not job.finished:
            raise ConfigError(f"there is no finished run in {folder}: run the same command without stage=report first")
        if job.finished and config.stage in (Stage.all, Stage.train, Stage.report):
            job.refuse_other_data()
            if config.stage is not Stage.report:
                say(f"already done: {job.metrics_file} (delete the folder to run it again)")
            record = read_json(job.metrics_file)
        else:
            record = job.stages()
        job.publish()
        if record is not None:
            job.report(record)
        return record


def passes_of(config: Config) -> dict[str, set[str]]:
    """The score columns that a run reads, by the pass that brings them.

    "": the base model on the training rows; "unconditional": the base model on the responses alone; "ref": the
    reference model on the training rows.
    """
    needs = set(config.method.needs)
    own = needs - {"ref_logp", "logp_unconditional", "planted"}
    if config.method.masked:
        own |= {SOURCE[attribute] for attribute in config.scorer.attributes}
    passes = {"": own} if own else {}
    if "logp_unconditional" in needs:
        passes["unconditional"] = {"logp"}
    if "ref_logp" in needs:
        passes["ref"] = {"logp"}
    return passes


class Job:
    """One run: what its stages share. Everything expensive is made on first use."""

    def __init__(self, config: Config, changed: Mapping[str, Any], folder: Path) -> None:
        self.config, self.changed, self.folder = config, changed, folder
        self.output = Path(config.output_dir)
        self.manifest_file = folder / "manifest.json"
        self.metrics_file = folder / "metrics.json"
        self.manifest: dict[str, Any] = read_json(self.manifest_file) if self.manifest_file.exists() else {"stages": {}}
        self._model: PreTrainedModel | None = None
        self._refuse_other_config()

    # --- what a run is ---

    def _refuse_other_config(self) -> None:
        """A folder holds one configuration; edited group files must not mix with the results of the old ones."""
        now = plain(identity(self.config))
        before = self.manifest.setdefault("config", now)
        if keys := differing_keys(before, self.config):
            listing = ", ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys[:5])
            raise ConfigError(
                f"{self.folder} holds a run of another configuration ({listing}); "
                "delete that folder or choose another output_dir"
            )
        if not self.manifest_file.exists():
            self._save()
        text = _to_yaml(plain(self.config))
        write_atomic(self.folder / "config.yaml", lambda path: path.write_text(text, encoding="utf-8"))

    @property
    def finished(self) -> bool:
        """Whether metrics.json is there and was graded as this configuration asks."""
        entry = self.manifest["stages"].get("evaluate", {})
        graded = self.metrics_file.exists() and entry.get("grader") == grader_identity(self.config)
        return graded and (not self.config.evaluate.losses or entry.get("forgetting") == self.forgetting)

    @property
    def forgetting(self) -> str:
        """What identifies the text whose loss shows forgetting: a file's hash, `bundled` or `none`."""
        path = self.config.evaluate.forgetting
        if path is not None:
            return sha256(Path(path))
        return "bundled" if self.config.model.path == BUNDLED else "none"

    def refuse_other_data(self) -> None:
        for which, entry in self.manifest.get("data", {}).items():
            path = getattr(self.config.task, which).path
            if path and entry.get("file_sha256") not in (None, sha256(Path(path))):
                raise ValueError(
                    f"task.{which}.path={path} has changed since {self.folder} was made; "
                    "delete that folder or choose another output_dir"
                )

    def _save(self) -> None:
        write_json(self.manifest_file, self.manifest)

    def _done(self, stage: str, seconds: float, **entry: Any) -> None:
        self.manifest["stages"][stage] = {"seconds": round(seconds, 3), **entry}
        self._save()

    # --- inputs, made on first use ---

    @functools.cached_property
    def task(self) -> Any:
        from xtf.tasks import load_task

        return load_task(self.config.task, self.config.output_dir)

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from xtf.runtime.models import load_tokenizer

        return load_tokenizer(self.config.model)

    def _rows(self, which: str) -> list[Example]:
        from xtf.data.rows import load_rows

        source: SourceConfig = getattr(self.config.task, which)
        rows = load_rows(source)
        entry = {"source": rows.source, "rows": len(rows), "sha256": rows.sha256}
        if source.path:
            entry |= {"source": Path(source.path).name, "file_sha256": sha256(Path(source.path))}
        before = self.manifest.setdefault("data", {}).setdefault(which, entry)
        if before["sha256"] != entry["sha256"]:
            raise ValueError(
                f"the {which} rows ({rows.source}) have changed since {self.folder} was begun; "
                "delete that folder or choose another output_dir"
            )
        self._save()
        return self.task.examples(rows, training=which == "train")

    @functools.cached_property
    def eval_examples(self) -> list[Example]:
        return self._rows("eval")

    @functools.cached_property
    def train_examples(self) -> list[Example]:
        from xtf.data.augment import augment
        from xtf.data.planting import plant

        config, method, examples = self.config, self.config.method, self._rows("train")
        if config.plant.share:
            examples = plant(examples, config.plant, self.tokenizer, config.task)
        if method.name == "data_augmentation":
            examples = augment(examples, method.factor, Path(method.path) if method.path else None)
        return examples

    @functools.cached_property
    def encoded(self) -> list[Encoded]:
        from xtf.data.encode import encode

        rows, report = encode(self.tokenizer, self.train_examples, self.config.model.max_length)
        self.manifest["encoding"] = dataclasses.asdict(report)
        self._save()
        return rows

    @functools.cached_property
    def response_rows(self) -> list[Encoded]:
        """The evaluation rows with their reference responses, as training rows are encoded."""
        from xtf.data.encode import encode

        without = [example.example_id for example in self.eval_examples if not example.response.strip()]
        if without:
            raise ValueError(
                f"evaluate.losses needs a response in every evaluation row; {len(without)} have none: "
                f"{', '.join(without[:5])}"
            )
        rows, report = encode(self.tokenizer, self.eval_examples, self.config.model.max_length)
        if report.no_room:
            say(f"no loss of {len(report.no_room)} evaluation rows: their prompts fill model.max_length")
        return rows

    def base_model(self) -> PreTrainedModel:
        """The untouched base model, for scoring and generation."""
        from xtf.runtime.models import inference_dtype, load_model

        if self._model is None:
            dtype = inference_dtype(self.config.trainer)
            self._model = load_model(self.config.model, self.config.trainer, dtype)
        return self._model

    # --- stages ---

    def stages(self) -> dict[str, Any] | None:
        config = self.config
        last = ORDER.index(config.stage) if config.stage in ORDER else len(ORDER) - 1
        if config.stage is Stage.preview:
            last = ORDER.index(Stage.mask)
        if last >= ORDER.index(Stage.train):
            # Everything that could make the end of a long run fail is tried at its beginning.
            from xtf.runtime.models import device

            device(config.trainer)
            if config.logger.name == "wandb":
                from xtf.runtime.loggers import wandb_mode

                wandb_mode(config)
            self.task.check()
            assert self.eval_examples
            if config.evaluate.general:
                from xtf.evaluation.general import check_general

                check_general(config.evaluate.general)
            if config.evaluate.losses:
                assert self.response_rows
        passes = self.score()
        if last == ORDER.index(Stage.score):
            for path in passes.values():
                say(f"scores: {path}")
            if not passes:
                say(f"method={config.method.name} with scorer={config.scorer.name} needs no scores")
            return None
        self.mask(passes)
        if config.stage is Stage.preview:
            self.preview()
        if last == ORDER.index(Stage.mask):
            say(f"mask: {self.folder / 'mask.parquet'}")
            return None
        if config.evaluate.base and last >= ORDER.index(Stage.evaluate):
            self.evaluate("base")
        self.train()
        if last == ORDER.index(Stage.train):
            say(f"model: {self.folder / 'model'}")
            return None
        self.evaluate("tuned")
        return self.record()

    def score(self) -> dict[str, Path]:
        """The scoring passes that this run reads, made unless they are there, by the column prefix they bring."""
        from xtf.data.encode import Encoded
        from xtf.runtime.models import fingerprint, inference_dtype, load_model

        config, wanted = self.config, passes_of(self.config)
        load: Load = self.base_model
        if config.trainer.devices > 1:  # every process loads its own
            load = functools.partial(load_model, config.model, config.trainer, inference_dtype(config.trainer))

        def scored(rows: Sequence[Encoded], columns: set[str], also: Iterable[str] = ()) -> Path:
            return scoring_pass(
                self.output / "scores",
                rows,
                columns,
                also=also,
                config=config,
                tokenizer=self.tokenizer,
                model=fingerprint(config.model),
                load=load,
            )

        passes = {}
        if "" in wanted:
            also = {SOURCE[attribute] for attribute in config.scorer.compute}
            passes[""] = scored(self.encoded, wanted[""], also)
        if "unconditional" in wanted:
            # The first response token has nothing before it, so it is predicted from the token that ends texts.
            start = int(
                self.tokenizer.eos_token_id if self.tokenizer.bos_token_id is None else self.tokenizer.bos_token_id
            )
            alone = [Encoded(r.example_id, [start, *r.input_ids[r.prompt_length :]], 1) for r in self.encoded]
            passes["unconditional"] = scored(alone, wanted["unconditional"])
        if "ref" in wanted:
            reference, load_reference = self._reference_model()
            passes["ref"] = scoring_pass(
                self.output / "scores",
                self.encoded,
                wanted["ref"],
                config=config,
                tokenizer=self.tokenizer,
                model=reference,
                load=load_reference,
            )
        scored_in = [read_json(path / "manifest.json")["seconds"] for path in passes.values()]
        paths = {name or "scores": str(path) for name, path in passes.items()}
        self._done("score", sum(scored_in), paths=paths)
        return passes

    def _reference_model(self) -> tuple[dict[str, Any], Callable[[], PreTrainedModel]]:
        """A model that `method.reference` names, or the base model fine-tuned on the method's warm-up subset.

        The latter is an artifact of its own under references/, shared by every run with the same settings.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        from xtf.runtime.models import fingerprint, inference_dtype, load_model
        from xtf.scoring.masks import build_mask
        from xtf.scoring.methods import METHODS
        from xtf.training.device_process import train

        config, method = self.config, self.config.method
        dtype = inference_dtype(config.trainer)
        if method.reference is not None:
            other = dataclasses.replace(config.model, path=method.reference, revision=None)
            return fingerprint(other), functools.partial(load_model, other, config.trainer, dtype)
        rows = method.warmup_rows(len(self.encoded))
        warmup = dataclasses.replace(config, method=METHODS["normal"](), seed=0)
        table = unscored(self.encoded).take(pa.array(rows))
        what = {
            "base": fingerprint(config.model),
            "tuning": plain(config.tuning),
            "tokens": digest(table["input_ids"].to_pylist(), 64),
        }
        folder = self.output / "references" / digest(what)
        with locked(folder, say):
            if not (folder / "model").is_dir():
                say(f"training the reference model of method={method.name} on {len(rows)} examples")
                mask = build_mask(table, config.threshold, ())
                write_atomic(folder / "mask.parquet", functools.partial(pq.write_table, mask.table))
                with stopwatch() as seconds:
                    record = train(warmup, folder)
                write_json(folder / "train.json", record | {"seconds": round(seconds(), 3)})
        self.manifest["reference"] = str(folder)
        trained = read_json(folder / "train.json")
        if "seconds" in trained:  # references of older versions do not say
            self.manifest["stages"]["reference"] = {"seconds": trained["seconds"]}
        return what, functools.partial(load_model, config.model, config.trainer, dtype, folder / "model")

    def mask(self, passes: Mapping[str, Path]) -> None:
        """Write mask.parquet from stored scores; no model is loaded."""
        import pyarrow.parquet as pq

        from xtf.scoring.methods import make_mask

        config, target = self.config, self.folder / "mask.parquet"
        entry = self.manifest["stages"].get("mask")
        if entry and target.exists() and sha256(target) == entry["sha256"]:
            return
        with stopwatch() as seconds:
            table = self._table(passes)
            mask = make_mask(config.method, table, config.threshold, config.scorer.attributes, config.seed)
            write_atomic(target, functools.partial(pq.write_table, mask.table))
        self._done("mask", seconds(), sha256=sha256(target), stats=mask.stats.to_dict())

    def _table(self, passes: Mapping[str, Path]) -> pa.Table:
        """The training rows with every score column that the method reads."""
        if self.config.method.name == "given":
            return self._given_table()
        table = read_pass(passes[""]) if "" in passes else unscored(self.encoded)
        for name, column in (("ref", "ref_logp"), ("unconditional", "logp_unconditional")):
            if name in passes:
                table = table.append_column(column, read_pass(passes[name])["logp"])
        return self._with_truth(table) if self.config.plant.share else table

    def _with_truth(self, table: pa.Table) -> pa.Table:
        """The column `planted`, list<int8> as long as the response: which noise each token is (`xtf.data.planting`)."""
        import pyarrow as pa

        from xtf.data.planting import PlantReport, token_kinds

        kinds = token_kinds(self.tokenizer, self.train_examples, self.encoded)
        self.manifest["planting"] = PlantReport.of(self.config.plant, kinds).to_dict()
        return table.append_column("planted", pa.array(kinds, pa.list_(pa.int8())))

    def _given_table(self) -> pa.Table:
        """method=given: the training file is a token table with `labels` or `weights` of its own."""
        import pyarrow.json
        import pyarrow.parquet as pq

        path = Path(self.config.task.train.path or "")
        if path.suffix not in (".parquet", ".jsonl"):
            raise ConfigError(
                "method=given trains a token table as it is: "
                f"task.train.path must be .parquet or .jsonl, not {path.name!r}"
            )
        self.manifest.setdefault("data", {})["train"] = {
            "source": path.name,
            "sha256": sha256(path),
            "file_sha256": sha256(path),
        }
        return pq.read_table(path) if path.suffix == ".parquet" else pyarrow.json.read_json(path)

    def train(self) -> None:
        """Fine-tune on mask.parquet and write model/; goes on from the last checkpoint of a killed run."""
        if "train" in self.manifest["stages"] and (self.folder / "model").is_dir():
            return
        self._model = None  # its memory is needed now, and training must start from untouched weights
        with stopwatch() as seconds:
            if self.config.trainer.devices > 1:
                record = self._train_on_devices()
            else:
                from xtf.training.device_process import train

                record = train(self.config, self.folder)
        self._done("train", seconds(), record=record)
        if self.config.logger.name == "wandb":
            self._note_published("train")  # it was logged live

    def _train_on_devices(self) -> dict[str, Any]:
        """One process per device (`xtf.training.device_process`); torch's launcher gives them rank and rendezvous."""
        launch = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={self.config.trainer.devices}",
        ]
        done = subprocess.run(
            [sys.executable, *launch, "-m", "xtf.training.device_process", str(self.folder)], check=False
        )
        if done.returncode:
            raise ValueError(f"training on {self.config.trainer.devices} devices failed; its error stands above")
        return read_json(self.folder / "train.json")

    def evaluate(self, which: str) -> None:
        """Generate and grade with the untouched model ("base", shared between runs) or with this run's ("tuned")."""
        from xtf.data.encode import encode_prompt, stop_strings
        from xtf.evaluation.evaluate import Decoding, evaluate
        from xtf.runtime.models import fingerprint, inference_dtype, load_model

        config = self.config
        decoding = Decoding.of(config.task, config.seed)
        grader = grader_identity(config)
        prompts = [encode_prompt(self.tokenizer, example) for example in self.eval_examples]
        dtype = inference_dtype(config.trainer)
        what = {"eval": self.manifest["data"]["eval"]["sha256"], "dtype": str(dtype)}
        if config.evaluate.backend is not Backend.hf:
            what["backend"] = config.evaluate.backend.value
        if which == "base":
            what |= {"model": fingerprint(config.model)}
            folder = self.output / "base" / digest([what, decoding, prompts])
            load = self.base_model
        else:
            what |= {"model": "tuned", "loss": self.manifest["stages"]["train"]["record"]["final_loss"]}
            folder = self.folder
            tuned = self.folder / "model"
            # In memory once, for completions and losses.
            load = functools.cache(lambda: load_model(config.model, config.trainer, dtype, tuned))
        generator: Callable[[], Generator] = load
        if config.evaluate.backend is Backend.vllm:
            from xtf.evaluation.vllm_engine import VLLMEngine

            self._model = None  # the engine needs the memory
            place = None if which == "base" else self.folder / "model"
            generator = functools.partial(VLLMEngine, config, max(map(len, prompts)), place)

        with locked(folder, say) if which == "base" else contextlib.nullcontext():
            entry_file = folder / "evaluation.json"
            entry = read_json(entry_file) if entry_file.exists() else {}
            if (
                entry.get("grader") != grader
                or config.stage is Stage.evaluate
                or not (folder / "generations.jsonl").exists()
            ):
                tokens = sum(map(len, prompts)) * decoding.samples
                with stopwatch() as seconds, bar(f"evaluating the {which} model", tokens) as progress:
                    result = evaluate(
                        generator,
                        self.tokenizer,
                        self.task,
                        self.eval_examples,
                        prompts,
                        decoding,
                        budget=config.trainer.tokens_per_eval_batch,
                        folder=folder,
                        identity=what,
                        stop=stop_strings(self.tokenizer),
                        progress=progress,
                    )
                    entry = {"grader": grader, "seconds": round(seconds(), 3), **result}
                write_json(entry_file, entry)
            metrics = entry["metrics"] | self._general(which, folder) | self._losses(which, folder, what, load)
        stage = "evaluate_base" if which == "base" else "evaluate"
        self._done(stage, entry["seconds"], grader=grader, path=str(folder / "generations.jsonl"))
        self.manifest["stages"][stage] |= {"metrics": metrics, "grading": entry["grading"]}
        if config.evaluate.losses:
            self.manifest["stages"][stage]["forgetting"] = self.forgetting
        self._save()

    def _general(self, which: str, folder: Path) -> dict[str, Any]:
        """Figures of `evaluate.general` by lm-eval, to see what fine-tuning made the model forget; kept in `folder`."""
        from xtf.evaluation.general import evaluate_general
        from xtf.runtime.models import device, location

        model, tasks, limit = (
            self.config.model,
            self.config.evaluate.general,
            self.config.evaluate.general_limit,
        )
        file = folder / "general.json"
        figures: dict[str, Any] = read_json(file) if file.exists() else {}
        names = {task: f"{task}[:{limit or ''}]" for task in tasks}
        for task, name in names.items():
            if name not in figures:
                found = evaluate_general(
                    location(model) if which == "base" else str(self.folder / "model"),
                    [task],
                    revision=model.revision or "main",
                    device=str(device(self.config.trainer)),
                    limit=limit,
                )
                figures[name] = {key: dataclasses.asdict(metric) for key, metric in found.items()}
                write_json(file, figures)
        return {key: metric for name in names.values() for key, metric in figures[name].items()}

    def _losses(
        self, which: str, folder: Path, what: Mapping[str, Any], load: Callable[[], PreTrainedModel]
    ) -> dict[str, Any]:
        """Teacher-forced figures of `evaluate.losses`, kept in `folder`."""
        from xtf.evaluation import teacher_forced as losses
        from xtf.pretraining import corpus

        config = self.config
        if not config.evaluate.losses:
            return {}
        file, key = folder / "losses.json", digest([what, self.forgetting])
        entry = read_json(file) if file.exists() else {}
        if entry.get("key") != key:
            rows, texts = self.response_rows, []
            if config.evaluate.forgetting is not None:
                texts = losses.read_texts(Path(config.evaluate.forgetting))
            elif self.forgetting == "bundled":
                texts = corpus.held_out(HELD_OUT_DOCUMENTS)
            held_out = losses.text_rows(self.tokenizer, texts, config.model.max_length) if texts else []
            tokens = sum(len(row.input_ids) - 1 for row in (*rows, *held_out))
            with stopwatch() as seconds, bar(f"losses of the {which} model", tokens) as progress:
                predict = functools.partial(
                    losses.predict, load(), budget=config.trainer.tokens_per_microbatch, progress=progress
                )
                metrics = losses.response_figures(predict(rows))
                if held_out:
                    metrics["forgetting_loss"] = losses.mean_loss(predict(held_out))
            figures = {name: dataclasses.asdict(metric) for name, metric in metrics.items()}
            entry = {"key": key, "seconds": round(seconds(), 3), "metrics": figures}
            write_json(file, entry)
        found: dict[str, Any] = entry["metrics"]
        return found

    def record(self) -> dict[str, Any]:
        """Write scalars.csv and metrics.json, the mark of a finished run, from what the stages left."""
        from xtf.reporting.published import write_scalars
        from xtf.reporting.runs import Run

        config, stages = self.config, self.manifest["stages"]
        base = stages.get("evaluate_base", {})
        record = {
            "schema": SCHEMA,
            "task": config.task.name,
            "model": config.model.name,
            "tuning": config.tuning.name.value,
            "method": config.method.name,
            "scorer": config.scorer.name,
            "threshold": config.threshold.name,
            "seed": config.seed,
            "experiment": config.experiment,
            "overrides": plain(dict(self.changed)),
            "metrics": stages["evaluate"]["metrics"],
            "base_metrics": base.get("metrics"),
            "grading": stages["evaluate"]["grading"],
            "mask": stages["mask"]["stats"],
            "training": stages["train"]["record"],
            "encoding": self.manifest.get("encoding"),
            **({"planting": self.manifest["planting"]} if config.plant.share else {}),
            "data": self.manifest["data"],
            "timing": {name: stages[name]["seconds"] for name in TIMED if name in stages},
            "artifacts": {
                **stages["score"]["paths"],
                "mask": str(self.folder / "mask.parquet"),
                "model": str(self.folder / "model"),
                "generations": stages["evaluate"]["path"],
                "base_generations": base.get("path"),
                "train_log": str(self.folder / "train_log.csv"),
                "config": str(self.folder / "config.yaml"),
                "metrics": str(self.metrics_file),
            },
            "command": command(),
            "versions": versions(),
            "git_commit": git_commit(Path(__file__).parent),
        }
        write_scalars(Run(self.folder, record))
        write_json(self.metrics_file, record)
        return record

    def publish(self) -> None:
        """Mirror each finished stage once on the chosen logger; the files remain the record."""
        name = self.config.logger.name
        for stage in PUBLISHED if name == "wandb" else ("evaluate",) if name == "tensorboard" else ():
            entry = self.manifest["stages"].get(stage)
            if entry is None or self._published(stage) == digest(entry):
                continue
            from xtf.reporting.published import load_run, publish, publish_tensorboard

            if name == "wandb":
                publish(self.config, self.folder, stage, self.tokenizer)
            else:
                publish_tensorboard(load_run(self.folder))
            self._note_published(stage)

    def _published(self, stage: str) -> str | None:
        """A digest of what the chosen logger has been told about a stage."""
        found: str | None = self.manifest.get("published", {}).get(self.config.logger.name, {}).get(stage)
        return found

    def _note_published(self, stage: str) -> None:
        told = self.manifest.setdefault("published", {}).setdefault(self.config.logger.name, {})
        told[stage] = digest(self.manifest["stages"][stage])
        self._save()

    def report(self, record: Mapping[str, Any]) -> None:
        """Write the run's report, the explorer beside it, and show the summary."""
        from xtf.reporting.run_report import console_table, run_report

        files = [self.explorer(), *run_report(self.folder, self.reports)]
        console.print(console_table(dict(record)))
        say(f"metrics: {self.metrics_file}")
        for file in files:
            if file.suffix in (".html", ".md"):
                say(f"report:  {file}")

    @property
    def reports(self) -> Path:
        """Where people find what they read about this run."""
        return self.output / "reports" / "-".join(self.folder.relative_to(self.output / "runs").parts)

    def explorer(self) -> Path:
        """The page that shows which tokens train and why the others were dropped."""
        import pyarrow.parquet as pq

        from xtf.reporting.explorer import preview
        from xtf.reporting.runs import command_line

        config, path = self.config, self.reports / "preview.html"
        key = digest([self.manifest["stages"]["mask"]["sha256"], config.preview.examples])
        if path.exists() and self.manifest.get("explorer") == key:
            return path
        table = pq.read_table(self.folder / "mask.parquet")
        names = {key: value for key, value in plain(config).items() if isinstance(value, dict) and "name" in value}
        record = {key: value["name"] for key, value in names.items()}
        line = command_line({**record, "seed": config.seed, "overrides": plain(dict(self.changed))})
        preview(
            table,
            self.tokenizer,
            path,
            threshold=config.threshold,
            examples=config.preview.examples or 2000,
            command=line,
        )
        self.manifest["explorer"] = key
        self._save()
        return path

    def preview(self) -> None:
        """Show which tokens train and why the others were dropped: an HTML file, or coloured text."""
        import pyarrow.parquet as pq

        from xtf.reporting.explorer import preview_text

        if self.config.preview.format == "text":
            table = pq.read_table(self.folder / "mask.parquet")
            console.print(preview_text(table, self.tokenizer, examples=self.config.preview.examples or 5))
        else:
            say(f"preview: {self.explorer()}")


PUBLISHED = ("score", "mask", "train", "evaluate")  # stages that W&B is told about
TIMED = ("score", "reference", "mask", "evaluate_base", "train", "evaluate")


def _to_yaml(value: Any) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(value)
