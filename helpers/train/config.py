"""Edit an XTuner config as a person would: the changed values change, every comment and line stays where it was."""
import ast
import difflib
from pathlib import Path

from helpers.machine.commands import CourseError
from helpers.train import families


def edit(source: str, changes: dict[str, str | None]) -> str:
    """The config with `changes` made: {"max_epochs": "3", "model.lora.r": "8", "optim_wrapper.dtype": None (removes)}.

    A value is Python source. A dotted name walks into dict(...) calls and lists; its last part may be new there.
    """
    for name, value in changes.items():
        source = _edit_one(source, name, value)
    ast.parse(source)
    return source


def import_from(source: str, name: str, module: str) -> str:
    """The config importing `name` from `module`: in place of an import of that name, else after the last import."""
    lines = source.splitlines(keepends=True)
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    start = end = imports[-1].end_lineno
    for node in imports:
        if [alias.name for alias in node.names] == [name]:
            start, end = node.lineno - 1, node.end_lineno
            break
    lines[start:end] = [f"from {module} import {name}\n"]
    return "".join(lines)


def for_model(source: str, folder: str | Path) -> str:
    """The config for the model in a folder, as its family wants it; last of all edits, for it reads SYSTEM.

    Where XTuner has no template whose tokens are those of the model's own chat_template, one is written here.
    """
    from transformers import AutoTokenizer

    from helpers.train import tokens  # both take seconds, which `edit` alone need not

    changes = {"pretrained_model_name_or_path": repr(str(folder))} | families.architecture(folder).edits
    template = tokens.right_template(AutoTokenizer.from_pretrained(folder, trust_remote_code=True))
    if not template.changes:
        return edit(source, changes | {"prompt_template": f"PROMPT_TEMPLATE.{template.name}"})
    source = import_from(source, "template_map_fn_factory", "helpers.train.tokens")
    rows = "".join(f"    {name}={value!r},\n" for name, value in tokens.written_out(template).items())
    changes["prompt_template"] = f"dict(\n{rows})"
    if "START" in template.changes:
        source = import_from(source, "tokenizer_from", "helpers.train.tokens")
        changes |= {"tokenizer.type": "tokenizer_from", "tokenizer.start": repr(template.changes["START"])}
    if "SYSTEM_IN_INPUT" in template.changes:
        changes |= _asked_with_system(source)
    return edit(source, changes)


def _asked_with_system(source):
    """The evaluation's questions with the system prompt in them: XTuner would write it before the question's mark."""
    assigned = _assigned(source)
    try:
        system, questions = (ast.literal_eval(assigned[name]) for name in ("SYSTEM", "evaluation_inputs"))
    except ValueError as error:
        raise CourseError("SYSTEM 或 evaluation_inputs 还是模板里的。"
                          "修复：先用 edit 改成自己的，再用 for_model。") from error
    asked = [f"{system}\n\n{question}" if system else question for question in questions]
    return {"SYSTEM": "''", "evaluation_inputs": repr(asked)}


def _edit_one(source, name, value):
    top, *path = name.split(".")
    node = _find(_assigned(source), top, name)
    for part in path[:-1]:
        node = _find(_keywords(node), part, name)
    if not path:
        return _splice(source, node, value)
    keywords = _keywords(node)
    last = path[-1]
    if value is None:
        _find(keywords, last, name)
        return _remove(source, node, last)
    if last in keywords:
        return _splice(source, keywords[last], value)
    return _append(source, node, last, value)


def _assigned(source):
    """What the config assigns to each name, the first time."""
    values = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, node.value)
    return values


def _keywords(node):
    """The parts of a dict(...) call by name, those of a list by number."""
    if isinstance(node, ast.List):
        return {str(index): element for index, element in enumerate(node.elts)}
    if isinstance(node, ast.Call):
        return {keyword.arg: keyword.value for keyword in node.keywords}
    return {}


def _find(names, wanted, full_name):
    if wanted in names:
        return names[wanted]
    nearest = difflib.get_close_matches(wanted, filter(None, names), n=1, cutoff=0)
    hint = f"，最接近的是 {nearest[0]}" if nearest else ""
    raise CourseError(f"配置里没有 {full_name}：找不到 {wanted}{hint}。")


def _splice(source, node, text):
    start, end = _span(source, node)
    return source[:start] + text + source[end:]


def _span(source, node):
    """Where a node stands, in characters (ast counts columns in UTF-8 bytes)."""
    lines = source.splitlines(keepends=True)
    start = _position(lines, node.lineno, node.col_offset)
    return start, _position(lines, node.end_lineno, node.end_col_offset)


def _position(lines, line, column):
    before = sum(len(earlier) for earlier in lines[:line - 1])
    return before + len(lines[line - 1].encode()[:column].decode())


def _append(source, call, name, value):
    _, end = _span(source, call)
    before, after = source[:end - 1], source[end - 1:]
    if "\n" not in ast.get_source_segment(source, call):
        return f"{before}, {name}={value}{after}"
    text = before.rstrip()
    closing_indent = before[len(text) + 1:]
    indent = " " * call.keywords[-1].col_offset
    return f"{text}\n{indent}{name}={value},\n{closing_indent}{after}"


def _remove(source, call, name):
    index = [keyword.arg for keyword in call.keywords].index(name)
    start, end = _span(source, call.keywords[index])
    while source[end] in ", ":
        end += 1
    line_start = source.rfind("\n", 0, start) + 1
    if source[end] == "\n" and not source[line_start:start].strip():
        start, end = line_start, end + 1
    return source[:start] + source[end:]
