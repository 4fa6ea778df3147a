"""The command line: thin, and quick to start. Every command is a few lines over the package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from bridge_ray import __version__
from bridge_ray.errors import UserError

app = typer.Typer(
    help="Distil a proprietary teacher into a tiny student, through a teacher assistant, on a small budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
teacher_app = typer.Typer(help="The stand-in teacher.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")

Recipe = Annotated[str, typer.Argument(help="A recipe's name (see `bridge-ray recipes`) or a YAML file.")]
Storage = Annotated[str | None, typer.Option(help="Where runs, stages and paid answers are kept: a path or URL.")]
Answers = Literal["expert", "recorded"]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a config field; repeatable.")]


def main() -> None:
    """Entry point: user mistakes end with one line on standard error and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"bridge-ray: {error}", file=sys.stderr)
        sys.exit(2)


@app.command()
def run(
    recipe: Recipe,
    name: Annotated[str | None, typer.Option(help="The run's name; the recipe's by default.")] = None,
    storage: Storage = None,
    set_: Set = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    fresh: Annotated[bool, typer.Option(help="Make this run's stages anew; paid answers are kept.")] = False,
) -> None:
    """Run a recipe to its report. Repeated, it does nothing; interrupted and repeated, it continues."""
    from bridge_ray import config

    settings = config.load(recipe, set_ or (), name=name, storage=storage)
    from bridge_ray import logs, pipeline
    from bridge_ray.progress import Progress
    from bridge_ray.report.summary import headline, table

    prepared = pipeline.prepare(settings, until, fresh)
    folder = log_folder(prepared.home)
    console = Console(stderr=True)
    console.print(f"run {settings.name}: {prepared.home}, logs in {folder}", soft_wrap=True)
    with logs.captured(folder) as screen:
        metrics = pipeline.execute(prepared, Progress(screen), until, fresh)
    if until not in (None, "report"):
        console.print(f"stopped after {until}; the same command without --until goes on", soft_wrap=True)
        return
    out = Console()
    out.print(table(metrics))
    out.print(headline(metrics))
    out.print(f"report: {prepared.home}/report.html", soft_wrap=True)


def log_folder(home: str) -> Path:
    """A run's logs lie beside its other files; of a run in an object store, in the working directory."""
    return Path(home) / "logs" if "://" not in home else Path("logs") / home.rpartition("/")[2]


@app.command()
def recipes() -> None:
    """List the recipes that come with the package."""
    from bridge_ray import config

    for name, path in config.recipes().items():
        about = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        print(f"{name:<12} {about}")


@app.command()
def status(
    name: Annotated[str, typer.Argument(help="A run's name.")],
    storage: Annotated[str, typer.Option(help="The run's storage.")] = "storage",
) -> None:
    """Show how far a run has come."""
    from bridge_ray.report.status import show

    show(storage, name, Console())


@app.command(hidden=True)
def version() -> None:
    print(__version__)


@teacher_app.command()
def serve(
    answers: Annotated[Answers, typer.Option(help="expert: the generated domains; recorded: --file.")] = "expert",
    file: Annotated[str | None, typer.Option(help="JSON lines of question, rationale, answer.")] = None,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8321,
) -> None:
    """Serve the stand-in teacher (OpenAI chat-completions protocol) on loopback until interrupted."""
    from bridge_ray.teacher import standin

    standin.serve(answers, file, "127.0.0.1", port, lambda url: print(f"base_url: {url}", flush=True))
