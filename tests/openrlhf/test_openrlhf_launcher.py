"""The launcher: OpenRLHF's program as it is read, exit codes and last words, and that mistakes are told before Ray."""

import argparse
import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sdpo_openrlhf.failures import sentence
from sdpo_openrlhf.host_cli import REPLACED, HostProgram
from sdpo_openrlhf.train import main, run
from sdpo_plugins.errors import DataError, HostError
from sessions import end_session

HEAVY = ("ray", "vllm", "deepspeed", "torch", "transformers", "openrlhf")


def source():
    return HostProgram.find().path.read_text(encoding="utf-8")


def started(*words, environment=None, code="import sys; from sdpo_openrlhf.train import main; sys.exit(main())"):
    """Run a command line in a process of its own, without anything of the tests in it; nothing of it stays behind."""
    variables = {name: value for name, value in os.environ.items() if name not in ("DS_ACCELERATOR", "PYTHONPATH")}
    command = [sys.executable, "-c", code, *words]
    with subprocess.Popen(
        command,
        env={**variables, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, complained = process.communicate(timeout=300)
        finally:
            end_session(process)
    return subprocess.CompletedProcess(command, process.returncode, said, complained)


# Reading --------------------------------------------------------------------------------------------------------------


def test_reading_imports_nothing():
    code = (
        "import sys; from sdpo_openrlhf.host_cli import HostProgram; HostProgram.find().build_parser();"
        f"print(*[name for name in {HEAVY} if name in sys.modules])"
    )
    done = started(code=code)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_the_parser_has_every_flag_of_the_host():
    calls = [node for node in ast.walk(ast.parse(source())) if isinstance(node, ast.Call) and node.args]
    written = {
        ast.literal_eval(node.args[0])
        for node in calls
        if ast.unparse(node.func) == "parser.add_argument" and isinstance(node.args[0], ast.Constant)
    }
    flags = {flag for action in HostProgram.find().build_parser()._actions for flag in action.option_strings}
    assert len(written) > 100 and written <= flags
    # Made in a loop, from names that are put together.
    assert {"--actor.adam.lr", "--critic.muon.no_nesterov"} <= flags - written


def test_our_classes_stand_where_the_hosts_did():
    text = "\n".join(ast.unparse(node) for node in HostProgram.find().definitions)
    tree = ast.parse(text)
    imported = {
        (node.module, alias.name): alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert set(REPLACED).isdisjoint(imported)
    assert {name: imported[name] for name in REPLACED.values()} == {
        ("sdpo_openrlhf.actor", "SDPOPolicyModelActor"): "PolicyModelActor",
        ("sdpo_openrlhf.controllers", "SDPOPPOTrainer"): "PPOTrainer",
        ("sdpo_openrlhf.controllers", "SDPOPPOTrainerAsync"): "PPOTrainer",
    }
    # Nothing else is changed.
    own = [node for node in ast.parse(source()).body if not isinstance(node, ast.If)]
    assert len(own) == len(HostProgram.find().definitions)
    assert "__main__" not in text


def test_the_replaced_names_exist_in_host_and_adapter():
    for pair in [*REPLACED, *REPLACED.values()]:
        module, name = pair
        folder = Path(sys.modules["sdpo_openrlhf"].__path__[0]) if module.startswith("sdpo") else None
        base = folder.parent if folder else HostProgram.find().path.parents[2]
        tree = ast.parse(base.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}, pair


@pytest.mark.parametrize(
    ("old", "new", "piece"),
    [
        ('if __name__ == "__main__":', "def start():", 'the block `if __name__ == "__main__":`'),
        ("args = parser.parse_args()", "args, _ = parser.parse_known_args()", "`args = parser.parse_args()`"),
        ("\n    train(args)", "\n    train(args, 1)", "`train(args)`"),
        ("\n    train(args)", "\n    train(args)\n    done = True", "`train(args)` as the last statement"),
        ("import PolicyModelActor", "import Policy as PolicyModelActor", "ppo_actor import PolicyModelActor"),
        ("import PPOTrainerAsync as", "import Async as", "ppo_trainer_async import PPOTrainerAsync` (found: 0)"),
    ],
)
def test_what_a_new_release_moved_is_named(tmp_path, old, new, piece):
    text = source()
    assert text.count(old) == 1
    (tmp_path / "train_ppo_ray.py").write_text(text.replace(old, new))
    with pytest.raises(HostError) as caught:
        HostProgram.read(tmp_path / "train_ppo_ray.py")
    assert piece in str(caught.value) and "sdpo doctor" in str(caught.value)


def test_a_parser_of_another_kind_is_named(tmp_path):
    parsing = "    args = parser.parse_args()"
    (tmp_path / "program.py").write_text(source().replace(parsing, "    parser = None\n" + parsing))
    with pytest.raises(HostError, match="an ArgumentParser in `parser`"):
        HostProgram.read(tmp_path / "program.py").build_parser()


def test_arguments_that_stay_flat_are_named(tmp_path):
    (tmp_path / "program.py").write_text(source().replace("args = hierarchize(args)", "pass"))
    program = HostProgram.read(tmp_path / "program.py")
    with pytest.raises(HostError, match="nested by their dots"):
        program.check(program.build_parser().parse_args([]))


def test_the_checks_go_on_after_an_assertion():
    program = HostProgram.find()
    flags = ["--reward.remote_url", "x.py", "--algo.advantage.estimator", "rloo", "--train.partial_rollout_enable"]
    checked = program.check(program.build_parser().parse_args(flags))
    assert len(checked.problems) == 2 and checked.crash is None
    assert checked.args.rollout.vllm_generate_batch_size == checked.args.rollout.batch_size
    assert not isinstance(checked.args, argparse.Namespace)


def test_what_cannot_be_imported_is_named(tmp_path):
    (tmp_path / "program.py").write_text("import no_such_module_of_ray\n" + source())
    with pytest.raises(HostError, match=r"No module named 'no_such_module_of_ray'\).*Repair the installation"):
        HostProgram.read(tmp_path / "program.py").load_train()


# Mistakes -------------------------------------------------------------------------------------------------------------


def test_help_shows_the_hosts_flags_and_ours():
    done = started("--help", code="import runpy; runpy.run_module('sdpo_openrlhf.train', run_name='__main__')")
    assert done.returncode == 0, done.stderr
    for text in (
        "--actor.model_name_or_path",
        "--sdpo.alpha NUMBER",
        "--sdpo.preset NAME",
        "dr_grpo",
        "python -m sdpo",
    ):
        assert text in done.stdout
    assert "--sdpo.ema_tau" not in done.stdout


@pytest.mark.parametrize(
    ("more", "piece"),
    [
        (["--sdpo.alpha", "2"], "SDPO: `alpha` must lie in [0, 1], got 2"),
        (["--pretrain", "x"], "Here it is `--actor.model_name_or_path`."),
        (["--rollout.batch_size", "many"], "invalid int value: 'many'"),
        (["--train.partial_rollout_enable"], "requires --train.async_enable"),
    ],
)
def test_mistakes_end_in_one_message_and_two(words, capsys, more, piece):
    assert main(words(*more)) == 2
    said = capsys.readouterr().err
    assert piece in said and said.count("SDPO: ") == 1 and "Traceback" not in said


def test_nothing_is_started_for_a_mistake(words, tmp_path):
    code = (
        "import sys; from sdpo_openrlhf.train import main; code = main();"
        f"print(*[name for name in {HEAVY} if name in sys.modules]); sys.exit(code)"
    )
    variables = {"RAY_OVERRIDE_RESOURCES": os.environ["RAY_OVERRIDE_RESOURCES"], "RAY_TMPDIR": str(tmp_path)}
    done = started(*words("--sdpo.alhpa", "1"), code=code, environment=variables)
    assert (done.returncode, done.stdout.split()) == (2, []), done.stderr
    done = started(*words("--train.enable_ema"), code=code, environment=variables)
    assert done.returncode == 2 and "enable_ema" in done.stderr and "Traceback" not in done.stderr
    assert {"ray", "vllm", "deepspeed"}.isdisjoint(done.stdout.splitlines()[-1].split())


def test_another_release_of_the_host_is_refused_first(tmp_path):
    (tmp_path / "openrlhf-0.9.9.dist-info").mkdir()
    (tmp_path / "openrlhf-0.9.9.dist-info" / "METADATA").write_text("Name: openrlhf\nVersion: 0.9.9\n")
    done = started("--sdpo.alpha", "2", environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr == (
        "SDPO: openrlhf >=0.10.4,<0.12 is needed, but version 0.9.9 is installed. "
        "Run: pip install 'sdpo-plugins[openrlhf]'\n"
    )


# Ends of runs ---------------------------------------------------------------------------------------------------------


def test_a_run_that_ends_well(capsys):
    assert run(lambda args: None, None) == 0
    assert capsys.readouterr().err == ""


def test_an_error_of_the_controller(capsys):
    def train(args):
        raise ValueError("three prompts")

    assert run(train, None) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith("SDPO: The run ended with ValueError: three prompts\n")


def test_an_interrupted_run(capsys):
    def train(args):
        raise KeyboardInterrupt

    assert run(train, None) == 130
    assert capsys.readouterr().err == "SDPO: Interrupted; what was saved so far stays.\n"


def test_an_error_without_words():
    assert sentence(RuntimeError()) == "The run ended with RuntimeError: no message"


# As `openrlhf_cpu.run` has it: Ray would take the machine's own address, and keep a token in the user's home.
ON_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
}
RAY_RUN = """
import os, sys
import ray
from sdpo_openrlhf.failures import sentence
from sdpo_openrlhf.train import run
from sdpo_plugins.errors import DataError

@ray.remote(num_cpus=0)
class RolloutRayActor:
    def die(self):
        os._exit(3)
    def wrong(self):
        raise DataError("Prompt 7 has no user message. Give it one.")
    def other(self):
        raise OverflowError("too long")

@ray.remote(num_cpus=0)
class SDPOPolicyModelActor:
    def __init__(self, ours):
        raise DataError("The teacher is gone. Find it.") if ours else ValueError("no weights")
    def ping(self):
        pass

@ray.remote(num_cpus=0)
class SDPOPPOTrainer:
    def fit(self, actor, method):
        ray.get(getattr(actor, method).remote())

CASES = {
    "die": lambda: SDPOPPOTrainer.remote().fit.remote(RolloutRayActor.remote(), "die"),
    "wrong": lambda: SDPOPPOTrainer.remote().fit.remote(RolloutRayActor.remote(), "wrong"),
    "wrong, not nested": lambda: RolloutRayActor.remote().wrong.remote(),
    "other": lambda: SDPOPPOTrainer.remote().fit.remote(RolloutRayActor.remote(), "other"),
    "start": lambda: SDPOPolicyModelActor.remote(False).ping.remote(),
    "start, ours": lambda: SDPOPolicyModelActor.remote(True).ping.remote(),
}

def train(args):
    ray.init(num_cpus=1, include_dashboard=False, object_store_memory=2**27, _node_ip_address="127.0.0.1",
             _temp_dir=sys.argv[1], log_to_driver=False)
    for name, case in CASES.items():
        try:
            ray.get(case())
        except Exception as error:
            print("ended", name, sentence(error), sep=" | ")
    ray.get(CASES["wrong"]())

print("code", run(train, None), ray.is_initialized())
"""


@pytest.mark.slow
def test_last_words_of_runs_that_ray_ends():
    ours = "Prompt 7 has no user message. Give it one."
    expected = {
        "die": "A vLLM engine (RolloutRayActor) died, so the run ended. Ray says why above; an actor that was killed "
        "from outside mostly ran out of memory.",
        "wrong": ours,
        "wrong, not nested": ours,
        "other": "The run ended with OverflowError: too long",
        "start": "A policy rank (SDPOPolicyModelActor) could not be started: ValueError: no weights",
        "start, ours": "The teacher is gone. Find it.",
    }
    folder = Path("/tmp") / f"sdpo-ray-{os.getpid()}"  # Ray's sockets need a short path
    try:
        folder.mkdir()
        (folder / "token").write_text("0" * 64)
        done = started(str(folder), code=RAY_RUN, environment={**ON_LOOPBACK, "RAY_AUTH_TOKEN_PATH": f"{folder}/token"})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    said = [line for line in done.stdout.splitlines() if line.startswith("ended | ")]
    assert said == [f"ended | {name} | {words}" for name, words in expected.items()], done.stderr
    assert done.stdout.splitlines()[-1] == "code 1 False"
    assert done.stderr.splitlines()[-1] == f"SDPO: {ours}"
    assert "Traceback (most recent call last)" in done.stderr


def test_our_error_is_told_as_it_is():
    assert sentence(DataError("The prompt is empty.")) == "The prompt is empty."
