"""How many copies are found, and how many of those who never met are suspected."""
from itertools import islice

import pytest

from helpers.grading import similar, traits
from helpers.grading.rules import Check, Rules
from helpers.homework.package import NOTEBOOKS
from tests import classmates

CLASS, OF_EACH_KIND = 200, 10
MASS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("class")


@pytest.fixture(scope="module")
def works():
    return [classmates.Work(f"2025{number:04}", number) for number in range(CLASS)]


@pytest.fixture(scope="module")
def honest(works, folder):
    """The traits of a class who never met, and what the course has published."""
    known = {work.student: work.traits(folder / work.student) for work in works}
    return known | {similar.PUBLISHED: traits.published(Rules().course)}


@pytest.fixture(scope="module")
def copiers(works, folder):
    """For every kind of copying, who copied from whom, and what is known of the copiers."""
    of_kind = {}
    for kind, change in classmates.KINDS.items():
        of_kind[kind] = []
        for number, other in enumerate(islice(works, OF_EACH_KIND)):
            work = classmates.Work(f"{len(of_kind)}-{number}", f"{kind} {number}")
            change(work, other)
            of_kind[kind].append((work.student, other.student, work.traits(folder / work.student)))
    return of_kind


def test_of_two_hundred_who_never_met_hardly_anybody_is_suspected(honest):
    suspected = {student for pair in similar.pairs(honest) for student in pair[:2]} - {similar.PUBLISHED}
    assert len(suspected) <= CLASS / 100


def test_nearly_all_of_thirteen_kinds_of_copying_are_found(honest, copiers):
    found = {}
    for kind, copies in copiers.items():
        found[kind] = 0
        for copier, other, of_copier in copies:
            pairs = similar.pairs({copier: of_copier, other: honest[other]})
            found[kind] += bool(pairs)
    assert len(found) >= 10
    assert sum(found.values()) >= 0.95 * len(found) * OF_EACH_KIND, found


def test_the_published_solution_is_recognized_with_other_names_and_for_another_task(folder):
    published = {similar.PUBLISHED: traits.published(Rules().course)}
    for number in range(OF_EACH_KIND):
        work = classmates.Work(f"p{number}", f"published {number}")
        classmates.published(work)
        [pair] = similar.pairs(published | {work.student: work.traits(folder / work.student)})
        assert pair[:3] == (work.student, similar.PUBLISHED, traits.CODE)


def test_many_who_copy_one_are_one_group(works, honest, folder):
    known = dict(islice(honest.items(), 40))
    everybody = {works[0].student}
    for number in range(MASS):
        work = classmates.Work(f"m{number}", f"mass {number}")
        classmates.KINDS["for one's own task"](work, works[0])
        everybody.add(work.student)
        known[work.student] = work.traits(folder / work.student)
    [group] = similar.groups(similar.pairs(known))
    assert set(group.members) == everybody


def test_the_ways_in_which_the_class_writes_are_right():
    student = "20250000"
    work = classmates.Work(student, 0)
    checks = Rules().checks_of(student)
    code = classmates.WRITTEN["code"]
    for name in NOTEBOOKS:
        for check in checks[name]:
            for way in code.get(f"{check.grade_id}_answer", []):
                if check.args is not None:
                    assert run(work, way, check) == check.expected, way


def run(work, way, check: Check):
    known = {}
    exec(classmates.solved()["data"].cells[1].source.replace('author("basic.ipynb").student', "''"), known)
    for cell, ways in classmates.WRITTEN["code"].items():
        if cell in ("clean_text_answer",):
            exec(work.for_own_task(classmates.CHOICE.sub("", ways[0])), known)
    exec("import json, random", known)
    text = classmates.CHOICE.sub(lambda found: found[1].split("¦")[0], way)
    exec(work.for_own_task(text), known)
    return known[check.call](*check.args)


def test_two_groups_that_share_nobody_are_two():
    pairs = [similar.Pair(first, second, traits.CODE, 1.0) for first, second in ("ab", "cd", "be")]
    assert [group.members for group in similar.groups(pairs)] == [["a", "b", "e"], ["c", "d"]]
    assert similar.groups([]) == []


def test_the_exam_in_the_training_data_is_told_apart_from_the_whole_table():
    assert similar.with_the_exam("li", 0, 40, 160) == []
    assert [pair.what for pair in similar.with_the_exam("li", 2, 40, 160)] == [similar.QUESTIONS]
    assert [pair.what for pair in similar.with_the_exam("li", 0, 150, 160)] == [similar.FACTS]


@pytest.mark.parametrize("source", ["(" * 5000, "-" * 20000 + "1", "a" + ".b" * 9000, "not " * 5000 + "1", "\x00",
                                    "1" + "+1" * 9000, "x = 1\n%time x\n!ls\n"])
def test_no_code_is_too_strange_to_be_looked_at(source):
    tree = traits.parsed(source)
    assert tree is None or traits.shapes(tree) is not None


def test_a_line_of_ipythons_own_hides_no_code():
    plain, magic = (traits.shapes(traits.parsed(extra + "def f(a):\n    return [b + 1 for b in a if b > 2]\n"))
                    for extra in ("", "%matplotlib inline\n!ls\n"))
    assert {shape for shape, _, _ in plain} <= {shape for shape, _, _ in magic}
