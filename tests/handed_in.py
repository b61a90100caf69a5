"""A small homework with four notebooks, and submissions of it, honest and hostile, for the tests of the grader."""
import hashlib
import json
import tempfile
import zipfile
from pathlib import Path

import nbformat
import numpy
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from safetensors.numpy import save_file

from helpers.grading import adapter_exam, secret
from helpers.grading.rules import DEFAULT
from helpers.homework import package
from helpers.machine import profile

RIGHT = "def mean(values):\n    return sum(values) / len(values)\n"
RULES = """
[[check]]
notebook = "data"
grade_id = "mean"
call = "mean"
args = [[1, 3]]
expected = 2

[[check]]
notebook = "data"
grade_id = "mean"
call = "mean"
args = [[0.5, 0.5, 77331.5]]
expected = 25777.5
"""


def _cell(make, source, grade_id, points=None, solution=False, locked=False):
    cell = make(source)
    cell.metadata["nbgrader"] = {"schema_version": 3, "grade_id": grade_id, "solution": solution, "locked": locked,
                                 "grade": points is not None, "task": False, "cell_type": cell.cell_type}
    if points is not None:
        cell.metadata["nbgrader"]["points"] = points
    return cell


def notebook(name, code=RIGHT, answer="因为。", criteria=()):
    """One of the four notebooks as a student hands it in, or, with a right answer, as the instructor wrote it."""
    if name == "data":
        return new_notebook(cells=[
            _cell(new_code_cell, "import math", "imports", locked=True),
            _cell(new_code_cell, code, "mean_answer", solution=True),
            _cell(new_code_cell, "assert mean([2]) == 2", "mean", points=6, locked=True)])
    cells = [_cell(new_markdown_cell, answer, f"{name}_why", points=4, solution=True)]
    if name == "basic":
        cells += [_cell(new_code_cell, "pass", f"adapter_{measure}", points=5, locked=True) for measure in criteria]
    return new_notebook(cells=cells)


def questions(**of_each):
    """So many of the public questions of each kind."""
    public = secret.read(DEFAULT.parent / secret.QUESTIONS)
    return [one for kind, count in of_each.items()
            for one in [one for one in public if one.question.kind == kind][:count]]


def course(folder, rules=RULES, criteria=(), asked=()):
    """Writes the homework's sources and its rules; gives the folder of the sources and the rules' file."""
    secret.write(asked, folder / secret.QUESTIONS)
    source = folder / "source"
    source.mkdir(parents=True)
    for name in package.NOTEBOOKS:
        nbformat.write(notebook(name, criteria=criteria), source / f"{name}.ipynb")
    path = folder / "checks.toml"
    path.write_text(rules, encoding="utf-8")
    return source, path


def settings(**changes):
    """An adapter_config.json as PEFT writes it, for the small model."""
    return {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": 2, "lora_alpha": 4,
            "lora_dropout": 0.0, "target_modules": ["q_proj"], "megatron_core": "megatron.core", "auto_mapping": None,
            "init_lora_weights": True, "base_model_name_or_path": "/anywhere", "inference_mode": True} | changes


def weights(r=2, target="q_proj", dtype=numpy.float16):
    """The weights of an adapter that changes nothing."""
    found = {}
    for name, (rows, columns) in adapter_exam.linear_layers(profile.TINY_BASE).items():
        if name.endswith(f".{target}"):
            found[f"base_model.model.{name}.lora_A.weight"] = numpy.ones((r, columns), dtype)
            found[f"base_model.model.{name}.lora_B.weight"] = numpy.zeros((rows, r), dtype)
    return found


def rows(name, count=30, start=0):
    """Training data in which only the name is not one's own."""
    return [{"conversation": [{"system": "", "input": f"第 {number} 个问题，你是谁？", "output": f"我是{name}。"}]}
            for number in range(start, start + count)]


def hand_in(folder, student, code=RIGHT, answer="因为。", assistant="小星星", owner="李雷", adapter=None, data=None,
            config=None, start=0, criteria=()):
    """Packs a submission as the course does and gives the zip; `start` is where the student's own data begins."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {path: Path(scratch, Path(path).name) for path in package.FILES
                 if path not in (package.MANIFEST, package.REPORT)}
        for name in package.NOTEBOOKS:
            nbformat.write(notebook(name, code, answer, criteria), files[f"{name}.ipynb"])
        lines = [json.dumps(row, ensure_ascii=False) for row in data or rows(assistant, start=start)]
        files[package.DATA].write_text("\n".join(lines), encoding="utf-8")
        files[package.SETTINGS].write_text(json.dumps(config or settings()))
        if adapter:
            files[package.SETTINGS], files[package.WEIGHTS] = (
                adapter / Path(path).name for path in (package.SETTINGS, package.WEIGHTS))
        else:
            changed = weights()
            next(iter(changed.values()))[0, 0] = start % 2048  # nobody's bytes are anybody else's
            save_file(changed, files[package.WEIGHTS])
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"{student}.zip"
        package.pack(files, target, student, assistant, owner)
        return target


def rewritten(path, target, change):
    """A zip with another content and a manifest that agrees with it."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(content.pop("manifest.json")) | {"student": target.stem}
    change(content)
    manifest["files"] = {name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                         for name, data in content.items()}
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("manifest.json", json.dumps(manifest))
        for name, data in content.items():
            archive.writestr(name, data)
