import json
import shutil
import stat
import struct
import zipfile
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.homework import package
from helpers.homework.package import MANIFEST, Refused
from helpers.machine import profile
from helpers.train.shapes import shape_of
from tests import handed_in


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return handed_in.hand_in(tmp_path_factory.mktemp("honest"), "li")


@pytest.fixture
def folder(tmp_path):
    target = tmp_path / "unpacked"
    target.mkdir()
    return target


def changed(honest, target, change=None, add=()):
    """A copy of the zip; `change` may alter {name: bytes}, `add` holds (ZipInfo or name, bytes)."""
    content = contents(honest)
    if change:
        change(content)
    target.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in [*content.items(), *add]:
            archive.writestr(*entry)
    return target


def entry(name, mode=stat.S_IFREG | 0o644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def test_what_is_packed_comes_out_again(honest, folder):
    manifest = package.unpack(honest, folder)
    assert (manifest.student, manifest.assistant, manifest.owner) == ("li", "小星星", "李雷")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == {*manifest.files, MANIFEST} == package.FILES.keys() - package.OPTIONAL


@pytest.mark.parametrize(("name", "reason"), [
    ("../evil.py", "指向压缩包外面"), ("/etc/cron.d/x", "指向压缩包外面"), ("adapter/../../x", "指向压缩包外面"),
    ("..\\evil.exe", "不该有的字符"), ("C:evil", "不该有的字符"), ("data\u202egpj.ipynb", "不该有的字符"),
    ("a\nb", "不该有的字符"), ("adapter/pytorch_model.bin", "运行代码"), ("adapter/model.PTH", "运行代码"),
    ("helpers/grading/rules.py", "运行代码"), ("adapter/", "不是作业要交的文件"), ("config.json", "不是作业要交的文件"),
    ("adapter/tokenizer.json", "不是作业要交的文件"), ("Data.ipynb", "出现了两次"), ("data.ipynb", "出现了两次"),
])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_entry_that_does_not_belong_there_is_refused(honest, folder, tmp_path, name, reason):
    with pytest.raises(Refused, match=reason):
        package.unpack(changed(honest, tmp_path / "in" / "li.zip", add=[(entry(name), b"x")]), folder)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "li.zip"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_a_device_is_refused(honest, folder, tmp_path, kind):
    link = (entry("report.md", kind | 0o777), b"/etc/passwd")
    with pytest.raises(Refused, match="链接"):
        package.unpack(changed(honest, tmp_path / "in" / "li.zip", add=[link]), folder)


def test_a_zip_that_is_itself_a_link_is_refused(honest, folder, tmp_path):
    link = tmp_path / "li.zip"
    link.symlink_to(honest)
    with pytest.raises(Refused, match="链接"):
        package.unpack(link, folder)


def test_a_bomb_is_counted_as_it_unpacks_whatever_it_says_of_itself(honest, folder, tmp_path):
    def bomb(content):
        content["data.ipynb"] = bytes(64 * package.MB)

    path = changed(honest, tmp_path / "li.zip", bomb)
    content = path.read_bytes()
    assert content.count(struct.pack("<L", 64 * package.MB)) == 2
    path.write_bytes(content.replace(struct.pack("<L", 64 * package.MB), struct.pack("<L", 1000)))
    with pytest.raises(Refused, match="超过|不是完整的 zip"):
        package.unpack(path, folder)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < 20 * package.MB


def test_what_unpacks_to_more_than_its_limit_is_refused(honest, folder, tmp_path):
    path = changed(honest, tmp_path / "li.zip", lambda content: content.update({"data.ipynb": bytes(2**24)}))
    with pytest.raises(Refused, match="data.ipynb 解压后超过 8 MB"):
        package.unpack(path, folder)


def test_a_zip_over_200_mb_is_refused_before_it_is_opened(folder, tmp_path):
    with (tmp_path / "li.zip").open("wb") as file:
        file.truncate(package.max_zip() + 1)
    with pytest.raises(Refused, match="最多 200 MB"):
        package.unpack(tmp_path / "li.zip", folder)


def test_what_xtuner_trains_of_a_7b_with_its_template_may_be_handed_in():
    adapter = 2 * shape_of("InternLM2.5-7B").adapter_weights(rank=64)
    others = sum(size for size in package.FILES.values() if size)
    assert adapter + others < profile.GPU["zip_mb"] * package.MB
    assert profile.GPU["trainings_at_once"] == 1  # as many are graded at a time: two of them do not fit on a card


def test_a_list_of_many_names_is_refused_before_it_is_read(honest, folder, tmp_path):
    many = [(f"{'x' * 200}{number}", b"") for number in range(400)]
    with pytest.raises(Refused, match="文件太多"):
        package.unpack(changed(honest, tmp_path / "li.zip", add=many), folder)


def test_a_password_is_refused(honest, folder, tmp_path):
    content = bytearray(honest.read_bytes())
    place = content.rindex(b"PK\x01\x02")
    content[place + 8] |= 1
    (tmp_path / "li.zip").write_bytes(content)
    with pytest.raises(Refused, match="密码"):
        package.unpack(tmp_path / "li.zip", folder)


@pytest.mark.parametrize(("field", "value", "reason"), [
    ("format", 2, "format"), ("student", "../li", "学号"), ("student", ["li"], "学号"), ("student", "wang", "文件名"),
    ("assistant", "=1+1", "助手的名字"), ("assistant", "<script>", "助手的名字"), ("assistant", "我", "助手的名字"),
    ("owner", "李\n雷", "主人的名字"), ("files", [], "清单"), ("files", {}, "缺少"),
])
def test_a_manifest_that_lies_is_refused(honest, folder, tmp_path, field, value, reason):
    def lie(content):
        manifest = json.loads(content[MANIFEST]) | {field: value}
        content[MANIFEST] = json.dumps(manifest).encode()

    with pytest.raises(Refused, match=reason):
        package.unpack(changed(honest, tmp_path / "li.zip", lie), folder)


@pytest.mark.parametrize("text", [b"", b"[]", b"[" * 100_000, b"\xff", b'{"format": ' + b"9" * 10_000 + b"}"])
def test_a_broken_manifest_is_refused(honest, folder, tmp_path, text):
    path = changed(honest, tmp_path / "li.zip", lambda content: content.update({MANIFEST: text}))
    with pytest.raises(Refused, match=MANIFEST):
        package.unpack(path, folder)


def test_a_file_changed_after_packing_is_refused(honest, folder, tmp_path):
    path = changed(honest, tmp_path / "li.zip", lambda content: content.update({"train.jsonl": b"{}"}))
    with pytest.raises(Refused, match="train.jsonl 和清单里的 SHA-256"):
        package.unpack(path, folder)


def test_a_file_that_the_manifest_does_not_name_is_refused(honest, folder, tmp_path):
    with pytest.raises(Refused, match="report.md 不在清单里"):
        package.unpack(changed(honest, tmp_path / "li.zip", add=[("report.md", b"x")]), folder)


@pytest.mark.parametrize("name", sorted(package.FILES.keys() - package.OPTIONAL))
def test_every_file_but_the_report_must_be_there(honest, folder, tmp_path, name):
    with pytest.raises(Refused, match=f"缺少 {name}"):
        package.unpack(changed(honest, tmp_path / "li.zip", lambda content: content.pop(name)), folder)


def test_packing_what_would_be_refused_leaves_the_old_zip(honest, tmp_path):
    target = tmp_path / "li.zip"
    shutil.copy(honest, target)
    before = target.read_bytes()
    with pytest.raises(Refused, match="缺少"):
        package.pack({}, target, "li", "小星星", "李雷")
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["li.zip"]


def contents(path):
    """The files in a zip, by name."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_zip_with_any_damage_is_refused_or_is_what_was_packed(honest, tmp_path, data):
    content = bytearray(honest.read_bytes())
    anywhere = st.integers(0, len(content) - 1)
    in_its_directory = st.integers(len(content) - 1000, len(content) - 1)  # where some damage does no harm
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(anywhere | in_its_directory)] = data.draw(st.integers(0, 255))
    content = content[:data.draw(st.sampled_from([len(content), len(content) // 2, 30]))]
    path, folder = tmp_path / "li.zip", tmp_path / "unpacked"
    path.write_bytes(content)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with suppress(Refused):
        package.unpack(path, folder)
        unpacked = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        assert unpacked == contents(honest)
    assert {path.name for path in tmp_path.iterdir()} == {"li.zip", "unpacked"}
