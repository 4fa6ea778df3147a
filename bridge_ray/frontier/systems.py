"""What is compared: a system is a line of config over the recipe, and the name of the model in it that answers.

All students take the same number of updates from the same weights. The systems ``bridge_no_…`` are BRIDGE without
one of its parts, all else alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bridge_ray import config
from bridge_ray.config import Config
from bridge_ray.errors import UserError

Budgets = Literal["all", "reference", "none"]


@dataclass(frozen=True)
class System:
    """``answers`` is what *evaluate* calls the model that answers.

    ``budgets``: the system is run at all budgets, at the one that systems are compared at, or once, because no budget
    matters to it. ``student``: whether it is a student, so that it competes with BRIDGE for a place on the frontier.
    """

    meaning: str
    answers: config.System
    overrides: Mapping[str, Any] = field(default_factory=dict)
    budgets: Budgets = "reference"
    student: bool = True


RANDOM = {"select.strategy": "random"}
UNVERIFIED = {"amplify.verify": "off", "amplify.checks": []}


def _with_one_check(name: str, meaning: str) -> System:
    """To be read beside ``bridge_no_checks``: the recipe's own checks are off."""
    return System(f"bridge_no_checks with one check: {meaning}", "bridge", {"amplify.checks": [name]})


SYSTEMS = {
    "guess": System("the commonest training answer of the question's kind", "guess", budgets="none", student=False),
    "student_base": System("the student before training", "student_base", budgets="none"),
    "ta_base": System("the TA before training", "ta_base", budgets="none", student=False),
    "teacher": System("the teacher itself", "teacher", budgets="none", student=False),
    "labels": System("all gold labels, no rationale", "labels", budgets="none"),
    "direct": System("the bought rationales alone, selected as for bridge", "direct", budgets="all"),
    "direct_labels": System("the same curriculum: bought rationales, all gold labels", "direct_labels", budgets="all"),
    "bridge": System("the TA's verified rationales for the whole corpus", "bridge", budgets="all"),
    "ta": System("the TA, taught by the bought rationales", "ta", student=False),
    "direct_random": System("the bought rationales alone, selected at random", "direct", RANDOM),
    "mentor_kd": System(
        "TA distillation with random selection and no verification, like Mentor-KD",
        "bridge",
        {**RANDOM, **UNVERIFIED},
    ),
    "untaught_ta": System("bridge, explained by the TA before training", "bridge", {"ta.taught": False}),
    "bridge_no_selection": System("bridge, selected at random", "bridge", RANDOM),
    "bridge_no_verification": System("bridge, every rationale kept as it is", "bridge", UNVERIFIED),
    "bridge_no_checks": System("bridge, verified by the answer alone", "bridge", {"amplify.checks": []}),
    "bridge_no_hint": System("bridge, without a hinted last try", "bridge", {"amplify.hint": False}),
    # joint keeps all lessons and takes their order away; reasoning_only would take the labels away too.
    "bridge_no_curriculum": System("bridge, its very lessons mixed", "bridge", {"student.control": "joint"}),
    "bridge_majority": _with_one_check("majority", "gold the majority for open answers too"),
    "bridge_likeliest": _with_one_check("likeliest", "the likeliest right reply kept"),
    "bridge_arithmetic": _with_one_check("arithmetic", "sums in the text recomputed"),
    "bridge_comparisons": _with_one_check("comparisons", "comparisons in the text made again"),
    "bridge_options": _with_one_check("options", "options called by their own letters"),
    "bridge_reanswer": _with_one_check("reanswer", "answered again from the text"),
}
ASKED_FOR = ("teacher",)  # it costs, and no student's line needs it


def chosen(names: Iterable[str]) -> tuple[str, ...]:
    """The systems of those names in reading order; ``all`` are those that need not be asked for by name.

    Raises UserError for a name that is none.
    """
    wanted: set[str] = set()
    for name in names:
        if name != "all" and name not in SYSTEMS:
            raise UserError(f"--systems {name}: no such system; systems: all, {', '.join(SYSTEMS)}")
        wanted |= SYSTEMS.keys() - set(ASKED_FOR) if name == "all" else {name}
    return tuple(name for name in SYSTEMS if name in wanted)


def configured(settings: Config, name: str) -> Config:
    """The config under which the system's model is made, and evaluated alone. Raises UserError.

    Whatever the recipe says of verification, a system with a check has one: a check looks at verified replies.
    """
    system = SYSTEMS[name]
    fields = dict(system.overrides)
    if fields.get("amplify.checks") and settings.amplify.verify == "off":
        fields["amplify.verify"] = "gold"
    alone = {"evaluate.systems": [system.answers], "evaluate.by_entropy": False}  # which needs the TA beside it
    return config.changed(settings, {**fields, **alone}, settings.name)
