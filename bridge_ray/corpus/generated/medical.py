"""Medical dosing: intervals, weights, daily maxima, dose tables, first and second choices, stock."""

from __future__ import annotations

from random import Random

from bridge_ray.corpus.generated.template import Facts, Template, yes_no
from bridge_ray.corpus.generated.words import DRUGS, PEOPLE

NOTES = (
    "The ward has {n} beds.",
    "The clinic is {n} years old.",
    "The visit lasted {n} minutes.",
    "The next visit is in {n} days.",
)


def _draw_interval(rng: Random) -> Facts:
    gap = rng.randint(3, 8)
    passed = gap + rng.choice((0, 1, 2, 3) if rng.random() < 0.5 else (-1, -2))
    first = rng.randint(5, 22 - passed)
    return {
        "drug": rng.choice(DRUGS),
        "name": rng.choice(PEOPLE),
        "gap": gap,
        "first": first,
        "second": first + passed,
    }


def _work_interval(f: Facts) -> Facts:
    passed = f["second"] - f["first"]
    allowed = passed >= f["gap"]
    return {
        "answer": yes_no(allowed),
        "passed": passed,
        "compare": "at least" if allowed else "less than",
        "verdict": "may" if allowed else "may not",
    }


INTERVAL = Template(
    name="medical-interval",
    answer_type="boolean",
    phrasings=(
        (
            "Doses of {drug} must be at least {gap:d} hours apart. {name} took a dose at {first:d}:00 and asks for the "
            "next one at {second:d}:00 on the same day. {note}May {name} take it?"
        ),
        (
            "{name} had {drug} at {first:d}:00. It is now {second:d}:00 on the same day. {note}If {gap:d} hours or more "
            "must pass between two doses, is another dose allowed now?"
        ),
        (
            "A nurse gave {name} some {drug} at {first:d}:00. {note}The label says: wait at least {gap:d} hours before "
            "the next dose. Is a dose at {second:d}:00 on the same day in line with the label?"
        ),
    ),
    styles=(
        (
            "From {first}:00 to {second}:00 is {second} - {first} = {passed} hours. That is {compare} {gap} hours, so "
            "{name} {verdict} take the dose."
        ),
        (
            "The rule is a wait of at least {gap} hours. The wait was {second} - {first} = {passed} hours, {compare} "
            "{gap}. So {name} {verdict} take it."
        ),
        "{second} - {first} = {passed} and {passed} is {compare} {gap}: {answer}.",
        (
            "Step 1: the hours passed are {second} - {first} = {passed}. Step 2: {passed} is {compare} {gap}. "
            "Conclusion: the next dose {verdict} be taken."
        ),
    ),
    draw=_draw_interval,
    work=_work_interval,
)


def _draw_weight(rng: Random) -> Facts:
    rate = rng.randint(2, 4)
    weight = rng.randint(3, 9)
    cap = rate * weight + rng.choice((-1, 1)) * rng.randint(1, 4)
    return {"drug": rng.choice(DRUGS), "name": rng.choice(PEOPLE), "rate": rate, "weight": weight, "cap": cap}


def _work_weight(f: Facts) -> Facts:
    dose = f["rate"] * f["weight"]
    capped = dose > f["cap"]
    return {
        "answer": min(dose, f["cap"]),
        "dose": dose,
        "compare": "more than" if capped else "not more than",
        "verdict": "the maximum applies" if capped else "it stands",
    }


WEIGHT = Template(
    name="medical-weight",
    answer_type="number",
    phrasings=(
        (
            "{drug} is given at {rate:d} mg for each kg of body weight, but never more than {cap:d} mg. {name} weighs "
            "{weight:d} kg. {note}How many mg should {name} get?"
        ),
        (
            "A child called {name} weighs {weight:d} kg. {note}The dose of {drug} is {rate:d} mg per kg, up to a maximum "
            "of {cap:d} mg. What is the dose in mg?"
        ),
        (
            "{name}, who weighs {weight:d} kg, needs {drug}. {note}The rule is {rate:d} mg per kg with a maximum of "
            "{cap:d} mg. How many mg is that?"
        ),
    ),
    styles=(
        (
            "By weight the dose is {rate} x {weight} = {dose} mg. That is {compare} the maximum of {cap} mg, so "
            "{verdict}: {answer} mg."
        ),
        (
            "The maximum is {cap} mg. {rate} mg for each of {weight} kg is {dose} mg, {compare} {cap}. So {verdict} and "
            "the dose is {answer} mg."
        ),
        "{rate} x {weight} = {dose}; {dose} is {compare} {cap}; so {answer} mg.",
        (
            "Step 1: {weight} kg times {rate} mg is {dose} mg. Step 2: {dose} is {compare} {cap}, so {verdict}. "
            "Conclusion: {answer} mg."
        ),
    ),
    draw=_draw_weight,
    work=_work_weight,
)


def _draw_daily(rng: Random) -> Facts:
    count = rng.randint(2, 4)
    strength = rng.randint(2, 9)
    limit = count * strength + (rng.randint(0, 3) if rng.random() < 0.5 else -rng.randint(1, 3))
    return {
        "drug": rng.choice(DRUGS),
        "name": rng.choice(PEOPLE),
        "count": count,
        "strength": strength,
        "limit": limit,
    }


def _work_daily(f: Facts) -> Facts:
    total = f["count"] * f["strength"]
    within = total <= f["limit"]
    return {
        "answer": yes_no(within),
        "total": total,
        "compare": "not more than" if within else "more than",
        "verdict": "stays within" if within else "goes over",
    }


DAILY = Template(
    name="medical-daily",
    answer_type="boolean",
    phrasings=(
        (
            "A tablet of {drug} holds {strength:d} mg. {name} takes {count:d} tablets a day. {note}The most that is "
            "allowed in a day is {limit:d} mg. Does {name} stay within the limit?"
        ),
        (
            "{name} takes {count:d} tablets of {drug} every day, each of {strength:d} mg. {note}Are these tablets within "
            "the daily limit of {limit:d} mg?"
        ),
        (
            "The daily limit of {drug} is {limit:d} mg. {note}If {name} swallows {count:d} tablets of {strength:d} mg in "
            "one day, is the limit respected?"
        ),
    ),
    styles=(
        (
            "{count} tablets of {strength} mg are {count} x {strength} = {total} mg. That is {compare} {limit} mg, so "
            "{name} {verdict} the limit."
        ),
        (
            "The limit is {limit} mg a day. {name} takes {count} x {strength} = {total} mg, {compare} {limit}. So "
            "{name} {verdict} it."
        ),
        "{count} x {strength} = {total}; {total} is {compare} {limit}: {answer}.",
        (
            "Step 1: the daily total is {count} times {strength}, which is {total} mg. Step 2: {total} is {compare} "
            "{limit}. Conclusion: {name} {verdict} the limit."
        ),
    ),
    draw=_draw_daily,
    work=_work_daily,
)


def _draw_kidney(rng: Random) -> Facts:
    low = 10 * rng.randint(2, 4)
    high = low + 10 * rng.randint(1, 3)
    value = rng.choice((low - 5 * rng.randint(1, 3), rng.randrange(low, high + 1, 5), high + 5 * rng.randint(1, 4)))
    small, middle, large = sorted(rng.sample(range(1, 10), 3))
    return {
        "drug": rng.choice(DRUGS),
        "name": rng.choice(PEOPLE),
        "low": low,
        "high": high,
        "value": value,
        "small": small,
        "middle": middle,
        "large": large,
    }


def _work_kidney(f: Facts) -> Facts:
    if f["value"] < f["low"]:
        return {"answer": f"{f['small']} mg", "band": f"below {f['low']}"}
    if f["value"] > f["high"]:
        return {"answer": f"{f['large']} mg", "band": f"above {f['high']}"}
    return {"answer": f"{f['middle']} mg", "band": f"from {f['low']} to {f['high']}"}


KIDNEY = Template(
    name="medical-kidney",
    answer_type="choice",
    phrasings=(
        (
            "The dose of {drug} depends on the kidney value. Below {low:d}: {small:d} mg. From {low:d} to {high:d}: "
            "{middle:d} mg. Above {high:d}: {large:d} mg. {name} has a kidney value of {value:d}. {note}Which dose is "
            "right?"
        ),
        (
            "{name} has a kidney value of {value:d} and needs {drug}. {note}Table: above {high:d} give {large:d} mg; from "
            "{low:d} to {high:d} give {middle:d} mg; below {low:d} give {small:d} mg. Which dose does {name} get?"
        ),
    ),
    styles=(
        "{name} has a kidney value of {value}, which is {band}. The table gives {answer}, option {letter}.",
        "The dose goes by the kidney value. {value} is {band}. So the dose is {answer}, option {letter}.",
        "{value} is {band}: {answer}, option {letter}.",
        (
            "Step 1: the kidney value is {value}. Step 2: it is {band}. Step 3: that row says {answer}. Conclusion: "
            "option {letter}."
        ),
    ),
    draw=_draw_kidney,
    work=_work_kidney,
    choices=lambda f: [f"{f[size]} mg" for size in ("small", "middle", "large")],
)

ALLERGIES = ("no allergies", "an allergy to the first choice")
KIDNEYS = ("healthy kidneys", "kidney disease")


def _draw_priority(rng: Random) -> Facts:
    first, second, third = rng.sample(DRUGS, 3)
    kidneys, allergy = rng.choice(((0, 0), (0, 1), (1, rng.randint(0, 1))))
    return {
        "first": first,
        "second": second,
        "third": third,
        "name": rng.choice(PEOPLE),
        "kidneys": KIDNEYS[kidneys],
        "allergy": ALLERGIES[allergy],
    }


def _work_priority(f: Facts) -> Facts:
    if f["kidneys"] == KIDNEYS[1]:
        return {"answer": f["third"], "reason": "kidney disease, which overrides allergies"}
    if f["allergy"] == ALLERGIES[1]:
        return {"answer": f["second"], "reason": "an allergy to the first choice and healthy kidneys"}
    return {"answer": f["first"], "reason": "healthy kidneys and no allergies"}


PRIORITY = Template(
    name="medical-priority",
    answer_type="choice",
    phrasings=(
        (
            "The first choice is {first}. Patients allergic to it get {second}. Patients with kidney disease always get "
            "{third}, allergic or not. {name} has {kidneys:s} and {allergy:s}. {note}Which drug does {name} get?"
        ),
        (
            "{name} has {kidneys:s} and {allergy:s}. {note}The first choice is {first}; with an allergy to it, give "
            "{second}; but anyone with kidney disease gets {third} whatever the allergies. Which drug is right?"
        ),
    ),
    styles=(
        "{name} has {reason}. So the right drug is {answer}, option {letter}.",
        "Kidney disease is checked first, then allergies. {name} has {reason}. That means {answer}, option {letter}.",
        "The patient has {reason}: {answer}, option {letter}.",
        (
            "Step 1: check the kidneys. Step 2: check for allergies. {name} has {reason}. Conclusion: {answer}, option "
            "{letter}."
        ),
    ),
    draw=_draw_priority,
    work=_work_priority,
    choices=lambda f: (f["first"], f["second"], f["third"]),
)


def _draw_stock(rng: Random) -> Facts:
    count = rng.randint(2, 4)
    days = rng.randint(2, 5)
    box = count * days + rng.randint(1, 9)
    return {"drug": rng.choice(DRUGS), "name": rng.choice(PEOPLE), "box": box, "count": count, "days": days}


def _work_stock(f: Facts) -> Facts:
    used = f["count"] * f["days"]
    return {"answer": f["box"] - used, "used": used}


STOCK = Template(
    name="medical-stock",
    answer_type="number",
    phrasings=(
        (
            "{name} has a box of {box:d} tablets of {drug} and takes {count:d} tablets a day. {note}How many tablets are "
            "left after {days:d} days?"
        ),
        (
            "A box of {drug} holds {box:d} tablets. {note}{name} takes {count:d} of them each day for {days:d} days. How "
            "many tablets remain in the box?"
        ),
        (
            "For {days:d} days {name} took {count:d} tablets of {drug} a day out of a box of {box:d}. {note}How many "
            "tablets does the box still hold?"
        ),
    ),
    styles=(
        "In {days} days {name} takes {count} x {days} = {used} tablets. That leaves {box} - {used} = {answer} tablets.",
        (
            "What is left is the box less what was taken. Taken: {count} x {days} = {used}. Left: {box} - {used} = "
            "{answer}."
        ),
        "{count} x {days} = {used}; {box} - {used} = {answer}.",
        (
            "Step 1: {count} tablets a day for {days} days are {used} tablets. Step 2: {box} - {used} = {answer}. "
            "Conclusion: {answer} tablets are left."
        ),
    ),
    draw=_draw_stock,
    work=_work_stock,
)

TEMPLATES = (INTERVAL, WEIGHT, KIDNEY, DAILY, STOCK, PRIORITY)
