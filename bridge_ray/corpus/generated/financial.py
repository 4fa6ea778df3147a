"""Financial ratios and growth: covenants, growth rates, comparisons, risk tables, bonuses, kinds of profit."""

from __future__ import annotations

from random import Random

from bridge_ray.corpus.generated.template import Facts, Template, yes_no
from bridge_ray.corpus.generated.words import FIRMS, PEOPLE

NOTES = (
    "The firm has {n} offices.",
    "The report has {n} pages.",
    "The founder is {n} years old.",
    "The board meets {n} times a year.",
)


def _draw_covenant(rng: Random) -> Facts:
    times = rng.randint(2, 4)
    debts = rng.randint(2, 9)
    assets = times * debts + (rng.randint(0, 3) if rng.random() < 0.5 else -rng.randint(1, 3))
    return {"firm": rng.choice(FIRMS), "lender": rng.choice(PEOPLE), "times": times, "debts": debts, "assets": assets}


def _work_covenant(f: Facts) -> Facts:
    needed = f["times"] * f["debts"]
    kept = f["assets"] >= needed
    return {
        "answer": yes_no(kept),
        "needed": needed,
        "compare": "at least" if kept else "less than",
        "verdict": "keeps" if kept else "breaks",
    }


COVENANT = Template(
    name="financial-covenant",
    answer_type="boolean",
    phrasings=(
        (
            "A loan from {lender} demands current assets of at least {times:d} times current liabilities. {firm} has "
            "current assets of {assets:d} million and current liabilities of {debts:d} million. {note}Does {firm} keep "
            "the covenant?"
        ),
        (
            "{firm} has current liabilities of {debts:d} million and current assets of {assets:d} million. {note}{firm} "
            "promised {lender} a current ratio of {times:d} or more. Is the promise kept?"
        ),
    ),
    styles=(
        (
            "{times} times {debts} is {needed}, so {firm} needs {needed} million. {assets} is {compare} {needed}, so "
            "{firm} {verdict} the covenant."
        ),
        (
            "Current assets must be {times} times the liabilities: {times} x {debts} = {needed}. {firm} has {assets}, "
            "{compare} {needed}, and so {verdict} the covenant."
        ),
        "{times} x {debts} = {needed}; {assets} is {compare} {needed}: {answer}.",
        (
            "Step 1: needed are {times} x {debts} = {needed} million. Step 2: {assets} is {compare} {needed}. "
            "Conclusion: {firm} {verdict} the covenant."
        ),
    ),
    draw=_draw_covenant,
    work=_work_covenant,
)


def _draw_growth(rng: Random) -> Facts:
    old = rng.choice((10, 20, 50))
    change = rng.randint(1, 9)
    return {"firm": rng.choice(FIRMS), "item": rng.choice(ITEMS), "year": rng.randint(2001, 2024), "old": old} | {
        "new": old + change
    }


ITEMS = ("revenue", "net income", "free cash flow", "order intake", "total costs")


def _work_growth(f: Facts) -> Facts:
    change, each = f["new"] - f["old"], 100 // f["old"]
    return {"answer": change * each, "change": change, "each": each}


GROWTH = Template(
    name="financial-growth",
    answer_type="number",
    phrasings=(
        (
            "In {year:d} the {item:s} of {firm} rose from {old:d} million to {new:d} million. {note}By how many percent "
            "did it grow?"
        ),
        (
            "{firm} reports that its {item:s} was {new:d} million in {year:d}, after {old:d} million the year before. "
            "{note}What is the growth in percent?"
        ),
        (
            "The {item:s} of {firm} was {old:d} million and then, in {year:d}, {new:d} million. {note}What was the growth "
            "rate, in percent of the old value?"
        ),
    ),
    styles=(
        (
            "The change is {new} - {old} = {change} million. Each million is {each} percent of {old}, so the growth is "
            "{change} x {each} = {answer} percent."
        ),
        (
            "Growth is the change over the old value. The change is {new} - {old} = {change}, and 1 of {old} is {each} "
            "percent: {change} x {each} = {answer} percent."
        ),
        "{new} - {old} = {change}; 1 of {old} is {each} percent; {change} x {each} = {answer}.",
        (
            "Step 1: {new} - {old} = {change}. Step 2: 100 / {old} = {each}. Step 3: {change} x {each} = {answer}. "
            "Conclusion: {answer} percent."
        ),
    ),
    draw=_draw_growth,
    work=_work_growth,
)


def _draw_fastest(rng: Random) -> Facts:
    changes = rng.sample(range(1, 10), 3)
    bases = [rng.randint(2, 9) for _ in changes]
    firms = rng.sample(FIRMS, 3)
    rows = zip("abc", firms, bases, changes, strict=True)
    return {
        key: value
        for row, firm, base, change in rows
        for key, value in ((row, firm), (f"{row}_old", base), (f"{row}_new", base + change))
    }


def _work_fastest(f: Facts) -> Facts:
    rises = {row: f[f"{row}_new"] - f[f"{row}_old"] for row in "abc"}
    best = max(rises, key=lambda row: rises[row])
    return {f"{row}_rise": rise for row, rise in rises.items()} | {"answer": f[best], "most": rises[best]}


FASTEST = Template(
    name="financial-fastest",
    answer_type="choice",
    phrasings=(
        (
            "Sales in millions went from {a_old:d} to {a_new:d} at {a}, from {b_old:d} to {b_new:d} at {b}, and from "
            "{c_old:d} to {c_new:d} at {c}. {note}Whose sales rose by the largest amount?"
        ),
        (
            "{a} grew from {a_old:d} to {a_new:d} million in sales, {b} from {b_old:d} to {b_new:d} million and {c} from "
            "{c_old:d} to {c_new:d} million. {note}Which firm added the most millions?"
        ),
    ),
    styles=(
        (
            "{a} added {a_new} - {a_old} = {a_rise}, {b} added {b_new} - {b_old} = {b_rise}, and {c} added {c_new} - "
            "{c_old} = {c_rise}. The largest is {most}: {answer}, option {letter}."
        ),
        (
            "Compare the rises. {a}: {a_rise}. {b}: {b_rise}. {c}: {c_rise}. The largest rise is {most}, so {answer}, "
            "option {letter}."
        ),
        (
            "{a} {a_new} - {a_old} = {a_rise}; {b} {b_new} - {b_old} = {b_rise}; {c} {c_new} - {c_old} = {c_rise}; most "
            "is {most}: {answer}, option {letter}."
        ),
    ),
    draw=_draw_fastest,
    work=_work_fastest,
    choices=lambda f: (f["a"], f["b"], f["c"]),
)

RISKS = ("low risk", "medium risk", "high risk")


def _draw_risk(rng: Random) -> Facts:
    low = rng.randint(2, 3)
    high = low + rng.randint(1, 2)
    ratio = rng.choice((rng.randint(1, low - 1), rng.randint(low, high), rng.randint(high + 1, 7)))
    equity = rng.randint(2, 9)
    return {
        "firm": rng.choice(FIRMS),
        "banker": rng.choice(PEOPLE),
        "low": low,
        "high": high,
        "debt": ratio * equity,
        "equity": equity,
    }


def _work_risk(f: Facts) -> Facts:
    ratio = f["debt"] // f["equity"]
    band = (ratio >= f["low"]) + (ratio > f["high"])
    bands = (f"below {f['low']}", f"from {f['low']} to {f['high']}", f"above {f['high']}")
    return {"answer": RISKS[band], "ratio": ratio, "band": bands[band]}


RISK = Template(
    name="financial-risk",
    answer_type="choice",
    phrasings=(
        (
            "{banker} rates firms by debt divided by equity: below {low:d} is low risk, from {low:d} to {high:d} is medium "
            "risk, above {high:d} is high risk. {firm} has debt of {debt:d} million and equity of {equity:d} million. "
            "{note}How is {firm} rated?"
        ),
        (
            "{firm} owes {debt:d} million and has equity of {equity:d} million. {note}In the table of {banker}, debt over "
            "equity above {high:d} means high risk, {low:d} to {high:d} medium risk, and below {low:d} low risk. What is "
            "the rating?"
        ),
    ),
    styles=(
        "Debt over equity is {debt} / {equity} = {ratio}. That is {band}, so {firm} is {answer}, option {letter}.",
        (
            "The rating goes by debt over equity. {ratio} times {equity} is {debt}, so the ratio is {ratio}, {band}: "
            "{answer}, option {letter}."
        ),
        "{debt} / {equity} = {ratio}, {band}: {answer}, option {letter}.",
        "Step 1: {debt} / {equity} = {ratio}. Step 2: {ratio} is {band}. Conclusion: {answer}, option {letter}.",
    ),
    draw=_draw_risk,
    work=_work_risk,
    choices=lambda f: RISKS,
)


def _draw_bonus(rng: Random) -> Facts:
    profit = rng.randint(4, 9)
    costs = rng.randint(2, 9)
    target = profit - rng.randint(0, 3) if rng.random() < 0.5 else profit + rng.randint(1, 3)
    return {
        "firm": rng.choice(FIRMS),
        "name": rng.choice(PEOPLE),
        "revenue": profit + costs,
        "costs": costs,
        "target": target,
    }


def _work_bonus(f: Facts) -> Facts:
    profit = f["revenue"] - f["costs"]
    paid = profit >= f["target"]
    return {
        "answer": yes_no(paid),
        "profit": profit,
        "compare": "at least" if paid else "less than",
        "verdict": "gets a bonus" if paid else "gets no bonus",
    }


BONUS = Template(
    name="financial-bonus",
    answer_type="boolean",
    phrasings=(
        (
            "{name} gets a bonus if the profit of {firm} is at least {target:d} million. Revenue was {revenue:d} million "
            "and costs were {costs:d} million. {note}Does {name} get the bonus?"
        ),
        (
            "{firm} had revenue of {revenue:d} million and costs of {costs:d} million. {note}The manager {name} is paid a "
            "bonus when profit reaches {target:d} million. Is the bonus due?"
        ),
        (
            "With costs of {costs:d} million and revenue of {revenue:d} million, did {firm} reach the profit of {target:d} "
            "million that {name} needs for a bonus?"
        ),
    ),
    styles=(
        "Profit is {revenue} - {costs} = {profit} million. That is {compare} {target} million, so {name} {verdict}.",
        (
            "The bonus needs a profit of {target} million or more. {firm} made {revenue} - {costs} = {profit}, {compare} "
            "{target}. So {name} {verdict}."
        ),
        "{revenue} - {costs} = {profit}; {profit} is {compare} {target}: {answer}.",
        (
            "Step 1: profit is {revenue} - {costs} = {profit}. Step 2: {profit} is {compare} {target}. Conclusion: {name} "
            "{verdict}."
        ),
    ),
    draw=_draw_bonus,
    work=_work_bonus,
)

MEASURES = ("operating profit", "pretax profit")


def _draw_profit(rng: Random) -> Facts:
    interest = rng.randint(1, 4)
    profit = rng.randint(interest + 1, 9)
    costs = rng.randint(2, 9)
    return {
        "firm": rng.choice(FIRMS),
        "measure": rng.choice(MEASURES),
        "revenue": profit + costs,
        "costs": costs,
        "interest": interest,
    }


def _work_profit(f: Facts) -> Facts:
    operating = f["revenue"] - f["costs"]
    sums = f"{f['revenue']} - {f['costs']} = {operating}"
    if f["measure"] == MEASURES[0]:
        return {"answer": operating, "sums": sums, "rule": "leaves interest out"}
    after = operating - f["interest"]
    return {
        "answer": after,
        "sums": f"{sums} and {operating} - {f['interest']} = {after}",
        "rule": "takes interest off",
    }


PROFIT = Template(
    name="financial-profit",
    answer_type="number",
    phrasings=(
        (
            "Operating profit is revenue minus operating costs; pretax profit is operating profit minus interest. {firm} "
            "has revenue of {revenue:d}, operating costs of {costs:d} and interest of {interest:d} million. {note}What is "
            "its {measure:s} in millions?"
        ),
        (
            "{firm} earned {revenue:d} million, spent {costs:d} million on operations and paid {interest:d} million of "
            "interest. {note}Operating profit leaves interest out, pretax profit takes it off. How many millions is the "
            "{measure:s}?"
        ),
    ),
    styles=(
        "The {measure} {rule}. In millions, {sums}. So it is {answer}.",
        "What is asked is the {measure}, which {rule}: {sums}. {firm} has {answer} million.",
        "{sums}. So {answer}.",
        "Step 1: the {measure} {rule}. Step 2: {sums}. Conclusion: {answer} million.",
    ),
    draw=_draw_profit,
    work=_work_profit,
)

TEMPLATES = (BONUS, GROWTH, RISK, COVENANT, PROFIT, FASTEST)
