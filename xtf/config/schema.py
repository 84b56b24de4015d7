"""The typed schema of a run: every key that a YAML file or the command line may set, its type and its default.

Nothing here imports torch, so a wrong configuration is refused before a model library is loaded. The dataclasses
are the only place where defaults live; the files in ``conf/`` name just what differs from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


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
    released = "released"  # the authors' code: last hidden states of one-token inputs against those of domain words


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
    """Kinds of noise that can be planted into training responses (`xtf.data.planting`)."""

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
    bundled_grader: str | None = None  # what grades that sample, unless a judge is given (task.judge.base_url)
    train: SourceConfig = field(default_factory=SourceConfig)
    eval: SourceConfig = field(default_factory=SourceConfig)
    prompt: str | None = None  # for own data: template over a row's fields, "{question}"
    response: str | None = None
    reference: str | None = None  # what the grader compares with; default: the response
    system: str | None = None  # system message put before every conversation
    turns: Turns = Turns.last
    grader: str = MISSING  # number, math, exact, contains, choice, code, decision, judge, or python:module.function
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
    compute: list[Attribute] = field(default_factory=list)  # further ones to score in the same pass, for later runs
    ri: RIConfig = field(default_factory=RIConfig)
    tr: TRConfig = field(default_factory=TRConfig)


@dataclass(frozen=True)
class RIThreshold:
    """Low if score < Q1 - c (Q3 - Q1) over the response tokens of one example (eq. 5)."""

    rule: RIRule = RIRule.iqr
    c: float = 1.0
    q: float = 0.05  # rule=quantile: share of the dataset's response tokens to drop
    cap: float | None = None  # drop at most this share of a response, lowest scores first
    shift: float = 0.0  # move the threshold so that this much more (or less) of all response tokens is dropped


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
    checkpoint_every: int = _within(200, 1)  # optimizer steps between checkpoints that a killed run resumes from
    shard_examples: int = _within(512, 1)  # rows per score shard, the unit of resuming a scoring pass
    compile: bool = False


@dataclass(frozen=True)
class LoggerConfig:
    name: str = MISSING
    project: str = "xtf"
    entity: str | None = None
    mode: str | None = None  # wandb: online, offline or disabled; None: online if a key is configured, else offline
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
    losses: bool = False  # also loss, calibration and forgetting, on given texts (xtf/evaluation/teacher_forced.py)
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
    method: Any = MISSING  # one of xtf.scoring.methods.METHODS
    tuning: TuningConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    probe: bool = False  # look at the data and run a pilot instead of one run (xtf/study/probe.py)
    pilot: PilotConfig = field(default_factory=PilotConfig)
    plant: PlantConfig = field(default_factory=PlantConfig)
    experiment: str | None = None  # set by the files in experiments/
    archive: str | None = (
        None  # with stage=report experiments=NAME: read stored runs (xtf/study/archive.py), not outputs
    )
    cases: list[str] = field(default_factory=list)  # model/tuning pairs that a sweep runs; empty: all


GROUPS: dict[str, type] = {
    "model": ModelConfig,
    "task": TaskConfig,
    "scorer": ScorerConfig,
    "threshold": ThresholdConfig,
    "tuning": TuningConfig,
    "trainer": TrainerConfig,
    "logger": LoggerConfig,
    "pretrain": PretrainConfig,
}
