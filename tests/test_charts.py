import warnings

from fontTools.ttLib import TTFont
from matplotlib import font_manager

from helpers.knowledge.corpus import Corpus
from helpers.machine import charts
from helpers.train.pretrain import loss_curve


def test_chinese_labels_need_no_font_of_the_machine(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about every missing glyph
        charts.course_map("00").savefig(tmp_path / "map.png")
        loss_curve([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.01}]).savefig(tmp_path / "loss.png")
        charts.curves({"训练": {1: 2.0}, "验证": {1: 2.1}}, "步数", "损失", "两条线").savefig(tmp_path / "curves.png")
        charts.packing_chart([30, 50, 20], width=64, batch=2).savefig(tmp_path / "packing.png")
    assert "glyph" not in caplog.text
    family = charts.matplotlib.rcParams["font.family"][0]
    assert font_manager.findfont(family) == str(charts.FONT)


def test_the_map_has_every_numbered_lesson():
    drawn = {lesson[:2] for lessons in charts.STAGES.values() for lesson in lessons}
    existing = {path.name[:2] for path in (charts.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    assert existing <= drawn


def test_the_map_has_every_appendix():
    drawn = {text.get_text()[:2] for text in charts.course_map("B").axes[0].texts}
    assert {"A ", "B "} <= drawn


def test_packed_dialogues_fill_their_rows_and_are_cut_where_a_row_ends():
    _, packed = charts.packing_chart([30, 50, 20], width=64, batch=2).axes
    pieces = [(round(bar.get_y() + bar.get_height() / 2), bar.get_x(), bar.get_width()) for bar in packed.patches]
    assert pieces == [(0, 0, 30), (0, 30, 34), (1, 0, 16), (1, 16, 20)]


def test_every_character_of_the_course_can_be_drawn():
    drawable = {chr(code) for code in TTFont(charts.FONT).getBestCmap()}
    assert {char for text in Corpus().pieces() for char in text if char.isprintable()} - drawable == set()
