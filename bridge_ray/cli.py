"""The command line: thin, and quick to start. Every command is a few lines over the package."""

from __future__ import annotations

import shlex
import sys
import time
from json import dumps
from typing import Annotated, Literal

import typer
from rich.console import Console

from bridge_ray import __version__, ledger_cli
from bridge_ray.errors import UserError
from bridge_ray.teacher.standin_faults import BATCH_KINDS, KINDS, Behaviour

app = typer.Typer(
    help="Distil a proprietary teacher into a tiny student, through a teacher assistant, on a small budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
teacher_app = typer.Typer(help="The stand-in teacher, and rationales that you own already.", no_args_is_help=True)
app.add_typer(teacher_app, name="teacher")
app.add_typer(ledger_cli.app, name="ledger")

Recipe = Annotated[str, typer.Argument(help="A recipe's name (see `bridge-ray recipes`) or a YAML file.")]
Name = Annotated[str | None, typer.Option(help="The run's name; the recipe's by default.")]
Storage = Annotated[str | None, typer.Option(help="Where runs, stages and paid answers are kept: a path or URL.")]
Until = Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")]
Fresh = Annotated[bool, typer.Option(help="Make this run's stages anew; paid answers are kept.")]
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The cluster's job server, http://HEAD:8265; RAY_API_SERVER_ADDRESS by default."),
]
Answers = Literal["expert", "recorded"]
Styles = Literal["one", "many"]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a config field; repeatable.")]


def main(*arguments: str) -> None:
    """Entry point: user mistakes end with one line on standard error and exit code 2, outages likewise with 1.

    ``arguments`` are the command line's, those of this process by default.
    """
    try:
        app(args=arguments or None)
    except UserError as error:
        print(f"bridge-ray: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        # obstore's threads may hold Python objects for a moment after their last call. One that drops them while the
        # interpreter ends aborts the process (pyo3-async-runtimes #40): 9 of 160 times after `bridge-ray ledger`.
        if "obstore" in sys.modules:
            time.sleep(0.1)


@app.command()
def run(
    recipe: Recipe,
    name: Name = None,
    storage: Storage = None,
    set_: Set = None,
    until: Until = None,
    fresh: Fresh = False,
) -> None:
    """Run a recipe to its report. Repeated, it does nothing; interrupted and repeated, it continues."""
    from bridge_ray import config

    settings = config.load(recipe, set_ or (), name=name, storage=storage)
    from bridge_ray import job

    raise typer.Exit(job.run(settings, until, fresh))


@app.command()
def amplify(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [A.B=C]...", help="A recipe or YAML file, and config fields."),
    ] = None,
    name: Name = None,
    storage: Storage = None,
    set_: Set = None,
    fresh: Fresh = False,
) -> None:
    """Explain a whole corpus with a TA that you have already: no teacher, no selection, no test split.

    bridge-ray amplify --set ta.model=MODEL --set ta.adapter=ADAPTER --set corpus.path=CORPUS.parquet
    """
    from bridge_ray import config

    recipes = [word for word in words or () if "=" not in word]
    if len(recipes) > 1:
        raise UserError(f"{recipes[1]}: one recipe is enough; config fields are given as field.path=value")
    fields = [*(set_ or ()), *(word for word in words or () if "=" in word)]
    settings = config.load(recipes[0] if recipes else None, fields, name=_amplified(name, recipes), storage=storage)
    if not recipes and settings.corpus.path is None:
        raise UserError("amplify: no corpus is given; set corpus.path to yours, or name a recipe")
    from bridge_ray import alone, job

    raise typer.Exit(job.guarded(lambda stop: alone.run(settings, fresh, stop)))


def _amplified(name: str | None, recipes: list[str]) -> str | None:
    return name or (None if recipes else "amplify")


@app.command()
def frontier(
    recipe: Recipe,
    budgets: Annotated[str, typer.Option(help="Shares of the training rows.")] = "0.01,0.03,0.05,0.1,1.0",
    seeds: Annotated[int, typer.Option(help="How many: the recipe's seed and those after it.")] = 3,
    systems: Annotated[
        str | None, typer.Option(help="Names, or all: every one but teacher, which is asked only if named.")
    ] = None,
    reference: Annotated[
        float | None, typer.Option(help="The budget that systems are compared at; 0.05 where it is among them.")
    ] = None,
    corpora: Annotated[str, typer.Option(help="Nested training sizes, as shares: what a forecast needs.")] = "1.0",
    lengths: Annotated[str, typer.Option(help="Multiples of the students' epochs, which dev chooses from.")] = "1.0",
    dev: Annotated[bool, typer.Option("--dev", help="Report on dev, to choose by; test is not asked.")] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="Trainings at once, by default as many as have room; 1: cell by cell."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would buy, cost and take; do nothing.")] = False,
    name: Name = None,
    storage: Storage = None,
    set_: Set = None,
) -> None:
    """Show accuracy against spend for BRIDGE and its baselines, and where to stop.

    Core systems (bridge, direct, direct_labels) are run at every budget, the others at the reference budget, side by
    side where the cluster has room. Interrupted and repeated, it goes on.
    """
    from bridge_ray import config

    settings = config.load(recipe, set_ or (), name=name, storage=storage)
    from bridge_ray import job
    from bridge_ray.frontier import run
    from bridge_ray.frontier.grid import grid
    from bridge_ray.frontier.systems import chosen

    wanted = ["all", *settings.evaluate.systems] if systems is None else systems.split(",")
    asked = grid(
        chosen(wanted),
        _numbers("--budgets", budgets),
        seeds,
        reference,
        _numbers("--corpora", corpora),
        _numbers("--lengths", lengths),
        "dev" if dev else "test",
    )
    if plan:
        from bridge_ray.frontier import plan as planning

        planning.show(planning.make(run.draft(settings, asked)), Console())
        return
    raise typer.Exit(job.guarded(lambda stop: run.run(settings, asked, stop, concurrency)))


def _numbers(option: str, text: str) -> list[float]:
    """Numbers with commas between them."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text}: expected numbers with commas between them, e.g. 0.03,0.05") from None


@app.command()
def sweep(
    spec: Annotated[str, typer.Argument(help="A YAML file of base, space, trials ...; or demo, which comes with us.")],
    name: Annotated[str | None, typer.Option(help="The sweep's name; the spec's by default.")] = None,
    storage: Storage = None,
    fresh: Annotated[bool, typer.Option(help="Forget its trials; stages and paid answers are kept.")] = False,
    retry: Annotated[bool, typer.Option(help="Try the trials again that have failed.")] = False,
) -> None:
    """Try many configs: every stage is made once and every answer paid once, under one cap. Repeated, it goes on."""
    from bridge_ray.sweep import run

    raise typer.Exit(run.run(spec, name, storage, fresh, retry))


@app.command()
def plan(
    recipe: Recipe,
    name: Name = None,
    storage: Storage = None,
    set_: Set = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as one JSON object.")] = False,
) -> None:
    """Show what a run would buy, cost and take, before it does. Asks the teacher nothing and writes nothing."""
    from bridge_ray import config

    settings = config.load(recipe, set_ or (), name=name, storage=storage)
    from bridge_ray import pipeline
    from bridge_ray.plan import make, show

    made = make(pipeline.draft(settings))
    command = shlex.join(["bridge-ray", "run", recipe, *_given(storage, set_, name)])
    if json:
        print(dumps(made.as_json() | {"next": command}, indent=2, allow_nan=False))
        return
    out = Console()
    show(made, out)
    out.print(f"next: {command}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def submit(
    recipe: Recipe,
    name: Name = None,
    storage: Storage = None,
    set_: Set = None,
    until: Until = None,
    fresh: Fresh = False,
    address: Address = None,
    follow: Annotated[bool, typer.Option(help="Pass the job's output on, and end with its exit code.")] = False,
    working_dir: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Upload it for the job to work in; else a RECIPE file alone."),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Keep with the job, for all to read; repeatable.")
    ] = None,
) -> None:
    """Run a recipe as a job of a Ray cluster: the attempt that is under way if there is one, else the next."""
    from bridge_ray import config, submit

    settings = config.load(recipe, set_ or (), name=name, storage=storage)
    options = _given(storage, set_) + (["--until", until] if until else []) + ["--fresh"] * fresh
    order = submit.order(recipe, settings, options, working_dir, metadata or ())
    raise typer.Exit(submit.send(order, address, follow))


def _given(storage: str | None, set_: list[str] | None, name: str | None = None) -> list[str]:
    """The options that several commands have in common, as they were given."""
    options = [("--name", name), ("--storage", storage), *(("--set", one) for one in set_ or ())]
    return [word for option, value in options if value for word in (option, value)]


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="Also what this recipe needs: a name or a YAML file.")] = None,
    storage: Storage = None,
    set_: Set = None,
    address: Address = None,
) -> None:
    """Check this machine or a cluster: a line per check, OK or what to do. Exit code 1 if there is something to do.

    Spends nothing. Inside a cluster (RAY_ADDRESS), or with --address, every node is checked.
    """
    from bridge_ray import config, doctor

    if recipe is None and (set_ or storage is not None):
        raise UserError("doctor: --set and --storage change what a recipe needs; name the recipe, too")
    settings = None if recipe is None else config.load(recipe, set_ or (), storage=storage)
    raise typer.Exit(doctor.run(settings, recipe, _given(storage, set_), address))


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


@app.command()
def forecast(
    name: Annotated[str, typer.Argument(help="The run of a frontier: see `bridge-ray frontier`.")],
    storage: Annotated[str, typer.Option(help="The run's storage.")] = "storage",
    budget: Annotated[
        float | None, typer.Option(help="Compare at this share of the corpus; the largest up to 0.05 by default.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the forecast as one JSON object.")] = False,
) -> None:
    """Say from a frontier how much direct distillation would have to buy, and what doubling would bring."""
    from bridge_ray.forecast import command

    command.run(storage, name, budget, json)


@app.command()
def report(
    name: Annotated[str, typer.Argument(help="A run's name.")],
    storage: Annotated[str, typer.Option(help="The run's storage.")] = "storage",
    open_: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print metrics.json instead of the headline.")] = False,
) -> None:
    """Make a run's page anew from what its stages have left, however far it came. Does no work and asks nobody."""
    from bridge_ray.report.remake import show

    show(storage, name, open_, json, Console())


@app.command()
def compare(
    one: Annotated[str, typer.Argument(metavar="A", help="A run's name.")],
    other: Annotated[str, typer.Argument(metavar="B", help="Another run's name.")],
    storage: Annotated[str, typer.Option(help="Their storage.")] = "storage",
    json: Annotated[bool, typer.Option("--json", help="Print the comparison as one JSON object.")] = False,
) -> None:
    """Two runs side by side: their configs, what their systems score and how sure the difference is, cost and hours."""
    from bridge_ray.report.compare import compare, show

    found = compare(storage, one, other)
    if json:
        print(dumps(found, indent=2, allow_nan=False))
        return
    show(found, Console())


@app.command()
def export(
    name: Annotated[str, typer.Argument(help="A run's name.")],
    to: Annotated[str, typer.Argument(metavar="FOLDER", help="A new folder.")],
    storage: Annotated[str, typer.Option(help="The run's storage.")] = "storage",
    system: Annotated[str, typer.Option(help="bridge, the student; or direct, direct_labels, ta.")] = "bridge",
) -> None:
    """Copy a trained model, for transformers and vLLM, with its model card."""
    from pathlib import Path

    from bridge_ray.export import export

    export(storage, name, system, Path(to))
    print(f"{system} of {name}: {to}")


@app.command(hidden=True)
def version() -> None:
    print(__version__)


@teacher_app.command()
def serve(
    answers: Annotated[Answers, typer.Option(help="expert: the generated domains; recorded: --file.")] = "expert",
    file: Annotated[str | None, typer.Option(help="JSON lines of question, rationale, answer.")] = None,
    styles: Annotated[Styles, typer.Option(help="The expert's: one for all questions, or many.")] = "many",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8321,
    latency: Annotated[float, typer.Option(metavar="SECONDS", help="What each completion takes.")] = Behaviour.latency,
    rpm: Annotated[int | None, typer.Option(help="Requests per minute; above it 429 with Retry-After.")] = None,
    fail: Annotated[
        str, typer.Option(metavar="KIND:SHARE,…", help=f"Probabilities per request; kinds: {', '.join(KINDS)}.")
    ] = Behaviour.fail,
    seed: Annotated[int, typer.Option(help="Of the failures.")] = Behaviour.seed,
    batch_seconds: Annotated[float, typer.Option(help="How long a batch takes.")] = Behaviour.batch_seconds,
    batch_fail: Annotated[
        str, typer.Option(metavar="KIND:SHARE,…", help=f"Those of a batch's line; kinds: {', '.join(BATCH_KINDS)}.")
    ] = Behaviour.batch_fail,
) -> None:
    """Serve the stand-in teacher (OpenAI's chat completions and batches) on loopback until interrupted."""
    from bridge_ray.teacher import standin

    standin.serve(
        answers,
        file,
        "127.0.0.1",
        port,
        lambda url: print(f"base_url: {url}", flush=True),
        styles,
        latency=latency,
        rpm=rpm,
        fail=fail,
        seed=seed,
        batch_seconds=batch_seconds,
        batch_fail=batch_fail,
    )


@teacher_app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="JSON Lines or Parquet with question, rationale and answer.")],
    recipe: Recipe,
    storage: Storage = None,
    set_: Set = None,
) -> None:
    """Import rationales that you own, as answers of the recipe's teacher: a run finds them and pays nothing."""
    from bridge_ray import config

    settings = config.load(recipe, set_ or (), storage=storage)
    from bridge_ray.teacher.import_rationales import import_rationales, show

    show(import_rationales(settings, file), settings.teacher_store, Console())
