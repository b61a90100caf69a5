"""A student's notebook as an instructor may open it: nbgrader's formgrader shows HTML and links as they are."""
from textwrap import wrap

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers.grading.rerun import about

WIDTH = 50  # of a line of Chinese


def plain(notebook: NotebookNode, course: NotebookNode) -> NotebookNode:
    """The notebook with the course's own cells as the course made them, and whatever is the student's as plain text."""
    texts = {cell.source for cell in course.cells}
    metadata = {about(cell)["grade_id"]: cell.metadata.nbgrader for cell in course.cells if about(cell)}
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cells.append(new_code_cell(cell.source, outputs=cell.outputs))
        else:
            cells.append(new_markdown_cell(cell.source if cell.source in texts else _verbatim(cell.source)))
        if known := metadata.pop(about(cell).get("grade_id"), None):
            cells[-1].metadata["nbgrader"] = known
    return new_notebook(cells=cells, metadata=course.metadata)


def _verbatim(text):
    """Markdown that shows a text as it was typed: four spaces before a line make it code, where nothing is special."""
    lines = []
    for line in text.splitlines():
        lines += wrap(line, WIDTH) or [""]
    return "\n".join("    " + line for line in lines)
