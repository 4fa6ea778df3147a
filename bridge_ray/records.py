"""The pyarrow schema at every stage boundary: one row per example all the way through the pipeline.

``id`` is the example's position in the prepared corpus (train rows first), so arrays can be indexed by it;
``key`` is the user's own id. K samples of one example are a list column, never K rows.
"""

from __future__ import annotations

import pyarrow as pa

ROUTES = ("teacher", "ta", "ta_hinted", "label_only")

EXAMPLE = pa.schema(
    [
        ("id", pa.int64()),
        ("key", pa.string()),
        ("question", pa.string()),
        ("context", pa.string()),  # "" when there is none
        ("options", pa.list_(pa.string())),  # empty unless answer_type is choice
        ("answer", pa.string()),  # gold, canonical (see answers.extract); null when unlabelled
        ("answer_type", pa.string()),  # choice | boolean | number | text
        ("domain", pa.string()),
        ("split", pa.string()),  # train | dev | test
    ]
)

SCORE = pa.schema(
    [
        ("id", pa.int64()),
        ("samples", pa.list_(pa.string())),  # K texts
        ("answers", pa.list_(pa.string())),  # K canonical answers, null where unparsable
        ("entropy", pa.float64()),  # normalised, 0..1
        ("nll", pa.float64()),  # mean over the sampled tokens, nats
        ("share_correct", pa.float64()),  # null without a label
        ("tokens", pa.int64()),  # generated
        ("error", pa.string()),
    ]
)

EMBEDDING = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32()))])

SELECTION = pa.schema(
    [
        ("id", pa.int64()),
        ("rank", pa.int64()),  # 0 is bought first
        ("gain", pa.float64()),  # marginal gain of the strategy's objective; NaN where it has none
        ("cluster", pa.int64()),  # label of a coarse k-means (at most 32 clusters), for reading the selection
        ("covers", pa.int64()),  # rows of the corpus whose most similar row of the ranking is this one
    ]
)

RATIONALE = pa.schema(
    [
        ("id", pa.int64()),
        ("rationale", pa.string()),  # without the answer line; null for label_only and errors
        ("answer", pa.string()),  # the answer the rationale ends in; gold for label_only
        ("source", pa.string()),  # one of ROUTES; null for an errored row
        ("verified", pa.bool_()),
        ("attempts", pa.int64()),
        ("tokens", pa.int64()),
        ("model", pa.string()),
        ("model_hash", pa.string()),
        ("cost_usd", pa.float64()),
        ("error", pa.string()),  # null unless the row could not be processed
    ]
)

# Where amplify.checks are set: a check's name for every right reply that it turned away.
TURNED_AWAY = pa.field("turned_away", pa.list_(pa.string()))

EXPLAINED = RATIONALE.insert(1, pa.field("key", pa.string()))  # where nobody has the corpus's ids: the user's own too

HARDNESS = pa.schema(
    [
        ("id", pa.int64()),
        ("entropy", pa.float64()),  # of the untaught TA's answers, as in SCORE; null for an errored row
        ("nll", pa.float64()),
        ("tenth", pa.int64()),  # of the evaluated split, by difficulty; 0 is the easiest, -1 an errored row
    ]
)

PREDICTION = pa.schema(
    [
        ("id", pa.int64()),
        ("system", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),  # canonical; null when unparsable
        ("correct", pa.bool_()),
        ("error", pa.string()),
    ]
)
