"""The typed schema of a run: every key that a YAML file or the command line may set, its type and its default.

Nothing here imports torch, so a wrong configuration is refused before a model library is loaded. The dataclasses
are the only place where defaults live; the files in ``conf/`` name just what differs from them.
"""

from __future__ import annotations

import copy
import functools
import importlib
import math
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from enum import Enum, StrEnum
from typing import Any

MISSING: Any = "???"  # a value that has to be given, as OmegaConf writes it
LARGEST_SEED = 2**32 - 1  # of NumPy
# The most of what is only counted or waited for: above what anyone has, and below what tables, floats and the
# operating system's clocks cannot hold. What memory is reserved for has a bound of its own.
MANY = 10**9  # rows, tokens, steps
RATE = 1e3  # of a learning rate and of weight decay
DAY, WEEK = 86_400, 604_800  # seconds
NEW_TOKENS = 10**6  # of a completion, for each of which a number is drawn beforehand
SAMPLES = 10_000  # completions of a prompt


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which key and what to do."""


def within(default: Any, low: float, high: float = math.inf, *, excluding: tuple[float, ...] = ()) -> Any:
    """A field whose value, or whose every value, must be finite and lie in [low, high] without the bounds `excluding`.

    None stays allowed where the type says so. `xtf.config.checks.check_ranges` holds the values to it.
    """
    metadata = {"range": (low, high, excluding)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def place(default: str | None = None) -> Any:
    """A field that names a file or a folder: `~` at its beginning is the home folder (`place_keys`)."""
    return field(default=default, metadata={"place": True})


class Stage(Enum):
    """What `python run.py` does; each stage reuses the artifacts of the ones before it."""

    all = "all"
    score = "score"
    mask = "mask"
    train = "train"
    evaluate = "evaluate"
    report = "report"
    preview = "preview"
    export = "export"  # the masked rows for another trainer
    dashboard = "dashboard"  # lay out the W&B workspace
    pretrain = "pretrain"  # make a base model from nothing
    plan = "plan"  # what the other stages would cost; runs nothing


class Attribute(StrEnum):
    """The paper's three token attributes (section 3): a token that lacks any one of them is noise.

    All that there are, the paper's and others, are the rows of `xtf.scoring.attributes`.
    """

    ri = "ri"  # reasoning importance: attention that the token receives
    kn = "kn"  # knowledge novelty: 1 - p of the token under the base model
    tr = "tr"  # task relevance: nearness of its embedding to the task's centre


class RIVariant(Enum):
    """How RI is taken from the attention weights."""

    received = "received"  # mean over later queries of the attention paid to the token
    released = "released"  # the authors' code: layer 0, mean over keys, which is 1 / T for every token


class Scale(Enum):
    """Whether RI is the attention or its logarithm."""

    log = "log"
    raw = "raw"


class TRVariant(Enum):
    """What the nearness of TR is measured between."""

    dataset = "dataset"  # embedding rows against the mean embedding of the training text
    contextual = "contextual"  # the middle layer's hidden states of the tokens in their context, against their mean
    released = "released"  # the authors' code: last hidden states of one-token inputs against those of domain words


class QuantileRule(Enum):
    """The one rule of an attribute that is not the paper's."""

    quantile = "quantile"


class RIRule(Enum):
    """What RI's threshold is relative to."""

    iqr = "iqr"
    quantile = "quantile"


class KNRule(Enum):
    """What KN's threshold is."""

    cutoff = "cutoff"
    quantile = "quantile"


class TRRule(Enum):
    """What TR's threshold is."""

    multi_otsu = "multi_otsu"
    quantile = "quantile"


class TRFit(Enum):
    """Which tokens' TR the Multi-Otsu split is fitted to, and where a cluster ends."""

    responses = "responses"  # those that are judged, in bins of [0, 1]; a cluster ends where the next begins
    # The authors' code: those of the prompts too, in bins from the lowest to the highest of all; a cluster ends in the
    # middle of its last bin.
    released = "released"


class ThresholdEnd(Enum):
    """What thresholds make of the end token that encoding puts behind a response: it is ours, not the dataset's."""

    kept = "kept"  # not judged: no part of a histogram, a fence or a share, and always trained
    scored = "scored"  # judged like the dataset's tokens, as versions without this setting did


class Protect(Enum):
    """Which tokens of a response a mask never drops, whatever the attributes say."""

    none = "none"
    answer = "answer"  # those that the task's grader reads: the decision, the number, a function's first line


class ThresholdTies(Enum):
    """Which tokens a cap takes of those with equal scores."""

    earlier = "earlier"  # the earlier ones, so that the cap is met
    none = "none"  # the authors' code: none of those that tie with the first one that is over the cap


class Tuning(Enum):
    """Which weights are trained."""

    full = "full"
    lora = "lora"


class Schedule(Enum):
    """The learning rate after its warm-up."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"
    trapezoid = "trapezoid"  # constant, then linear to 0 over the last third of the steps


class Optimizer(Enum):
    """What turns gradients into updates."""

    adamw = "adamw"
    muon = "muon"  # Muon for the matrices of the layers, AdamW for the rest; on whole weights only


class Divisor(Enum):
    """What the sum of a step's losses is divided by."""

    kept = "kept"  # tokens that carry loss in the whole optimizer step
    response = "response"  # all response tokens of the step, dropped ones included


class Backward(Enum):
    """Which places of a document the gradient flows through."""

    exact = "exact"  # all that it depends on
    # Approximations, for less work and memory:
    kept = "kept"  # not those whose prediction the mask dropped
    labelled = "labelled"  # those alone whose prediction carries loss: no prompt either


class PlantKind(Enum):
    """Kinds of noise that can be planted into training responses (`xtf.data.planting`)."""

    off_task = "off_task"  # sentences of another domain
    boilerplate = "boilerplate"  # fixed openings and closings, the same in many rows
    corrupted = "corrupted"  # numbers, operators, names or words changed so that a step is wrong
    redundant = "redundant"  # a step restated
    formatting = "formatting"  # blanks, Markdown, list marks


class Turns(Enum):
    """Which turns of a conversation become responses."""

    last = "last"  # the last assistant turn is the response; what precedes it is the prompt
    all = "all"  # every assistant turn becomes an example of its own, with the turns before it as its prompt


class Think(Enum):
    """What becomes of a thought that the chat template's generation prompt opens (`<think>`)."""

    open = "open"  # nothing: the prompt is the template's own, so that responses are trained within the thought
    close = "close"  # the prompt closes it, or asks the template not to think: responses stand behind the thought


class TemplateChecks(Enum):
    """What is made of a chat template that does not do what is usual (`xtf.data.templates`)."""

    warn = "warn"  # one warning for each finding, which also says what is done about it
    refuse = "refuse"


class CheckpointChoice(Enum):
    """Which weights the trained model has."""

    last = "last"
    best = "best"  # lowest validation loss; needs tuning.validation_fraction > 0


class Backend(Enum):
    """What generates the completions of an evaluation."""

    hf = "hf"
    vllm = "vllm"  # extra `vllm`; on a GPU


class Accelerator(StrEnum):
    """The kind of device."""

    cpu = "cpu"
    gpu = "gpu"
    cuda = "gpu"  # another word for it


class Strategy(StrEnum):
    """How several devices share the work of training."""

    auto = "auto"  # one device
    ddp = "ddp"
    fsdp = "fsdp"


class Engine(StrEnum):
    """What spreads a scoring pass over devices."""

    processes = "processes"  # a process for each of trainer.devices of this machine
    ray = "ray"  # Ray Data, an actor for each device of a cluster (extra `ray`)


# Their names are not Python's. Others would round small updates away (bf16-true) or need loss scaling (16-mixed).
Precision = StrEnum("Precision", {"auto": "auto", "32-true": "32-true", "bf16-mixed": "bf16-mixed"})


class PreviewFormat(StrEnum):
    """What stage=preview shows."""

    html = "html"  # a page
    text = "text"  # coloured lines in the terminal


class EmptyRows(Enum):
    """What becomes of rows whose every label is -100 in an export."""

    drop = "drop"
    keep = "keep"


class WandbMode(StrEnum):
    """Where W&B's runs go."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


class ModelSource(Enum):
    """Where a model's weights come from, for a model that is found in several places."""

    package = "package"  # a file of an installed package
    hub = "hub"


class RowSource(Enum):
    """Where a task's rows come from."""

    bundled = "bundled"  # the sample that ships with the package, whatever the model


class AttentionKernel(Enum):
    """The implementation of attention."""

    auto = "auto"  # flash attention where it is installed and the device can run it, else sdpa
    sdpa = "sdpa"
    flash_attention_2 = "flash_attention_2"
    eager = "eager"


@dataclass
class Recipe:
    """One cell of the paper's table 3: how many training examples, how long, how fast."""

    examples: int | None = within(None, 1, MANY)
    epochs: int = within(3, 1, 10**6)
    learning_rate: float = within(MISSING, 0, RATE)
    learning_rate_by_task: dict[str, float] = within({}, 0, RATE)
    batch_size: int = within(8, 1, MANY)
    schedule: Schedule = Schedule.constant
    warmup_ratio: float = within(0.0, 0, 1)


@dataclass
class ModelShape:
    """What stage=plan counts memory with, where the model's own config.json is not on this machine."""

    layers: int = within(0, 0, 10**5)  # 0: not stated
    hidden: int = within(0, 0, 10**7)  # width
    intermediate: int = within(0, 0, 10**7)  # width within the feed-forward layers
    heads: int = within(0, 0, 10**5)  # of the queries
    kv_heads: int = within(0, 0, 10**5)  # of keys and values
    head_dim: int = within(0, 0, 10**5)  # 0: hidden / heads
    vocabulary: int = within(0, 0, 10**8)  # token ids
    tied: bool = False  # the LM head is the embedding
    bias: bool = False  # of the query, key and value projections
    qk_norm: bool = False  # queries and keys are normalised (Qwen3)


@dataclass
class ModelConfig:
    """A base model: where it is, how long its rows may be, how it is fine-tuned."""

    name: str = MISSING
    # A folder, an id on the Hugging Face hub, FILE.gguf, or PACKAGE:PATTERN.gguf for a file of an installed package.
    # Empty: as `source` says.
    path: str = place("")
    revision: str | None = None  # of the model on the hub: a branch, a tag or a commit
    source: ModelSource | None = None  # which of the two below; None: the package where there is one
    package: str | None = None  # PACKAGE:PATTERN.gguf
    hub: str | None = None  # an id on the hub
    tokenizer: str | None = place()  # a folder or an id on the hub; None: the model's own
    bundled_data: bool = False  # true for the tiny model alone: tasks without a path use the bundled sample
    max_length: int = within(2048, 8, 10**8)  # longest prompt + response, in tokens
    max_new_tokens: int | None = within(None, 1, NEW_TOKENS)  # a cap on the task's
    attention: AttentionKernel = AttentionKernel.auto
    recipes: dict[str, Recipe] = field(default_factory=dict)  # tuning name -> table 3
    shape: ModelShape = field(default_factory=ModelShape)


@dataclass
class SourceConfig:
    """Where rows come from. `path` wins over `hub`."""

    path: str | None = place()  # .jsonl .json .csv .parquet, optionally .gz
    hub: str | None = None  # id of a dataset on the hub
    subset: str | None = None  # its configuration name
    split: str = "train"  # of a dataset on the hub, or of a folder that save_to_disk wrote
    revision: str | None = None  # of the dataset on the hub
    limit: int | None = within(None, 1, MANY)  # the first n rows, in file order
    ids: str | None = place()  # JSON file with a list of ids, or an object keyed by id: keep only these rows
    exclude_ids: str | None = place()  # the same, to leave rows out


@dataclass
class SandboxConfig:
    """Limits for one run of model-written code."""

    wall_seconds: float = within(30.0, 0.1, 86400)  # well above cpu_seconds: a busy machine must not change a verdict
    allow_unsandboxed: bool = False  # run model-written programs also where nothing can confine them
    cpu_seconds: int = within(5, 1, 86400)  # of one program
    memory_mb: int = within(1024, 1, 2**30)  # of one program
    processes: int = within(32, 1, 2**20)  # that one program may have
    file_mb: int = within(16, 1, 2**30)  # of a file that it writes
    output_kb: int = within(64, 0, 2**30)  # of what it prints
    workers: int = within(2, 1, 1024)  # programs that run at once
    bubblewrap: bool = False  # the whole sandbox within bwrap, which must be installed


@dataclass
class JudgeConfig:
    """An OpenAI-compatible endpoint that grades open answers (`task.grader=judge`)."""

    base_url: str | None = None  # of the endpoint, e.g. http://localhost:8000/v1
    model: str | None = None  # as the endpoint names it
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    # what the judge is asked
    prompt: str = (
        "Question:\n{question}\n\nReference answer:\n{reference}\n\nAnswer to grade:\n{answer}\n\n"
        "Does the answer agree with the reference answer? Reply with one word: yes or no."
    )
    concurrency: int = within(4, 1, 1024)  # requests that are under way at once
    retries: int = within(4, 0, 100)  # of a request that fails
    timeout_seconds: float = within(60.0, 0, DAY, excluding=(0,))  # of one request
    max_requests: int = within(20000, 1, MANY)  # of a run; more are refused before the first is sent
    cache: str | None = place()  # folder of verdicts; default: <output_dir>/judge


@dataclass
class TaskSize:
    """What stage=plan counts with, where the rows are not on this machine: rows, and tokens of an average one."""

    train_rows: int = within(1000, 1, 10**8)  # rows to train on
    eval_rows: int = within(1000, 1, 10**8)  # rows to evaluate on
    prompt: int = within(200, 1, 10**8)  # tokens
    response: int = within(200, 1, 10**8)  # tokens


@dataclass
class TaskConfig:
    """A data set: its rows, how they are read, how completions are made and graded."""

    name: str = MISSING  # math, code, medical, math500, finance, custom, or a name of your own
    # how rows are read: a file in xtf/tasks/, or module.function of yours; default: by the task's name, else custom
    reader: str | None = None
    source: RowSource | None = None  # None: paths, else the bundled sample for the tiny model alone, else the hub
    bundled: str | None = None  # which bundled sample the tiny model gets, and any other with source=bundled
    bundled_grader: str | None = None  # what grades that sample in place of a judge without task.judge.base_url
    train: SourceConfig = field(default_factory=SourceConfig)
    eval: SourceConfig = field(default_factory=SourceConfig)
    prompt: str | None = None  # for own data: template over a row's fields, "{question}"
    response: str | None = None  # the same for what is to be learnt
    reference: str | None = None  # what the grader compares with; default: the response
    system: str | None = None  # system message put before every conversation
    turns: Turns = Turns.last
    think: Think = Think.open
    template_checks: TemplateChecks = TemplateChecks.warn
    date: str = "2024-07-26"  # what a chat template that writes today's date is told; Llama 3's own where it knows none
    # exact, contains, substring, number, math, choice, decision, code or judge; python:module.function or module.Class
    grader: str = MISSING
    choices: list[str] = field(default_factory=list)  # the answers that task.grader=choice knows
    max_new_tokens: int = within(512, 1, NEW_TOKENS)  # of a completion in an evaluation
    samples: int = within(1, 1, SAMPLES)  # completions per evaluation prompt
    temperature: float = within(0.0, 0, 100)  # 0: greedy; else at least 0.001
    top_p: float = within(1.0, 0, 1, excluding=(0,))  # nucleus sampling: the share of probability that is drawn from
    pass_at: list[int] = within([1], 1, SAMPLES)  # the k of pass@k, each at most task.samples
    domain_words: list[str] = field(default_factory=list)  # for scorer.tr.variant=released
    sandbox: SandboxConfig = field(default_factory=SandboxConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    size: TaskSize = field(default_factory=TaskSize)


@dataclass
class RIConfig:
    """How reasoning importance is scored."""

    variant: RIVariant = RIVariant.received
    layer: int = within(-1, -1024, 1023)  # negative counts from the last layer
    scale: Scale = Scale.log


@dataclass
class TRConfig:
    """How task relevance is scored."""

    variant: TRVariant = TRVariant.dataset


@dataclass
class ScorerConfig:
    """Which attributes may drop a token, and how they are scored."""

    name: str = MISSING
    attributes: list[str] = field(default_factory=list)  # which attributes (xtf.scoring.attributes) may drop a token
    compute: list[str] = field(default_factory=list)  # further ones to score in the same pass, for later runs
    ri: RIConfig = field(default_factory=RIConfig)
    tr: TRConfig = field(default_factory=TRConfig)
    top: int = within(0, 0, 20)  # for the explorer: store so many of the base model's likeliest tokens at each place
    attenders: int = within(0, 0, 20)  # and so many tokens that attend most to each, in the layer of RI
    # Another model that scores, by its name in conf/model (a `ModelConfig` once composed); None: the model itself
    model: Any = None


@dataclass
class QuantileThreshold:
    """Low if among the share `q` of the dataset's response tokens that speaks most for noise."""

    rule: QuantileRule = QuantileRule.quantile
    q: float = within(0.1, 0, 1)  # share of the dataset's response tokens to drop
    cap: float | None = within(None, 0, 1, excluding=(0,))
    shift: float = within(0.0, -1, 1, excluding=(-1, 1))


@dataclass
class RIThreshold:
    """Low if score < Q1 - c (Q3 - Q1) over the response tokens of one example (eq. 5)."""

    rule: RIRule = RIRule.iqr
    c: float = within(1.0, 0, 1e6)  # how many quartile ranges below the first quartile
    q: float = within(0.05, 0, 1)  # rule=quantile: share of the dataset's response tokens to drop
    cap: float | None = within(None, 0, 1, excluding=(0,))  # drop at most this share of a response, lowest scores first
    shift: float = within(
        0.0, -1, 1, excluding=(-1, 1)
    )  # move the threshold so that this much more (or less) of all response tokens is dropped


@dataclass
class KNThreshold:
    """Low if p > pcp (eq. 6: 1 - p < 0.05)."""

    rule: KNRule = KNRule.cutoff
    pcp: float = within(0.95, 0, 1, excluding=(0, 1))  # the probability from which on a token is known
    q: float = within(0.15, 0, 1)  # rule=quantile
    cap: float | None = within(None, 0, 1, excluding=(0,))  # as threshold.ri.cap
    shift: float = within(0.0, -1, 1, excluding=(-1, 1))  # as threshold.ri.shift


@dataclass
class TRThreshold:
    """Low if in the cluster with the `cluster`-th smallest mean of a Multi-Otsu split (eq. 7)."""

    rule: TRRule = TRRule.multi_otsu
    classes: int = within(5, 2, 16)  # clusters of the split
    cluster: int = within(2, 1, 16)  # 1: the smallest; 2: the second smallest, as in the paper
    bins: int = within(1024, 2, 4096)  # of the histogram; at least `classes`
    fit: TRFit = TRFit.responses
    q: float = within(0.2, 0, 1)  # rule=quantile
    cap: float | None = within(None, 0, 1, excluding=(0,))  # as threshold.ri.cap
    shift: float = within(0.0, -1, 1, excluding=(-1, 1))  # as threshold.ri.shift


@dataclass
class ThresholdConfig:
    """From which score on each attribute drops a token."""

    name: str = MISSING
    end: ThresholdEnd = ThresholdEnd.kept
    dropped_weight: float = within(0.0, 0, 1, excluding=(1,))  # of a dropped token's loss; 0: none, as in the paper
    # with which a token that the mask drops is dropped in an epoch, drawn by seed; 1: in all of them, as in the paper
    drop_probability: float = within(1.0, 0, 1, excluding=(0,))
    protect: Protect = Protect.none
    ri: RIThreshold = field(default_factory=RIThreshold)
    kn: KNThreshold = field(default_factory=KNThreshold)
    tr: TRThreshold = field(default_factory=TRThreshold)
    ties: ThresholdTies = ThresholdTies.earlier


FURTHER_THRESHOLDS: dict[str, type] = {}  # settings of attributes that others add (xtf.scoring.attributes.register)


def threshold_type() -> type[ThresholdConfig]:
    """`ThresholdConfig`, with a field more for each of `FURTHER_THRESHOLDS`; the same type as long as these are."""
    importlib.import_module(METHODS.rpartition(".")[0])  # which registers those of installed packages
    return _with_fields(tuple(FURTHER_THRESHOLDS.items()))


@functools.cache
def _with_fields(further: tuple[tuple[str, type], ...]) -> type[ThresholdConfig]:
    more = [(name, cls, field(default_factory=cls)) for name, cls in further]
    return make_dataclass("ThresholdConfig", more, bases=(ThresholdConfig,)) if more else ThresholdConfig


def attribute_names() -> list[str]:
    """The attributes that can be named in `scorer.attributes`: those that have a threshold."""
    return [item.name for item in fields(threshold_type()) if is_dataclass(item.default_factory)]


@dataclass
class LoraSettings:
    """The adapter of tuning=lora."""

    r: int = within(8, 1, 1024)  # rank
    alpha: int = within(32, 1, 10**6)  # the update is scaled by alpha / r
    dropout: float = within(0.0, 0, 1, excluding=(1,))  # on the way into the adapters
    target_modules: list[str] = field(default_factory=list)  # empty: PEFT's default for the architecture


@dataclass
class TuningConfig:
    """How the model is trained; what is null follows from the model's recipe (table 3)."""

    name: Tuning = MISSING
    examples: int | None = within(None, 1, MANY)  # None: from the model's recipe (table 3)
    epochs: int | None = within(None, 1, 10**6)  # None: from the recipe
    learning_rate: float | None = within(None, 0, RATE)  # None: from the recipe
    batch_size: int | None = within(None, 1, MANY)  # examples per optimizer step; None: from the recipe
    max_steps: int | None = within(None, 1, MANY)  # stop after so many optimizer steps
    schedule: Schedule | None = None  # None: from the recipe
    warmup_ratio: float | None = within(None, 0, 1)  # share of the steps; None: from the recipe
    weight_decay: float = within(0.0, 0, RATE)  # the authors' code: 0.01, PyTorch's default
    optimizer: Optimizer = Optimizer.adamw
    betas: list[float] = within([0.9, 0.999], 0, 1, excluding=(1,))  # of AdamW
    max_grad_norm: float = within(1.0, 0, 1e30)  # 0: no clipping, as in the authors' code
    divisor: Divisor = Divisor.kept
    backward: Backward = Backward.exact
    gradient_checkpointing: bool = False  # compute activations again in the backward pass: less memory, more time
    validation_fraction: float = within(0.0, 0, 0.5)  # split off the training rows, never the evaluation set
    checkpoint: CheckpointChoice = CheckpointChoice.last
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass
class TrainerConfig:
    """The devices, and how much is done on them at once; no result depends on it."""

    name: str = MISSING
    accelerator: Accelerator = Accelerator.cpu
    devices: int = within(1, 1, 1024)  # GPUs of each machine; more than one with trainer=ddp or fsdp
    nodes: int = within(1, 1, 2**16)  # machines that train together; each runs the same command (docs/scale.md)
    node_timeout_seconds: float = within(600.0, 1, WEEK)  # longest wait for all of them at the start
    strategy: Strategy = Strategy.auto
    # Of scoring passes. ray: on every GPU of a Ray cluster, or on its CPUs in parts of as many cores as PyTorch takes
    # here (OMP_NUM_THREADS), whatever trainer.devices says of training (docs/scale.md)
    engine: Engine = Engine.processes
    precision: Precision = Precision.auto  # auto: bf16-mixed where the device has it, else 32-true
    # Packing budget of one forward and backward pass; None: chosen from the memory that is free (training/budget.py)
    tokens_per_microbatch: int | None = within(None, 1, MANY)
    tokens_per_score_batch: int = within(16384, 1, MANY)  # of a forward pass of scoring, padding included
    tokens_per_eval_batch: int = within(32768, 1, MANY)  # of a step of generation
    checkpoint_every: int = within(200, 1, MANY)  # optimizer steps between checkpoints that a killed run resumes from
    shard_examples: int = within(512, 1, MANY)  # rows per score shard, the unit of resuming a scoring pass
    compile: bool = False  # torch.compile the model for training

    @property
    def world_size(self) -> int:
        """Devices of all machines together."""
        return self.nodes * self.devices


@dataclass
class RayConfig:
    """The Ray cluster of `trainer.engine=ray`."""

    # HOST:6379, auto (the one that runs on this machine), or local (one that is started here for the pass); None: the
    # environment's RAY_ADDRESS, else local. This command must run on a node of it
    address: str | None = None
    timeout_seconds: float = within(120.0, 1, WEEK)  # longest wait for its answer, nodes, and room for a first model


@dataclass
class LoggerConfig:
    """Where a run is mirrored beside its files."""

    name: str = MISSING
    project: str = "xtf"  # of W&B
    entity: str | None = None  # of W&B: the user or team
    mode: WandbMode | None = None  # None: online if a key is configured, else offline
    tags: list[str] = field(default_factory=list)  # of the W&B runs
    timeout_seconds: float = within(30.0, 1, DAY)  # wandb: longest wait for its server, at start and end
    every: int = within(1, 1, MANY)  # optimizer steps between logged training values


WANDB_KEYS = ("project", "entity", "mode", "tags", "timeout_seconds")  # of LoggerConfig, those that W&B alone reads


@dataclass
class EvaluateConfig:
    """What is measured of the base and of the fine-tuned model."""

    base: bool = True  # grade the untouched base model too (once per model and task)
    backend: Backend = Backend.hf
    vllm_memory: float = within(0.8, 0.05, 1)  # share of the device's memory that vLLM may take
    # lm-eval tasks run before and after (extra `general`); hellaswag:FILE reads the items from a local file
    general: list[str] = field(default_factory=list)
    general_limit: int | None = within(None, 1, MANY)  # only the first items of each
    losses: bool = False  # also loss, calibration and forgetting, on given texts (xtf/evaluation/teacher_forced.py)
    # JSON lines with `text` like that of pre-training, for forgetting_loss; the tiny model brings its own
    forgetting: str | None = place()


@dataclass
class PlantConfig:
    """Noise at known places of the training responses, to see who finds it; evaluation rows stay clean."""

    share: float = within(0.0, 0, 0.9)  # of the response tokens; 0: none
    kinds: list[PlantKind] = field(default_factory=lambda: list(PlantKind))  # in equal parts
    seed: int = within(
        0, 0, LARGEST_SEED
    )  # apart from the run's seed: runs with different seeds train on the same rows


@dataclass
class PilotConfig:
    """The short study of `probe=true`: normal, xtf and random, paired by seed."""

    seeds: int = within(3, 2, 100)  # of each method
    examples: int = within(400, 2, MANY)  # training rows at most
    eval_examples: int = within(100, 2, MANY)  # evaluation rows at most
    gain: float = within(0.02, 1e-4, 1)  # the gain that the answer's sentence is about, as a share


@dataclass
class PreviewConfig:
    """The explorer of a mask."""

    format: PreviewFormat = PreviewFormat.html
    examples: int | None = within(None, 1, MANY)  # None: 2,000 in HTML, 5 as text
    against: str | None = place()  # a second mask of the same rows to show: its run's folder, or its mask.parquet


@dataclass
class ExportConfig:
    """stage=export: the masked rows for another trainer (docs/interop.md)."""

    to: str = "hf"  # hf, trl, axolotl, llamafactory, ms_swift or megatron: a file in xtf/exports/
    empty_rows: EmptyRows = EmptyRows.drop  # rows without any label; a step of nothing but these has no loss
    max_length: int | None = within(None, 2, MANY)  # what the configuration allows, in tokens; None: the longest row


@dataclass
class PlanConfig:
    """What stage=plan assumes of a device."""

    device_memory_gb: float | None = within(None, 0, 10**6)  # GiB; None: 80 for a GPU, this machine's for the CPU
    # Tokens that one device trains in a second, for a model of 1e9 parameters; the time is inverse to the size. None:
    # 10,000, what 6e13 operations a second give, a fifth of an A100's peak in bfloat16; what a run on a CPU says of its
    # own stages before it has measured them counts with 30, of two cores.
    tokens_per_second: float | None = within(None, 1e-9, 1e15)


class PretrainText(Enum):
    """The generated text that a base model is trained on (`xtf/tiny`)."""

    tiny = "tiny"
    broad = "broad"  # more domains, styles and levels; some facts are withheld


@dataclass
class PretrainConfig:
    """stage=pretrain: a Qwen2-architecture model from nothing. Lengths and sizes in tokens unless the name says."""

    name: str = "tiny"
    text: PretrainText = PretrainText.tiny
    vocabulary: int = within(2048, 300, 2**20)  # token ids
    tokenizer_documents: int = within(40_000, 1, 10**8)  # that the tokenizer is trained on
    hidden: int = within(192, 2, 2**14)  # width
    layers: int = within(6, 1, 1024)  # of attention and feed-forward
    heads: int = within(4, 1, 1024)  # of the queries
    key_value_heads: int = within(1, 1, 1024)  # of keys and values
    intermediate: int = within(512, 1, 2**16)  # width within the feed-forward layers
    row_tokens: int = within(256, 2, 2**16)  # of a training row
    step_rows: int = within(24, 1, 10**6)  # per optimizer step
    steps: int = within(900, 3, 10**8)  # optimizer steps
    warmup_ratio: float = within(0.11, 0, 1)  # share of the steps in which the learning rate rises
    learning_rate: float = within(3e-3, 0, RATE)  # at its highest
    weight_decay: float = within(0.1, 0, RATE)  # of AdamW
    temperature: float = within(1.0, 0.1, 10)  # that the finished model's logits are divided by


@dataclass
class Config:
    """The whole run."""

    stage: Stage = Stage.all
    seed: int = within(0, 0, LARGEST_SEED)  # of the training's order, of dropout and of random masks
    output_dir: str = place("outputs")  # every artifact is written below it
    model: ModelConfig = MISSING
    task: TaskConfig = MISSING
    scorer: ScorerConfig = MISSING
    threshold: ThresholdConfig = MISSING
    method: Any = MISSING  # one of xtf.scoring.methods.METHODS, or the class that its _target_ names
    tuning: TuningConfig = MISSING
    trainer: TrainerConfig = MISSING
    logger: LoggerConfig = MISSING
    ray: RayConfig = field(default_factory=RayConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    preview: PreviewConfig = field(default_factory=PreviewConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    probe: bool = False  # look at the data and run a pilot instead of one run (xtf/study/probe.py)
    pilot: PilotConfig = field(default_factory=PilotConfig)
    plant: PlantConfig = field(default_factory=PlantConfig)
    experiment: str | None = None  # set by the files in experiments/
    # With stage=report experiments=NAME: read stored runs (xtf/study/archive.py), not outputs.
    archive: str | None = place()
    cases: list[str] = field(default_factory=list)  # model/tuning pairs that a sweep runs; empty: all


# By name, the built-in methods and graders, a grader's version and the trainers of stage=export: this room imports none
# above it.
METHODS = "xtf.scoring.methods.METHODS"
GRADERS = "xtf.graders.GRADERS"
GRADER_VERSION = "xtf.graders.version"
TRAINERS = "xtf.exports.TRAINERS"

# The folders of conf/ whose choice fills the field of that name.
GROUPS = ("model", "task", "scorer", "threshold", "method", "tuning", "trainer", "logger", "pretrain")

# The values of conf/threshold/*.yaml, for the library.
PRESETS = {
    "paper": ThresholdConfig(name="paper"),
    "released": ThresholdConfig(
        name="released",
        ri=RIThreshold(c=1.5, cap=0.05),
        kn=KNThreshold(cap=0.1),
        tr=TRThreshold(cluster=1, bins=256, fit=TRFit.released, cap=0.05),
        ties=ThresholdTies.none,
    ),
    "safe": ThresholdConfig(name="safe", dropped_weight=0.3),
    "quantile": ThresholdConfig(
        name="quantile",
        ri=RIThreshold(rule=RIRule.quantile),
        kn=KNThreshold(rule=KNRule.quantile),
        tr=TRThreshold(rule=TRRule.quantile),
    ),
}
