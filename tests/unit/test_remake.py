"""bridge-ray report: the page of a run from what its stages left, finished or not."""

from __future__ import annotations

import asyncio
import html
import json
import webbrowser
from pathlib import Path

import pytest

from bridge_ray import cli, storage
from bridge_ray.objects import open_store
from bridge_ray.teacher.ledger import Account, Cap
from tests import browser
from tests.runs import leave

CORRECT = {"direct": [1, 0, 1, 0, 0, 0], "bridge": [1, 1, 0, 0, 1, 0], "ta": [1, 1, 1, 0, 1, 0]}


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The command line in this process: exit code, standard output, standard error."""
    with pytest.raises(SystemExit) as ended:
        cli.main("report", *map(str, arguments))
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def page_of(home: Path) -> str:
    return html.unescape((home / "report.html").read_text())


def pay(root: Path, account: str) -> None:
    """Three queries: one is settled at $0.01, one is lost, one is released."""

    async def ask() -> None:
        paying = Account(open_store(str(root / "teacher")), account, Cap(9, 2.0), buyer="b", run="mine", model="m")
        ledger = await paying.open()
        ids = [await ledger.reserve(key, 0.5) for key in ("a", "b", "c")]
        first, second, third = (id for id in ids if id is not None)
        await ledger.settle(first, 0.01, 10, 20)
        await ledger.lose(second, "the connection broke")
        await ledger.release(third, "refused")

    asyncio.run(ask())


def test_a_finished_run_gets_its_page_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = leave(tmp_path, "mine", CORRECT, skipped=["corpus", "score"])
    pay(tmp_path, "teach-mine-teach")
    code, out, err = report(capsys, "mine", "--storage", tmp_path)
    assert (code, err) == (0, "") and f"report: {home}/report.html" in out.replace("\n", "")
    assert "On 6 test questions the bridge student answers 50.0 % correctly" in " ".join(out.split())
    page = page_of(home)
    for said in ("2 + 12 + 4 + 2 + 0 = 20: every question", "9 queries, $2.00", "1, $0.01", "1, $0.50", "By domain"):
        assert said in page, said
    # Teacher's or TA's rationale beside what the TA said before; the student beside the TA, with all that was asked.
    for said in (
        "teacher on 0",
        "The untaught TA on 0",
        "ta_hinted on 14",
        "The untaught TA on 18",
        "bridge on test 2",
    ):
        assert said in page, said
    assert "The context of test 21.\nIs test 1 odd?" in page
    assert "direct is right and bridge is wrong: 1 question<" in page.replace("Direct is", "direct is")
    metrics = json.loads((home / "metrics.json").read_text())
    assert metrics["stages"]["score"] == {"seconds": 20.0, "skipped": True}
    assert metrics["teacher"]["bought"] == 3 and not metrics["stages"]["teach"]["skipped"]
    assert (home / "model_card.md").exists()


@pytest.mark.parametrize("until", ["corpus", "score", "select", "teach", "amplify", "train_direct"])
def test_a_run_that_stopped_midway_gives_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], until: str
) -> None:
    home = leave(tmp_path, "mine", CORRECT, until=until)
    pay(tmp_path, "teach-mine-teach")
    code, out, err = report(capsys, "mine", "--storage", tmp_path)
    assert (code, err) == (0, "")
    assert "has not been evaluated" in out and "run mine is stopped: this is what there is" in " ".join(out.split())
    page = page_of(home)
    assert ("teacher on 0" in page) == (until in ("teach", "amplify", "train_direct"))
    assert ("ta_hinted on 14" in page) == (until in ("amplify", "train_direct"))
    assert "1, $0.50" in page, "what a run that stopped while it was asking has paid is in the ledger"
    assert not (home / "model_card.md").exists()


def test_json_is_the_metrics_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = leave(tmp_path, "mine", CORRECT)
    code, out, _ = report(capsys, "mine", "--storage", tmp_path, "--json")
    assert code == 0 and json.loads(out) == json.loads((home / "metrics.json").read_text())


def test_open_shows_the_page_in_the_browser(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, opened = leave(tmp_path, "mine", CORRECT), []
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    assert report(capsys, "mine", "--storage", tmp_path, "--open")[0] == 0
    assert opened == [(home / "report.html").as_uri()]
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    code, _, err = report(capsys, "mine", "--storage", tmp_path, "--open")
    assert (code, err.count("\n")) == (2, 1) and "there is no browser here" in err


def test_a_damaged_ledger_is_said_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = leave(tmp_path, "mine", CORRECT)
    pay(tmp_path, "teach-mine-teach")
    [*_, last] = sorted((tmp_path / "teacher" / "accounts" / "teach-mine-teach").iterdir())
    last.write_text("{")
    assert report(capsys, "mine", "--storage", tmp_path)[0] == 0
    assert "The ledger could not be read" in page_of(home)


@pytest.mark.parametrize(("folder", "kind"), [("runs", "frontier"), ("sweeps", "sweep")])
def test_of_several_runs_it_says_where_their_page_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: str, kind: str
) -> None:
    home = tmp_path / folder / "many"
    storage.write_json(str(home / f"{kind}.json"), {})
    (home / f"{kind}.html").write_text("")
    code, out, _ = report(capsys, "many", "--storage", tmp_path)
    assert code == 0 and f"report: {home}/{kind}.html" in out.replace("\n", "")
    code, _, err = report(capsys, "many", "--storage", tmp_path, "--json")
    assert (code, err.count("\n")) == (2, 1) and "is no single run" in err


def test_a_run_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = report(capsys, "other", "--storage", tmp_path)
    assert (code, err.count("\n")) == (2, 1) and "no such run; start it with: bridge-ray run RECIPE --name other" in err


@browser.needed
@pytest.mark.parametrize("until", ["teach", "evaluate"])
def test_the_page_in_a_browser(tmp_path: Path, capsys: pytest.CaptureFixture[str], until: str) -> None:
    home = leave(tmp_path, "mine", CORRECT, until=until)
    pay(tmp_path, "teach-mine-teach")
    assert report(capsys, "mine", "--storage", tmp_path)[0] == 0
    assert browser.check((home / "report.html").read_text(), 390, tmp_path, dark=until == "teach").figures >= 2
