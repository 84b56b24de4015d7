"""The typed schema of a run: every key that a YAML file or the command line may set, its type and its default.

Nothing here imports torch, so a wrong configuration is refused before a model library is loaded. The dataclasses
are the only place where defaults live; the files in ``conf/`` name just what differs from them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import importlib.util
import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import MISSING, DictConfig, OmegaConf


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which key and what to do."""


def _within(default: Any, low: float, high: float = float("inf")) -> Any:
    """A field whose value must lie in [low, high]; None stays allowed where the type says so."""
    return field(default=default, metadata={"range": (low, high)})


class Stage(Enum):
    """What `python run.py` does; each stage reuses the artifacts of the ones before it."""

    all = "all"
    score = "score"
    mask = "mask"
    train = "train"
    evaluate = "evaluate"
    report = "report"
    preview = "preview"
    dashboard = "dashboard"  # lay out the W&B workspace
    pretrain = "pretrain"  # make a base model from nothing
    plan = "plan"  # what the other stages would cost; runs nothing


class Attribute(Enum):
    """The paper's three token attributes (section 3): a token that lacks any one of them is noise."""

    ri = "ri"  # reasoning importance: attention that the token receives
    kn = "kn"  # knowledge novelty: 1 - p of the token under the base model
    tr = "tr"  # task relevance: nearness of its embedding to the task's centre


class RIVariant(Enum):
    received = "received"  # mean over later queries of the attention paid to the token
    released = "released"  # the authors' code: layer 0, mean over keys, which is 1 / T for every token


class Scale(Enum):
    log = "log"
    raw = "raw"


class TRVariant(Enum):
    dataset = "dataset"  # embedding rows against the mean embedding of the training text
    released = (
        "released"  # the authors' code: last hidden states of one-token inputs against those of domain words
    )


class RIRule(Enum):
    iqr = "iqr"
    quantile = "quantile"


class KNRule(Enum):
    cutoff = "cutoff"
    quantile = "quantile"


class TRRule(Enum):
    multi_otsu = "multi_otsu"
    quantile = "quantile"


class Tuning(Enum):
    full = "full"
    lora = "lora"


class Schedule(Enum):
    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    trapezoid = "trapezoid"  # constant, then linear to 0 over the last third of the steps


class Optimizer(Enum):
    adamw = "adamw"
    muon = "muon"  # Muon for the matrices of the layers, AdamW for the rest; on whole weights only


class Divisor(Enum):
    kept = "kept"  # tokens that carry loss in the whole optimizer step
    response = "response"  # all response tokens of the step, dropped ones included


class PlantKind(Enum):
    """Kinds of noise that can be planted into training responses (`xtf.planting`)."""

    off_task = "off_task"  # sentences of another domain
    boilerplate = "boilerplate"  # fixed openings and closings, the same in many rows
    corrupted = "corrupted"  # numbers, operators, names or words changed so that a step is wrong
    redundant = "redundant"  # a step restated
    formatting = "formatting"  # blanks, Markdown, list marks


class Turns(Enum):
    last = "last"  # the last assistant turn is the response; what precedes it is the prompt
    all = "all"  # every assistant turn becomes an example of its own, with the turns before it as its prompt


class CheckpointChoice(Enum):
    last = "last"
    best = "best"  # lowest validation loss; needs tuning.validation_fraction > 0


class Backend(Enum):
    """What generates the completions of an evaluation."""

    hf = "hf"
    vllm = "vllm"  # extra `vllm`; on a GPU


class AttentionKernel(Enum):
    auto = "auto"  # flash attention where it is installed and the device can run it, else sdpa
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    eager = "eager"


@dataclass(frozen=True)
class Recipe:
    """One cell of the paper's table 3: how many training examples, how long, how fast."""

    examples: int | None = None
    epochs: int = 3
    learning_rate: float = MISSING
    learning_rate_by_task: dict[str, float] = field(default_factory=dict)
    batch_size: int = 8
    schedule: Schedule = Schedule.constant
    warmup_ratio: float = 0.0


@dataclass(frozen=True)
class ModelShape:
    """What stage=plan counts memory with, where the model's own config.json is not on this machine."""

    layers: int = 0  # 0: not stated
    hidden: int = 0
    intermediate: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0  # 0: hidden / heads
    vocabulary: int = 0
    tied: bool = False  # the LM head is the embedding
    bias: bool = False  # of the query, key and value projections
    qk_norm: bool = False


@dataclass(frozen=True)
class ModelConfig:
    name: str = MISSING
    path: str = MISSING  # a folder, or an id on the Hugging Face hub
    revision: str | None = None
    bundled_data: bool = False  # true for the tiny model alone: tasks without a path use the bundled sample
    max_length: int = _within(2048, 8)  # longest prompt + response, in tokens
    max_new_tokens: int | None = _within(None, 1)  # a cap on the task's
    attention: AttentionKernel = AttentionKernel.auto
    recipes: dict[str, Recipe] = field(default_factory=dict)  # tuning name -> table 3
    shape: ModelShape = field(default_factory=ModelShape)


@dataclass(frozen=True)
class SourceConfig:
    """Where rows come from. `path` wins over `hub`."""

    path: str | None = None  # .jsonl .json .csv .parquet, optionally .gz
    hub: str | None = None  # id of a dataset on the hub
    subset: str | None = None  # its configuration name
    split: str = "train"
    revision: str | None = None
    limit: int | None = _within(None, 1)  # the first n rows, in file order
    ids: str | None = None  # JSON file with a list of ids, or an object keyed by id: keep only these rows
    exclude_ids: str | None = None  # the same, to leave rows out


@dataclass(frozen=True)
class SandboxConfig:
    """Limits for one run of model-written code."""

    wall_seconds: float = 30.0  # well above cpu_seconds: a busy machine must not change a verdict
    allow_unsandboxed: bool = False
    cpu_seconds: int = 5
    memory_mb: int = 1024
    processes: int = 32
    file_mb: int = 16
    output_kb: int = 64
    workers: int = 2


@dataclass(frozen=True)
class JudgeConfig:
    """An OpenAI-compatible endpoint that grades open answers (`task.grader=judge`)."""

    base_url: str | None = None
    model: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    prompt: str = (
        "Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to grade:\n{answer}\n\n"
        "Does the answer agree with the reference answer? Reply with one word: yes or no."
    )
    concurrency: int = 4
    retries: int = 4
    timeout_seconds: float = 60.0
    max_requests: int = 20000
    cache: str | None = None  # folder of verdicts; default: <output_dir>/judge


@dataclass(frozen=True)
class TaskSize:
    """What stage=plan counts with, where the rows are not on this machine: rows, and tokens of an average one."""

    train_rows: int = 1000
    eval_rows: int = 1000
    prompt: int = 200
    response: int = 200


@dataclass(frozen=True)
class TaskConfig:
    name: str = MISSING  # math, code, medical, math500, finance, custom
    bundled: str | None = None  # which bundled sample the tiny model gets
    bundled_grader: str | None = (
        None  # what grades that sample, unless a judge is given (task.judge.base_url)
    )
    train: SourceConfig = field(default_factory=SourceConfig)
    eval: SourceConfig = field(default_factory=SourceConfig)
    prompt: str | None = None  # for own data: template over a row's fields, "{question}"
    response: str | None = None
    reference: str | None = None  # what the grader compares with; default: the response
    system: str | None = None  # system message put before every conversation
    turns: Turns = Turns.last
    grader: str = (
        MISSING  # number, math, exact, contains, choice, code, decision, judge, or python:module.function
    )
    choices: list[str] = field(default_factory=list)
    max_new_tokens: int = _within(512, 1)
    samples: int = _within(1, 1)  # completions per evaluation prompt
    temperature: float = _within(0.0, 0)  # 0: greedy
    top_p: float = _within(1.0, 0, 1)
    pass_at: list[int] = field(default_factory=lambda: [1])
    domain_words: list[str] = field(default_factory=list)  # for scorer.tr.variant=released
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    size: TaskSize = field(default_factory=TaskSize)


@dataclass(frozen=True)
class RIConfig:
    variant: RIVariant = RIVariant.received
    layer: int = -1  # negative counts from the last layer
    scale: Scale = Scale.log


@dataclass(frozen=True)
class TRConfig:
    variant: TRVariant = TRVariant.dataset


@dataclass(frozen=True)
class ScorerConfig:
    name: str = MISSING
    attributes: list[Attribute] = field(default_factory=list)  # which attributes may drop a token
    compute: list[Attribute] = field(
        default_factory=list
    )  # further ones to score in the same pass, for later runs
    ri: RIConfig = field(default_factory=RIConfig)
    tr: TRConfig = field(default_factory=TRConfig)


@dataclass(frozen=True)
class RIThreshold:
    """Low if score < Q1 - c (Q3 - Q1) over the response tokens of one example (eq. 5)."""

    rule: RIRule = RIRule.iqr
    c: float = 1.0
    q: float = 0.05  # rule=quantile: share of the dataset's response tokens to drop
    cap: float | None = None  # drop at most this share of a response, lowest scores first
    shift: float = (
        0.0  # move the threshold so that this much more (or less) of all response tokens is dropped
    )


@dataclass(frozen=True)
class KNThreshold:
    """Low if p > pcp (eq. 6: 1 - p < 0.05)."""

    rule: KNRule = KNRule.cutoff
    pcp: float = 0.95
    q: float = 0.15
    cap: float | None = None
    shift: float = 0.0


@dataclass(frozen=True)
class TRThreshold:
    """Low if in the cluster with the `cluster`-th smallest mean of a Multi-Otsu split (eq. 7)."""

    rule: TRRule = TRRule.multi_otsu
    classes: int = 5
    cluster: int = 2  # 1: the smallest; 2: the second smallest, as in the paper
    bins: int = 1024
    q: float = 0.2
    cap: float | None = None
    shift: float = 0.0


@dataclass(frozen=True)
class ThresholdConfig:
    name: str = MISSING
    ri: RIThreshold = field(default_factory=RIThreshold)
    kn: KNThreshold = field(default_factory=KNThreshold)
    tr: TRThreshold = field(default_factory=TRThreshold)


@dataclass(frozen=True)
class LoraSettings:
    r: int = _within(8, 1)
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=list)  # empty: PEFT's default for the architecture


@dataclass(frozen=True)
class TuningConfig:
    name: Tuning = MISSING
    examples: int | None = _within(None, 1)  # None: from the model's recipe (table 3)
    epochs: int | None = _within(None, 1)  # None: from the recipe
    learning_rate: float | None = _within(None, 0)  # None: from the recipe
    batch_size: int | None = _within(None, 1)  # examples per optimizer step; None: from the recipe
    max_steps: int | None = _within(None, 1)  # stop after so many optimizer steps
    schedule: Schedule | None = None  # None: from the recipe
    warmup_ratio: float | None = _within(None, 0, 1)  # share of the steps; None: from the recipe
    weight_decay: float = _within(0.0, 0)
    optimizer: Optimizer = Optimizer.adamw
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    max_grad_norm: float = _within(1.0, 0)
    divisor: Divisor = Divisor.kept
    gradient_checkpointing: bool = False
    validation_fraction: float = _within(0.0, 0, 0.5)  # split off the training rows, never the evaluation set
    checkpoint: CheckpointChoice = CheckpointChoice.last
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass(frozen=True)
class TrainerConfig:
    name: str = MISSING
    accelerator: str = "cpu"
    devices: int = _within(1, 1)
    strategy: str = "auto"
    precision: str = "auto"  # auto: bf16-mixed where the device has it, else 32-true
    tokens_per_microbatch: int = _within(8192, 1)  # packing budget of one forward and backward pass
    tokens_per_score_batch: int = _within(16384, 1)
    tokens_per_eval_batch: int = _within(32768, 1)
    checkpoint_every: int = _within(
        200, 1
    )  # optimizer steps between checkpoints that a killed run resumes from
    shard_examples: int = _within(512, 1)  # rows per score shard, the unit of resuming a scoring pass
    compile: bool = False


@dataclass(frozen=True)
class LoggerConfig:
    name: str = MISSING
    project: str = "xtf"
    entity: str | None = None
    mode: str | None = (
        None  # wandb: online, offline or disabled; None: online if a key is configured, else offline
    )
    tags: list[str] = field(default_factory=list)
    timeout_seconds: float = _within(30.0, 1)  # wandb: longest wait for its server, at start and end
    every: int = _within(1, 1)  # optimizer steps between logged training values


@dataclass(frozen=True)
class EvaluateConfig:
    base: bool = True  # grade the untouched base model too (once per model and task)
    backend: Backend = Backend.hf
    vllm_memory: float = _within(0.8, 0.05, 1)  # share of the device's memory that vLLM may take
    # lm-eval tasks run before and after (extra `general`); hellaswag:FILE reads the items from a local file
    general: list[str] = field(default_factory=list)
    general_limit: int | None = _within(None, 1)  # only the first items of each
    losses: bool = False  # also loss, calibration and forgetting, on given texts (xtf/losses.py)
    # JSON lines with `text` like that of pre-training, for forgetting_loss; the tiny model brings its own
    forgetting: str | None = None


@dataclass(frozen=True)
class PlantConfig:
    """Noise at known places of the training responses, to see who finds it; evaluation rows stay clean."""

    share: float = _within(0.0, 0, 0.9)  # of the response tokens; 0: none
    kinds: list[PlantKind] = field(default_factory=lambda: list(PlantKind))  # in equal parts
    seed: int = 0  # apart from the run's seed: runs with different seeds train on the same rows


@dataclass(frozen=True)
class PilotConfig:
    """The short study of `probe=true`: normal, xtf and random, paired by seed."""

    seeds: int = _within(3, 2)
    examples: int = _within(400, 2)  # training rows at most
    eval_examples: int = _within(100, 2)
    gain: float = _within(0.02, 1e-4, 1)  # the gain that the answer's sentence is about, as a share


@dataclass(frozen=True)
class PreviewConfig:
    format: str = "html"  # html or text
    examples: int | None = _within(None, 1)  # None: 2,000 in HTML, 5 as text


@dataclass(frozen=True)
class PlanConfig:
    """What stage=plan assumes of a device."""

    device_memory_gb: float | None = _within(None, 0)  # GiB; None: 80 for a GPU, this machine's for the CPU
    # Tokens that one device trains in a second, for a model of 1e9 parameters; the time is inverse to the size. 10,000
    # is what 6e13 operations a second give, a fifth of an A100's peak in bfloat16.
    tokens_per_second: float = _within(10_000.0, 1e-9)


class PretrainText(Enum):
    """The generated text that a base model is trained on (`xtf/tiny`)."""

    tiny = "tiny"
    broad = "broad"  # more domains, styles and levels; some facts are withheld


@dataclass(frozen=True)
class PretrainConfig:
    """stage=pretrain: a Qwen2-architecture model from nothing. Lengths and sizes in tokens unless the name says."""

    name: str = "tiny"
    text: PretrainText = PretrainText.tiny
    vocabulary: int = _within(2048, 300)
    tokenizer_documents: int = _within(40_000, 1)  # that the tokenizer is trained on
    hidden: int = _within(192, 1)
    layers: int = _within(6, 1)
    heads: int = _within(4, 1)
    key_value_heads: int = _within(1, 1)
    intermediate: int = _within(512, 1)
    row_tokens: int = _within(256, 2)
    step_rows: int = _within(24, 1)  # per optimizer step
    steps: int = _within(900, 3)
    warmup_ratio: float = _within(0.11, 0, 1)
    learning_rate: float = _within(3e-3, 0)
    weight_decay: float = _within(0.1, 0)


@dataclass(frozen=True)
class Config:
    """The whole run."""

    stage: Stage = Stage.all
    seed: int = 0
    output_dir: str = "outputs"
    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    scorer: ScorerConfig = MISSING
    threshold: ThresholdConfig = MISSING
    method: Any = MISSING  # one of xtf.methods.METHODS
    tuning: TuningConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    probe: bool = False  # look at the data and run a pilot instead of one run (xtf/probe.py)
    pilot: PilotConfig = field(default_factory=PilotConfig)
    plant: PlantConfig = field(default_factory=PlantConfig)
    experiment: str | None = None  # set by the files in experiments/
    archive: str | None = (
        None  # with stage=report experiments=NAME: read stored runs (xtf/archive.py), not outputs
    )
    cases: list[str] = field(default_factory=list)  # model/tuning pairs that a sweep runs; empty: all


GROUPS: dict[str, type] = {
    "model": ModelConfig, "task": TaskConfig, "scorer": ScorerConfig, "threshold": ThresholdConfig,
    "tuning": TuningConfig, "trainer": TrainerConfig, "logger": LoggerConfig, "pretrain": PretrainConfig,
}  # fmt: skip

# --- composing, checking, resolving ----------------------------------------------------------------------------------


@functools.cache
def _writable(cls: Any) -> Any:
    """A twin of a frozen dataclass that Hydra can merge into: OmegaConf makes every node of a frozen type read-only."""
    hints = get_type_hints(cls)
    parts: list[Any] = []
    for item in dataclasses.fields(cls):
        hint = hints[item.name]
        if dataclasses.is_dataclass(hint):
            twin: Any = _writable(hint)  # type: ignore[arg-type]  # a nested dataclass; its default is either MISSING or its own defaults
            default = field(default=MISSING) if item.default is MISSING else field(default_factory=twin)
            parts.append((item.name, twin, default))
        elif get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            twins = types.GenericAlias(dict, (str, _writable(get_args(hint)[1])))
            parts.append((item.name, twins, field(default_factory=dict)))
        elif item.default_factory is not dataclasses.MISSING:
            parts.append((item.name, hint, field(default_factory=item.default_factory)))
        else:
            parts.append((item.name, hint, field(default=item.default)))
    twin = dataclasses.make_dataclass(cls.__name__, parts)
    # Launchers with processes of their own send the schema there: it has to pickle by reference (see __getattr__).
    twin.__module__, twin.__qualname__ = (
        __name__,
        f"writable {cls.__module__.replace('.', '/')} {cls.__qualname__}",
    )
    return twin


def __getattr__(name: str) -> Any:
    """The twin of a dataclass by its qualified name, which is what unpickling asks this module for."""
    kind, *path = name.split(" ")
    if kind != "writable":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _writable(getattr(importlib.import_module(path[0].replace("/", ".")), path[1]))


def _schema(value: Any) -> DictConfig:
    """A structured node for a dataclass, or for an instance of one with its values as the defaults."""
    if isinstance(value, type):
        return OmegaConf.structured(_writable(value))
    node = OmegaConf.merge(OmegaConf.structured(_writable(type(value))), plain(value))  # type: ignore[arg-type]
    assert isinstance(node, DictConfig)
    return node


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    """The frozen dataclass `cls` from a container whose leaves OmegaConf has type-checked."""
    hints, arguments = get_type_hints(cls), {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            value = _build(hint, value)
        elif get_origin(hint) is dict and dataclasses.is_dataclass(get_args(hint)[1]):
            value = {key: _build(get_args(hint)[1], part) for key, part in value.items()}
        arguments[name] = value
    return cls(**arguments)


def register() -> None:
    """Put the schema into Hydra's store, one node per group; conf/*/*.yaml start from these."""
    from hydra.core.config_store import ConfigStore

    from xtf import thresholds
    from xtf.methods import METHODS

    store = ConfigStore.instance()
    store.store(name="run", group="schema", node=_schema(Config))
    for group, cls in GROUPS.items():
        store.store(name=group, group="schema", node=_schema(cls))
    for name, preset in thresholds.PRESETS.items():
        store.store(name=name, group="schema/threshold", node=_schema(preset))
    for name, method in METHODS.items():
        store.store(name=name, group="schema/method", node=_schema(method))


def to_config(node: DictConfig) -> Config:
    """The composed node as typed, frozen dataclasses. Raises ConfigError on a missing or ill-typed value."""
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise ConfigError(
            f"no value for {', '.join(missing)}; set it on the command line as {missing[0]}=..."
        )
    from xtf.methods import METHODS

    values: Any = OmegaConf.to_container(node, resolve=True)
    values["method"] = _build(METHODS[values["method"]["name"]], values["method"])
    return _build(Config, values)


def load_config(node: DictConfig) -> Config:
    """A run's config.yaml, as the typed configuration that it was written from."""
    from xtf.methods import METHODS

    schema = _schema(Config)
    for group, cls in GROUPS.items():
        schema[group] = _schema(cls)
    schema.method = _schema(METHODS[node.method.name])
    merged = OmegaConf.merge(schema, node)
    assert isinstance(merged, DictConfig)
    return to_config(merged)


def plain(value: Any) -> Any:
    """Dataclasses and enums as plain containers, for YAML, JSON and hashing."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of a plain configuration; lists count as leaves."""
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from leaves(part, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def digest(value: Any, length: int = 12) -> str:
    """A short, stable hash of anything that `plain` can express."""
    text = json.dumps(plain(value), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def nearest(word: str, choices: Iterator[str] | list[str]) -> str:
    """', did you mean X?' or the empty string."""
    match = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def _check_ranges(part: Any, prefix: str) -> None:
    for item in dataclasses.fields(part):
        value, key = getattr(part, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            _check_ranges(value, f"{key}.")
        elif "range" in item.metadata and value is not None:
            low, high = item.metadata["range"]
            if not low <= value <= high:  # also refuses NaN
                bounds = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
                raise ConfigError(f"{key}={value} is out of range: it must be {bounds}")


def resolve(config: Config) -> Config:
    """Fill in what depends on several groups: table 3's hyper-parameters, and which rows the task reads.

    Checks ranges and combinations on the way; raises ConfigError naming the key and the remedy.
    """
    from xtf import thresholds

    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            _check_ranges(value, f"{item.name}.")
    try:
        thresholds.check(config.threshold)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    model, task, tuning = config.model, config.task, config.tuning

    recipe = model.recipes.get(tuning.name.value)
    wanted = ("epochs", "learning_rate", "batch_size")
    if recipe is None and any(getattr(tuning, key) is None for key in wanted):
        have = ", ".join(sorted(model.recipes)) or "none"
        raise ConfigError(
            f"model {model.name} has no recipe for tuning={tuning.name.value} (it has: {have}); "
            "give tuning.epochs, tuning.learning_rate and tuning.batch_size"
        )
    if recipe is not None:
        rate = recipe.learning_rate_by_task.get(task.name, recipe.learning_rate)
        tuning = dataclasses.replace(
            tuning,
            examples=_given(tuning.examples, recipe.examples),
            epochs=_given(tuning.epochs, recipe.epochs),
            learning_rate=_given(tuning.learning_rate, rate),
            batch_size=_given(tuning.batch_size, recipe.batch_size),
        )
    shape = recipe or Recipe()
    tuning = dataclasses.replace(
        tuning,
        schedule=_given(tuning.schedule, shape.schedule),
        warmup_ratio=_given(tuning.warmup_ratio, shape.warmup_ratio),
    )
    if tuning.checkpoint is CheckpointChoice.best and not tuning.validation_fraction:
        raise ConfigError(
            "tuning.checkpoint=best needs a validation split: set tuning.validation_fraction, e.g. 0.1"
        )

    train = _source(task, "train", model)
    if train.limit is None and tuning.examples is not None:
        train = dataclasses.replace(train, limit=tuning.examples)
    if model.bundled_data and task.eval.path is None and task.bundled_grader and task.judge.base_url is None:
        task = dataclasses.replace(task, grader=task.bundled_grader)
    max_new = min(task.max_new_tokens, model.max_new_tokens or task.max_new_tokens)
    task = dataclasses.replace(task, train=train, eval=_source(task, "eval", model), max_new_tokens=max_new)

    if task.samples > 1 and task.temperature == 0:
        raise ConfigError(
            f"task.samples={task.samples} with task.temperature=0 gives {task.samples} equal completions; "
            "set task.temperature, e.g. 0.8, or task.samples=1"
        )
    if max(task.pass_at, default=1) > task.samples:
        raise ConfigError(
            f"task.pass_at={task.pass_at} needs task.samples >= {max(task.pass_at)}, not {task.samples}"
        )
    plant = config.plant
    if plant.share and (not plant.kinds or len(set(plant.kinds)) < len(plant.kinds)):
        raise ConfigError(
            f"plant.kinds={plain(plant.kinds)} must name one or more different kinds: "
            + ", ".join(kind.value for kind in PlantKind)
        )
    if plant.share and config.method.name == "given":
        raise ConfigError(f"plant.share={plant.share}: method=given trains a token table as it is; unset one")
    if "planted" in config.method.needs and not plant.share:
        raise ConfigError(
            f"method={config.method.name} drops the noise that was planted: set plant.share, e.g. 0.3"
        )
    if config.evaluate.backend is Backend.vllm and importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "evaluate.backend=vllm needs vLLM, which is not installed: pip install 'xtf[vllm]' (Linux with a GPU), "
            "or leave evaluate.backend=hf"
        )
    if config.preview.format not in ("html", "text"):
        raise ConfigError(f"preview.format={config.preview.format} is not known; it is html or text")
    if config.archive is not None:
        raise ConfigError(f"archive={config.archive} is read by stage=report experiments=NAME only")
    forgetting = config.evaluate.forgetting
    if forgetting is not None and not config.evaluate.losses:
        raise ConfigError(f"evaluate.forgetting={forgetting} is read with evaluate.losses=true only")
    if forgetting is not None and not Path(forgetting).is_file():
        raise ConfigError(f"evaluate.forgetting={forgetting}: there is no such file")
    if tuning.optimizer is Optimizer.muon and (
        tuning.name is Tuning.lora or config.trainer.strategy == "fsdp"
    ):
        raise ConfigError(
            "tuning.optimizer=muon works on whole matrices: use tuning=full, and not trainer=fsdp"
        )
    if config.trainer.strategy == "auto" and config.trainer.devices > 1:
        raise ConfigError(f"trainer.devices={config.trainer.devices} needs trainer=ddp or trainer=fsdp")
    return dataclasses.replace(config, task=task, tuning=tuning)


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _source(task: TaskConfig, which: str, model: ModelConfig) -> SourceConfig:
    """The rows for `which` ("train" or "eval"): a given path, else the tiny model's bundled sample, else the hub."""
    source: SourceConfig = getattr(task, which)
    if source.path is not None:
        if not Path(source.path).exists():
            raise ConfigError(
                f"task.{which}.path={source.path}: there is no such file (working folder: {Path.cwd()})"
            )
        return source
    if model.bundled_data:
        if task.bundled is None:
            raise ConfigError(
                f"there is no bundled sample for task={task.name}, so model={model.name} needs task.{which}.path"
            )
        from xtf.tiny import DATA_DIR

        return dataclasses.replace(source, path=str(DATA_DIR / f"{task.bundled}_{which}.jsonl"))
    if source.hub is None:
        raise ConfigError(
            f"task={task.name} has no rows: give task.{which}.path=FILE or task.{which}.hub=DATASET_ID"
        )
    return source


# Keys that change neither what is learnt nor what is measured, so they do not name a run folder.
_NEUTRAL = (
    "stage", "seed", "output_dir", "experiment", "archive", "probe", "pilot.", "cases", "logger.", "preview.",
    "evaluate.base", "evaluate.vllm_memory", "evaluate.losses", "evaluate.forgetting", "scorer.compute",
    "pretrain.",
    "trainer.name", "trainer.accelerator", "trainer.devices", "trainer.strategy", "trainer.tokens_per_",
    "trainer.checkpoint_every", "trainer.shard_examples", "task.grader", "task.judge.", "task.sandbox.",
    "task.size.", "task.bundled_grader", "model.shape.", "plan.",
)  # fmt: skip


def identity(config: Config) -> dict[str, Any]:
    """The result-determining keys of a resolved configuration. Data files count by content, which the run records."""
    skip = (*_NEUTRAL, "task.train.path", "task.eval.path")
    return {key: value for key, value in leaves(plain(config)) if not key.startswith(skip)}


def differing_keys(recorded: Mapping[str, Any], config: Config) -> list[str]:
    """The result-determining keys in which a recorded `identity` and `config` differ.

    A key that the record does not have was unknown to the version that wrote it, which then did what is the key's
    default now.
    """
    now = plain(identity(config))
    before = {**dict(_defaults(config, "")), **recorded}
    return sorted(key for key in recorded.keys() | now.keys() if before.get(key) != now.get(key))


def _defaults(part: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, default) of every leaf below a dataclass that has one."""
    for item in dataclasses.fields(part):
        value, key = getattr(part, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            yield from _defaults(value, f"{key}.")
        elif item.default_factory is not dataclasses.MISSING:
            yield from leaves(plain(item.default_factory()), key)
        elif item.default is not dataclasses.MISSING:
            yield key, plain(item.default)


def grader_identity(config: Config) -> str:
    """A digest of what decides a completion's verdict."""
    task = config.task
    return digest([task.grader, task.choices, task.reference, task.judge, task.sandbox])


def overrides(node: DictConfig, default: DictConfig) -> dict[str, Any]:
    """The result-determining keys in which `node` differs from `default`, the same choices with nothing overridden."""

    def flat(part: DictConfig) -> dict[str, Any]:
        return dict(leaves(OmegaConf.to_container(part, resolve=True, enum_to_str=True)))

    base = flat(default)
    return {
        key: value
        for key, value in flat(node).items()
        if not key.startswith(_NEUTRAL) and (key not in base or base[key] != value)
    }


def run_folder(config: Config, changed: Mapping[str, Any]) -> Path:
    """runs/<task>/<model>/<tuning>/<method>/<scorer>-<threshold>[-<hash of other overrides>]/seed<k>, relative."""
    last = f"{config.scorer.name}-{config.threshold.name}"
    if changed:
        last += f"-{digest(changed, 8)}"
    parts = ("runs", config.task.name, config.model.name, config.tuning.name.value, config.method.name, last)
    return Path(*parts, f"seed{config.seed}")
