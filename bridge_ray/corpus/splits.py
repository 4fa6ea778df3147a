"""Examples -> the corpus table: ids, and the train, dev and test splits."""

from __future__ import annotations

from dataclasses import fields
from random import Random

import pyarrow as pa

from bridge_ray import records
from bridge_ray.config import Corpus
from bridge_ray.corpus.examples import Example
from bridge_ray.errors import UserError


def split(examples: list[Example], corpus: Corpus, seed: int) -> pa.Table:
    """The table (records.EXAMPLE) of the examples that the config asks for: train rows first, then dev, then test.

    Test and dev rows are drawn before train rows, so that a file's stay the same when corpus.train changes.
    Raises UserError when the examples do not suffice or there would be nothing to test on.
    """
    sizes = _sizes(len(examples), corpus)
    shuffled = Random(seed).sample(examples, len(examples))
    test, rest = shuffled[: sizes["test"]], shuffled[sizes["test"] :]
    dev, train = rest[: sizes["dev"]], rest[sizes["dev"] : sizes["dev"] + sizes["train"]]
    ordered = train + dev + test
    columns = {field.name: [getattr(example, field.name) for example in ordered] for field in fields(Example)}
    columns["id"] = list(range(len(ordered)))
    columns["split"] = ["train"] * len(train) + ["dev"] * len(dev) + ["test"] * len(test)
    return pa.table(columns, schema=records.EXAMPLE)


def _sizes(available: int, corpus: Corpus) -> dict[str, int]:
    if corpus.test == 0:
        raise UserError("corpus.test is 0: the test split would be empty; set corpus.test to the rows to report on")
    train = available - corpus.dev - corpus.test if corpus.train is None else corpus.train
    asked = max(train, 1) + corpus.dev + corpus.test
    if asked > available:
        raise UserError(
            f"{corpus.path or corpus.source}: {available} examples, but corpus.train, dev and test ask for {asked}; "
            "lower one of them"
        )
    return {"train": train, "dev": corpus.dev, "test": corpus.test}
