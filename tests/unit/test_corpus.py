"""Corpus: readers, the generated demo corpus and its expert, splits, near-duplicates, real data."""

from __future__ import annotations

import gzip
import json
import operator
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge_ray import records
from bridge_ray.answers import prompts
from bridge_ray.config import Corpus
from bridge_ray.corpus import duplicates, generated, stream
from bridge_ray.corpus.examples import Example
from bridge_ray.corpus.generated import medical, template
from bridge_ray.corpus.load import load
from bridge_ray.corpus.sources import RECORDED, SOURCES, legalbench_expert
from bridge_ray.corpus.sources.columns import infer
from bridge_ray.corpus.splits import split
from bridge_ray.errors import UserError

DATA = Path(__file__).parents[2] / "../shared/data"
REAL = pytest.mark.skipif(not DATA.is_dir(), reason="the labelled data in ../shared/data is not here")
COLUMNS = {"id": "key", "question": "q", "options": "o", "answer": "a"}


def make(size: int, seed: int = 0) -> list[Example]:
    return generated.read(Corpus(train=size, dev=0, test=0), seed)


def prompt(example: Example) -> str:
    """The question as a teacher sees it, in the middle of other text."""
    row = {"context": "", "question": example.question, "options": example.options}
    return f"You are an expert. Explain, then answer.\n{prompts.question(row)}\n\nThe correct answer is A."


@pytest.fixture(scope="module")
def corpus() -> list[Example]:
    return make(3600)


# --- the generated corpus ---


def test_the_expert_solves_every_question_inside_a_prompt(corpus):
    for example in corpus:
        solution = generated.solve(prompt(example))
        assert solution is not None, example.question
        assert (solution.answer, solution.answer_type) == (example.answer, example.answer_type)
        assert solution.options == example.options


def test_a_question_belongs_to_one_template_only(corpus):
    for example in corpus[:360]:
        solvers = [family.name for _, family in generated.families() if template.parse(family, example.question)]
        assert solvers == [example.key.rpartition("-")[0]]


def test_every_calculation_and_comparison_in_every_rationale_is_right(corpus):
    calculate = {"+": operator.add, "-": operator.sub, "x": operator.mul, "/": operator.floordiv}
    compare = {
        "at least": operator.ge,
        "less than": operator.lt,
        "more than": operator.gt,
        "not more than": operator.le,
    }
    checked = Counter()
    for example in corpus:
        for rationale in generated.solve(prompt(example)).rationales:
            for first, sign, second, result in re.findall(r"(\d+) ([-+x/]) (\d+) = (\d+)", rationale):
                assert calculate[sign](int(first), int(second)) == int(result) <= 99 + (sign == "/"), rationale
                checked["calculations"] += 1
            for first, words, second in re.findall(
                r"(\d+)(?:,000)? is (at least|less than|more than|not more than) \$?(\d+)", rationale
            ):
                assert compare[words](int(first), int(second)), rationale
                checked["comparisons"] += 1
    assert min(checked.values()) > 4000


def test_every_rationale_ends_in_the_answer_and_has_no_answer_line(corpus):
    for example in corpus:
        for rationale in generated.solve(prompt(example)).rationales:
            last = {"number": r"(\d+)\D*$", "choice": r"option ([A-Z])\.$", "boolean": r"(?:: |So )(yes|no)\.$"}
            found = re.search(last[example.answer_type], rationale)
            assert found or example.answer_type == "boolean", rationale
            assert found is None or found[1] == example.answer, rationale
            assert "answer:" not in rationale.casefold()


@pytest.mark.parametrize("family", [family for _, family in generated.families()], ids=lambda family: family.name)
def test_styles_of_opposite_outcomes_differ_and_stay_short(family, corpus):
    solutions = [generated.solve(prompt(row)) for row in corpus if row.key.startswith(f"{family.name}-")]
    assert all(3 <= len(set(solution.rationales)) == len(family.styles) for solution in solutions)
    assert max(len(rationale.split()) for solution in solutions for rationale in solution.rationales) <= 45
    if family.answer_type == "boolean":
        endings = {
            answer: {" ".join(r.split()[-4:]) for s in solutions if s.answer == answer for r in s.rationales}
            for answer in ("yes", "no")
        }
        assert not endings["yes"] & endings["no"]


def test_questions_are_short_unique_and_sometimes_distracted(corpus):
    lengths = [len(example.question.split()) for example in corpus]
    assert max(lengths) <= 60
    assert 28 <= sum(lengths) / len(lengths) <= 40
    assert len({example.question for example in corpus}) == len(corpus)
    notes = [note.partition("{n}")[2] for module in generated.DOMAINS.values() for note in module.NOTES]
    share = sum(any(note in example.question for note in notes) for example in corpus) / len(corpus)
    assert 0.1 < share < 0.3


def test_domains_and_answers_are_balanced(corpus):
    assert Counter(example.domain for example in corpus) == {"medical": 1200, "legal": 1200, "financial": 1200}
    by_template: dict[str, Counter[str]] = {}
    for example in corpus:
        by_template.setdefault(example.key.rpartition("-")[0], Counter())[example.answer] += 1
    types = {family.name: family.answer_type for _, family in generated.families()}
    for name, answers in by_template.items():
        top = max(answers.values()) / answers.total()
        fair = {"boolean": 0.5, "choice": 1 / len(answers), "number": 0.05}[types[name]]
        assert top < fair + 0.12, (name, answers.most_common(3))


def test_a_seed_makes_a_corpus_and_a_longer_one_continues_it():
    assert make(50, seed=3) == make(50, seed=3)
    assert make(50, seed=3) == make(90, seed=3)[:50]
    assert {row.question for row in make(50, seed=3)}.isdisjoint({row.question for row in make(50, seed=4)})


def test_with_three_templates_each_domain_has_one_of_each_answer_type():
    examples = generated.read(Corpus(train=90, dev=0, test=0, templates=3), seed=1)
    kinds = Counter((example.domain, example.answer_type) for example in examples)
    assert kinds == {(domain, kind): 10 for domain in generated.DOMAINS for kind in ("boolean", "number", "choice")}


def test_an_exhausted_template_is_a_user_error(monkeypatch):
    monkeypatch.setattr(template, "DISTRACTED", 0)
    monkeypatch.setattr(generated, "families", lambda each: [("legal", tiny)])
    tiny = template.Template("tiny", "boolean", ("Is it {a:d}?",), (), lambda rng: {"a": 1}, lambda f: {"answer": "no"})
    assert len(make(1)) == 1
    with pytest.raises(UserError, match="tiny has no new question left after 1"):
        make(2)


def test_the_expert_keeps_silent_outside_its_field(corpus):
    choice = next(example for example in corpus if example.options)
    assert generated.solve("What is the capital of France?") is None
    assert generated.solve(choice.question) is None  # without its options there is no letter to give


@settings(max_examples=30)
@given(st.integers(min_value=0))
def test_any_seed_gives_questions_that_the_expert_solves(seed):
    examples = make(len(generated.families()), seed)
    assert [generated.solve(prompt(example)).answer for example in examples] == [row.answer for row in examples]


@given(st.randoms(use_true_random=False))
def test_dose_intervals_agree_with_a_rule_written_by_hand(rng):
    facts = medical.INTERVAL.draw(rng)
    text = medical.INTERVAL.phrasings[0].format(note="", **facts)
    assert generated.solve(text).answer == ("yes" if facts["first"] + facts["gap"] <= facts["second"] else "no")


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (
            (
                "Doses of Velorin must be at least 6 hours apart. Ada took a dose at 8:00 and asks for the next one at "
                "14:00 on the same day. The ward has 7 beds. May Ada take it?"
            ),
            "yes",
        ),
        (
            (
                "Velorin is given at 3 mg for each kg of body weight, but never more than 40 mg. Leo weighs 15 kg. "
                "How many mg should Leo get?"
            ),
            "40",
        ),
        (
            (
                "Ada from New York sues Leo from Ohio for fraud for $40,000 and trespass for $35,000. Diversity "
                "jurisdiction needs different states and more than $75,000, and claims against one defendant add up. "
                "Is there diversity jurisdiction?"
            ),
            "no",
        ),
        (
            (
                "The first choice is Velorin. Patients allergic to it get Mirovan. Patients with kidney disease always "
                "get Fenadol, allergic or not. Ada has kidney disease and an allergy to the first choice. "
                "Which drug does Ada get?\nA) Mirovan\nB) Velorin\nC) Fenadol"
            ),
            "C",
        ),
        (
            "In 2011 the free cash flow of Belmar rose from 20 million to 27 million. By how many percent did it grow?",
            "35",
        ),
    ],
)
def test_questions_solved_by_hand(question, answer):
    assert generated.solve(f"Reason briefly.\n{question}").answer == answer


# --- a user's own files ---


def write(tmp_path: Path, rows: list[object], **fields: object) -> Corpus:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return Corpus(source="jsonl", path=str(path), **{"columns": {"question": "q", "answer": "a"}} | fields)


def test_jsonl_rows_become_examples(tmp_path):
    rows = [
        {"key": 7, "q": " Which? ", "o": ["red", "blue"], "a": "blue"},
        {"key": "x", "q": "And?", "o": '["up", "down"]', "a": "A"},
        {"key": "y", "q": "Or?", "o": "yes | no|maybe", "a": None},
    ]
    first, second, third = load(write(tmp_path, rows, columns=COLUMNS), seed=0)
    assert first == Example("7", "Which?", "", ("red", "blue"), "B", "choice", "mine")
    assert (second.key, second.options, second.answer) == ("x", ("up", "down"), "A")
    assert (third.options, third.answer) == (("yes", "no", "maybe"), None)


def test_columns_that_are_not_mapped_are_found_by_our_names(tmp_path):
    """One that is mapped does not make the others disappear; null leaves a column aside, and none is taken twice."""
    row = {"prompt": "Which?", "options": ["up", "down"], "context": "A lift.", "answer": "up", "domain": "lifts"}
    [found] = load(write(tmp_path, [row], columns={"question": "prompt"}), seed=0)
    assert found == Example("1", "Which?", "A lift.", ("up", "down"), "A", "choice", "lifts")
    [found] = load(write(tmp_path, [row], columns={"question": "prompt", "domain": None}), seed=0)
    assert found.domain == "mine"
    [found] = load(write(tmp_path, [row], columns={"question": "context"}), seed=0)
    assert (found.question, found.context) == ("A lift.", "")
    with pytest.raises(UserError, match="no column is called 'question'; name it"):
        load(write(tmp_path, [row], columns={"answer": "answer"}), seed=0)


def test_jsonl_is_read_by_its_url_too(tmp_path):
    corpus = write(tmp_path, [{"q": "One?", "a": 1}])
    by_url = corpus.model_copy(update={"path": f"file://{corpus.path}"})
    assert [replace(row, domain="") for row in load(by_url, 0)] == [replace(row, domain="") for row in load(corpus, 0)]
    with pytest.raises(UserError, match=r"file:///nowhere.jsonl: no such file; set corpus.path"):
        load(corpus.model_copy(update={"path": "file:///nowhere.jsonl"}), 0)
    with pytest.raises(ValueError, match="a URL is for jsonl and parquet"):
        Corpus(source="gsm8k", path="s3://bucket/gsm8k")


def test_not_a_number_is_no_answer(tmp_path):
    """As pandas writes what is missing; the others stay numbers."""
    rows = ['{"q": "One?", "a": NaN}\n', {"q": "Two?", "a": 2}]
    assert [(row.answer, row.answer_type) for row in load(write(tmp_path, rows), seed=0)] == [
        (None, "number"), ("2", "number")
    ]  # fmt: skip


def test_a_damaged_gzip_is_a_user_error(tmp_path):
    path = tmp_path / "bad.jsonl.gz"
    whole = bytearray(gzip.compress(b'{"q": "One?", "a": 1}\n' * 50))
    whole[20:30] = b"\xff" * 10
    path.write_bytes(bytes(whole))
    with pytest.raises(UserError, match="bad.jsonl.*cannot be read"):
        load(Corpus(source="jsonl", path=str(path), columns={"question": "q"}), seed=0)


def test_gzipped_jsonl_without_ids_numbers_its_rows(tmp_path):
    path = tmp_path / "mine.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"q": "One?", "a": 1}\n\n{"q": "Two?", "a": ""}\n'))
    examples = load(Corpus(source="jsonl", path=str(path), columns={"question": "q", "answer": "a"}), seed=0)
    assert [(row.key, row.answer, row.answer_type) for row in examples] == [("1", "1", "number"), ("2", None, "number")]


@pytest.mark.parametrize(
    ("answers", "answer_type", "canonical"),
    [
        (["Yes", False, None], "boolean", ["yes", "no", None]),
        (["$1,200.50", 3], "number", ["1200.5", "3"]),
        (["yes", "3"], "text", ["yes", "3"]),
        ([None, None], "text", [None, None]),
    ],
)
def test_one_answer_type_is_inferred_for_the_file(tmp_path, answers, answer_type, canonical):
    examples = load(write(tmp_path, [{"q": "Q?", "a": answer} for answer in answers]), seed=0)
    assert {row.answer_type for row in examples} == {answer_type}
    assert [row.answer for row in examples] == canonical


ODD = [{"q": "Q?", "a": answer} for answer in ("1,200", "12.0", *range(20), "N/A", "none")]


def test_a_few_odd_answers_do_not_turn_numbers_into_texts(tmp_path):
    """As texts "1,200" and "1200" would be two answers, and nobody would be told."""
    with pytest.raises(UserError, match="line 23: answer 'N/A' is not a number, and 22 of 24 answers are; fix it, or"):
        load(write(tmp_path, ODD), seed=0)
    kept = load(write(tmp_path, ODD, answer_type="text"), seed=0)
    assert [kept[0].answer, kept[-1].answer] == ["1,200", "none"]


def test_nor_do_they_in_a_corpus_that_is_read_piece_by_piece(tmp_path):
    rows = [{"q": "Q?", "a": str(row["a"])} for row in ODD]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet", row_group_size=8)
    corpus = Corpus(source="parquet", path=str(tmp_path), columns={"question": "q", "answer": "a"})
    [piece] = stream.pieces(corpus)
    found = stream.answers(piece, corpus)
    with pytest.raises(UserError, match="row 23: answer 'N/A' is not a number, and 22 of 24 answers are"):
        infer(found)
    first, second = (replace(piece, groups=groups) for groups in ((0,), (1, 2)))
    later = replace(second, first=8, rows=16)
    assert stream.answers(replace(first, rows=8), corpus) + stream.answers(later, corpus) == found


@pytest.mark.parametrize("answer", ["A", " B "])
def test_a_letter_that_is_another_options_text_is_refused(tmp_path, answer):
    rows = [{"key": 1, "q": "Which group?", "o": ["O", "A", "B", "AB"], "a": answer}]
    with pytest.raises(UserError, match="line 1: answer: '.' is option .'s letter and option .'s text: say "):
        load(write(tmp_path, rows, columns=COLUMNS), seed=0)
    rows[0]["a"] = f"{answer.strip()})"
    assert load(write(tmp_path, rows, columns=COLUMNS), seed=0)[0].answer == answer.strip()
    for plain, letter in (("O", "A"), ("AB", "D"), ("C", "C")):
        rows[0]["a"] = plain
        assert load(write(tmp_path, rows, columns=COLUMNS), seed=0)[0].answer == letter


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([], {}, "has no rows"),
        (["{not json}\n"], {}, "line 1: not valid JSON"),
        (["[1]\n"], {}, "line 1: expected a JSON object, got list"),
        ([{"q": "Q?"}], {}, "no row has column 'a'; fix corpus.columns.answer"),
        ([{"q": "Q?", "a": 1}, {"a": 2}], {}, r"line 2: column 'q' \(question\) is missing"),
        ([{"q": "Q?", "a": 1}, {"q": "  ", "a": 2}], {}, "row 2: the question is empty"),
        ([{"q": "Q?", "a": "?"}], {"answer_type": "number"}, "line 1: answer: .* is not a number; fix the row"),
        (
            [{"key": 1, "q": "Q?", "o": "a|b", "a": "a"}, {"key": 1, "q": "R?", "o": "a|b", "a": "a"}],
            {"columns": COLUMNS},
            "row 2: id '1' is also the id of row 1",
        ),
        ([{"key": 1, "q": "Q?", "o": "a|b", "a": "c"}], {"columns": COLUMNS}, "line 1: answer: 'c' is neither"),
        ([{"key": 1, "q": "Q?", "o": "[a", "a": "c"}], {"columns": COLUMNS}, "line 1: options start with"),
        ([{"key": 1, "q": "Q?", "o": 5, "a": "c"}], {"columns": COLUMNS}, "line 1: options must be a list"),
        ([{"key": 1, "q": "Q?", "o": "a|b|a", "a": "a"}], {"columns": COLUMNS}, "line 1: options are given twice"),
        (
            [{"key": 1, "q": "Q?", "o": [{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}], "a": "A"}],
            {"columns": COLUMNS},
            "line 1: an option is a dict; each must be a text or a number",
        ),
        ([{"key": 1, "q": "Q?", "o": ["a", None], "a": "a"}], {"columns": COLUMNS}, "line 1: an option is missing"),
        ([{"q": {"text": "Q?"}, "a": 1}], {}, "line 1: question must be a text or a number, not dict"),
        (['{"q": "half \\ud800", "a": 1}\n'], {}, "line 1: question holds half of a character"),
        (
            [{"key": 1, "q": "Q?", "o": "a|b", "a": "a"}, {"key": 2, "q": "Q?", "o": "", "a": "a"}],
            {"columns": COLUMNS},
            "line 2: a choice question needs 2 to 26 options, got 0",
        ),
    ],
)
def test_a_bad_jsonl_file_is_one_line_that_names_the_row(tmp_path, rows, fields, message):
    with pytest.raises(UserError, match=message) as caught:
        load(write(tmp_path, rows, **fields), seed=0)
    assert "mine.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", ["jsonl", "parquet", "legalbench", "pubmedqa", "gsm8k"])
def test_a_missing_file_is_a_user_error(tmp_path, source):
    with pytest.raises(UserError, match="nowhere.*no such file"):
        load(Corpus(source=source, path=str(tmp_path / "nowhere"), columns={"question": "q"}), seed=0)


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
def test_an_unreadable_file_is_a_user_error(tmp_path, name):
    (tmp_path / name).write_bytes(b"\xff\xfe\x00rubbish")
    with pytest.raises(UserError, match="bad.jsonl.*cannot be read"):
        load(Corpus(source="jsonl", path=str(tmp_path / name), columns={"question": "q"}), seed=0)


def test_parquet_rows_become_examples(tmp_path):
    path = tmp_path / "mine.parquet"
    table = pa.table({"q": ["One?", "Two?"], "a": [True, None], "ctx": ["Facts.", ""], "topic": ["law", None]})
    pq.write_table(table, path)
    columns = {"question": "q", "answer": "a", "context": "ctx", "domain": "topic"}
    first, second = load(Corpus(source="parquet", path=str(path), columns=columns), seed=0)
    assert first == Example("1", "One?", "Facts.", (), "yes", "boolean", "law")
    assert second == Example("2", "Two?", "", (), None, "boolean", "mine")


def test_parquet_errors_name_the_file(tmp_path):
    path = tmp_path / "mine.parquet"
    path.write_text("this is not Parquet")
    with pytest.raises(UserError, match="mine.parquet: cannot be read as Parquet"):
        load(Corpus(source="parquet", path=str(path), columns={"question": "q"}), seed=0)
    pq.write_table(pa.table({"other": ["One?"]}), path)
    with pytest.raises(UserError, match="mine.parquet: no row has column 'q'"):
        load(Corpus(source="parquet", path=str(path), columns={"question": "q"}), seed=0)


def test_every_source_of_the_config_has_a_reader():
    assert set(SOURCES) == set(Corpus.model_fields["source"].annotation.__args__)


# --- the shape of the real sources, on rows written here ---


def test_gsm8k_steps_are_a_rationale(tmp_path):
    row = {"question": "How many? ", "answer": "2*600 = <<2*600=1200>>1200 in all.\n#### 1,200"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row))
    (example,) = load(Corpus(source="gsm8k", path=str(tmp_path)), seed=0)
    assert example == Example("gsm8k/0", "How many?", "", (), "1200", "number", "gsm8k")
    (recorded,) = RECORDED["gsm8k"](str(tmp_path))
    assert (recorded.question, recorded.rationale, recorded.answer) == ("How many?", "2*600 = 1200 in all.", "1200")


def test_pubmedqa_hides_the_conclusion(tmp_path):
    row = {"QUESTION": "Does it?", "CONTEXTS": ["One.", "Two."], "LONG_ANSWER": "It may.", "final_decision": "maybe"}
    (tmp_path / "ori_pqal.json").write_text(json.dumps({"123": row}))
    (example,) = load(Corpus(source="pubmedqa", path=str(tmp_path)), seed=0)
    assert example == Example("123", "Does it?", "One.\nTwo.", ("yes", "no", "maybe"), "C", "choice", "pubmedqa")
    (recorded,) = RECORDED["pubmedqa"](str(tmp_path))
    assert (recorded.question, recorded.rationale, recorded.answer) == ("Does it?", "It may.", "C")
    (tmp_path / "ori_pqal.json").write_text('{"123": {"QUESTION": "Does it?"}}')
    with pytest.raises(UserError, match="record 123: not a PubMedQA record"):
        load(Corpus(source="pubmedqa", path=str(tmp_path)), seed=0)


@pytest.mark.parametrize(
    ("facts", "answer"),
    [
        ("Ava is from Ohio. Leo is from New York. Ava sues Leo for fraud for $75,000.", "no"),
        ("Ava is from Ohio. Leo is from New York. Ava sues Leo for fraud for $40,000 and theft for $36,000.", "yes"),
        ("Ava is from Ohio. Leo is from Ohio. Ava sues Leo for fraud for $1,200,000.", "no"),
        (
            "Ava is from Ohio. Leo is from Utah. Mia is from Ohio. Ava sues Leo and Mia each for fraud for $80,000.",
            "no",
        ),
        (
            "Ava is from Ohio. Leo is from Utah. Mia is from Iowa. Ava sues Leo and Mia each for fraud for $40,000.",
            "no",
        ),
        (
            "Ava is from Ohio. Leo is from Utah. Mia is from Iowa. Ava and Leo both sue Mia for fraud for $80,000.",
            "yes",
        ),
    ],
)
def test_the_legalbench_expert_by_hand(facts, answer):
    assert legalbench_expert.solve(f"Expert, tell me. {facts} Is there jurisdiction?").answer == answer


def test_the_legalbench_expert_states_its_reasons():
    facts = "Ava is from Ohio. Leo is from Utah. Ava sues Leo for fraud for $40,000 and theft for $36,000."
    assert legalbench_expert.solve(facts).rationales[0] == (
        "Plaintiff Ava (Ohio) and defendant Leo (Utah). No state is on both sides, so the parties are diverse. "
        "The amount, $40,000 + $36,000 = $76,000, is more than $75,000. So there is diversity jurisdiction."
    )
    assert legalbench_expert.solve("Ava sues Leo for fraud for $5.") is None
    assert legalbench_expert.solve("What is the capital of France?") is None


@REAL
@pytest.mark.parametrize(
    ("source", "folder", "rows", "answers"),
    [
        ("legalbench", "legalbench", 1200, {"yes", "no"}),
        ("pubmedqa", "pubmedqa", 500, {"A", "B", "C"}),
        ("gsm8k", "gsm8k", 7473, None),
    ],
)
def test_real_data_is_read_and_recorded(source, folder, rows, answers):
    path = str(DATA / folder)
    examples = load(Corpus(source=source, path=path), seed=0)
    assert len(examples) == rows
    assert answers is None or {example.answer for example in examples} == answers
    recorded = RECORDED[source](path)
    assert [row.question for row in recorded] == [example.question for example in examples]
    assert [row.answer for row in recorded] == [example.answer for example in examples]
    assert all(row.rationale and "<<" not in row.rationale for row in recorded)


# --- splits and near-duplicates ---


def test_splits_number_train_then_dev_then_test():
    config = Corpus(train=20, dev=5, test=10)
    table = split(make(40), config, seed=1)
    assert table.schema == records.EXAMPLE
    assert table["id"].to_pylist() == list(range(35))
    assert table["split"].to_pylist() == ["train"] * 20 + ["dev"] * 5 + ["test"] * 10
    assert len(set(table["key"].to_pylist())) == 35
    assert table.equals(split(make(40), config, seed=1))
    assert table["key"] != split(make(40), config, seed=2)["key"]


def test_test_rows_stay_when_the_train_split_grows():
    small, large = (split(make(40), Corpus(train=size, dev=5, test=10), seed=1) for size in (10, 25))
    assert small["key"].to_pylist()[-15:] == large["key"].to_pylist()[-15:]
    assert small["key"].to_pylist()[:10] == large["key"].to_pylist()[:10]


def test_train_null_takes_the_rest():
    config = Corpus(source="gsm8k", path="somewhere", dev=5, test=10)
    assert split(make(40), config, seed=0)["split"].to_pylist().count("train") == 25


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"train": 30, "dev": 5, "test": 10}, "40 examples, but corpus.train, dev and test ask for 45"),
        ({"train": 30, "test": 0}, "corpus.test is 0.*set corpus.test"),
        ({"dev": 30, "test": 10, "source": "gsm8k", "path": "somewhere"}, "somewhere: 40 examples.*ask for 41"),
    ],
)
def test_splits_that_cannot_be_made(sizes, message):
    with pytest.raises(UserError, match=message):
        split(make(40), Corpus(**sizes), seed=0)


def table(*rows: tuple[str, str]) -> pa.Table:
    blank = dict.fromkeys(records.EXAMPLE.names) | {"context": ""}
    listed = [blank | {"id": number, "split": name, "question": text} for number, (name, text) in enumerate(rows)]
    return pa.Table.from_pylist(listed, schema=records.EXAMPLE)


def test_near_duplicates_are_found_with_their_exact_similarity():
    words = " ".join(f"w{number}" for number in range(22))  # 20 shingles
    found = duplicates.near_duplicates(
        table(
            ("train", words),
            ("train", words.replace("w21", "other")),  # 19 shared of 21
            ("train", "nothing in common with the rest"),
            ("dev", words),
            ("test", words.upper()),
            ("test", "short one"),
        ),
        threshold=0.9,
    )
    assert found == [(4, 0, 1.0), (4, 1, 19 / 21)]


def test_near_duplicates_below_the_threshold_are_not_reported():
    assert duplicates.near_duplicates(table(("train", "a b c d e f"), ("test", "a b c x y z")), 0.5) == []
    assert duplicates.near_duplicates(table(("train", "a b c d e f")), 0.9) == []
