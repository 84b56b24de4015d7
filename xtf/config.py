"""The typed schema of a run: every key that a YAML file or the command line may set, its type and its default.

Nothing here imports torch, so a wrong configuration is refused before a model library is loaded. The dataclasses
are the only place where defaults live; the files in ``conf/`` name just what differs from them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Stage(Enum):
    """What `python run.py` does; each stage reuses the artifacts of the ones before it."""

    all = "all"
    score = "score"
    mask = "mask"
    train = "train"
    evaluate = "evaluate"
    report = "report"
    preview = "preview"


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


class Divisor(Enum):
    kept = "kept"  # tokens that carry loss in the whole optimizer step
    response = "response"  # all response tokens of the step, dropped ones included


class Turns(Enum):
    last = "last"  # the last assistant turn is the response; what precedes it is the prompt
    all = "all"  # every assistant turn becomes an example of its own, with the turns before it as its prompt


class CheckpointChoice(Enum):
    last = "last"
    best = "best"  # lowest validation loss; needs tuning.validation_fraction > 0


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


@dataclass(frozen=True)
class ModelConfig:
    name: str = MISSING
    path: str = MISSING  # a folder, or an id on the Hugging Face hub
    revision: str | None = None
    bundled_data: bool = False  # true for the tiny model alone: tasks without a path use the bundled sample
    max_length: int = 2048  # longest prompt + response, in tokens
    attention: AttentionKernel = AttentionKernel.auto
    recipes: dict[str, Recipe] = field(default_factory=dict)  # tuning name -> table 3


@dataclass(frozen=True)
class SourceConfig:
    """Where rows come from. `path` wins over `hub`."""

    path: str | None = None  # .jsonl .json .csv .parquet, optionally .gz
    hub: str | None = None  # id of a dataset on the hub
    subset: str | None = None  # its configuration name
    split: str = "train"
    revision: str | None = None
    limit: int | None = None  # the first n rows, in file order
    ids: str | None = None  # JSON file with a list of ids, or an object keyed by id: keep only these rows
    exclude_ids: str | None = None  # the same, to leave rows out


@dataclass(frozen=True)
class SandboxConfig:
    """Limits for one run of model-written code."""

    allow_unsandboxed: bool = False
    wall_seconds: float = 10.0
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
class TaskConfig:
    name: str = MISSING  # math, code, medical, math500, finance, custom
    bundled: str | None = None  # which bundled sample the tiny model gets
    train: SourceConfig = field(default_factory=SourceConfig)
    eval: SourceConfig = field(default_factory=SourceConfig)
    prompt: str | None = None  # for own data: template over a row's fields, "{question}"
    response: str | None = None
    reference: str | None = None  # what the grader compares with; default: the response
    system: str | None = None  # system message put before every conversation
    turns: Turns = Turns.last
    grader: str = MISSING  # number, math, exact, contains, choice, code, decision, judge, or python:module.function
    choices: list[str] = field(default_factory=list)
    max_new_tokens: int = 512
    samples: int = 1  # completions per evaluation prompt
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    pass_at: list[int] = field(default_factory=lambda: [1])
    domain_words: list[str] = field(default_factory=list)  # for scorer.tr.variant=released
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


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
    r: int = 8
    alpha: int = 32
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=list)  # empty: PEFT's default for the architecture


@dataclass(frozen=True)
class TuningConfig:
    name: Tuning = MISSING
    examples: int | None = None  # None: from the model's recipe (table 3)
    epochs: int | None = None  # None: from the recipe
    learning_rate: float | None = None  # None: from the recipe
    batch_size: int | None = None  # examples per optimizer step; None: from the recipe
    max_steps: int | None = None  # stop after so many optimizer steps
    schedule: Schedule = Schedule.constant
    warmup_ratio: float = 0.0
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    max_grad_norm: float = 1.0
    divisor: Divisor = Divisor.kept
    gradient_checkpointing: bool = False
    validation_fraction: float = 0.0  # split off the training rows, never the evaluation set
    checkpoint: CheckpointChoice = CheckpointChoice.last
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass(frozen=True)
class TrainerConfig:
    name: str = MISSING
    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "auto"  # auto: bf16-mixed where the device has it, else 32-true
    tokens_per_microbatch: int = 8192  # packing budget of one forward and backward pass
    tokens_per_score_batch: int = 16384
    tokens_per_eval_batch: int = 32768
    checkpoint_every: int = 200  # optimizer steps between checkpoints that a killed run resumes from
    shard_examples: int = 512  # rows per score shard, the unit of resuming a scoring pass
    compile: bool = False


@dataclass(frozen=True)
class LoggerConfig:
    name: str = MISSING
    project: str = "xtf"
    entity: str | None = None
    mode: str | None = None  # wandb: online, offline or disabled; None: online if a key is configured, else offline
    tags: list[str] = field(default_factory=list)
    every: int = 1  # optimizer steps between logged training values


@dataclass(frozen=True)
class EvaluateConfig:
    base: bool = True  # grade the untouched base model too (once per model and task)
    general: list[str] = field(default_factory=list)  # lm-eval tasks run before and after (extra `general`)


@dataclass(frozen=True)
class PreviewConfig:
    format: str = "html"  # html or text
    examples: int = 2000


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
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    experiment: str | None = None  # set by the files in experiments/
