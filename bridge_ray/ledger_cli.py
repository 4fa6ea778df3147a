"""The commands under ``bridge-ray ledger``: what was spent, the proof, and the release of lost queries."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

app = typer.Typer(help="What the teacher was paid, by account, model, run and day.")

Where = Annotated[str, typer.Option(metavar="STORE", help="The teacher's store (teacher.store; STORAGE/teacher).")]


@app.callback(invoke_without_command=True)
def ledger(
    context: typer.Context,
    store: Where = "storage/teacher",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[bool, typer.Option(help="Replay all segments; exit code 1 if a cap was ever exceeded.")] = False,
) -> None:
    """Show what each account has settled, and what is still open."""
    context.obj = store
    if context.invoked_subcommand is not None:
        return
    import json

    from rich.console import Console

    from bridge_ray.objects import open_store
    from bridge_ray.teacher import statement

    found = asyncio.run(statement.statements(open_store(store, there=True)))
    if as_json:
        print(json.dumps([statement.plain(one) for one in found], indent=2))
    elif not found:
        print(f"{store}: no accounts yet; a run's teacher store is STORAGE/teacher unless teacher.store says otherwise")
    else:
        Console().print(statement.lines(found))
    if verify:
        broken = [f"{one.account}: {what}" for one in found for what in one.broken]
        entries = sum(one.segments for one in found)
        verdict = "\n".join(broken) or f"verified: {len(found)} accounts, {entries} segments, no cap ever exceeded"
        print(verdict, file=sys.stderr)
        raise typer.Exit(1 if broken else 0)


@app.command()
def release(
    context: typer.Context,
    account: Annotated[str, typer.Argument(help="An account, as `bridge-ray ledger` names it.")],
    queries: Annotated[list[str] | None, typer.Argument(help="Ids or keys (or their beginnings); all if none.")] = None,
    why: Annotated[str, typer.Option(help="Kept in the ledger.")] = "released by a person",
    store: Annotated[str | None, typer.Option(metavar="STORE", help="As of `bridge-ray ledger`.")] = None,
) -> None:
    """Give the money of open queries back to the budget, once you know that they were not billed.

    Only when no run is using the account: its queries on their way are open too.
    """
    from bridge_ray.objects import open_store
    from bridge_ray.teacher import statement

    names = asyncio.run(statement.release(open_store(store or context.obj, there=True), account, queries or (), why))
    print(f"account {account}: released {len(names)} open queries")
