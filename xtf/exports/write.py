"""stage=export and `xtf.export`: a masked table -> a folder with data, configuration, README.md and export.json."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from xtf.config.identity import digest, plain
from xtf.config.schema import Accelerator, Config, ConfigError, ExportConfig, Precision, Tuning, TuningConfig
from xtf.data.batches import Batches, parquet_batches
from xtf.data.provenance import tokenizer_digest
from xtf.exports import TRAINERS
from xtf.exports.base import (
    TOKENIZER,
    MaskedRows,
    Trainer,
    TrainingRecipe,
    check_vocabulary,
    checked_rows,
    fitting_length,
    tokenizer_state,
)
from xtf.runtime.artifacts import naming, read_entry, sha256, temporary_beside, versions, with_digest, write_json
from xtf.runtime.models import context_of, location
from xtf.runtime.progress import say
from xtf.runtime.run_folder import Manifest, RunFolder
from xtf.scoring.masks import notes

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from xtf.data.encode import Encoded

RECORD = "export.json"


def export_run(
    config: Config,
    folder: RunFolder,
    manifest: Manifest,
    rows: Callable[[], Sequence[Encoded]],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """stage=export: a run's mask.parquet for another trainer, and what there is to know of it on the console.

    Args:
        rows: gives the training rows encoded by `tokenizer`; not called where the method has `own_rows`.

    Raises:
        ConfigError: a length that does not fit.
        ValueError: a mask that the trainer cannot take, another tokenizer's, or a folder that holds something else.
    """
    masked = Batches(lambda: parquet_batches([folder.mask]))
    if not config.method.own_rows:
        _refuse_other_tokens(masked, rows(), config.model.path, folder)
    stats = manifest.stages["mask"]["stats"]
    about = {
        "run": folder.name,
        "rule": _rule(config, stats),
        "sources": {
            "mask.parquet": manifest.stages["mask"]["sha256"],
            f"training rows ({manifest.data['train']['source']})": manifest.data["train"]["sha256"],
        },
    }
    base = location(config.model)
    place = export_table(
        masked,
        config.export,
        folder.export(config.export.to),
        tokenizer=tokenizer,
        own_tokenizer=config.model.tokenizer is None,
        model=str(Path(base).resolve()) if Path(base).is_dir() else base,
        revision=config.model.revision,
        tuning=config.tuning,
        epochs=(config.tuning.epochs or 1) * config.method.epochs_factor,
        seed=config.seed,
        bf16=config.trainer.precision is Precision("bf16-mixed")
        or (config.trainer.precision is Precision.auto and config.trainer.accelerator is Accelerator.gpu),
        about=about,
    )
    said = read_export(place)
    empty = said["rows_without_label"]
    what = "kept" if empty["empty_rows"] == "keep" else "left out"
    say(f"export: {place}, {said['rows']} rows; {empty['count']} rows without any label {what}")
    for line in said["not_carried"]:
        say(f"not in the export's configuration: {line}")
    for line in said.get("other_versions", []):
        say(line)
    say(f"how to train with it: {place / 'README.md'}")


def export_table(
    masked: pa.Table | Batches,
    export: ExportConfig,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase,
    own_tokenizer: bool,
    model: str,
    revision: str | None,
    tuning: TuningConfig,
    epochs: int,
    seed: int,
    bf16: bool,
    about: Mapping[str, Any],
) -> Path:
    """Check a masked table and write it for the trainer `export.to`; returns `folder`.

    Args:
        own_tokenizer: whether the tokenizer is the one at `model`; another is saved with the export.
        model: what the configuration names: a folder, or an id on the hub.
        about: `rule`, the lines that say what is masked, and `sources`, hashes by name, for the README.

    Raises:
        ValueError: see `export_run`.
    """
    from transformers import AutoConfig

    trainer = TRAINERS[export.to]()
    # The rows go where the export goes, or where a folder is that will hold its folder.
    nearest = next(parent for parent in folder.absolute().parents if parent.is_dir())
    rows = checked_rows(masked, trainer, export.empty_rows, nearest)
    check_vocabulary(rows, tokenizer)
    try:
        shape = AutoConfig.from_pretrained(model, revision=revision).get_text_config()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the configuration of the model {model!r}, which the export names, cannot be read: "
            f"{str(error).splitlines()[0]}; give one that is there, its folder or its id on the hub"
        ) from error
    recipe = TrainingRecipe(
        model=model,
        revision=revision,
        max_length=fitting_length(rows, export.max_length, context_of(shape)),
        tuning=tuning,
        epochs=epochs,
        seed=seed,
        bf16=bf16,
        lora_targets=_lora_targets(tuning, shape.model_type) if tuning.name is Tuning.lora else (),
        tokenizer=None if own_tokenizer else TOKENIZER,
        pad_token=tokenizer.eos_token if tokenizer.pad_token is None else None,
    )
    # What earlier versions did not know names an export only where it says something.
    named = {k: v for k, v in plain(recipe).items() if k not in ("tokenizer", "pad_token") or v is not None}
    tokens = [tokenizer_digest(tokenizer), *([] if own_tokenizer else [tokenizer_state(tokenizer)])]
    record = {
        "to": trainer.name,
        "identity": digest([trainer.name, rows.digest, plain(export), named, *tokens], length=64),
        "rows": rows.table.num_rows,
        "tokens": rows.tokens,
        "kept_tokens": rows.kept,
        "rows_without_label": {"count": rows.without_label, "empty_rows": export.empty_rows.value},
        "rows_sha256": rows.digest,
        "tokenizer": tokenizer_digest(tokenizer),
        "recipe": plain(recipe),
        **about,
    }
    if not _is_there(folder, record):
        _write(folder, trainer, rows, recipe, record, tokenizer)
    return folder


# -- the folder ------------------------------------------------------------------------------------------------------


def read_export(folder: Path) -> dict[str, Any]:
    """The record of an export.

    Raises:
        DamagedError: it is damaged, or another program's.
    """
    needed = {"identity": str, "rows_sha256": str, "files": dict}
    return read_entry(folder / RECORD, f"delete {folder} to redo it, or give another folder", **needed)


def _is_there(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether `folder` holds this export.

    Raises:
        ValueError: it holds another one, or anything else; nothing of it is touched.
    """
    if file := next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None):
        raise ValueError(f"{folder} can hold no export, for {file} is a file: give another folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    if not (folder / RECORD).is_file():
        raise ValueError(f"{folder} is not empty and holds no export: delete it, or give another folder")
    before = read_export(folder)
    if before["identity"] != record["identity"]:
        raise ValueError(
            f"{folder} holds another export (rows {before['rows_sha256'][:12]}, identity {before['identity'][:12]}; "
            f"this one: rows {record['rows_sha256'][:12]}, identity {record['identity'][:12]}): delete it, or give "
            "another folder"
        )
    now = {name: sha256(folder / name) for name in before["files"] if (folder / name).exists()}
    changed = [name for name, hashed in before["files"].items() if now.get(name) != hashed]
    if changed:
        raise ValueError(f"{folder}: {', '.join(changed)} changed since it was exported; delete the folder to redo it")
    return True


def _write(
    folder: Path,
    trainer: Trainer,
    rows: MaskedRows,
    recipe: TrainingRecipe,
    record: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write everything beside `folder` and rename it there: an export is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    temporary.mkdir()
    try:
        with naming(folder):
            trainer.write(rows, recipe, temporary)
            if recipe.tokenizer:
                tokenizer.save_pretrained(temporary / recipe.tokenizer)
            hashes = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
            here = versions(*trainer.packages, *trainer.tried_with)
            whole = {
                **record,
                "files": hashes,
                "versions": here,
                "other_versions": other_versions(trainer, here),
                "not_carried": recipe.not_carried(trainer),
            }
            template = (files("xtf.exports") / "README.md.j2").read_text(encoding="utf-8")
            environment = Environment(
                undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
            )
            page = environment.from_string(template).render({**whole, "trainer": trainer, "recipe": recipe})
            (temporary / "README.md").write_text(page, encoding="utf-8")
            write_json(temporary / RECORD, with_digest(whole))
        if folder.is_dir():
            folder.rmdir()  # empty, says _is_there
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def other_versions(trainer: Trainer, here: Mapping[str, str]) -> list[str]:
    """A sentence for each package of the trainer that is here in another minor version than it was tried with.

    Nothing is said where the trainer itself is not installed: it will run elsewhere, and the README names the versions.
    """
    if here.get(next(iter(trainer.tried_with), "")) in (None, "not installed"):
        return []
    return [
        f"{package} {here[package]} is installed here, and may read them otherwise: these files were tried with {tried}"
        for package, tried in trainer.tried_with.items()
        if here[package].split(".")[:2] != tried.split(".")[:2]
    ]


# -- what a run says -------------------------------------------------------------------------------------------------


def _refuse_other_tokens(masked: Batches, rows: Sequence[Encoded], model: str, folder: RunFolder) -> None:
    """Raises:
    ValueError: the model's tokenizer does not give the ids that were masked.
    """
    other, start = 0, 0
    for batch in masked:
        ids = batch.column("input_ids").to_pylist()
        there = rows[start : start + len(ids)]
        other += sum(row.input_ids != own for row, own in zip(there, ids, strict=False))
        start += len(ids)
    if other or len(rows) != start:
        raise ValueError(
            f"{folder.mask} was made with another tokenizer than the one in {model} now: {other} of {start} "
            f"rows have other ids; delete {folder.path} and run it again"
        )


def _rule(config: Config, stats: Mapping[str, Any]) -> list[str]:
    """What the run masks and by which rule, in lines."""
    method = config.method
    said = " ".join((type(method).__doc__ or "").split("\n\n")[0].split())
    settings = {key: value for key, value in plain(method).items() if key not in ("name", "_target_")}
    lines = [f"method={method.name}: {said}" + (f" With {settings}." if settings else "")]
    if method.masked:
        attributes = ", ".join(config.scorer.attributes) or "none"
        lines.append(
            f"scorer={config.scorer.name} (attributes: {attributes}), threshold={config.threshold.name}, "
            f"end tokens {config.threshold.end.value}"
        )
        lines += notes(stats)
        lines += [f"{name}: {values}" for name, values in stats["thresholds"].items()]
    shares = ", ".join(f"{name} {share:.1%}" for name, share in stats["dropped_share"].items())
    lines.append(f"dropped of {stats['response_tokens']:,} response tokens: {shares}")
    lines += [f"the attribute {one['attribute']} is degenerate: {one['reason']}" for one in stats["degenerate"]]
    return lines


def _lora_targets(tuning: TuningConfig, architecture: str) -> list[str]:
    """The modules that get adapters: those of the run, else PEFT's for the architecture, by name."""
    if find_spec("peft") is None:
        raise ConfigError("the adapters of tuning=lora need the package peft: pip install 'xtf[run]'")
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    chosen = list(tuning.lora.target_modules) or list(
        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(architecture, [])
    )
    if not chosen:
        raise ConfigError(f"PEFT names no modules for {architecture}: set tuning.lora.target_modules, e.g. [q_proj]")
    return chosen
