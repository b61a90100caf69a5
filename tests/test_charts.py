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
    assert "glyph" not in caplog.text
    family = charts.matplotlib.rcParams["font.family"][0]
    assert font_manager.findfont(family) == str(charts.FONT)


def test_the_map_has_every_numbered_lesson():
    drawn = {lesson[:2] for lessons in charts.STAGES.values() for lesson in lessons}
    existing = {path.name[:2] for path in (charts.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")}
    assert existing <= drawn


def test_every_character_of_the_course_can_be_drawn():
    drawable = {chr(code) for code in TTFont(charts.FONT).getBestCmap()}
    assert {char for text in Corpus().pieces() for char in text if char.isprintable()} - drawable == set()
