"""The layout: imports run one way, and the stages that run on a laptop start without torch.

Scripts import stages. Stages import models and study, these import config and mixed_chat, and all import files.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "learning_backdoors"
SCRIPTS = ("training", "generate_responses", "measure_checkpoints", "judge_responses", "evaluate", "chat")
SCRIPTS += ("prepare_persona", "push_to_hub")
STAGES = ("training", "generation", "measuring", "judging", "evaluation", "persona", "hub", "chat", "measuring")
# What a part may import beside itself. `measures` and `curves` hold pure functions that several stages use.
FOUNDATION = {"files", "config", "mixed_chat", "study", "models", "measures", "curves", "tinker_api"}
ALLOWED = {
    "files": set(),
    "measures": set(),
    "curves": {"measures"},
    "config": {"files"},
    "mixed_chat": {"files"},
    "study": {"files", "config"},
    "models": {"files", "mixed_chat"},
    "tinker_api": {"files", "config", "mixed_chat", "models"},
} | {stage: FOUNDATION for stage in STAGES}
ALLOWED |= {
    "chat": FOUNDATION | {"generation"},
    "persona": FOUNDATION | {"generation", "judging.api"},
}
HEAVY = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "bitsandbytes", "vllm")


def part_of(module: str) -> str | None:
    """The part of the project that a module belongs to; None for other packages."""
    names = module.split(".")
    if names[0] in ("config", "mixed_chat") or names[0] in SCRIPTS:
        return names[0]
    if names[0] != "learning_backdoors" or len(names) == 1:
        return None
    return "judging.api" if names[1:3] == ["judging", "api"] else names[1]


def imports(path: Path) -> set[str]:
    """Modules that a file imports, also inside functions; of `from a import b` both `a` and `a.b`."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


FILES = [*PACKAGE.rglob("*.py"), ROOT / "config.py", ROOT / "mixed_chat.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = part_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports(path):
        part = part_of(module)
        if own is None or part is None or part.split(".")[0] == own.split(".")[0]:
            continue
        allowed = ALLOWED[own.split(".")[0]]
        assert part in allowed or part.split(".")[0] in allowed, f"{own} must not import {module}"


LAPTOP = ["judge_responses", "evaluate", "prepare_persona", "push_to_hub", "measure_checkpoints", "generate_responses"]
LAPTOP += ["learning_backdoors.generation.engines.tinker_engine"]


@pytest.mark.slow
@pytest.mark.parametrize("script", LAPTOP)
def test_laptop_scripts_start_without_torch(script):
    """The modules of a script and of its stage are imported, and nothing of the GPU host comes along."""
    stage = {"judge_responses": "judging", "evaluate": "evaluation"}.get(script)
    modules = [script]
    if stage:
        paths = sorted((PACKAGE / stage).rglob("*.py"))
        modules += [".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in paths]
    code = f"import sys, importlib\nfor name in {modules}: importlib.import_module(name)\n"
    code += f"print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_package_is_importable_from_any_folder(tmp_path):
    code = "import learning_backdoors.study, learning_backdoors.files.parquet; print('imported')"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.strip() == "imported", run.stderr
