"""The config of a whole run, as frozen pydantic models. Imports nothing heavy.

A config comes from a recipe (a YAML file shipped in ``recipes/``, or any path) and overrides in dotted form
(``budget.fraction=0.03``), the same for ``--set`` and for sweeps. Defaults are ours, not the paper's: see README.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from bridge_ray.errors import UserError

RECIPES = Path(__file__).parent / "recipes"
FIELDS = ("id", "question", "context", "options", "answer", "domain")  # of an example, that a file's columns hold
SECRET = re.compile(r"api_?key|secret|password|token$", re.IGNORECASE)  # in the names of fields that are not ours
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")

_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
LABEL_KEY = re.compile(rf"(?:[A-Za-z0-9][A-Za-z0-9.-]*/)?{_LABEL}")
LABEL_SELECTOR = re.compile(rf"!?(?:{_LABEL}|in\({_LABEL}(?:, ?{_LABEL})*\))")

OURS_IN_DEEPSPEED = {  # their config's key -> our field
    "train_batch_size": "training.global_batch",
    "train_micro_batch_size_per_gpu": "training.micro_batch",
    "gradient_accumulation_steps": "training.global_batch and training.micro_batch",
    "gradient_clipping": "the clip of ta.train and student.train",
    "optimizer": "the lr and weight_decay of ta.train and student.train",
    "bf16": "training.precision",
    "fp16": "training.precision",
    "scheduler": "the lr and warmup of ta.train and student.train",
}


def _selectors(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no label of a node; a label looks like pool or example.com/pool")
        if not LABEL_SELECTOR.fullmatch(value):
            raise ValueError(f"{value!r} selects no label's value; write a value, !value, in(a, b) or !in(a, b)")
    return labels


def _somewhere(location: str) -> str:
    if not location:
        raise ValueError("is empty; give a folder, or the URL of an object store")
    return location


Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # numpy's
Location = Annotated[str, AfterValidator(_somewhere)]
Labels = Annotated[dict[str, str], AfterValidator(_selectors)]  # a node's label -> the value that it must have
AnswerType = Literal["choice", "boolean", "number", "text"]
Check = Literal["majority", "likeliest", "arithmetic", "comparisons", "options", "reanswer"]
TEXT_CHECKS: tuple[Check, ...] = ("arithmetic", "comparisons", "options")  # they read the reply, and ask the TA nothing
System = Literal["guess", "student_base", "labels", "direct", "direct_labels", "bridge", "ta_base", "ta", "teacher"]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Corpus(Model):
    """Where the examples come from, and how many go to each split.

    ``columns`` maps our fields (id, question, context, options, answer, domain) to the file's columns; only
    question is required. Of a field that it does not name, the column with our name is taken; null: none is.
    ``train: null`` takes every row that dev and test leave. Where only a path is given, its ending says what it is.
    ``made`` is the number of training questions to generate, of which ``train`` are taken: a smaller corpus is then a
    part of a larger one, as a file's always is. ``templates`` is how many kinds of question each of its domains has:
    with three, a yes or no, a number and a choice.
    """

    source: Literal["generated", "jsonl", "parquet", "legalbench", "pubmedqa", "gsm8k"] = "generated"
    path: str | None = None
    columns: dict[str, str | None] = {}
    answer_type: AnswerType | None = None  # None: inferred from the options and the answers
    train: Positive | None = None
    made: Positive | None = None  # of a generated corpus; null: train
    templates: Annotated[int, Field(ge=1, le=6)] | None = None  # of each generated domain; null: all
    dev: Annotated[int, Field(ge=0)] = 0
    test: Annotated[int, Field(ge=0)] = 100
    near_duplicate: Share = 0.9  # Jaccard similarity of word 3-grams from which train and test rows are reported

    @model_validator(mode="before")
    @classmethod
    def _source_of_path(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("path") and "source" not in raw:
            return raw | {"source": "jsonl" if re.search(r"\.jsonl?(\.gz)?$", str(raw["path"])) else "parquet"}
        return raw

    @model_validator(mode="after")
    def _needs(self) -> Corpus:
        if self.source == "generated" and self.train is None:
            raise ValueError("a generated corpus needs corpus.train, the number of questions to make")
        if self.made is not None and (self.source != "generated" or self.made < (self.train or 0)):
            raise ValueError("corpus.made is for a generated corpus, and at least corpus.train")
        if self.templates is not None and self.source != "generated":
            raise ValueError("corpus.templates is for a generated corpus; leave it out")
        if self.source != "generated" and self.path is None:
            raise ValueError(f"corpus.source {self.source} needs corpus.path")
        if "://" in (self.path or "") and self.source not in ("jsonl", "parquet"):
            raise ValueError(f"corpus.path {self.path}: a URL is for jsonl and parquet; give a folder's path")
        unknown = set(self.columns) - set(FIELDS)
        if unknown:
            raise ValueError(f"corpus.columns has unknown field {min(unknown)!r}; fields: {', '.join(FIELDS)}")
        return self


class Score(Model):
    samples: Positive = 8
    temperature: Annotated[float, Field(gt=0)] = 0.7
    max_tokens: Positive = 128
    difficulty: Literal["entropy", "error"] = "entropy"
    max_error_fraction: Share = 0.01  # of rows that cannot be asked, such as those that engine.max_model_len cuts off


class Embed(Model):
    model: str = "ta"


class SharedAccount(Model):
    """An account in teacher.store that pays for several runs; its cap bounds what they pay together."""

    name: str
    max_queries: Positive | None = None
    max_usd: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _bounded(self) -> SharedAccount:
        if not RUN_NAME.fullmatch(self.name):
            raise ValueError("account name may hold only letters, digits, '-', '_' and single dots between them")
        if self.max_queries is None and self.max_usd is None:
            raise ValueError("a shared account needs at least one of max_queries, max_usd")
        return self


class Budget(Model):
    """The teacher's budget of a run; the bound that is reached first counts.

    It counts all rationales that the run uses, at their price, whoever paid for them. ``account`` shares what is really
    paid with other runs; without one, a run pays at most its budget for them. Where the teacher is a system of
    evaluate, its test questions are paid beside the budget, and from the account if there is one.
    """

    fraction: Annotated[float, Field(gt=0, le=1)] | None = 0.05
    max_queries: Positive | None = None
    max_usd: Annotated[float, Field(gt=0)] | None = None
    account: SharedAccount | None = None

    @model_validator(mode="after")
    def _bounded(self) -> Budget:
        if self.fraction is None and self.max_queries is None and self.max_usd is None:
            raise ValueError("budget needs at least one of fraction, max_queries, max_usd")
        return self


class Select(Model):
    strategy: Literal["bridge", "random", "entropy", "coverage", "kcenter", "kmeans"] = "bridge"
    difficulty_weight: Share = 0.5
    neighbours: Positive = 15


class Price(Model):
    """US dollars per million tokens."""

    input: Annotated[float, Field(ge=0)]
    output: Annotated[float, Field(ge=0)]


class StandIn(Model):
    """``styles``: the expert explains all questions in one style, or each in one of many that the question decides."""

    answers: Literal["expert", "recorded"] = "expert"
    file: str | None = None
    styles: Literal["one", "many"] = "many"

    @model_validator(mode="after")
    def _sensible(self) -> StandIn:
        if self.answers == "recorded" and self.styles == "one":
            raise ValueError("styles are the expert's: recorded answers are given as they were recorded")
        return self


class Teacher(Model):
    base_url: str | None = None  # None with no standin: the provider's default address
    model: str = "gpt-4o"
    mode: Literal["chat", "batch"] = "chat"
    key_file: str | None = None  # else the environment variable OPENAI_API_KEY
    store: Location | None = None  # None: STORAGE/teacher
    max_tokens: Positive = 512
    temperature: Annotated[float, Field(ge=0)] = 0.0
    guided: bool = True
    concurrency: Positive = 8
    timeout: Annotated[float, Field(gt=0)] = 600.0  # seconds for one reply: one that takes longer is lost, and billed
    rpm: Positive | None = None
    tpm: Positive | None = None
    price: Price | None = None
    standin: StandIn | None = None

    @field_validator("base_url")
    @classmethod
    def _no_secrets(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "")
        if "@" in parts.netloc or parts.query:
            raise ValueError(
                "holds a user, a password or a query; a key belongs into OPENAI_API_KEY or teacher.key_file"
            )
        return url


class Lora(Model):
    rank: Positive = 64
    alpha: Positive = 128


class Schedule(Model):
    """One optimiser schedule: linear warm-up, then cosine to a tenth of the peak."""

    lr: Annotated[float, Field(gt=0)]
    warmup: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip: Annotated[float, Field(gt=0)] = 1.0


class TATrain(Schedule):
    lr: Annotated[float, Field(gt=0)] = 1.0e-4
    epochs: Annotated[float, Field(gt=0)] = 5.0
    updates: Positive | None = None  # instead of epochs: as many for any budget


class TA(Model):
    model: str = "embedded:smollm2-135m"
    lora: Lora = Lora()
    train: TATrain = TATrain()
    serve: Literal["merged", "adapter"] = "merged"
    taught: bool = True  # false: the TA explains the corpus as it is, untaught; the bought rationales stay
    adapter: str | None = None  # of a TA that is there already, for `bridge-ray amplify`: a LoRA adapter's location


class Amplify(Model):
    """Up to ``samples`` sampled answers after the greedy one; ``verify`` says which one may stay.

    ``checks`` ask more of a right reply than its answer. majority: of open questions, too, all replies are drawn and
    most must be right. likeliest: of the right ones the likeliest is kept. arithmetic: its sums are recomputed.
    comparisons: numbers that it compares are compared again. options: it calls no option by another one's letter.
    reanswer: its reasoning without the conclusion leads the TA to the answer again. The default, those three that read
    the text, is none with ``verify=off``.
    """

    samples: Annotated[int, Field(ge=0)] = 3
    temperature: Annotated[float, Field(gt=0)] = 0.7
    max_tokens: Positive = 256
    hint: bool = True
    verify: Literal["gold", "self_consistency", "off"] = "gold"
    checks: tuple[Check, ...] = TEXT_CHECKS
    max_error_fraction: Share = 0.01

    @field_validator("verify", mode="before")
    @classmethod
    def _off(cls, verify: Any) -> Any:
        return "off" if verify is False else verify  # YAML reads a bare off as false

    @model_validator(mode="before")
    @classmethod
    def _none_unverified(cls, given: Any) -> Any:
        """The default's checks end with verification, also where a dumped config spells the default out."""
        off = isinstance(given, dict) and given.get("verify") in ("off", False)
        return {**given, "checks": ()} if off and tuple(given.get("checks", TEXT_CHECKS)) == TEXT_CHECKS else given

    @field_validator("checks")
    @classmethod
    def _once_and_in_order(cls, checks: tuple[Check, ...]) -> tuple[Check, ...]:
        return tuple(name for name in get_args(Check) if name in checks)

    @model_validator(mode="after")
    def _verified(self) -> Amplify:
        if self.checks and self.verify == "off":
            raise ValueError("checks look at verified replies only; with verify=off set checks=[]")
        return self


class PruneLayers(Model):
    prune_layers_of: str = "ta"
    keep: Positive


class FromConfig(Model):
    """A student with random weights: the architecture and tokenizer of a model, with some of its config changed."""

    config_of: str = "ta"
    changes: dict[str, Any] = {}  # of the model's config.json, e.g. {num_hidden_layers: 6}


class Phase(Model):
    """A phase of the curriculum.

    ``target``: reply with the answer, with rationale and answer, or both kinds of lessons mixed. ``source``: rows of
    the whole corpus, or only those that were bought. An epoch is corpus rows / global batch updates, whatever the
    number of rows the phase's source has, so that every system takes the same number of updates; ``updates`` says them
    outright.
    ``replay`` is the share of a phase's samples that is drawn from the phase before it. ``order`` is that of the first
    epoch; a phase with less time than one teaches lessons of all difficulties. ``rewarm``: the learning rate
    warms up and decays anew from here on.
    """

    target: Literal["answer", "rationale", "mix"]
    source: Literal["all", "bought"] = "all"
    epochs: Annotated[float, Field(gt=0)] = 1.0
    updates: Positive | None = None  # instead of epochs
    replay: Share = 0.0
    order: Literal["shuffled", "easy_to_hard"] = "shuffled"
    rewarm: bool = False


BRANCHES = {"PruneLayers": PruneLayers, "FromConfig": FromConfig, "Reference": None}  # the kinds of student.init


def _branch(init: Any) -> str | None:
    if isinstance(init, str):
        return "Reference"
    if isinstance(init, FromConfig) or (isinstance(init, dict) and {"config_of", "changes"} & init.keys()):
        return "FromConfig"
    return "PruneLayers" if isinstance(init, PruneLayers | dict) else None


Init = Annotated[
    Annotated[str, Tag("Reference")]
    | Annotated[PruneLayers, Tag("PruneLayers")]
    | Annotated[FromConfig, Tag("FromConfig")],
    Discriminator(_branch),
]


class StudentTrain(Schedule):
    lr: Annotated[float, Field(gt=0)] = 4.0e-4


class Student(Model):
    """``control`` replaces the curriculum by one of the same number of updates that says what its phases are worth."""

    init: Init = PruneLayers(prune_layers_of="ta", keep=12)
    train: StudentTrain = StudentTrain()
    control: Literal["reasoning_only", "answers_only", "joint", "reversed"] | None = None
    curriculum: Annotated[tuple[Phase, ...], Field(min_length=1)] = (
        Phase(target="answer", epochs=1),
        Phase(target="rationale", epochs=3, replay=0.15, order="easy_to_hard"),
    )

    @property
    def reasons(self) -> bool:
        """Whether a student that goes through this curriculum is shown any rationale."""
        return self.control != "answers_only" and any(phase.target != "answer" for phase in self.curriculum)

    @property
    def source(self) -> str:
        """The model that the student is made from: a reference, or ``ta``."""
        match self.init:
            case PruneLayers(prune_layers_of=source) | FromConfig(config_of=source):
                return source
            case str(source):
                return source


class Evaluate(Model):
    """``split``: dev is for choosing, test for reporting. Several ``samples``: their majority counts.

    ``by_entropy``: the TA before training also answers the split's questions as in stage *score*, so that accuracies
    can be told apart by how hard the questions are; costs as much as scoring that many questions.
    """

    systems: Annotated[tuple[System, ...], Field(min_length=1)] = (
        "guess",
        "student_base",
        "direct",
        "direct_labels",
        "bridge",
        "ta_base",
        "ta",
    )
    split: Literal["dev", "test"] = "test"
    max_tokens: Positive = 256
    samples: Positive = 1
    temperature: Annotated[float, Field(gt=0)] = 0.7
    resamples: Positive = 2000  # of the bootstrap
    by_entropy: bool = False
    max_error_fraction: Share = 0.01  # of questions that cannot be asked; what is left of them counts as wrong

    @model_validator(mode="after")
    def _scored(self) -> Evaluate:
        if self.by_entropy and "ta_base" not in self.systems:
            raise ValueError("evaluate.by_entropy needs ta_base among evaluate.systems: its engine answers")
        return self


class Engine(Model):
    """Engines are added up to ``max_replicas`` while rows wait and the cluster has room; null: ``replicas``, always."""

    replicas: Positive = 1
    max_replicas: Positive | None = None
    tensor_parallel: Positive = 1
    gpus: Annotated[float, Field(ge=0)] = 0
    max_num_seqs: Positive = 64
    max_model_len: Positive = 1024
    kv_cache_gb: Positive = 2  # CPU engines only
    enforce_eager: bool = False
    labels: Labels = {}  # of the nodes that may run engines; Ray's label selectors

    @model_validator(mode="after")
    def _possible(self) -> Engine:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"engine.max_replicas {self.max_replicas} is below engine.replicas {self.replicas}")
        if self.tensor_parallel > 1 and self.gpus not in (0, 1):
            raise ValueError("engine.tensor_parallel needs engine.gpus=1: each of its workers takes a whole GPU")
        return self


class Training(Model):
    """``global_batch`` and ``micro_batch`` count rows of at most ``seq_len`` tokens: per update, and at once a worker.

    With ``packing``, a worker's rows of an update are one sequence after another without padding, at most
    ``micro_batch`` x ``seq_len`` tokens at once, and no row attends to another. ``precision``: auto is bf16 where the
    hardware computes it (GPUs, CPUs with AVX-512 or Arm's BF16) and fp32 elsewhere.
    """

    workers: Positive = 2
    gpus_per_worker: Literal[0, 1] = 0
    zero_stage: Literal[0, 1, 2, 3] = 2
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    global_batch: Positive = 16
    micro_batch: Positive = 8
    seq_len: Positive = 512
    packing: bool = True
    gradient_checkpointing: bool = False
    checkpoint_every: Positive = 100  # updates
    checkpoints_kept: Positive = 2
    max_failures: Annotated[int, Field(ge=-1)] = 3
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    labels: Labels = {}  # of the nodes that may train
    deepspeed: dict[str, Any] = {}

    @field_validator("deepspeed")
    @classmethod
    def _theirs(cls, deepspeed: dict[str, Any]) -> dict[str, Any]:
        for key, field in OURS_IN_DEEPSPEED.items():
            if key in deepspeed:
                raise ValueError(f"{key} is set by {field}; leave it out here")
        for path in flat(deepspeed):
            if SECRET.search(path):
                raise ValueError(
                    f"{path} looks like a secret, and a config is kept and shown; set it in the environment"
                )
        if "stage" in (deepspeed.get("zero_optimization") or {}):
            raise ValueError("zero_optimization.stage is set by training.zero_stage; leave it out here")
        return deepspeed

    @model_validator(mode="after")
    def _divides(self) -> Training:
        if self.global_batch % self.workers:
            raise ValueError(
                f"training.global_batch {self.global_batch} is not a multiple of training.workers {self.workers}"
            )
        return self


class Config(Model):
    """A whole run. Field names are fixed: recipes, ``--set`` and sweeps all use them."""

    name: str
    seed: Seed = 0
    storage: Location = "storage"
    corpus: Corpus = Corpus(train=600)
    score: Score = Score()
    embed: Embed = Embed()
    budget: Budget = Budget()
    select: Select = Select()
    teacher: Teacher = Teacher()
    ta: TA = TA()
    amplify: Amplify = Amplify()
    student: Student = Student()
    evaluate: Evaluate = Evaluate()
    engine: Engine = Engine()
    training: Training = Training()

    @field_validator("name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not RUN_NAME.fullmatch(name):
            raise ValueError(f"run name {name!r} may hold only letters, digits, '-', '_' and single dots between them")
        return name

    @property
    def teacher_store(self) -> str:
        return self.teacher.store or f"{self.storage.rstrip('/')}/teacher"


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe in the package."""
    return {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}


def load(recipe: str | None, overrides: Iterable[str] = (), **fields: str | None) -> Config:
    """Read a recipe name or YAML file (None: nothing but defaults), apply ``a.b=c`` overrides and non-None top-level
    fields, validate.

    Raises UserError with one line that names the field.
    """
    path, raw = (Path("--set"), {}) if recipe is None else _read(recipe)
    for override in overrides:
        raw = _override(raw, override)
    raw |= {key: value for key, value in fields.items() if value is not None}
    raw.setdefault("name", path.stem)
    return validate(raw, source=str(path))


def _read(recipe: str) -> tuple[Path, dict[str, Any]]:
    path = recipes().get(recipe) or Path(recipe)
    if not path.is_file():
        raise UserError(f"{recipe}: no such recipe or file; recipes: {', '.join(recipes())}")
    return path, read_yaml(path)


class _Once(yaml.SafeLoader):
    """A key that is given twice is an error: of two budgets, YAML would silently take the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError with one line."""
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Once)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected a mapping of fields")
    return raw


def validate(raw: Mapping[str, Any], source: str) -> Config:
    """Build a Config, turning the first validation failure into a one-line UserError."""
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        found = error.errors()
        first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])  # it says what was mistyped
        field = ".".join(str(part) for part in first["loc"] if part not in BRANCHES)
        unknown = first["type"] == "extra_forbidden"
        message = f"unknown field; {_known(first['loc'])}" if unknown else first["msg"].removeprefix("Value error, ")
        raise UserError(f"{source}: {field or 'config'}: {message}") from error


def _known(path: Sequence[str | int]) -> str:
    """What an unknown field may have been meant to be, or what there is."""
    model: Any = Config
    for part in path[:-1]:
        model = BRANCHES.get(str(part)) or _inside(model, str(part))
    fields = list(model.model_fields) if model is not None else []
    close = difflib.get_close_matches(str(path[-1]), fields, 1)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(fields)}" if fields else "leave it out"


def _inside(model: Any, field: str) -> Any:
    """The model that a field of a model holds, itself or in a list or beside None; None where it holds none."""
    if field.isdigit():
        return model
    found = model.model_fields.get(field) if model is not None else None
    kinds = [found.annotation, *get_args(found.annotation)] if found is not None else []
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Model)), None)


def changed(config: Config, fields: Mapping[str, Any], source: str) -> Config:
    """The config with other values of these fields, in dotted form. Raises UserError with one line."""
    raw: Any = config.model_dump(mode="json")
    for path, value in fields.items():
        raw = _put(raw, path.split("."), value)
    return validate(raw, source)


def _override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """Return raw with one dotted override applied; the value is read as YAML."""
    path, separator, text = override.partition("=")
    if not separator or not all(path.split(".")):
        raise UserError(f"--set {override}: expected field.path=value, e.g. budget.fraction=0.03")
    try:
        value = yaml.load(text, _Once)
    except yaml.YAMLError as error:
        raise UserError(f"--set {override}: the value is not valid YAML") from error
    keys = path.split(".")
    try:
        return _put(_with_default_list(raw, keys), keys, value)
    except IndexError as error:
        raise UserError(f"--set {override}: {error}") from error


def _with_default_list(raw: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """With the default's list where the path names an entry of one that the recipe leaves as it is."""
    if not any(key.isdigit() for key in path):
        return raw
    given: Any = raw
    default: Any = Config(name="default").model_dump(mode="json")
    for depth, key in enumerate(path):
        if isinstance(default, list):
            return raw if given is not None else _put(raw, path[:depth], default)
        given = given.get(key) if isinstance(given, dict) else None
        default = default.get(key) if isinstance(default, dict) else None
    return raw


def _put(raw: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(raw, list) and key.isdigit() and int(key) < len(raw):
        return [_put(item, rest, value) if i == int(key) else item for i, item in enumerate(raw)]
    if isinstance(raw, list):
        raise IndexError(f"{key} is no entry of a list of {len(raw)}; they are numbered from 0")
    base = raw if isinstance(raw, dict) else {}
    return base | {key: _put(base.get(key), rest, value)}


def dump(config: Config) -> str:
    """The resolved config as YAML, every default spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """A config's fields by the dotted paths that ``--set`` takes; a list is one field."""
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{path}.{name}".strip(".")).items()}
