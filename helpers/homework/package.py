"""Homework as one zip: what belongs in it, how it is packed, and how one from a stranger is unpacked unharmed.

`<student>.zip` holds, at its top level and with nothing else, the FILES below; those in OPTIONAL may be missing.
`manifest.json` is {"format": 1, "student": "<id>", "assistant": "<name>", "owner": "<owner>",
"files": {path: {"sha256": hex, "bytes": n}}} and names every other file.
"""
import hashlib
import json
import re
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.machine.files import replacement, sha256

MB = 2**20
FORMAT = 1
MAX_DIRECTORY = 2**16  # a list of a million names would fill the memory before the first is looked at
STUDENT = re.compile("[A-Za-z0-9_-]{1,32}")
NAME = re.compile(r"[^\W_][\w ·.-]{0,30}\w")  # of an assistant or its owner: two characters or more
MANIFEST = "manifest.json"
NOTEBOOKS = ("basic", "data", "understanding", "advanced")
DATA = "train.jsonl"
SETTINGS, WEIGHTS = "adapter/adapter_config.json", "adapter/adapter_model.safetensors"
REPORT = "report.md"
OPTIONAL = {REPORT}
# The most bytes that each file may have, unpacked; the weights as many as the zip.
FILES = {MANIFEST: MB // 4, **{f"{name}.ipynb": 8 * MB for name in NOTEBOOKS}, DATA: 32 * MB,
         SETTINGS: MB // 16, WEIGHTS: None, REPORT: 2 * MB}
MOST_CELLS = 500  # of a notebook: more take more memory than their bytes tell
RUNS_CODE = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".py", ".so", ".sh"}
END = struct.Struct("<4s4H2LH")  # of a zip: signature, disks, entries, size and place of the directory, comment
END64 = b"PK\x06\x07"


class Refused(CourseError):
    """A submission that is not accepted: why, and what the student should do."""


@dataclass(frozen=True)
class Manifest:
    """Whose homework it is, what the assistant and its owner are called, and the files by their SHA-256 and size."""

    student: str
    assistant: str
    owner: str
    files: dict[str, dict]


def max_zip() -> int:
    """The most bytes that a zip may have for this machine's base."""
    return profile.current().zip_mb * MB


def pack(files: dict[str, Path], target: Path, student: str, assistant: str, owner: str) -> None:
    """Writes the zip of {path in the zip: file on disk}; it appears when it is whole and would be accepted."""
    listed = {path: {"sha256": sha256(file), "bytes": file.stat().st_size} for path, file in files.items()}
    manifest = {"format": FORMAT, "student": student, "assistant": assistant, "owner": owner, "files": listed}
    _checked(manifest)
    with replacement(target) as beside:
        with ZipFile(beside, "w", ZIP_DEFLATED) as archive:
            archive.writestr(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1))
            for path, file in files.items():
                archive.write(file, path)
        with _opened(beside):  # what would be refused is not handed in
            pass


def unpack(path: Path, folder: Path) -> Manifest:
    """Unpacks a zip into an empty folder and gives its Manifest; raises Refused, with the folder to be thrown away."""
    try:
        with _opened(path) as archive:
            unpacked = {member.filename: _written(archive, member, folder) for member in archive.infolist()}
    except (BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError, struct.error) as error:
        raise Refused(f"不是完整的 zip（{error}）：请重新运行 make submit。") from error
    manifest = read_manifest(folder / MANIFEST)
    del unpacked[MANIFEST]
    if manifest.student != path.stem:
        raise Refused(f"文件名是 {path.stem}.zip，清单里的学号却是 {manifest.student}：请不要改文件名。")
    for name in sorted(unpacked.keys() ^ manifest.files.keys()):
        what = "不在清单里" if name in unpacked else "在清单里，压缩包里却没有"
        raise Refused(f"{name} {what}：请重新运行 make submit。")
    for name, content in unpacked.items():
        if content != manifest.files[name]:
            raise Refused(f"{name} 和清单里的 SHA-256 或大小不一样，打包后改过：请重新运行 make submit。")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """The Manifest in a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused(f"{MANIFEST} 不是完整的 JSON：请重新运行 make submit。") from error
    return _checked(content)


def _checked(manifest):
    """The Manifest, if every field is what it should be."""
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Refused(f"{MANIFEST} 的 format 不是 {FORMAT}：请用这个版本的课程重新打包。")
    if not _fits(STUDENT, manifest.get("student")):
        raise Refused("学号只能有字母、数字、下划线和连字符，最多 32 个字符：请改正后重新打包。")
    for key, what in {"assistant": "助手的名字", "owner": "主人的名字"}.items():
        if not _fits(NAME, manifest.get(key)):
            raise Refused(f"{what}要有 2–32 个字，只用文字、数字、空格和 · . -：请改正后重新打包。")
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(isinstance(about, dict) for about in files.values()):
        raise Refused(f"{MANIFEST} 里没有文件的清单：请重新运行 make submit。")
    if missing := FILES.keys() - OPTIONAL - files.keys() - {MANIFEST}:
        raise Refused(f"缺少 {'、'.join(sorted(missing))}：请补上后重新打包。")
    return Manifest(manifest["student"], manifest["assistant"], manifest["owner"], files)


def _fits(pattern, text):
    return isinstance(text, str) and pattern.fullmatch(text)


@contextmanager
def _opened(path) -> Iterator[ZipFile]:
    """The zip, once its size, its directory and its names have proved harmless."""
    if path.is_symlink() or not path.is_file():
        raise Refused("不是普通文件，是链接或文件夹：请交 make submit 打包的 zip。")
    if path.stat().st_size > max_zip():
        raise Refused(f"压缩包有 {path.stat().st_size / MB:,.0f} MB，最多 {max_zip() // MB} MB：请减小 LoRA 的秩 r。")
    _check_directory(path)
    with ZipFile(path) as archive:
        seen = set()
        for member in archive.infolist():
            _check_member(member, seen)
            seen.add(member.filename.casefold())
        if missing := FILES.keys() - OPTIONAL - {member.filename for member in archive.infolist()}:
            raise Refused(f"缺少 {'、'.join(sorted(missing))}：请补上后重新打包。")
        yield archive


def _check_directory(path):
    """The end of the file says how long the list of names is; ZipFile would read any length."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - END.size - 20))  # 20: where a 64-bit zip says that it is one
        tail = file.read()
    if len(tail) < END.size or tail[-END.size:][:4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise Refused("不是 zip，或者没有传完整：请重新运行 make submit。")
    if END.unpack(tail[-END.size:])[5] > MAX_DIRECTORY or tail.startswith(END64):
        raise Refused("压缩包里的文件太多：请重新运行 make submit。")


def _check_member(member, seen):
    """Refuses an entry by what its name and its kind are, before a byte of it is read."""
    name, kind = member.orig_filename, stat.S_IFMT(member.external_attr >> 16)
    if any(not char.isprintable() for char in name) or "\\" in name or re.match("[A-Za-z]:", name):
        raise Refused(f"文件名 {name!r} 里有不该有的字符：请重新运行 make submit。")
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise Refused(f"路径 {name} 指向压缩包外面：请重新运行 make submit。")
    if kind not in (0, stat.S_IFREG):
        raise Refused(f"{name} 是链接或别的特殊文件：请换成真正的文件。")
    if PurePosixPath(name).suffix.lower() in RUNS_CODE:
        raise Refused(f"{name} 一打开就能运行代码：适配器只收 .safetensors，请去掉它。")
    if name.casefold() in seen:
        raise Refused(f"{name} 出现了两次：请重新运行 make submit。")
    if name not in FILES:
        raise Refused(f"{name} 不是作业要交的文件：请去掉它。")
    if member.flag_bits & 0x2041 or member.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise Refused(f"{name} 加了密码，或者用了少见的压缩：请重新运行 make submit。")


def _written(archive, member: ZipInfo, folder):
    """Unpacks one entry, counting what really comes out of it; gives its SHA-256 and its size."""
    target = folder / member.filename
    most = FILES[member.filename] or max_zip()
    target.parent.mkdir(exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    with archive.open(member) as source, target.open("xb") as file:
        while piece := source.read(MB // 4):
            size += len(piece)
            if size > most:
                raise Refused(f"{member.filename} 解压后超过 {most / MB:g} MB：请减小它。")
            digest.update(piece)
            file.write(piece)
    target.chmod(0o644)  # the sandbox has another user
    return {"sha256": digest.hexdigest(), "bytes": size}
