"""What a sweep is asked to do: a YAML file as a frozen pydantic model, checked before anything starts.

``space`` says in dotted paths, those of ``--set``, which fields of the base recipe are tried at which values:

    budget.fraction: [0.03, 0.05]                              # choices
    student.train.lr: {low: 1.0e-4, high: 1.0e-3, log: true}   # a range; step: for a grid, or whole numbers apart
    curriculum:                                                # named choices of several fields at once
      choices: {plain: {}, long: {student.curriculum.1.epochs: 3, student.curriculum.1.replay: 0.3}}
    select.neighbours: {choices: [5, 15], when: {select.strategy: [bridge, coverage]}}   # only there
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from bridge_ray import config
from bridge_ray.config import RUN_NAME, Config, Model, Positive, Seed
from bridge_ray.errors import UserError

SPECS = config.RECIPES / "sweeps"
MAY_CHANGE = {"trials", "concurrency", "budget", "storage", "warm_start", "base"}  # in a sweep that goes on

Objective = Literal["accuracy", "usd", "queries", "local_hours"]
Scalar = int | float | str | bool | None


class Range(Model):
    """Numbers from ``low`` to ``high``, both included; whole ones if both are whole."""

    low: int | float
    high: int | float
    log: bool = False
    step: int | float | None = None
    when: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _possible(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low {self.low:g} must be below high {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError("a log range begins above 0")
        if self.step is not None and (self.log or self.step <= 0):
            raise ValueError("step is a positive distance, and not for a log range")
        return self

    @property
    def whole(self) -> bool:
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))


class Choice(Model):
    """One of several values of the field."""

    choices: Annotated[tuple[Any, ...], Field(min_length=1)]
    when: dict[str, Any] = Field(default_factory=dict)


class Bundle(Model):
    """One of several named sets of fields; the name of the dimension itself is no field."""

    choices: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    when: dict[str, Any] = Field(default_factory=dict)


def _kind(raw: Any) -> str:
    """What a dimension is meant to be, so that a mistake in it is told of that kind alone."""
    if isinstance(raw, Model):
        return type(raw).__name__
    if isinstance(raw, Mapping) and "choices" not in raw:
        return "Range"
    return "Bundle" if isinstance(raw, Mapping) and isinstance(raw["choices"], Mapping) else "Choice"


Dimension = Range | Choice | Bundle


def paths(name: str, part: Dimension) -> list[str]:
    """The fields that a dimension of that name can set, as dotted paths."""
    return [field for fields in part.choices.values() for field in fields] if isinstance(part, Bundle) else [name]


def _overlap(ones: list[str], earlier: list[str]) -> str | None:
    """A path of ``ones`` by which the whole of an earlier one's value is replaced; a part of it may be refined."""
    return next((one for one in ones for before in earlier if f"{before}.".startswith(f"{one}.")), None)


Tagged = Annotated[
    Annotated[Range, Tag("Range")] | Annotated[Choice, Tag("Choice")] | Annotated[Bundle, Tag("Bundle")],
    Discriminator(_kind),
]


class Asha(Model):
    """Ends a trial in the middle of its student's training if others did better at the same share of their updates.

    The dev split is asked after the share ``first`` of the updates, and whenever the share has grown by ``reduction``;
    each time about one trial in ``reduction`` goes on. ``questions``: of the dev split, the first so many. Before the
    student is shown rationales, trials that differ in what was bought or explained are told apart by chance alone.
    """

    first: Annotated[float, Field(gt=0, lt=1)] = 0.5
    reduction: Annotated[float, Field(gt=1)] = 2
    questions: Positive | None = None

    @property
    def shares(self) -> tuple[float, ...]:
        """Of the updates, at which the model is asked."""
        found = [self.first]
        while found[-1] * self.reduction < 1:
            found.append(found[-1] * self.reduction)
        return tuple(found)


class Limits(Model):
    """What all trials together may really pay the teacher; where it is reached, the sweep ends."""

    max_queries: Positive | None = None
    max_usd: Annotated[float, Field(gt=0)] | None = None


class Spec(Model):
    """A sweep. ``seeds`` runs make a trial, whose accuracy is their mean; ``seed`` is the search's own."""

    name: str
    base: str  # a recipe's name, or a YAML file as seen from the spec's folder
    set: dict[str, Any] = Field(default_factory=dict)  # fields of the base to change for all trials
    space: Annotated[dict[str, Tagged], Field(min_length=1)]
    objectives: tuple[Objective, ...] = ("accuracy",)
    search: Literal["optuna", "random", "grid"] = "optuna"
    trials: Positive | None = None  # null: the whole grid
    seeds: Positive = 1
    seed: Seed = 0
    asha: Asha | None = None
    concurrency: Positive | None = None  # trials at once; null: as many trainings as the cluster has room for
    budget: Limits = Limits()
    warm_start: tuple[str, ...] = ()  # names of earlier sweeps in the same storage whose trials the search knows
    storage: str | None = None  # null: the base's

    @field_validator("name")
    @classmethod
    def _safe_name(cls, name: str) -> str:
        if not RUN_NAME.fullmatch(name):
            raise ValueError(f"{name!r} may hold only letters, digits, '-', '_' and single dots between them")
        return name

    @field_validator("space", mode="before")
    @classmethod
    def _lists_are_choices(cls, space: Any) -> Any:
        if not isinstance(space, Mapping):
            return space
        return {name: {"choices": part} if isinstance(part, list) else part for name, part in space.items()}

    @field_validator("asha", mode="before")
    @classmethod
    def _on_or_off(cls, asha: Any) -> Any:
        return {True: {}, False: None}[asha] if isinstance(asha, bool) else asha

    @model_validator(mode="after")
    def _makes_sense(self) -> Spec:
        if "accuracy" not in self.objectives or len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives: accuracy must be one of them, and each stands once")
        if self.trials is None and self.search != "grid":
            raise ValueError(f"trials: search {self.search} needs their number")
        names = list(self.space)
        for place, (name, part) in enumerate(self.space.items()):
            for other in part.when:
                if other not in names[:place]:
                    raise ValueError(f"space.{name}.when: {other} must stand in the space, before {name}")
            for other in names[:place]:
                if over := _overlap(paths(name, part), paths(other, self.space[other])):
                    raise ValueError(f"space.{name}: it sets {over}, which {other} has set before; leave one out")
            if self.search == "grid" and isinstance(part, Range) and part.step is None and not part.whole:
                raise ValueError(f"space.{name}: a grid needs a step for this range, or choices")
        return self

    @property
    def account(self) -> str:
        """The account in teacher.store that pays for all trials."""
        return f"sweep-{self.name}"


def load(spec: str, name: str | None = None, storage: str | None = None) -> tuple[Spec, Config]:
    """A spec (a name that comes with the package, or a YAML file), and the config that its trials change.

    Raises UserError with one line.
    """
    path = SPECS / f"{spec}.yaml" if (SPECS / f"{spec}.yaml").is_file() else Path(spec)
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in SPECS.glob("*.yaml")))
        raise UserError(f"{spec}: no such sweep or file; sweeps: {there}")
    raw = config.read_yaml(path)
    raw |= {key: value for key, value in (("name", name), ("storage", storage)) if value is not None}
    found = validate({"name": path.stem} | raw, str(path))
    return found, base_config(found, path)


def validate(raw: Mapping[str, Any], source: str) -> Spec:
    """Build a Spec, turning the first validation failure into a one-line UserError."""
    try:
        return Spec.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part not in ("Range", "Choice", "Bundle"))
        said = "unknown field" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        raise UserError(f"{source}: {field or 'sweep'}: {said}") from error


def base_config(spec: Spec, path: Path) -> Config:
    """The base recipe as every trial has it: with the spec's ``set``, evaluated on dev, the bridge system alone."""
    beside = path.parent / spec.base
    loaded = config.load(str(beside) if beside.is_file() else spec.base, storage=spec.storage)
    base = config.changed(loaded, spec.set, f"{path}: set")
    if base.budget.account is not None:
        raise UserError(f"{path}: budget.account: a sweep has an account of its own; give the sweep's budget instead")
    if base.corpus.dev == 0:
        raise UserError(f"{path}: corpus.dev is 0, and a sweep chooses on the dev split; e.g. set: {{corpus.dev: 100}}")
    return config.changed(base, {"evaluate.split": "dev", "evaluate.systems": ["bridge"]}, str(path))
