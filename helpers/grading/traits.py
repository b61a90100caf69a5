"""What to know a submission by, whatever names, order, layout and numbers were changed in it.

Of code the shapes of its parts, without names and with them; of prose its stretches; of training data its rows; of an
adapter what it does to a few vectors: a LoRA may be scaled, turned or rounded, and does the same.
"""
import ast
import hashlib
import json
import re
import unicodedata
import zlib
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy
import safetensors
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from helpers.grading import rerun
from helpers.grading.kernel_host import MOST_CHARS
from helpers.grading.rerun import about
from helpers.homework import own
from helpers.homework.package import DATA, WEIGHTS, Manifest
from helpers.knowledge import self_talk
from helpers.machine.profile import ROOT

CODE, NAMED, PROSE, ROWS, ADAPTER = "代码的写法", "代码，连名字", "文字", "训练数据", "适配器"
FOREIGN = "foreign"
MOST_PIECES = 20_000  # of each notebook
SMALLEST = 6  # parts of an expression; smaller pieces of code are everybody's
NOTHING_SAID = re.compile(r"[\W_]+")  # spaces and marks
SAYS_NOTHING = {"annotation", "returns", "ctx"}
STRETCH = 8  # characters of prose
LONG_TEXT = 30  # characters; a shorter text in a piece of code is a word, no prose
SHOWN_ROWS, SHOWN_CHARS = 2000, 200  # of what is kept to be shown
VECTORS = 256
NUMBERS = {"F32": numpy.float32, "F16": numpy.float16}


def traits(folder: Path, manifest: Manifest, notebooks: Iterable[NotebookNode]) -> dict:
    """The traits of an unpacked submission, by what they are of."""
    rows, foreign = _rows(rerun.samples(folder / DATA), manifest)
    answers = of_answers(notebooks, (manifest.assistant, manifest.owner))
    return answers | {ROWS: rows, FOREIGN: foreign, ADAPTER: _effect(folder / WEIGHTS)}


def of_answers(notebooks: Iterable[NotebookNode], names: Iterable[str] = ()) -> dict:
    """The traits of a homework's answers: of code {piece: its size}, of prose its stretches without these names."""
    code, named, prose = {}, {}, set()
    for notebook in notebooks:
        most = len(code) + len(prose) + MOST_PIECES
        for cell in notebook.cells:
            if about(cell).get("solution") and len(code) + len(prose) < most:
                source = cell.source[:MOST_CHARS]
                tree = parsed(source) if cell.cell_type == "code" else None
                for pieces, with_names in ((code, False), (named, True)):
                    pieces |= {shape: size for shape, size, _ in shapes(tree, with_names)} if tree else {}
                for text in _texts(tree) if tree else [source]:
                    prose |= stretches(text, names)
    return {CODE: code, NAMED: named, PROSE: sorted(prose - _of_the_course())}


def published(course: dict[str, NotebookNode]) -> dict:
    """The traits of the course's own solutions, which come without data and adapter."""
    return of_answers(course.values()) | {ROWS: [], FOREIGN: {}, ADAPTER: []}


def parsed(source: str) -> ast.Module | None:
    """A cell's code, also with IPython's own lines in it; None if it is none."""
    try:
        return ast.parse(TransformerManager().transform_cell(source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _texts(tree):
    """The long texts in code, such as a model card; not what explains the code."""
    return [node.value for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) >= LONG_TEXT]


def shapes(tree: ast.AST, with_names: bool = False) -> list[tuple[str, int, ast.AST]]:
    """Every part of some code: its shape, its size, and where it is.

    Neither numbers and texts count nor the order, and the names that the code itself gives only if that is wanted.
    """
    found = []
    with suppress(RecursionError):
        _shape(tree, set() if with_names else _own_names(tree), found)
    return found


def _own_names(tree):
    """The names that the code itself gives, and that somebody else could give otherwise."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names


def _shape(node, names, found):
    """The shape of a node and its size, those of its parts put into `found` if they are large enough."""
    parts, size = [type(node).__name__ + _name(node, names)], 1
    for field, value in ast.iter_fields(node):
        inner = []
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in SAYS_NOTHING and not _explains(child):
                shape, of_child = _shape(child, names, found)
                inner.append(shape)
                size += of_child
        parts += [field, *(sorted(inner) if field == "body" else inner)]
    shape = _digest("|".join(parts))
    if size >= SMALLEST and not isinstance(node, ast.Module):
        found.append((shape, size, node))
    return shape, size


def _explains(node):
    """Whether it is a docstring, or a text that nobody uses."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _name(node, names):
    match node:
        case ast.Name(id=name):
            return "" if name in names else name
        case ast.Attribute(attr=name):
            return name
        case ast.arg(arg=name) | ast.FunctionDef(name=name):
            return "" if name in names else name
        case ast.keyword(arg=name):
            return name or ""
        case ast.Constant(value=value):
            return type(value).__name__
    return ""


def stretches(text: str, names: Iterable[str] = ()) -> set[str]:
    """Every stretch of so many characters, without spaces and marks."""
    bare = _bare(_without(dict.fromkeys(names, ""), text))
    return {_digest(bare[start:start + STRETCH]) for start in range(len(bare) - STRETCH + 1)}


@cache
def _of_the_course():
    """The stretches of what the course itself says, which everybody may have from there."""
    known = set()
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown" and not cell["metadata"].get("nbgrader", {}).get("solution"):
                known |= stretches("".join(cell["source"]))
    return known


def _rows(samples, manifest):
    """The rows of training data by their digests; and of those that neither the course nor the draw gave, the text."""
    names = {_bare(manifest.assistant): "甲", _bare(manifest.owner): "乙"}
    given = _given() | set(map(_turns, own.exam_rows(manifest.student)))
    said = {(ask, say) for topic in self_talk.topics(manifest.assistant, manifest.owner)
            for ask, answers in topic for say in answers}
    rows, foreign = set(), {}
    for sample in samples:
        turns = _turns(sample)
        digest = _digest(_without(names, "\n".join(_bare(asked) + "\t" + _bare(told) for asked, told in turns)))
        rows.add(digest)
        if turns not in given and not said.issuperset(turns) and len(foreign) < SHOWN_ROWS:
            foreign[digest] = " / ".join(f"{asked} → {told}" for asked, told in turns)[:SHOWN_CHARS]
    return sorted(rows), foreign


@cache
def _given():
    """The rows that the course gives to everyone."""
    return set(map(_turns, own.of_the_lessons()))


def _turns(sample):
    return tuple((turn["input"], turn["output"]) for turn in sample["conversation"])


def _without(names, text):
    """The text with every name replaced."""
    for name, instead in names.items():
        text = text.replace(name, instead)
    return text


def _bare(text):
    return NOTHING_SAID.sub("", unicodedata.normalize("NFKC", text).casefold())


def _digest(text):
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def _matrix(tensor):
    """A stored tensor as a matrix of float32."""
    if tensor["dtype"] == "BF16":  # the first half of a float32
        numbers = (numpy.frombuffer(tensor["data"], numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
    else:
        numbers = numpy.frombuffer(tensor["data"], NUMBERS[tensor["dtype"]]).astype(numpy.float32)
    return numbers.reshape(tensor["shape"])


def _effect(path):
    """What a LoRA does to vectors that are always the same: as many numbers, of length one together."""
    tensors = dict(safetensors.deserialize(path.read_bytes()))
    effect = numpy.zeros(VECTORS)
    for name in sorted(tensors):
        if name.endswith(".lora_A.weight"):
            down, up = (_matrix(tensors[part]) for part in (name, name.replace("lora_A", "lora_B")))
            rng = numpy.random.default_rng(zlib.crc32(name.encode()))
            before = rng.standard_normal((down.shape[1], VECTORS), dtype=numpy.float32)
            after = rng.standard_normal((up.shape[0], VECTORS), dtype=numpy.float32)
            effect += numpy.einsum("ij,ij->j", after, up @ (down @ before))
    length = numpy.linalg.norm(effect)
    return (effect / length).round(6).tolist() if numpy.isfinite(length) and length else []
