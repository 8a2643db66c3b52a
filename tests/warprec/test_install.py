"""The registries: replaced, beside, undone, taken by somebody else; and the parameter classes they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests import run_python
from tests.warprec.real import INFO, PARAMS, adapters, originals

from warprec.errors import ConfigurationError, RegistryError  # isort: skip
from warprec.recommenders.trainer import Trainer  # isort: skip
from warprec.utils.registry import model_registry, params_registry  # isort: skip

NAMES = list(PARAMS)


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    saved = [(r, dict(r._registry), dict(r._spelled)) for r in (model_registry, params_registry)]
    yield
    adapters.uninstall()
    for registry, entries, spelled in saved:
        registry._registry, registry._spelled = entries, spelled


@pytest.fixture
def installed() -> None:
    adapters.install()


@pytest.mark.parametrize("times", [1, 2])
def test_install_replaces_and_uninstall_gives_back(times: int) -> None:
    theirs = {name: (model_registry.get_class(name), params_registry.get_class(name)) for name in NAMES}
    for _ in range(times):
        adapters.install()
    for name in NAMES:
        assert model_registry.get_class(name.lower()) is getattr(adapters, name)
        assert params_registry.registered_name(params_registry.get_class(name)) == name.upper()
        assert isinstance(model_registry.get(name, PARAMS[name], INFO), getattr(adapters, name))
        assert model_registry.spelled_name(model_registry.get_class(name)) == name
    assert os.environ["RAY_RUNTIME_ENV_HOOK"] == "fastseq.warprec.ray_runtime_env"
    adapters.uninstall()
    assert theirs == {name: (model_registry.get_class(name), params_registry.get_class(name)) for name in NAMES}
    assert "RAY_RUNTIME_ENV_HOOK" not in os.environ


RELOADED = """
import importlib
import fastseq.warprec as adapters
from warprec.utils.registry import model_registry
theirs = model_registry.get_class("SASRec")
adapters.install()
for module in (adapters.adapters, adapters.installation, adapters):
    importlib.reload(module)
adapters.install()
adapters.uninstall()
assert model_registry.get_class("SASRec") is theirs
"""


def test_uninstall_gives_back_after_a_reload() -> None:
    """As in a notebook that reloads what it imports."""
    run_python("-c", RELOADED)


def test_new_names_stand_beside_warprecs() -> None:
    adapters.install(as_new_names=True)
    model = model_registry.get("FastCaser", PARAMS["Caser"], INFO)
    assert model.name == "FastCaser" and model.get_params() == PARAMS["Caser"]
    assert model_registry.get_class("Caser") is originals.Caser
    params = params_registry.get("FastCaser", **PARAMS["Caser"], window_stride=3)
    assert params.window_stride == ["grid", 3]
    adapters.uninstall()
    assert "FASTCASER" not in model_registry.list_registered() + params_registry.list_registered()


@pytest.mark.parametrize(("new_names", "name"), [(False, "GRU4Rec"), (True, "FastGRU4Rec")])
def test_somebody_elses_entry_is_refused_and_nothing_changed(new_names: bool, name: str) -> None:
    other = type("MyModel", (originals.GRU4Rec,), {"__module__": "somewhere.else"})
    model_registry._registry[name.upper()] = other
    before = dict(model_registry._registry), dict(params_registry._registry)
    with pytest.raises(RegistryError, match=f"{name} in WarpRec's Recommender registry is already somewhere.else.MyMo"):
        adapters.install(as_new_names=new_names)
    assert before == (model_registry._registry, params_registry._registry)


def test_uninstall_leaves_what_somebody_registered_since(installed: None) -> None:
    other = type("MyModel", (originals.GRU4Rec,), {"__module__": "somewhere.else"})
    model_registry._registry["GRU4REC"] = other
    adapters.uninstall()
    assert model_registry.get_class("GRU4Rec") is other
    assert model_registry.get_class("SASRec") is originals.SASRec


def test_rays_environment_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for new_names, hook in ((False, "replacing"), (True, "both")):
        adapters.install(as_new_names=new_names)
        environment = adapters.ray_runtime_env({"py_modules": [1]})
        assert environment == {"py_modules": [1], "worker_process_setup_hook": f"fastseq._warprec_worker.{hook}"}
    mine = {"worker_process_setup_hook": "mine"}
    with pytest.warns(RuntimeWarning, match=r"of its own, mine, so install\(\) does not reach .*custom_modules"):
        assert adapters.ray_runtime_env(mine) == mine
    adapters.uninstall()
    adapters.install(as_new_names=True)
    assert adapters.ray_runtime_env(None) == {"worker_process_setup_hook": "fastseq._warprec_worker.beside"}
    adapters.uninstall()
    monkeypatch.setenv("RAY_RUNTIME_ENV_HOOK", "theirs")
    with pytest.warns(RuntimeWarning, match="RAY_RUNTIME_ENV_HOOK is theirs, so .*custom_modules"):
        adapters.install()
    adapters.uninstall()
    assert os.environ["RAY_RUNTIME_ENV_HOOK"] == "theirs"


WORKER = """
import importlib.util, pickle, sys
from ray._common.utils import load_class
load_class("fastseq._warprec_worker.{hook}")()
assert importlib.util.find_spec("warprec") is not None  # whoever only asks
assert not {{"torch", "warprec", "numpy"}} & sys.modules.keys(), "a worker that builds no model pays"
{first}
from warprec.utils.registry import model_registry
print(model_registry.get_class("SASRec").__module__, "FASTSASREC" in model_registry.list_registered())
"""


@pytest.mark.parametrize(
    ("hook", "first"),
    [
        ("replacing", "import warprec.data"),
        ("beside", "import warprec"),
        ("both", "import warprec"),
        ("replacing", "pickle.loads(b'cfastseq.warprec.parameters\\nSASRec\\n.')"),  # as a trial's parameters come
    ],
)
def test_a_worker_of_ray_installs_when_it_imports_warprec_and_not_before(hook: str, first: str) -> None:
    replaced, beside = run_python("-c", WORKER.format(hook=hook, first=first)).stdout.split()
    assert (replaced == "fastseq.warprec.adapters") == (hook != "beside")
    assert (beside == "True") == (hook != "replacing")


@pytest.mark.parametrize("new_names", [False, True])
def test_workers_started_afterwards_do_not_spin(monkeypatch: pytest.MonkeyPatch, new_names: bool) -> None:
    for key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(key, raising=False)
    adapters.install(as_new_names=new_names)
    assert os.environ["GOMP_SPINCOUNT"] == "2000"
    adapters.uninstall()
    assert "GOMP_SPINCOUNT" not in os.environ
    adapters.install(as_new_names=new_names)
    os.environ["GOMP_SPINCOUNT"] = "77"  # the user's, since
    adapters.uninstall()
    assert os.environ.pop("GOMP_SPINCOUNT") == "77"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")  # the user's choice stays
    adapters.install(as_new_names=new_names)
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.parametrize("flag", [[], ["--new-names"]])
def test_the_module_prints_a_file_that_installs(flag: list[str]) -> None:
    shown = run_python("-m", "fastseq.warprec", *flag).stdout.strip()
    code = (
        "from warprec.utils.helpers import load_custom_modules as load; from warprec.utils.registry import *;"
        f"load({shown!r}); print(model_registry.get_class({'FastSASRec' if flag else 'SASRec'!r}).__module__)"
    )
    assert run_python("-c", code).stdout.strip().endswith("fastseq.warprec.adapters")


def test_a_misspelt_option_prints_no_file() -> None:
    done = run_python("-m", "fastseq.warprec", "--new-name", returncode=1)
    assert not done.stdout and "[--new-names]; got --new-name" in done.stderr


def trial(name: str, **keys: Any) -> Any:
    """A checked configuration of one model, as WarpRec checks it: first all combinations, then one trial."""
    params = params_registry.get(name, **{**PARAMS[name], **keys})
    params.validate_all_combinations()
    params.validate_single_trial_params()
    return params


@pytest.mark.parametrize("name", NAMES)
def test_left_out_keys_leave_warprecs_search_space_and_table_of_trials(installed: None, name: str) -> None:
    """Cross-validation groups the folds by every column of the table, and drops rows with nulls."""
    ours = params_registry.get(name, **PARAMS[name])
    assert ours.model_dump(include={"meta", "loss"}).keys() == {"meta"}
    space = Trainer._parse_params(Trainer.__new__(Trainer), ours, num_folds=2)
    adapters.uninstall()
    theirs = params_registry.get(name, **PARAMS[name])
    assert ours.model_dump() == theirs.model_dump()
    assert space.keys() == Trainer._parse_params(Trainer.__new__(Trainer), theirs, num_folds=2).keys()


def test_keys_are_values_or_search_spaces(installed: None) -> None:
    params = trial("SASRec", window_stride=[2, 7], loss=["bpr", "gbce"], precision="fp32")
    assert params.window_stride == ["grid", 2, 7]
    assert params.loss == ["grid", "bpr", "gbce"] and params.precision == ["grid", "fp32"]
    random = {"strategy": "random"}
    params = trial("SASRec", window_stride=["randint", 1, 7], loss=["choice", "bpr", "bce"], optimization=random)
    assert params.window_stride == ["randint", 1, 7] and params.loss == ["choice", "bpr", "bce"]
    # One valid combination is enough; invalid trials are refused when their turn comes.
    params = params_registry.get("GRU4Rec", **{**PARAMS["GRU4Rec"], "window_stride": [50, 5]})
    params.validate_all_combinations()
    with pytest.raises(ConfigurationError, match="window_stride is 50"):
        params.validate_single_trial_params()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"window_stride": 0}, "window_stride"),
        ({"window_stride": True}, "window_stride is True, expected a number"),
        ({"window_stride": 8}, r"window_stride is 8, expected 1 to max_seq_len \(7\)"),
        ({"loss": "hinge"}, "loss"),
        ({"loss": "cross_entropy"}, "loss 'cross_entropy' .* neg_samples 0"),
        ({"loss": "bce", "neg_samples": 0}, "loss 'bce' needs neg_samples"),
        ({"precision": "int8"}, "precision"),
        ({"window_strid": 3}, "no hyperparameter 'window_strid'"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_refused_by_name(installed: None, name: str, keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        trial(name, **keys)
