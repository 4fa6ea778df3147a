"""A driver that amplifies sums with the stub engine, for tests that end it: CORPUS OUT SECONDS REPLICAS."""

from __future__ import annotations

import sys

from rich.console import Console

from bridge_ray import amplify, records, storage
from bridge_ray.config import Amplify, Engine, Training
from bridge_ray.inference.generate import Served, courses
from bridge_ray.progress import Progress
from bridge_ray.stage import Work
from tests.stub_engine import Stub


def main(corpus: str, out: str, seconds: str, replicas: str) -> None:
    engine = Engine(replicas=int(replicas), max_num_seqs=16)
    progress = Progress(Console(stderr=True))
    work = Work("amplify", "chaos", {"corpus": corpus}, out, engine, Training(), progress, "x")
    settings = Amplify()
    course, schema = amplify.AmplifyCourse(settings, "stub", "hash"), amplify.schema(records.EXPLAINED, settings)
    pool = courses(work, Served("stub"), course, schema, Stub(float(seconds)))
    known = {storage.join(corpus, "train"): ("domain", "answer_type", "options")}
    print(amplify.explain(work, settings, pool, known, None)["rows"])


if __name__ == "__main__":
    main(*sys.argv[1:])
