"""Configs: recipes load, overrides reach any field, and a mistake is one line that names the field."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from bridge_ray import config
from bridge_ray.errors import UserError


@pytest.mark.parametrize("name", sorted(config.recipes()))
def test_every_recipe_loads_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    recipe = config.load(name)
    (tmp_path / "again.yaml").write_text(config.dump(recipe))
    assert config.load(str(tmp_path / "again.yaml")) == recipe
    assert recipe.name == name


@pytest.mark.parametrize("name", sorted(config.recipes()))
def test_every_hub_model_of_a_recipe_is_pinned_to_a_commit(name: str) -> None:
    recipe = config.load(name)
    init = recipe.student.init
    models = [recipe.ta.model, recipe.embed.model, init if isinstance(init, str) else init.prune_layers_of]
    hub = [model for model in models if "/" in model and not model.startswith(("/", ".", "s3://"))]
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", model) for model in hub), hub
    assert hub or name != "cluster-7b"


def test_overrides_reach_nested_fields_and_list_items() -> None:
    changed = config.load(
        "demo", ["budget.fraction=0.03", "ta.lora={rank: 8, alpha: 16}", "student.curriculum.1.replay=0.5"]
    )
    assert changed.budget.fraction == 0.03
    assert (changed.ta.lora.rank, changed.ta.lora.alpha) == (8, 16)
    assert [phase.replay for phase in changed.student.curriculum] == [0.0, 0.5]


def test_a_bare_off_is_the_control_that_it_is_called() -> None:
    unverified = config.load("demo", ["amplify.verify=off"]).amplify
    assert (unverified.verify, unverified.checks) == ("off", ()), "checks look at verified replies"
    checked = config.load("demo")
    assert checked.amplify.checks == ("arithmetic", "comparisons", "options")
    assert config.changed(checked, {"amplify.verify": "off"}, "a sweep's trial").amplify == unverified


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("budgit.fraction=0.1", "budgit: unknown field"),
        ("storage=''", "storage: is empty; give a folder, or the URL of an object store"),
        ("teacher.store=''", "teacher.store: is empty"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
        ("seed=4294967296", "seed: Input should be less than 4294967296"),
        ("budget.fractoin=0.1", "budget.fractoin: unknown field; did you mean fraction?"),
        ("ta.train.rate=1", "ta.train.rate: unknown field; there are lr, warmup, weight_decay, clip, epochs, updates"),
        ("student.init.kep=6", "student.init.kep: unknown field; did you mean keep?"),
        ("student.init={config_of: ta, chnges: {}}", "student.init.chnges: unknown field; did you mean changes?"),
        ("student.curriculum.2.epochs=1", "2 is no entry of a list of 2; they are numbered from 0"),
        ("student.curriculum=[]", "student.curriculum"),
        ("evaluate.systems=[]", "evaluate.systems"),
        ("budget={fraction: 0.05, fraction: 1}", "not valid YAML"),
        ("budget.max_usd=.inf", "budget.max_usd: Input should be a finite number"),
        ("teacher.base_url=https://me:hidden@host/v1", "teacher.base_url: holds a user, a password or a query"),
        ("teacher.base_url=https://host/v1?api-key=hidden", "teacher.base_url: holds a user, a password or a query"),
        ("training.deepspeed={comet: {api_key: hidden}}", "comet.api_key looks like a secret"),
        ("budget.fraction=0", "budget.fraction"),
        ("budget.fraction=-0.1", "budget.fraction"),
        ("budget.fraction=1.01", "budget.fraction"),
        ("budget={fraction: null}", "budget: budget needs at least one"),
        ("select.strategy=best", "select.strategy"),
        ("training.global_batch=15", "not a multiple of training.workers"),
        ("name=a/b", "run name 'a/b'"),
        ("name=..", "run name '..'"),
        ("name=a..b", "run name 'a..b'"),
        ("corpus.train=null", "corpus.train"),
        ("corpus.made=299", "corpus.made is for a generated corpus, and at least corpus.train"),
        ("corpus={source: gsm8k, path: data, templates: 3}", "corpus.templates is for a generated corpus"),
        ("corpus.templates=7", "corpus.templates"),
        ("teacher.standin={answers: recorded, styles: one}", "styles are the expert's"),
        ("budget.fraction", "expected field.path=value"),
        ("=1", "expected field.path=value"),
        ("seed=[", "not valid YAML"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_field(override: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        config.load("demo", [override])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value) and "hidden" not in str(caught.value)


def test_an_override_reaches_into_a_list_that_is_a_default(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("corpus: {train: 10}")
    made = config.load(str(tmp_path / "mine.yaml"), ["student.curriculum.1.epochs=7", "student.curriculum.0.updates=2"])
    first, second = config.Student().curriculum
    assert made.student.curriculum == (
        first.model_copy(update={"updates": 2}),
        second.model_copy(update={"epochs": 7.0}),
    )


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    """YAML takes the last one, and here that would buy the whole corpus."""
    (tmp_path / "twice.yaml").write_text("budget: {fraction: 0.05}\nbudget: {fraction: 1.0}\n")
    with pytest.raises(UserError, match=r"twice\.yaml: not valid YAML: budget is given twice .* line 2"):
        config.load(str(tmp_path / "twice.yaml"))


def test_checks_stand_once_and_in_one_order() -> None:
    """So that the same checks are the same stage."""
    loaded = config.load("demo", ["amplify.checks=[reanswer, majority, reanswer]"])
    assert loaded.amplify.checks == ("majority", "reanswer")
    with pytest.raises(UserError, match="verify=off"):
        config.load("demo", ["amplify.checks=[arithmetic]", "amplify.verify='off'"])
    with pytest.raises(UserError, match="checks"):
        config.load("demo", ["amplify.checks=[luck]"])


def test_a_file_that_is_no_config_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    for name in ("list.yaml", "broken.yaml", "missing.yaml"):
        with pytest.raises(UserError, match=name):
            config.load(str(tmp_path / name))


def test_a_file_without_a_name_is_named_after_itself(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"corpus": {"source": "generated", "train": 10}}))
    assert config.load(str(tmp_path / "mine.yaml")).name == "mine"


def test_config_records_and_help_import_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['bridge-ray', '--help']\n"
        "import bridge_ray.config, bridge_ray.records, bridge_ray.cli\n"
        "try: bridge_ray.cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'faiss', 'openai'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("module", "file"),
    [
        ("deepspeed", "training/loop.py"),
        ("vllm", "inference/engine.py"),
        ("openai", "teacher/client.py"),
    ],
)
def test_each_big_library_is_imported_in_one_file(module: str, file: str) -> None:
    package = Path(config.__file__).parent
    importers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.strip().startswith((f"import {module}", f"from {module}"))
    }
    assert importers == {file}
