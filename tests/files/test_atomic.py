"""learning_backdoors/files: atomic writes, locks, and the comparison of settings."""

import os
import signal
import subprocess
import sys

import pytest
from support import ROOT

from learning_backdoors.files import atomic, provenance
from learning_backdoors.files.atomic import lock
from learning_backdoors.files.errors import UserError


def test_an_atomic_file_is_complete_or_absent(tmp_path):
    path = tmp_path / "new" / "file"
    with pytest.raises(RuntimeError), atomic.atomic_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("out of luck")
    assert list(path.parent.iterdir()) == []
    with atomic.atomic_file(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_symbolic_links_stay_and_their_target_is_written(tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("old", "new"):
        target, link = tmp_path / "disk" / name, tmp_path / name
        link.symlink_to(target)
        for text in ("first", "second"):
            with lock(link), atomic.atomic_file(link) as temporary:
                temporary.write_text(text)
            assert link.is_symlink() and target.read_text() == text
    with lock(tmp_path / "new"), pytest.raises(UserError), lock(tmp_path / "disk" / "new"):
        pass


def test_partial_last_lines_are_dropped(tmp_path):
    path = tmp_path / "log"
    atomic.drop_partial_line(path)
    for before, after in ((b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"a", b""), (b"", b"")):
        path.write_bytes(before)
        atomic.drop_partial_line(path)
        assert path.read_bytes() == after


@pytest.mark.slow
def test_a_lock_ends_with_its_process(tmp_path):
    code = "import pathlib, time, sys\nfrom learning_backdoors.files.atomic import lock\n"
    code += "with lock(pathlib.Path(sys.argv[1])):\n print(1, flush=True)\n time.sleep(60)"
    path = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match=str(path)), lock(path):
        pass
    process.kill()
    process.wait()
    with lock(path):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_scripts_exit_with_130(sign):
    code = "import time\nfrom learning_backdoors.files.command_line import run_script\n"
    code += "def main():\n print(1, flush=True)\n time.sleep(60)\nrun_script(main)"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes)
    assert process.stdout.readline() == "1\n"
    os.kill(process.pid, sign)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "same command" in errors and "Traceback" not in errors


def test_differences_are_named_by_key():
    existing = {"lr": 1, "questions": {"a": "x", "b": "y"}, "kept": [1, 2]}
    wanted = {"lr": 1, "questions": {"a": "x", "b": "z" * 100}, "kept": [1, 2], "new": True}
    with pytest.raises(UserError) as caught:
        provenance.refuse_difference("out", existing, wanted)
    text = str(caught.value)
    assert all(part in text for part in ("out", "questions.b", '"y"', '"zzz', "new", "--overwrite"))
    assert "lr" not in text and "kept" not in text and len(text) < 300
    provenance.refuse_difference("out", existing, dict(existing))
    many = {f"key{i}": i for i in range(9)}
    assert "6 more" in provenance.differences({}, many)
