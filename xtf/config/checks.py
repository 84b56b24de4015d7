"""What a configuration must satisfy before anything is loaded: one check a group, and `resolve`, which calls them all.

Every check raises ConfigError, in one sentence that names the key and the remedy.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib.util
import math
import pkgutil
import stat
import string
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xtf.config.identity import nearest, plain, side_files
from xtf.config.schema import (
    GROUPS,
    LARGEST_SEED,
    TRAINERS,
    Attribute,
    Backend,
    Backward,
    CheckpointChoice,
    Config,
    ConfigError,
    Engine,
    EvaluateConfig,
    ModelConfig,
    ModelSource,
    Optimizer,
    PlantConfig,
    PlantKind,
    PretrainConfig,
    RayConfig,
    Recipe,
    RIVariant,
    RowSource,
    ScorerConfig,
    SourceConfig,
    Stage,
    Strategy,
    TaskConfig,
    ThresholdConfig,
    TrainerConfig,
    TRConfig,
    TRFit,
    TRRule,
    TRThreshold,
    TRVariant,
    Tuning,
    TuningConfig,
    attribute_names,
)
from xtf.tiny import DATA_DIR

WITHOUT_EVALUATION = (Stage.score, Stage.mask, Stage.preview, Stage.export)  # stages that read no evaluation rows


def resolve(config: Config) -> Config:
    """The configuration with what depends on several groups filled in: table 3's hyper-parameters, the task's rows.

    Raises:
        ConfigError: for a value or a combination of values that cannot work.
    """
    check_names(config)
    check_ranges(config)
    check_output_dir(config.output_dir)
    check_seeds(config)
    check_shape(config.model)
    check_pretrain(config.pretrain)
    check_scorer(config.scorer)
    check_threshold(config.threshold)
    check_fit(config)
    check_mask(config)
    config = dataclasses.replace(config, model=fill_in_path(config.model), scorer=fill_in_scorer(config))
    tuning = fill_in_tuning(config)
    task = fill_in_task(config, tuning.examples)
    check_tuning(tuning, config.trainer)
    check_backward(tuning, config.method)
    check_task(task)
    check_plant(config.plant)
    config.method.check(config)
    check_files(config)
    check_evaluate(config.evaluate)
    check_trainer(config.trainer)
    check_engine(config.trainer, config.ray)
    check_nodes(config)
    if config.stage is Stage.export:
        check_export(config)
    if config.preview.against is not None and config.stage is not Stage.preview:
        raise ConfigError(f"preview.against={config.preview.against} is shown by stage=preview only")
    if config.archive is not None:
        raise ConfigError(f"archive={config.archive} is read by stage=report experiments=NAME only")
    return dataclasses.replace(config, task=task, tuning=tuning)


# --- every group: numbers and names ----------------------------------------------------------------------------------


def check_ranges(part: Any, prefix: str = "") -> None:
    """Hold every number below a dataclass to the range that its field states with `within`, and to be finite; refuse an
    empty text where null says that there is none, for that is what a shell makes of a variable that is not set."""
    for item in dataclasses.fields(part):
        value, key = getattr(part, item.name), f"{prefix}{item.name}"
        if item.default is None and isinstance(value, str) and not value.strip():
            raise ConfigError(f"{key} is empty (a variable that is not set?): give a value, or leave it out")
        stated = item.metadata.get("range", (-math.inf, math.inf, ()))
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{key}.")
        elif isinstance(value, Mapping):
            for name, entry in value.items():
                if dataclasses.is_dataclass(entry):
                    check_ranges(entry, f"{key}.{name}.")
                else:
                    _check_number(entry, f"{key}.{name}", entry, *stated)
        else:
            for number in value if isinstance(value, list | tuple) else [value]:
                _check_number(number, key, value, *stated)


def _check_number(number: Any, key: str, shown: Any, low: float, high: float, excluding: tuple[float, ...]) -> None:
    if not isinstance(number, int | float) or isinstance(number, bool):
        return
    if -math.inf < number < math.inf and low <= number <= high and number not in excluding:
        return
    least = "" if low == -math.inf else f"above {_bound(low)}" if low in excluding else f"at least {_bound(low)}"
    most = "" if high == math.inf else f"below {_bound(high)}" if high in excluding else f"at most {_bound(high)}"
    bounds = " and ".join(filter(None, [least, most])) or "finite"
    raise ConfigError(f"{key}={plain(shown)} is out of range: it must be {bounds}")


def _bound(number: float) -> str:
    """All digits of a whole number: a value that is typed as it is shown must be in range."""
    return str(number) if isinstance(number, int) else f"{number:g}"


def check_names(config: Config) -> None:
    """Refuse names that cannot be a folder's, for the run's folder consists of them, and an empty output folder."""
    for group in GROUPS:
        if group not in ("tuning", "pretrain"):
            check_name(f"{group}.name", getattr(config, group).name)
    check_name("pretrain.name", config.pretrain.name)
    if config.experiment is not None:
        check_name("experiment", config.experiment)
    named = {group: getattr(config, group).name for group in ("task", "model", "method", "scorer", "threshold")}
    if (size := sum(len(name.encode()) for name in named.values())) > TOGETHER:
        raise ConfigError(
            f"{', '.join(f'{group}.name={name}' for group, name in named.items())}: a run's report lies in a folder "
            f"that has all five names, which may have {TOGETHER} bytes together, not {size}"
        )


LONGEST, TOGETHER = 100, 200  # bytes: file systems take 255 a name, and suffixes, seed and a hash are added


def check_name(key: str, name: str) -> None:
    """Refuse a name that could not be a part of a path."""
    if not name.strip() or name in (".", "..") or any(c in "/\\" or not c.isprintable() for c in name):
        raise ConfigError(
            f"{key}={name!r} becomes the name of a folder: it must not be empty, . or .., "
            "nor contain / or \\ or control characters"
        )
    if (size := len(name.encode())) > LONGEST:
        raise ConfigError(f"{key}={name[:20]}... becomes the name of a folder: it may have {LONGEST} bytes, not {size}")


def check_output_dir(given: str) -> None:
    """Refuse an output folder that is empty, or has something else than a folder on its path."""
    if not given.strip():
        raise ConfigError("output_dir is empty: give a folder, e.g. output_dir=outputs")
    path = Path(given).absolute()
    for place in (path, *path.parents):
        try:
            mode = place.stat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            if not place.is_symlink():  # one that leads nowhere is in the way
                continue
            raise ConfigError(f"output_dir={given}: the link {place} leads nowhere; give a folder") from error
        except (OSError, ValueError) as error:  # too long, not to be entered; a null character
            why = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"output_dir={given!r} cannot be a folder: {why}") from error
        if not stat.S_ISDIR(mode):
            raise ConfigError(f"output_dir={given}: {place} is not a folder; give one")
        return


def _check_there(key: str, path: str, there: Callable[[Path], bool], more: str = "") -> None:
    try:
        found = there(Path(path))
    except OSError as error:  # too long a name, a folder that may not be entered
        raise ConfigError(f"{key}={path}: {error.strerror}") from error
    if not found:
        raise ConfigError(f"{key}={path}: there is no such file{more}")


def check_seeds(config: Config) -> None:
    """Refuse a probe whose last seed is none."""
    last = config.seed + config.pilot.seeds - 1
    if config.probe and last > LARGEST_SEED:
        raise ConfigError(
            f"seed={config.seed} and pilot.seeds={config.pilot.seeds}: the last seed would be {last}, and they end at "
            f"{LARGEST_SEED}"
        )


# --- model -----------------------------------------------------------------------------------------------------------


def fill_in_path(model: ModelConfig) -> ModelConfig:
    """The model with its `path`: as given, else as `model.source` says."""
    places = {ModelSource.package: model.package, ModelSource.hub: model.hub}
    if model.path:
        if model.source is not None and model.path != places[model.source]:
            raise ConfigError(
                f"model.path={model.path} and model.source={model.source.value} both name the weights; unset one"
            )
        return model
    chosen = model.source or next((source for source, path in places.items() if path), None)
    if chosen is None:
        raise ConfigError("no value for model.path; set it on the command line as model.path=FOLDER")
    path = places[chosen]
    if path is None:
        raise ConfigError(f"model={model.name} has no model.{chosen.value}, so model.source={chosen.value} finds none")
    return dataclasses.replace(model, path=path, source=chosen)


def check_shape(model: ModelConfig) -> None:
    """Refuse a stated shape of which a part is missing or does not fit the others."""
    shape = model.shape
    if not shape.layers:
        return
    for key in ("hidden", "intermediate", "heads", "kv_heads", "vocabulary"):
        if not getattr(shape, key):
            raise ConfigError(f"model.shape.{key}=0 with model.shape.layers={shape.layers}: state it too")
    if not shape.head_dim and shape.heads > shape.hidden:
        raise ConfigError(
            f"model.shape.heads={shape.heads} is more than model.shape.hidden={shape.hidden}: state "
            "model.shape.head_dim"
        )


def check_pretrain(pretrain: PretrainConfig) -> None:
    """Refuse widths that do not fit each other, and more text than is held in memory."""
    hidden, heads, groups = pretrain.hidden, pretrain.heads, pretrain.key_value_heads
    if heads % groups:
        raise ConfigError(f"pretrain.heads={heads} must be a multiple of pretrain.key_value_heads={groups}")
    if not (width := hidden // heads) or width % 2:
        raise ConfigError(
            f"pretrain.hidden={hidden} and pretrain.heads={heads} make heads {width} wide: it must be an even number, "
            "for rotary positions turn pairs"
        )
    tokens = pretrain.steps * pretrain.step_rows * pretrain.row_tokens
    if tokens > PRETRAIN_TOKENS:
        raise ConfigError(
            f"pretrain.steps={pretrain.steps}, pretrain.step_rows={pretrain.step_rows} and "
            f"pretrain.row_tokens={pretrain.row_tokens} make {tokens:,} tokens, which are held in memory together: at "
            f"most {PRETRAIN_TOKENS:,}"
        )


PRETRAIN_TOKENS = 10**9  # 4 GB of token ids


# --- scorer ----------------------------------------------------------------------------------------------------------


def check_scorer(scorer: ScorerConfig) -> None:
    """Refuse an attribute that is not known."""
    known = attribute_names()
    for key in ("attributes", "compute"):
        for name in getattr(scorer, key):
            if name not in known:
                raise ConfigError(
                    f"scorer.{key}: there is no attribute {name!r}{nearest(name, known)} (known: {', '.join(known)})"
                )
    if scorer.attenders and scorer.ri.variant is RIVariant.released:
        raise ConfigError("scorer.attenders: scorer.ri.variant=released looks at no token's attention; unset one")


def fill_in_scorer(config: Config) -> ScorerConfig:
    """The scorer with the path of the model that scores in the place of `model`, if one does.

    Raises:
        ConfigError: nothing is left for it to score, or what it says would be compared with what `model` says.
    """
    scorer, method = config.scorer, config.method
    if scorer.model is None:
        return scorer
    key = f"scorer.model={scorer.model.name}"
    if not scorer.attributes or not method.masked:
        raise ConfigError(
            f"{key} scores for a mask, and method={method.name} with scorer={scorer.name} has none: unset it"
        )
    if others := sorted(set(method.needs) & {"ref_logp", "logp_unconditional"}):
        raise ConfigError(f"{key}: method={method.name} compares its log p with {', '.join(others)} of model: unset it")
    return dataclasses.replace(scorer, model=fill_in_path(scorer.model))


# --- threshold -------------------------------------------------------------------------------------------------------


def check_threshold(threshold: ThresholdConfig) -> None:
    """Ranges, and what must hold between the settings of one attribute's rule; the library calls this too."""
    check_ranges(threshold, "threshold.")
    for name in attribute_names():
        rule = getattr(threshold, name, None)  # None: made before the attribute was registered, which has its defaults
        if rule is not None and rule.rule.value == "quantile":
            _check_number(rule.q + rule.shift, f"threshold.{name}.q + shift", rule.q + rule.shift, 0, 1, ())
    tr = threshold.tr
    if tr.cluster > tr.classes:
        raise ConfigError(
            f"threshold.tr.cluster={tr.cluster} is out of range: it must be from 1 to classes ({tr.classes})"
        )
    if tr.bins < tr.classes:
        raise ConfigError(f"threshold.tr.bins={tr.bins} is out of range: it must be at least classes ({tr.classes})")


def check_fit(config: Config) -> None:
    """Refuse to fit TR's threshold to prompts whose TR no pass brings."""
    tr, scorer = config.threshold.tr, config.scorer
    if not config.method.masked or Attribute.tr not in scorer.attributes or not fitted_to_prompts(tr):
        return
    if scorer.model is not None or not by_id(scorer.tr):
        why = "scorer.tr.variant=contextual" if scorer.model is None else f"scorer.model={scorer.model.name}"
        raise ConfigError(
            f"threshold.tr.fit=released is fitted to the TR of the prompts too, which {why} does not score: set "
            "threshold.tr.fit=responses"
        )


def by_id(tr: TRConfig) -> bool:
    """Whether TR of a token is that of its id, so that a prompt's tokens have it too."""
    return tr.variant is not TRVariant.contextual


def fitted_to_prompts(threshold: TRThreshold) -> bool:
    """Whether TR's threshold reads the TR of the prompts."""
    return threshold.rule is TRRule.multi_otsu and threshold.fit is TRFit.released


MASK_SETTINGS = ("dropped_weight", "drop_probability", "protect")  # of thresholds, beside what they judge by


def check_mask(config: Config) -> None:
    """Refuse settings of a mask where the method follows none."""
    for name in MASK_SETTINGS:
        value = getattr(config.threshold, name)
        if value != getattr(ThresholdConfig, name) and not config.method.masked:
            raise ConfigError(
                f"threshold.{name}={plain(value)} is read by methods that drop what scorer and threshold say (xtf, "
                f"random, low_loss, high_loss), not by method={config.method.name}: unset it"
            )


# --- tuning and trainer ----------------------------------------------------------------------------------------------


def fill_in_tuning(config: Config) -> TuningConfig:
    """The tuning with what it leaves open taken from the model's recipe: the paper's table 3."""
    model, tuning = config.model, config.tuning
    recipe = model.recipes.get(tuning.name.value)
    if recipe is None:
        if None in (tuning.epochs, tuning.learning_rate, tuning.batch_size):
            have = ", ".join(sorted(model.recipes)) or "none"
            raise ConfigError(
                f"model {model.name} has no recipe for tuning={tuning.name.value} (it has: {have}); "
                "give tuning.epochs, tuning.learning_rate and tuning.batch_size"
            )
        shape = {"schedule": Recipe.schedule, "warmup_ratio": Recipe.warmup_ratio}
        return _fill(tuning, shape)
    rate = recipe.learning_rate_by_task.get(config.task.name, recipe.learning_rate)
    keys = ("examples", "epochs", "batch_size", "schedule", "warmup_ratio")
    return _fill(tuning, {"learning_rate": rate} | {key: getattr(recipe, key) for key in keys})


def _fill(tuning: TuningConfig, values: Mapping[str, Any]) -> TuningConfig:
    return dataclasses.replace(tuning, **{k: v for k, v in values.items() if getattr(tuning, k) is None})


def check_tuning(tuning: TuningConfig, trainer: TrainerConfig) -> None:
    """Refuse settings of the training that exclude each other."""
    if tuning.checkpoint is CheckpointChoice.best and not tuning.validation_fraction:
        raise ConfigError("tuning.checkpoint=best needs a validation split: set tuning.validation_fraction, e.g. 0.1")
    if len(tuning.betas) != 2:
        raise ConfigError(f"tuning.betas={tuning.betas} must be two numbers, e.g. [0.9,0.999]")
    if tuning.optimizer is Optimizer.muon and (tuning.name is Tuning.lora or trainer.strategy is Strategy.fsdp):
        raise ConfigError("tuning.optimizer=muon works on whole matrices: use tuning=full, and not trainer=fsdp")
    if tuning.backward is not Backward.exact and trainer.compile:
        raise ConfigError(
            f"tuning.backward={tuning.backward.value} filters within the packed attention, which trainer.compile=true "
            "replaces: use one of the two"
        )


def check_backward(tuning: TuningConfig, method: Any) -> None:
    """Refuse a filtered backward pass where no mask is known before the step."""
    if tuning.backward is not Backward.exact and method.online:
        raise ConfigError(
            f"tuning.backward={tuning.backward.value} needs a mask that is there before the step, and "
            f"method={method.name} weighs tokens within it: use tuning.backward=exact"
        )


def check_trainer(trainer: TrainerConfig) -> None:
    """Refuse several devices or machines without a strategy for them."""
    for key in ("devices", "nodes"):
        if trainer.strategy is Strategy.auto and (number := getattr(trainer, key)) > 1:
            raise ConfigError(f"trainer.{key}={number} needs trainer=ddp or trainer=fsdp")


def check_engine(trainer: TrainerConfig, ray: RayConfig) -> None:
    """Refuse Ray where it is not installed, and an address that it is not asked to go to."""
    if trainer.engine is Engine.ray and importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "trainer.engine=ray needs Ray, which is not installed: pip install 'xtf[ray]', or leave "
            "trainer.engine=processes"
        )
    if ray.address is not None and trainer.engine is not Engine.ray:
        raise ConfigError(f"ray.address={ray.address} is read with trainer.engine=ray only")
    if ray.address is not None and "://" in ray.address:
        raise ConfigError(
            f"ray.address={ray.address} is that of Ray Client: run this command on a node of the cluster (ray job "
            "submit does), and give ray.address=auto, or HOST:6379"
        )


def check_nodes(config: Config) -> None:
    """Refuse several machines for what trains more than one run, or outside a run's stages."""
    nodes = config.trainer.nodes
    if nodes > 1 and (config.probe or config.stage in (Stage.pretrain, Stage.dashboard)):
        what = "probe=true" if config.probe else f"stage={config.stage.value}"
        raise ConfigError(f"{what} runs on one machine: unset trainer.nodes={nodes}")


# --- task ------------------------------------------------------------------------------------------------------------


def fill_in_task(config: Config, examples: int | None) -> TaskConfig:
    """The task with its rows found, at most `examples` to train on, and with what a bundled sample brings along.

    A limit of the task's own counts in the place of a recipe's number; of it and `tuning.examples` the smaller one.
    """
    model, task = config.model, config.task
    train = _source(task, "train", model)
    limits = [limit for limit in (train.limit or examples, config.tuning.examples) if limit is not None]
    if limits:
        train = dataclasses.replace(train, limit=min(limits))
    bundled = model.bundled_data or task.source is RowSource.bundled
    judged = task.grader == "judge" and task.judge.base_url is None  # any other grader was chosen
    if bundled and task.eval.path is None and task.bundled_grader and judged:
        task = dataclasses.replace(task, grader=task.bundled_grader)
    max_new = min(task.max_new_tokens, model.max_new_tokens or task.max_new_tokens)
    evaluated = config.probe or config.stage not in WITHOUT_EVALUATION
    evaluation = _source(task, "eval", model, needed=evaluated)
    return dataclasses.replace(task, train=train, eval=evaluation, max_new_tokens=max_new)


def _source(task: TaskConfig, which: str, model: ModelConfig, needed: bool = True) -> SourceConfig:
    """The rows for `which` ("train" or "eval"): a given path, else a bundled sample, else the hub; as given where there
    are none and none are `needed`."""
    source: SourceConfig = getattr(task, which)
    if task.source is RowSource.bundled and source.path not in (None, _bundled(task, which)):
        raise ConfigError(f"task.{which}.path={source.path} and task.source=bundled both name the rows; unset one")
    if source.path is not None:
        _check_there(f"task.{which}.path", source.path, Path.exists, f" (working folder: {Path.cwd()})")
        return source
    if model.bundled_data or task.source is RowSource.bundled:
        path = _bundled(task, which)
        if path is None and not needed:
            return source
        if path is None:
            raise ConfigError(
                f"there is no bundled sample for task={task.name}, so model={model.name} needs task.{which}.path"
            )
        return dataclasses.replace(source, path=path)
    if source.hub is None and needed:
        raise ConfigError(f"task={task.name} has no rows: give task.{which}.path=FILE or task.{which}.hub=DATASET_ID")
    return source


def _bundled(task: TaskConfig, which: str) -> str | None:
    return None if task.bundled is None else str(DATA_DIR / f"{task.bundled}_{which}.jsonl")


COLDEST = 1e-3  # a temperature at which the likeliest token is drawn, but for near ties


def check_task(task: TaskConfig) -> None:
    """Refuse a temperature that divides logits beyond any float, samples and pass@k that do not fit each other,
    templates that read nothing, and a date that is none."""
    if task.response is not None and task.prompt is None:
        raise ConfigError(
            f"task.response={task.response} is read beside task.prompt only: give the template of the prompt too"
        )
    for key in ("prompt", "response", "reference"):
        if (template := getattr(task, key)) is not None and not _has_field(f"task.{key}", template):
            raise ConfigError(
                f"task.{key}={template} is the same text for every row: a column's name stands in braces, e.g. "
                f"task.{key}='{{{template if template.isidentifier() else 'column'}}}'"
            )
    try:
        datetime.date.fromisoformat(task.date)
    except ValueError as error:
        raise ConfigError(f"task.date={task.date} must be a date like 2024-07-26") from error
    if 0 < task.temperature < COLDEST:
        raise ConfigError(
            f"task.temperature={task.temperature} is out of range: it must be 0, which is greedy, or at least {COLDEST}"
        )
    if task.samples > 1 and task.temperature == 0:
        raise ConfigError(
            f"task.samples={task.samples} with task.temperature=0 gives {task.samples} equal completions; "
            "set task.temperature, e.g. 0.8, or task.samples=1"
        )
    if max(task.pass_at, default=1) > task.samples:
        raise ConfigError(f"task.pass_at={task.pass_at} needs task.samples >= {max(task.pass_at)}, not {task.samples}")


def _has_field(key: str, template: str) -> bool:
    try:
        return any(name is not None for _, name, _, _ in string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"{key}={template} is no template: {error}") from error


# --- planted noise (a method checks itself: xtf.scoring.methods.Method.check) ----------------------------------------


def check_plant(plant: PlantConfig) -> None:
    """Refuse no kind of noise, or one twice."""
    if plant.share and (not plant.kinds or len(set(plant.kinds)) < len(plant.kinds)):
        raise ConfigError(
            f"plant.kinds={plain(plant.kinds)} must name one or more different kinds: "
            + ", ".join(kind.value for kind in PlantKind)
        )


# --- files beside the rows' own --------------------------------------------------------------------------------------


def check_files(config: Config) -> None:
    """Refuse a file of ids, or of the method, that is not there."""
    for key, path in side_files(config).items():
        _check_there(key, str(path), Path.is_file, f" (working folder: {Path.cwd()})")


# --- evaluation ------------------------------------------------------------------------------------------------------


def check_evaluate(evaluate: EvaluateConfig) -> None:
    """Refuse a backend that is not installed, or a text for forgetting that is not read."""
    if evaluate.backend is Backend.vllm and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "evaluate.backend=vllm needs vLLM, which is not installed: pip install 'xtf[vllm]' (Linux with a GPU), "
            "or leave evaluate.backend=hf"
        )
    forgetting = evaluate.forgetting
    if forgetting is not None and not evaluate.losses:
        raise ConfigError(f"evaluate.forgetting={forgetting} is read with evaluate.losses=true only")
    if forgetting is not None:
        _check_there("evaluate.forgetting", forgetting, Path.is_file)


# --- export ----------------------------------------------------------------------------------------------------------


def check_export(config: Config) -> None:
    """Refuse what cannot be exported, before anything is scored for it."""
    trainers, method, to = pkgutil.resolve_name(TRAINERS), config.method, config.export.to
    if to not in trainers:
        raise ConfigError(f"export.to={to} is not known{nearest(to, trainers)} (choices: {', '.join(trainers)})")
    if method.online:
        raise ConfigError(
            f"method={method.name} weighs tokens with the model in training, which no file can hold, so "
            f"export.to={to} would be plain fine-tuning: train it here (stage=all), or export another method"
        )
    if method.masked and config.threshold.drop_probability < 1:
        raise ConfigError(
            f"threshold.drop_probability={config.threshold.drop_probability} draws anew in each epoch what is dropped, "
            f"which no file can hold, so export.to={to} would drop it in all: train it here (stage=all), or set it to 1"
        )
    if method.masked and config.threshold.dropped_weight and not trainers[to].weights:
        reading = ", ".join(f"export.to={name}" for name, trainer in trainers.items() if trainer.weights)
        raise ConfigError(
            f"threshold.dropped_weight={config.threshold.dropped_weight} gives fractional weights, which "
            f"{trainers[to].title} does not read: export to one that does ({reading}), or set it to 0"
        )
    if method.in_parts:
        raise ConfigError(
            f"method={method.name} cleans each part of the rows with the model that the parts before have left, which "
            "no file can hold: train it here (stage=all), or export another method"
        )
