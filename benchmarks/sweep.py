"""Claim: trials that differ only in their curriculum share all that comes before it.

wall_vs_bound: wall time of a sweep of T such trials, over (one full run) + T x (student training + evaluation) x 1.1.
The full run has a storage of its own, and its stages' times are those that it took alone; the sweep begins in an empty
one. Both are commands in processes of their own, so what Ray takes to start is in them. The teacher is a stand-in.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

CLI = Path(sys.executable).parent / "bridge-ray"
SLACK = 1.1
LEARNT = ("train_student", "evaluate")
EVALUATED = {"evaluate.split": "dev", "evaluate.systems": ["bridge"]}


def curricula(trials: int) -> dict[str, Any]:
    """So many curricula of the same length."""
    replays = [round(0.5 * number / trials, 3) for number in range(trials)]
    return {"student.curriculum.1.replay": replays}


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run([str(CLI), *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return time.perf_counter() - start


def measure(base: str, fields: dict[str, Any], trials: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        sets = [
            word for name, value in (fields | EVALUATED).items() for word in ("--set", f"{name}={json.dumps(value)}")
        ]
        alone = seconds(["run", base, "--name", "alone", "--storage", f"{folder}/alone", *sets])
        stages = json.loads(Path(folder, "alone", "runs", "alone", "metrics.json").read_text())["stages"]
        learnt = sum(stages[name]["seconds"] for name in LEARNT)
        spec = {"base": base, "set": fields, "space": curricula(trials), "search": "grid", "name": "curricula"}
        Path(folder, "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        swept = seconds(["sweep", f"{folder}/spec.yaml", "--storage", f"{folder}/swept"])
    bound = alone + trials * learnt * SLACK
    return {"wall_vs_bound": swept / bound, "sweep_s": swept, "full_run_s": alone, "training_and_evaluation_s": learnt}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="two trials on a small corpus, once: about ten minutes")
    parser.add_argument("--recipe", default="demo", help="a recipe's name or a YAML file")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    fields: dict[str, Any] = {"corpus.dev": 40}
    if options.quick:
        fields |= {"corpus.train": 48, "score.samples": 1, "ta.train.epochs": 1}
    trials, repeats = (2, 1) if options.quick else (options.trials, options.repeats)
    found = [measure(options.recipe, fields, trials) for _ in range(repeats)]
    values = {name: [round(one[name], 3) for one in found] for name in found[0]}
    result = {
        "ratios": {"wall_vs_bound": round(statistics.median(values["wall_vs_bound"]), 3)},
        "values": values,
        "trials": trials,
        "recipe": options.recipe,
        "machine": {"cpus": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "versions": {name: version(name) for name in ("bridge-ray", "ray", "deepspeed", "optuna")}
        | {"python": sys.version.split()[0]},
        "quick": options.quick,
    }
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"wall_vs_bound        {result['ratios']['wall_vs_bound']}")


if __name__ == "__main__":
    main()
