"""A class of students who never met, and what becomes of their work when somebody copies it."""
import ast
import copy
import json
import random
import re
import tomllib
import zlib
from functools import cache
from pathlib import Path

import nbformat
import numpy
from safetensors.numpy import save_file

from helpers.grading import traits
from helpers.homework import own, release
from helpers.homework.package import DATA, NOTEBOOKS, WEIGHTS, Manifest
from helpers.knowledge import self_talk
from tests import handed_in

WRITTEN = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
CHOICE = re.compile("«(.*?)»", re.S)
NAMES = ("小麦", "知了", "青禾", "小鹿", "星河", "团子", "米粒", "小满", "木木", "云朵", "小北", "阿吉", "南风", "豆豆",
         "小舟", "海棠", "书童", "墨墨", "阿宁", "石榴")
OWNERS = ("李雷", "韩梅梅", "小红", "王芳", "张伟", "老陈", "小明", "刘洋", "赵敏", "孙悦")
SYNONYMS = {
    "sample": "item s one record dialog", "result": "out res kept ans new_list", "pair": "p qa row2 two",
    "name": "k word nm what", "text": "t s value_text string", "seen": "known used already have",
    "numbers": "ids index order_of no", "train": "training tr learn left", "test": "testing te exam right",
    "question": "q ask col_q title", "answer": "a reply col_a ans", "asked": "q1 first ask_text qt",
    "answered": "a1 second ans_text at", "turn": "t1 talk message round_", "number": "n i idx no_",
    "header": "head start_row h", "unique": "different uniq only_once", "pairs": "all_pairs complete found",
    "first": "firsts once keep", "names": "order all_keys ks", "value": "v content val",
}


class Work:
    """One student's homework: the answers by their cells' ids, the training data, the adapter's tensors."""

    def __init__(self, student, seed):
        rng = random.Random(seed)
        self.student, self.name, self.owner = student, rng.choice(NAMES), rng.choice(OWNERS)
        self.code = {cell: self._written(rng, ways) for cell, ways in WRITTEN["code"].items()}
        self.prose = {cell: _said(rng, sentences) for cell, sentences in WRITTEN["prose"].items()}
        self.rows = (own.exam_rows(student, count=own.EXAM_ROWS) + everyday()
                     + self_talk.samples(self.name, self.owner, rng.choice((150, 200, 300, 400))))
        rng.shuffle(self.rows)
        self.adapter = _weights(numpy.random.default_rng(zlib.crc32(str(seed).encode())))

    def _written(self, rng, ways):
        """One of the ways, in this student's words and for this student's task."""
        way = rng.choices(ways, [0.5 ** (place / 2) for place in range(len(ways))])[0].strip("\n")
        text = self.for_own_task(chosen(rng, way))
        names = {name: rng.choice([name, name, *others.split()]) for name, others in SYNONYMS.items()}
        return re.sub(r"\b\w+\b", lambda found: names.get(found[0], found[0]), text) if "def " in text else text

    def for_own_task(self, text):
        """The text with what this student's card says."""
        words = own.values(self.student)
        tested = ", ".join(map(str, words["tested"]))
        for name in ("question", "answer", "invisible"):
            text = text.replace("{" + name + "}", words[name])
        return (text.replace("{tested}", tested).replace("{student}", self.student)
                .replace("{name}", self.name).replace("{owner}", self.owner))

    def notebooks(self):
        """The answers in the course's notebooks."""
        answers = self.code | self.prose
        notebooks = []
        for name in NOTEBOOKS:
            notebook = copy.deepcopy(solved()[name])
            for grade_id, cell in release.known_cells(notebook).items():
                if grade_id in answers:
                    cell.source = answers[grade_id]
            notebooks.append(notebook)
        return notebooks

    def traits(self, folder):
        """What the grader keeps of it."""
        (folder / "adapter").mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) for row in self.rows]
        (folder / DATA).write_text("\n".join(lines), encoding="utf-8")
        save_file(self.adapter, folder / WEIGHTS)
        return traits.traits(folder, Manifest(self.student, self.name, self.owner, {}), self.notebooks())


def chosen(rng, text):
    """The text with one of every choice."""
    return CHOICE.sub(lambda found: rng.choice(found[1].split("¦")), text)


def _said(rng, sentences):
    count = rng.randint(max(3, len(sentences) // 2), len(sentences))
    return "".join(chosen(rng, sentence) for sentence in rng.sample(sentences, min(count, len(sentences))))


@cache
def everyday():
    return own.of_the_lessons()[-400:]


@cache
def solved():
    """The notebooks as the course publishes them, with their solutions."""
    return {name: nbformat.read(release.SOURCE / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS}


def _weights(rng, alike=0.8):
    """Weights that do what others' do as far as those of two real trainings do, and else nothing in common."""
    shared = numpy.random.default_rng(0)
    tensors = {}
    for name, tensor in handed_in.weights(r=4).items():
        common, mine = (source.standard_normal(tensor.shape) for source in (shared, rng))
        if name.endswith("lora_B.weight"):
            common = alike ** 0.5 * common + (1 - alike) ** 0.5 * mine
        tensors[name] = common.astype(numpy.float32)
    return tensors


class _Renamed(ast.NodeTransformer):
    """Gives every name of a function's own another one."""

    def __init__(self, tree):
        self._names = {name: f"{name[0]}{number}_" for number, name in enumerate(sorted(traits._own_names(tree)))
                       if name not in WRITTEN["code"] and f"{name}_answer" not in WRITTEN["code"]}

    def visit_Name(self, node):
        return ast.Name(self._names.get(node.id, node.id), node.ctx)

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.name = self._names.get(node.name, node.name)
        return node

    def visit_arg(self, node):
        return ast.arg(self._names.get(node.arg, node.arg))


def renamed(source):
    tree = ast.parse(source)
    return ast.unparse(ast.fix_missing_locations(_Renamed(tree).visit(tree)))


def reordered(source):
    """Every two statements that do not need each other change places."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            for place in range(len(body) - 1):
                first, second = body[place:place + 2]
                if isinstance(first, ast.Assign) and isinstance(second, ast.Assign) and not needs(second, first):
                    body[place:place + 2] = second, first
    return ast.unparse(tree)


def needs(second, first):
    made = {node.id for target in first.targets for node in ast.walk(target) if isinstance(node, ast.Name)}
    return bool(made & {node.id for node in ast.walk(second) if isinstance(node, ast.Name)})


def reformatted(source):
    """Another layout, with comments and explanations."""
    lines = ["# 先定义函数"]
    for line in ast.unparse(ast.parse(source)).splitlines():
        lines += [line.replace(", ", " , ").replace("    ", "\t"), ""]
        if line.startswith("def "):
            lines.append('\t"""做这一步要的函数。"""')
        elif "for" in line:
            lines[-1] = "  # 逐个处理"
    return "\n".join(lines)


def polished(text):
    """Prose with other marks and every thirtieth character changed."""
    return "".join("；" if char == "。" else "的" if place % 30 == 29 else char for place, char in enumerate(text))


def scaled(tensors):
    return {name: tensor * numpy.float32(3 if "lora_A" in name else 1 / 3) for name, tensor in tensors.items()}


def turned(tensors):
    """The ranks in another order."""
    return {name: tensor[::-1].copy() if "lora_A" in name else tensor[:, ::-1].copy()
            for name, tensor in tensors.items()}


def rounded(tensors):
    """As bfloat16 keeps them."""
    return {name: ((tensor.view(numpy.uint32) + 0x8000) & 0xFFFF0000).view(numpy.float32)
            for name, tensor in tensors.items()}


def with_names(rows, other, own_work):
    """The rows of another student with one's own names in them."""
    text = json.dumps(rows, ensure_ascii=False)
    return json.loads(text.replace(other.name, own_work.name).replace(other.owner, own_work.owner))


def _code(change):
    def copied(work, other):
        work.code |= {cell: change(source) for cell, source in other.code.items() if cell != "author"}
    return copied


def _for_own_task(work, other):
    """The code of another student, its names changed and what the card says put right."""
    theirs, mine = own.values(other.student), own.values(work.student)
    for cell, source in other.code.items():
        for name in ("question", "answer", "invisible"):
            source = source.replace(theirs[name], mine[name])
        tested = [", ".join(map(str, values["tested"])) for values in (theirs, mine)]
        work.code[cell] = renamed(source.replace(*tested))


def _everything(work, other):
    work.code = dict(other.code)
    work.prose = {cell: text.replace(other.name, work.name) for cell, text in other.prose.items()}
    work.rows = with_names(other.rows, other, work)
    work.adapter = other.adapter


def _prose(work, other):
    work.prose = {cell: polished(text) for cell, text in other.prose.items()}


def _rows(work, other):
    work.rows = with_names(other.rows, other, work)[::-1]


def _half_of_the_rows(work, other):
    work.rows = work.rows[::2] + with_names(other.rows, other, work)[::2]


def _some_functions(work, other):
    work.code |= {f"{name}_answer": other.code[f"{name}_answer"] for name in ("clean_text", "read_pairs", "split")}


def _adapter_of(change):
    def copied(work, other):
        work.adapter = change(other.adapter)
    return copied


# What is done to one student's own work to make it another's; {kind: function of the copier's work and the other's}.
KINDS = {
    "everything": _everything, "renamed": _code(renamed), "reordered": _code(reordered),
    "reformatted": _code(reformatted), "some functions": _some_functions, "for one's own task": _for_own_task,
    "prose": _prose, "rows": _rows, "half of the rows": _half_of_the_rows, "adapter": _adapter_of(dict),
    "adapter scaled": _adapter_of(scaled), "adapter turned": _adapter_of(turned),
    "adapter rounded": _adapter_of(rounded),
}


def published(work):
    """The course's own solutions handed in with other names, for one's own task."""
    for notebook in solved().values():
        for grade_id, cell in release.known_cells(notebook).items():
            if cell.metadata.nbgrader.solution and grade_id in work.code and grade_id != "author":
                source = cell.source.replace("### BEGIN SOLUTION", "").replace("### END SOLUTION", "")
                work.code[grade_id] = renamed(source)
