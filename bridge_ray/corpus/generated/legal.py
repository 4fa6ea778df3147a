"""Federal diversity jurisdiction: citizenship of both sides, and what amounts may be added up.

Real rules in short form: complete diversity, more than $75,000, claims of one plaintiff against one defendant add
up, claims against different defendants do not, a corporation is a citizen of two places.
"""

from __future__ import annotations

from random import Random

from bridge_ray.corpus.generated.template import Facts, Template, yes_no
from bridge_ray.corpus.generated.words import CLAIMS, FIRMS, PEOPLE, STATES

THRESHOLD = 75  # thousands of US dollars; the amount must be more

NOTES = (
    "The file has {n} pages.",
    "The hearing is in {n} days.",
    "The judge has served for {n} years.",
    "The court heard {n} other cases.",
)


def _outcome(rng: Random) -> tuple[bool, bool]:
    """(diverse, enough): both with probability one half, else one or both missing."""
    if rng.random() < 0.5:
        return True, True
    return rng.choice(((True, False), (True, False), (False, True), (False, True), (False, False)))


def _amount(enough: bool, rng: Random) -> int:
    """Thousands of dollars, in fives, on the asked-for side of the threshold, often close to it."""
    return rng.randrange(80, 100, 5) if enough else rng.choice((75, rng.randrange(30, 75, 5)))


def _homes(diverse: bool, rng: Random) -> list[str]:
    first, second = rng.sample(STATES, 2)
    return [first, second if diverse else first]


def _verdict(diverse: bool, enough: bool) -> Facts:
    return {
        "answer": yes_no(diverse and enough),
        "states": "different states" if diverse else "the same state",
        "compare": "more than" if enough else "not more than",
        "verdict": "there is jurisdiction" if diverse and enough else "there is no jurisdiction",
    }


def _draw_single(rng: Random) -> Facts:
    diverse, enough = _outcome(rng)
    plaintiff, defendant = rng.sample(PEOPLE, 2)
    home, other = _homes(diverse, rng)
    return {
        "plaintiff": plaintiff,
        "defendant": defendant,
        "home": home,
        "other": other,
        "claim": rng.choice(CLAIMS),
        "amount": _amount(enough, rng),
    }


def _work_single(f: Facts) -> Facts:
    return _verdict(f["home"] != f["other"], f["amount"] > THRESHOLD)


SINGLE = Template(
    name="legal-single",
    answer_type="boolean",
    phrasings=(
        (
            "Diversity jurisdiction needs citizens of different states and more than $75,000. {plaintiff} from {home} "
            "sues {defendant} from {other} for {claim:s}, asking for ${amount:d},000. {note}Is there diversity "
            "jurisdiction?"
        ),
        (
            "{plaintiff} is from {home}. {defendant} is from {other}. {plaintiff} sues {defendant} for {claim:s} for "
            "${amount:d},000. {note}If different states and more than $75,000 are needed, is there diversity "
            "jurisdiction?"
        ),
    ),
    styles=(
        (
            "{plaintiff} is from {home} and {defendant} is from {other}: {states}. ${amount},000 is {compare} $75,000. "
            "So {verdict}."
        ),
        (
            "Both different states and more than $75,000 are needed. {home} and {other} are {states}, and ${amount},000 "
            "is {compare} $75,000. So {verdict}."
        ),
        "{home} and {other}: {states}. {amount} is {compare} 75. So {answer}.",
        "Step 1: {home} and {other} are {states}. Step 2: ${amount},000 is {compare} $75,000. Conclusion: {verdict}.",
    ),
    draw=_draw_single,
    work=_work_single,
)


def _draw_claims(rng: Random) -> Facts:
    diverse, enough = _outcome(rng)
    plaintiff, defendant = rng.sample(PEOPLE, 2)
    home, other = _homes(diverse, rng)
    total = _amount(enough, rng)
    second = 10 * rng.randint(1, (total - 10) // 10)
    claim, extra = rng.sample(CLAIMS, 2)
    return {
        "plaintiff": plaintiff,
        "defendant": defendant,
        "home": home,
        "other": other,
        "claim": claim,
        "extra": extra,
        "first": total - second,
        "second": second,
    }


def _work_claims(f: Facts) -> Facts:
    total = f["first"] + f["second"]
    return {"total": total} | _verdict(f["home"] != f["other"], total > THRESHOLD)


CLAIMS_ADDED = Template(
    name="legal-claims",
    answer_type="boolean",
    phrasings=(
        (
            "{plaintiff} from {home} sues {defendant} from {other} for {claim:s} for ${first:d},000 and {extra:s} for "
            "${second:d},000. {note}Diversity jurisdiction needs different states and more than $75,000, and claims "
            "against one defendant add up. Is there diversity jurisdiction?"
        ),
        (
            "Claims against one defendant are added; the sum must be more than $75,000 and the states must differ. "
            "{plaintiff} of {home} claims ${first:d},000 for {claim:s} and ${second:d},000 for {extra:s} from "
            "{defendant} of {other}. {note}Does diversity jurisdiction exist?"
        ),
    ),
    styles=(
        (
            "{home} and {other} are {states}. The claims add up to {first} + {second} = {total}, so ${total},000, which "
            "is {compare} $75,000. So {verdict}."
        ),
        (
            "The states must differ and the sum must be more than $75,000. {home} and {other} are {states}; {first} + "
            "{second} = {total} is {compare} 75. So {verdict}."
        ),
        "{home} and {other}: {states}. {first} + {second} = {total}, {compare} 75. So {answer}.",
        (
            "Step 1: {home} and {other} are {states}. Step 2: {first} + {second} = {total}. Step 3: {total} is {compare} "
            "75. Conclusion: {verdict}."
        ),
    ),
    draw=_draw_claims,
    work=_work_claims,
)


def _draw_defendants(rng: Random) -> Facts:
    diverse, enough = _outcome(rng)
    plaintiff, defendant, another = rng.sample(PEOPLE, 3)
    states = rng.sample(STATES, 3)
    if not diverse:
        states[rng.randint(1, 2)] = states[0]
    return {
        "plaintiff": plaintiff,
        "defendant": defendant,
        "another": another,
        "home": states[0],
        "other": states[1],
        "third": states[2],
        "claim": rng.choice(CLAIMS),
        "amount": _amount(enough, rng),
        "rest": rng.randrange(20, 100, 5),
    }


def _work_defendants(f: Facts) -> Facts:
    diverse = f["home"] not in (f["other"], f["third"])
    found = _verdict(diverse, f["amount"] > THRESHOLD)
    return found | {"states": f"not from {f['home']}" if diverse else f"not all from outside {f['home']}"}


DEFENDANTS = Template(
    name="legal-defendants",
    answer_type="boolean",
    phrasings=(
        (
            "{plaintiff} from {home} sues {defendant} from {other} for ${amount:d},000 and {another} from {third} for "
            "${rest:d},000 for {claim:s}. {note}No defendant may share the plaintiff's state, and claims against "
            "different defendants are not added. Is the claim against {defendant} over $75,000 and the suit diverse?"
        ),
        (
            "Sums against different defendants are not added. {plaintiff} of {home} claims ${amount:d},000 from "
            "{defendant} of {other} and ${rest:d},000 from {another} of {third} for {claim:s}. {note}Is every defendant "
            "from another state, and the claim against {defendant} over $75,000?"
        ),
    ),
    styles=(
        (
            "The defendants, from {other} and {third}, are {states}. The claim against {defendant} alone, ${amount},000, "
            "is {compare} $75,000. So {answer}."
        ),
        (
            "Only the ${amount},000 against {defendant} counts, and it is {compare} $75,000. The defendants, of {other} "
            "and {third}, are {states}. So {answer}."
        ),
        "Defendants: {other} and {third}, {states}. {amount} is {compare} 75. So {answer}.",
        (
            "Step 1: {plaintiff} is from {home}; the defendants are {states}. Step 2: ${amount},000 alone is {compare} "
            "$75,000. Conclusion: {answer}."
        ),
    ),
    draw=_draw_defendants,
    work=_work_defendants,
)


def _draw_corporation(rng: Random) -> Facts:
    home, charter, office = rng.sample(STATES, 3)
    case = rng.randint(0, 3)  # 2 and 3 share a state with the firm
    return {
        "name": rng.choice(PEOPLE),
        "firm": rng.choice(FIRMS),
        "home": home,
        "charter": home if case == 2 else charter,
        "office": home if case == 3 else office,
        "claim": rng.choice(CLAIMS),
    }


def _work_corporation(f: Facts) -> Facts:
    diverse = f["home"] not in (f["charter"], f["office"])
    return {
        "answer": yes_no(diverse),
        "member": "neither" if diverse else "one of them",
        "verdict": "diverse" if diverse else "not diverse",
    }


CORPORATION = Template(
    name="legal-corporation",
    answer_type="boolean",
    phrasings=(
        (
            "A corporation is a citizen of the state where it is incorporated and of the state of its main office. "
            "{name} of {home} sues {firm}, incorporated in {charter} with its main office in {office}, for {claim:s}. "
            "{note}Are the parties citizens of different states?"
        ),
        (
            "{firm} is incorporated in {charter} and has its main office in {office}; it is a citizen of both. {name}, a "
            "citizen of {home}, sues it for {claim:s}. {note}Are the two parties diverse?"
        ),
    ),
    styles=(
        (
            "{firm} is a citizen of {charter} and {office}. {name} is a citizen of {home}, which is {member}. So the "
            "parties are {verdict}."
        ),
        (
            "A corporation has two homes, here {charter} and {office}. {home} is {member}, so {name} and {firm} are "
            "{verdict}."
        ),
        "{firm}: {charter} and {office}. {name}: {home}, {member}. So {answer}.",
        (
            "Step 1: {firm} belongs to {charter} and {office}. Step 2: {home} is {member}. Conclusion: the parties are "
            "{verdict}."
        ),
    ),
    draw=_draw_corporation,
    work=_work_corporation,
)

FAILURES = ("both requirements", "only different states", "only the amount", "neither requirement")


def _draw_requirement(rng: Random) -> Facts:
    plaintiff, defendant = rng.sample(PEOPLE, 2)
    home, other = _homes(rng.random() < 0.5, rng)
    return {
        "plaintiff": plaintiff,
        "defendant": defendant,
        "home": home,
        "other": other,
        "claim": rng.choice(CLAIMS),
        "amount": _amount(rng.random() < 0.5, rng),
    }


def _work_requirement(f: Facts) -> Facts:
    diverse, enough = f["home"] != f["other"], f["amount"] > THRESHOLD
    return _verdict(diverse, enough) | {"answer": FAILURES[2 * (not diverse) + (not enough)]}


REQUIREMENT = Template(
    name="legal-requirement",
    answer_type="choice",
    phrasings=(
        (
            "Two requirements: the parties are from different states, and the amount is more than $75,000. {plaintiff} "
            "from {home} sues {defendant} from {other} for {claim:s} for ${amount:d},000. {note}Which requirements are "
            "met?"
        ),
        (
            "{plaintiff} lives in {home} and {defendant} in {other}. {plaintiff} wants ${amount:d},000 for {claim:s}. "
            "{note}A federal court asks for different states and for more than $75,000. What is met?"
        ),
    ),
    styles=(
        (
            "{home} and {other} are {states}. ${amount},000 is {compare} $75,000. So what is met is {answer}, option "
            "{letter}."
        ),
        (
            "First the states: {home} and {other} are {states}. Then the amount: ${amount},000 is {compare} $75,000. "
            "Met: {answer}, option {letter}."
        ),
        "{states}; {amount} is {compare} 75: {answer}, option {letter}.",
        (
            "Step 1: {plaintiff} and {defendant} are from {states}. Step 2: {amount} is {compare} 75. Conclusion: "
            "{answer}, option {letter}."
        ),
    ),
    draw=_draw_requirement,
    work=_work_requirement,
    choices=lambda f: FAILURES,
)


def _draw_controversy(rng: Random) -> Facts:
    plaintiff, defendant, another = rng.sample(PEOPLE, 3)
    second = 10 * rng.randint(1, 4)
    claim, extra = rng.sample(CLAIMS, 2)
    return {
        "plaintiff": plaintiff,
        "defendant": defendant,
        "another": another,
        "claim": claim,
        "extra": extra,
        "first": 10 * rng.randint(1, 9 - second // 10),
        "second": second,
        "rest": rng.randrange(10, 100, 5),
        "asked": rng.choice((defendant, defendant, another)),
    }


def _work_controversy(f: Facts) -> Facts:
    if f["asked"] == f["another"]:
        return {"answer": f["rest"], "count": "one claim", "sum": str(f["rest"])}
    total = f["first"] + f["second"]
    return {"answer": total, "count": "two claims", "sum": f"{f['first']} + {f['second']} = {total}"}


CONTROVERSY = Template(
    name="legal-controversy",
    answer_type="number",
    phrasings=(
        (
            "{plaintiff} sues {defendant} for ${first:d},000 for {claim:s} and ${second:d},000 for {extra:s}, and "
            "{another} for ${rest:d},000. {note}Claims against the same defendant are added, others are not. How many "
            "thousand dollars does {plaintiff} claim from {asked}?"
        ),
        (
            "Only claims against the same defendant add up. {plaintiff} claims ${first:d},000 ({claim:s}) and "
            "${second:d},000 ({extra:s}) from {defendant}, and ${rest:d},000 from {another}. {note}What is the amount "
            "against {asked}, in thousands of dollars?"
        ),
    ),
    styles=(
        "{plaintiff} has {count} against {asked}. In thousands that is {sum}. So the amount is {answer}.",
        "Claims against other defendants do not count. Against {asked} there is {sum} in thousands, so {answer}.",
        "Against {asked}: {sum}. So {answer}.",
        "Step 1: {asked} faces {count}. Step 2: in thousands, {sum}. Conclusion: {answer}.",
    ),
    draw=_draw_controversy,
    work=_work_controversy,
)

TEMPLATES = (SINGLE, CONTROVERSY, REQUIREMENT, CLAIMS_ADDED, DEFENDANTS, CORPORATION)
