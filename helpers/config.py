"""Edit an XTuner config as a person would: the changed values change, every comment and line stays where it was."""
import ast
import difflib


class ConfigError(ValueError):
    """A change that the config has no place for."""


def edit(source, changes):
    """The config with `changes` made: {"max_epochs": "3", "model.lora.r": "8", "optim_wrapper.dtype": None (removes)}.

    A value is Python source. A dotted name walks into dict(...) calls and lists; its last part may be new there.
    """
    for name, value in changes.items():
        source = _edit_one(source, name, value)
    ast.parse(source)
    return source


def import_from(source, name, module):
    """The config importing `name` from `module`: in place of an import of that name, else after the last import."""
    lines = source.splitlines(keepends=True)
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom)]
    replaced = [node for node in imports if [alias.name for alias in node.names] == [name]]
    end = imports[-1].end_lineno
    start = end
    if replaced:
        start, end = replaced[0].lineno - 1, replaced[0].end_lineno
    lines[start:end] = [f"from {module} import {name}\n"]
    return "".join(lines)


def _edit_one(source, name, value):
    top, *path = name.split(".")
    assigned = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            assigned.setdefault(node.targets[0].id, node.value)
    node = _find(assigned, top, name)
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


def _keywords(node):
    if isinstance(node, ast.List):
        return {str(index): element for index, element in enumerate(node.elts)}
    return {keyword.arg: keyword.value for keyword in node.keywords} if isinstance(node, ast.Call) else {}


def _find(names, wanted, full_name):
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, [n for n in names if n], n=1, cutoff=0)
    raise ConfigError(f"配置里没有 {full_name}：找不到 {wanted}" + (f"，最接近的是 {near[0]}。" if near else "。"))


def _splice(source, node, text):
    start, end = _span(source, node)
    return source[:start] + text + source[end:]


def _span(source, node):
    """Where a node stands, in characters (ast counts columns in UTF-8 bytes)."""
    lines = source.splitlines(keepends=True)

    def position(line, column):
        return sum(map(len, lines[:line - 1])) + len(lines[line - 1].encode()[:column].decode())

    return position(node.lineno, node.col_offset), position(node.end_lineno, node.end_col_offset)


def _append(source, call, name, value):
    _, end = _span(source, call)
    body = source[:end - 1]
    if "\n" not in ast.get_source_segment(source, call):
        return f"{body}, {name}={value}{source[end - 1:]}"
    *_, last = call.keywords
    indent = " " * last.col_offset
    return f"{body.rstrip()}\n{indent}{name}={value},\n{body[len(body.rstrip()) + 1:]}{source[end - 1:]}"


def _remove(source, call, name):
    index = [keyword.arg for keyword in call.keywords].index(name)
    start, end = _span(source, call.keywords[index])
    while source[end] in ", ":
        end += 1
    line_start = source.rfind("\n", 0, start) + 1
    if source[end] == "\n" and not source[line_start:start].strip():
        start, end = line_start, end + 1
    return source[:start] + source[end:]
