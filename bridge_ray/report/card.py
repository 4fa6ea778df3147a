"""The student's model card (Markdown, with the hub's YAML header): lineage, scores, egress, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import yaml

from bridge_ray.config import Config, FromConfig, Phase, PruneLayers
from bridge_ray.report import summary
from bridge_ray.stage import Done
from bridge_ray.teacher import client
from bridge_ray.training.student import source_model


def model_card(config: Config, finished: Mapping[str, Done], metrics: Mapping[str, Any]) -> str:
    """The card of the student that a finished run has trained; it is written for those who get the model alone."""
    sections = [
        _header(config),
        f"# {config.name}: a student distilled with bridge_ray\n\n{_weights(finished)}",
        f"## Lineage\n\n{_bullets(_lineage(config, finished, metrics))}",
        f"## What left for the teacher\n\n{_egress(config, metrics)}",
        f"## Scores\n\n{_scores(metrics)}",
        f"## Limits\n\n{_limits(config)}",
    ]
    return "\n\n".join(sections) + "\n"


_LIMITS = """\
The student was trained on one task's questions and answers in the form of the corpus; elsewhere it is untested. Its
rationales were checked by {checked}, so one may reason wrongly and end right. `license` above is to be filled
in by you: it follows from the licences of the corpus, of the base models, and from the teacher's terms."""


def _limits(config: Config) -> str:
    checks = config.amplify.checks
    return _LIMITS.format(checked=f"their answers and {', '.join(checks)} only" if checks else "their answers only")


def _header(config: Config) -> str:
    fields = {"license": "unknown", "pipeline_tag": "text-generation", "tags": ["distillation", "bridge_ray"]}
    base = source_model(config.student, config.ta.model)
    hub = not base.startswith(("embedded:", "/", ".", "~")) and "://" not in base
    if hub and not isinstance(config.student.init, FromConfig):
        fields["base_model"] = base.partition("@")[0]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _weights(finished: Mapping[str, Done]) -> str:
    return f"Weights (safetensors), tokenizer and chat template: `{finished['train_student'].location}/model`."


def _lineage(config: Config, finished: Mapping[str, Done], metrics: Mapping[str, Any]) -> dict[str, str]:
    teacher, corpus = metrics["teacher"], metrics["corpus"]
    phases = ", then ".join(_phase(phase) for phase in config.student.curriculum)
    if config.student.control:
        phases = f"{config.student.control}, in as many updates as {phases}"
    ta = f"{config.ta.model}, untaught"
    if "train_ta" in finished:
        adapter = finished["train_ta"].metrics.get("adapter", "unknown")
        ta = f"{config.ta.model}, LoRA of rank {config.ta.lora.rank}, adapter's SHA-256 `{adapter}`"
    rows = ", ".join(f"{name} {number}" for name, number in (metrics["rows"] or {}).items() if name != "corpus")
    return {
        "corpus": f"{config.corpus.source}, {corpus['train']} training rows, hash {_hash(finished, 'corpus')}",
        "teacher": f"{config.teacher.model}: {teacher['queries']} queries, ${teacher['usd']:.4f}"
        + (f". {summary.STANDIN}" if teacher["standin"] else ""),
        "teacher assistant": ta,
        "rationales by source": rows,
        "student before training": _start(config),
        "curriculum": phases,
        "seed": str(config.seed),
    }


def _phase(phase: Phase) -> str:
    length = f"{phase.updates} updates" if phase.updates else f"{phase.epochs:g} epochs"
    return f"{phase.target}{' of the bought rows' if phase.source == 'bought' else ''} ({length})"


def _start(config: Config) -> str:
    source = source_model(config.student, config.ta.model)
    match config.student.init:
        case PruneLayers(keep=keep):
            return f"{keep} layers of {source}"
        case FromConfig(changes=changes):
            changed = ", ".join(f"{name} {value}" for name, value in changes.items())
            return f"random weights in the shape of {source}{f' with {changed}' if changed else ''}"
    return source


def _hash(finished: Mapping[str, Done], stage: str) -> str:
    """A stage's fingerprint: of its content, config and everything before it."""
    return f"`{finished[stage].fingerprint}`"


def _egress(config: Config, metrics: Mapping[str, Any]) -> str:
    if config.teacher.standin is not None:
        return "Nothing: the teacher was a stand-in on the same machine."
    host = urlsplit(config.teacher.base_url or client.DEFAULT_URL).hostname
    gold = ", with the gold answer where its first answer was wrong" if config.teacher.guided else ""
    queries = metrics["teacher"]["queries"] + metrics["teacher"]["eval_queries"]
    return (
        f"The text of the questions behind {queries} queries went to {host}{gold}. Whether the provider's terms allow "
        "training a model on its answers, and publishing that model, is for you to check."
    )


def _scores(metrics: Mapping[str, Any]) -> str:
    lines = ["| system | accuracy | 95 % interval | n | what it is |", "|---|---|---|---|---|"]
    for name, scores in summary.evaluated(metrics).items():
        cells = (summary.percent(scores["accuracy"]), summary.interval(scores["interval"]), str(scores["n"]))
        lines.append(f"| {name} | {' | '.join(cells)} | {summary.SYSTEMS[name]} |")
    return "\n".join(lines) + f"\n\n{summary.headline(metrics)}"


def _bullets(items: Mapping[str, str]) -> str:
    return "\n".join(f"- **{name}**: {text}" for name, text in items.items())
