"""The planner: what fits and why, in which way, how long, for how much; how far it is from published trainings."""
import subprocess
import sys
import warnings
from statistics import median

import pytest

from helpers.machine import profile
from helpers.machine.commands import CourseError
from helpers.train import memory
from helpers.train.cards import CARDS, fleet
from helpers.train.memory import GB
from helpers.train.plan import (
    COUNTS,
    METHODS,
    at_scale,
    by_method,
    chart,
    job,
    option,
    parts_chart,
    plan,
    settings_of,
    table,
    ways_for,
)
from helpers.train.scale import (
    CONTEXT,
    HELD,
    HOLES,
    WAYS,
    Training,
    flops,
    host_memory,
    memory_of,
    sharing,
    speed_of,
    with_batch,
)
from helpers.train.shapes import SHAPES, shape_of
from tests.published import FITTED_MEMORY, FITTED_SPEED, Run, report

# What the repositories' weight files hold, as Hugging Face counts it.
PARAMETERS = {
    "Llama-2-7B": 6_738_415_616, "Llama-2-13B": 13_015_864_320, "Llama-2-70B": 68_976_648_192,
    "Llama-3.1-8B": 8_030_261_248, "Llama-3.1-70B": 70_553_706_496, "Yi-34B": 34_388_917_248,
    "Qwen-7B": 7_721_324_544, "Qwen-14B": 14_167_290_880, "Qwen-72B": 72_287_920_128,
    "InternLM2.5-7B": 7_737_708_544, "InternLM2.5-20B": 19_861_149_696, "MPT-7B": 6_649_286_656,
}
# The ZeRO paper's example: bytes per card for each weight, on 64 cards.
ZERO = {"ddp": 16, "zero1": 4 + 12 / 64, "zero2": 2 + 14 / 64, "zero3": 16 / 64}


def of(model="Llama-2-7B", method="full", **more):
    """A job of a million tokens."""
    return job(model, method, **{"tokens": 1_000_000} | more)


def held(estimate, *names):
    """The bytes of the parts whose names begin so."""
    return sum(size for name, size in estimate.parts.items() if name.startswith(names))


def run(*arguments):
    """The command line's answer."""
    command = [sys.executable, "-W", "ignore", "-m", "helpers.train.plan", *map(str, arguments)]
    return subprocess.run(command, cwd=profile.ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items(), ids=PARAMETERS)
def test_a_named_model_has_as_many_parameters_as_its_files_hold(name, parameters):
    assert SHAPES[name].linear_weights + SHAPES[name].other_weights == parameters


def test_a_model_is_planned_from_its_folder_too():
    assert plan(of(profile.TINY_BASE, "qlora"), fleet("T4")).chosen


def test_a_70b_full_fine_tune_is_refused_on_one_card_with_the_reason():
    answer = str(plan(of("Llama-2-70B"), fleet("A100-80")))
    assert "用 " not in answer
    assert "单卡放不下：每卡要 1402.9 GB（最大的几项：优化器状态 551.8 GB，梯度 275.9 GB" in answer
    assert "一张卡只有 80 GB，差 1322.9 GB" in answer
    assert "ZeRO-3 offload放不下：每台机器卸载到内存里的有 1242 GB，内存只有 128 GB" in answer
    assert answer.endswith("至少 16 张 A100-80（ZeRO-3 offload）；或者换成 QLoRA，现在的卡就够（单卡）。")


def test_the_cards_named_as_enough_are_enough_and_half_of_them_are_not():
    wanted = of("Llama-2-70B")
    assert plan(wanted, fleet("A100-80", 16)).chosen
    assert plan(wanted, fleet("A100-80", 8)).chosen is None


def test_a_lighter_method_is_named_only_if_these_cards_are_enough_for_it():
    assert "或者" not in str(plan(of("Llama-2-70B"), fleet("A100-40")))
    assert "换成 LoRA，现在的卡就够（ZeRO-3）" in str(plan(of("Llama-2-70B"), fleet("A100-80", 4)))


def test_where_nothing_is_enough_the_advice_is_another_card_or_model():
    assert "请换更大的卡、更小的模型" in str(plan(of("Qwen-72B", length=100_000), fleet("T4", ram=1)))


def test_a_7b_qlora_fits_a_24_gb_card_alone_and_a_7b_full_fine_tune_does_not_fit_80():
    assert plan(of(method="qlora"), fleet("RTX 4090")).chosen.way == "单卡"
    assert not option(of(), fleet("A100-80"), "single").fits


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_one_card_needs_what_the_memory_estimate_says_and_the_allocators_holes(method):
    settings = settings_of(of(method=method), "single", 1)
    ours, theirs = memory_of(Training(settings, fleet("A100-80"))), memory.estimate(settings)
    own = held(theirs, "线性", "嵌入", "LoRA", "梯度", "优化器")
    assert held(ours, "线性", "嵌入", "LoRA", "梯度", "优化器") == own
    active = held(ours, "激活", "峰值")
    assert active >= held(theirs, "激活")
    assert ours.total == pytest.approx(own + active * (1 + HOLES) + HELD + CONTEXT)


@pytest.mark.parametrize(("way", "bytes_each"), ZERO.items(), ids=ZERO)
def test_weights_gradients_and_states_are_divided_as_the_zero_paper_says(way, bytes_each):
    shape = SHAPES["Llama-2-7B"]
    training = Training(settings_of(of(), way, 1), fleet("A100-80", 64), way)
    expected = bytes_each * (shape.linear_weights + shape.other_weights)
    assert held(memory_of(training), "线性", "嵌入", "梯度", "优化器") == pytest.approx(expected)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("way", ["ddp", "zero2", "zero3", "zero3_offload"])
def test_more_cards_never_need_more_memory_each(way, method):
    needs = [option(of(method=method), fleet("A100-80", count), way, batch=1).memory.total for count in COUNTS[1:]]
    assert needs == sorted(needs, reverse=True)


def test_what_offload_takes_from_the_cards_the_machines_hold():
    cards = fleet("A100-80", 16)
    on_cards, offloaded = (option(of(), cards, way, batch=1) for way in ("zero3", "zero3_offload"))
    names = "线性", "嵌入", "优化器"
    assert held(offloaded.memory, *names, "梯度") == 0
    of_a_machine = 8 * held(on_cards.memory, *names)
    gradients = 8 * 4 * on_cards.training.trained / 16
    assert host_memory(offloaded.training) == pytest.approx(of_a_machine + gradients)
    assert host_memory(on_cards.training) == 0


def test_the_parts_add_up_in_every_way():
    made = plan(of(), fleet("A100-80", 8))
    for each in made.options:
        assert made.parts()[each.way]["合计"] == pytest.approx(each.memory.total / GB)
    assert list(made.parts().columns) == ["DDP", "ZeRO-2", "ZeRO-3", "ZeRO-2 offload", "ZeRO-3 offload"]


def test_the_simplest_way_that_fits_is_taken_where_it_is_not_much_slower():
    assert [plan(of(method="qlora"), fleet("A100-80", count)).chosen.way for count in (1, 2)] == ["单卡", "DDP"]
    assert plan(of(), fleet("A100-80", 8)).chosen.way == "ZeRO-2"
    assert plan(of("Llama-2-13B"), fleet("A100-80", 8)).chosen.way == "ZeRO-2"
    assert plan(of("Yi-34B", together=64), fleet("A100-80", 16)).chosen.way == "ZeRO-3"
    much_slower = plan(of("Llama-3.1-70B", "qlora"), fleet("A100-80", 4))
    assert much_slower.options[0].fits
    assert much_slower.chosen.way == "ZeRO-2"


def test_the_largest_batch_that_fits_is_taken_and_the_step_keeps_its_samples():
    best = option(of(method="qlora", together=64), fleet("A100-80", 2), "ddp")
    assert best.training.settings.batch > 1
    assert best.together == 64
    larger = with_batch(best.training, 2 * best.training.settings.batch, 1)
    assert best.training.settings.batch == 32 or memory_of(larger).total > 80 * GB


def test_nothing_that_xtuner_cannot_do_is_offered():
    for method in ("full", "lora", "qlora"):
        for count in (1, 8):
            flags = [WAYS[way].flag for way in ways_for(method, count)]
            assert not flags[0]
            assert all(flag.startswith("deepspeed_") for flag in flags[1:])
    assert not [way for way in ways_for("qlora", 8) if "offload" in way]


def test_steps_hours_and_money_follow_from_the_data():
    wanted = of(method="qlora", tokens=20_480_000, length=2048, epochs=3, together=16)
    made = plan(wanted, fleet("A100-80", 4), price=12.5)
    assert made.chosen.steps == 10_000 * 3 / 16
    assert made.chosen.hours == pytest.approx(1875 * made.chosen.speed.seconds / 3600)
    assert made.money == pytest.approx(made.chosen.hours * 4 * 12.5)
    assert plan(wanted, fleet("A100-80", 4)).money is None


def test_the_seconds_of_a_step_add_up_and_give_the_tokens_per_second():
    speed = plan(of(), fleet("A100-80", 16)).chosen.speed
    assert min(speed.parts.values()) >= 0
    tokens = speed.training.tokens * speed.training.accumulation
    assert speed.tokens_per_second == pytest.approx(tokens / sum(speed.parts.values()))


def test_rows_of_unknown_length_count_as_full_ones():
    assert job("Llama-2-7B", rows=100, length=512).tokens == 51_200
    assert job("Llama-2-7B", rows=100, tokens_per_row=80.5).tokens == 8050


def test_a_deadline_that_cannot_be_kept_is_said_with_the_cards_that_would_keep_it():
    wanted = of(tokens=100_000_000, together=64)
    late = plan(wanted, fleet("A100-80", 2), deadline=2)
    assert late.in_time is False
    count = int(late.notes[-1].split("至少 ")[1].split()[0])
    assert plan(wanted, at_scale(late.cards, count), deadline=2).in_time
    assert not plan(wanted, at_scale(late.cards, count // 2), deadline=2).in_time
    assert count >= 8
    assert plan(wanted, fleet("A100-80", 4)).in_time is None


def test_more_cards_than_samples_in_a_step_are_told():
    made = plan(of(method="qlora", together=16), fleet("A100-80", 64))
    assert any(note.startswith("每步 64 个样本，比要的 16 个多") for note in made.notes)
    assert any(note.startswith("一共只有 23 步，太少") for note in made.notes)


def test_waiting_for_a_slow_network_is_told_and_a_faster_one_ends_it():
    wanted = of("Llama-2-70B", together=64)
    slow, fast = (plan(wanted, fleet("A100-80", 64, network=speed)) for speed in (10, 400))
    assert any("在等通信，机器之间按每台 10 GB/s 计" in note for note in slow.notes)
    assert not any("等通信" in note for note in fast.notes)


def test_the_answer_says_what_speed_is_assumed_and_where_it_is_from():
    assert "312 TFLOPS 的 65% 计（由公布的训练记录拟合）" in str(plan(of(method="qlora"), fleet("A100-80")))
    assert "没有公布的记录可对照" in str(plan(of(method="qlora"), fleet("RTX 4090")))


def test_operations_are_six_per_weight_four_with_lora_and_a_forward_more_with_checkpointing():
    shape = SHAPES["Llama-2-7B"]
    for method, each in {"full": 6, "lora": 4}.items():
        settings = settings_of(of(method=method, length=1, rank=1, checkpointing=False), "single", 1)
        products = shape.linear_weights + shape.vocab_size * shape.hidden_size
        assert sum(flops(settings)) == pytest.approx(each * products, rel=0.01)
        again = settings_of(of(method=method, length=1, rank=1), "single", 1)
        assert sum(flops(again)) - sum(flops(settings)) == pytest.approx(2 * shape.linear_weights, rel=0.01)


def test_more_cards_are_never_faster_than_in_proportion():
    first, *others = [option(of(together=2048), fleet("A100-80", count), "zero3", batch=2) for count in COUNTS[1:]]
    for other in others:
        assert other.speed.tokens_per_second <= 1.01 * first.speed.tokens_per_second


def test_mfu_is_never_more_than_the_cards_kernels_reach():
    for card in CARDS.values():
        for method in ("full", "lora", "qlora"):
            speed = speed_of(Training(settings_of(of(method=method), "single", 8), fleet(card)))
            assert 0 < speed.mfu < card.kernels


def test_the_table_goes_from_one_card_to_1024():
    planned = table(of("Llama-2-70B", together=512), "A100-80", price=10, deadline=5)
    assert list(planned.index) == [2**power for power in range(11)]
    assert planned["做法"][1] == "放不下"
    assert "内存只有 128 GB" in planned["说明"][1]
    fitting = planned[planned["做法"] != "放不下"]
    assert list(fitting["费用（元）"]) == pytest.approx(list(fitting["小时"] * fitting.index * 10))
    assert planned["机器"][1024] == 128


@pytest.mark.parametrize("price", [None, 10])
def test_the_chart_has_every_number_of_cards_that_fits_and_every_character(price, tmp_path, caplog):
    planned = table(of("Llama-2-70B", together=512), "A100-80", price=price)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns about every missing glyph
        figure = chart(planned, "Llama-2-70B 全量微调")
        figure.savefig(tmp_path / "plan.png")
    assert "glyph" not in caplog.text
    assert len(figure.axes) == (2 if price else 1)
    fitting = planned.index[planned["做法"] != "放不下"]
    assert list(figure.axes[0].lines[0].get_xdata()) == list(fitting)


def test_a_chart_of_nothing_is_refused():
    with pytest.raises(CourseError, match="没有放得下的方案"):
        chart(table(of("Qwen-72B", length=100_000), fleet("T4", ram=1), counts=(1, 2)))


@pytest.mark.parametrize(("given", "message"), [
    (lambda: of("GPT-5"), "不认识模型 GPT-5：请写它的文件夹，或者下面的名字之一：Llama-2-7B、"),
    (lambda: of(method="dpo"), "不认识方法 dpo：请写 full、lora、qlora"),
    (lambda: fleet("H1000"), "不认识显卡 H1000：.*A100-40、"),
    (lambda: fleet("T4", 0), "卡数是 0"),
    (lambda: fleet("T4", 2, 3), "3 台机器只有 2 张卡"),
    (lambda: job("Llama-2-7B"), "数据量请写一个"),
    (lambda: job("Llama-2-7B", rows=3, tokens=5), "数据量请写一个"),
    (lambda: of(length=0), "length 是 0：要大于 0"),
    (lambda: job("Llama-2-7B", rows=0), "rows / tokens 是 0"),
])
def test_what_makes_no_sense_is_named(given, message):
    with pytest.raises(CourseError, match=message):
        given()


def test_the_rows_that_constants_were_fitted_on_are_met():
    assert median(abs(run.error) for run in FITTED_MEMORY) < 0.04
    assert max(abs(run.error) for run in FITTED_MEMORY) < 0.15
    assert median(abs(run.error) for run in FITTED_SPEED) < 0.07
    assert max(abs(run.error) for run in FITTED_SPEED) < 0.25


def test_a_report_names_its_worst_run():
    said = []
    known = FITTED_MEMORY[0]
    runs = [Run(name, known.training, known.predicted / (1 + error), "GB", "none")
            for name, error in {"good": 0.01, "bad": -0.3, "fair": 0.1}.items()]
    assert list(report(runs, said.append)["error"]) == pytest.approx([0.01, -0.3, 0.1])
    assert said[-1].startswith("median error 10.0%, worst -30.0% (bad)")


def test_the_command_line_answers_with_a_plan_or_a_table():
    one = run("Llama-2-7B", "--rows", 10_000, "--tokens-per-row", 300, "--count", 1, "--price", 10)
    wanted = job("Llama-2-7B", rows=10_000, tokens_per_row=300)
    assert one.stdout == str(plan(wanted, fleet("A100-80"), price=10)) + "\n"
    assert len(run("Llama-2-7B", "--tokens", 10**8).stdout.splitlines()) == len(COUNTS) + 2
    assert run("GPT-5", "--rows", 5).stderr.startswith("[FAIL] 不认识模型 GPT-5")


def test_a_shape_is_taken_as_it_is():
    assert shape_of(SHAPES["Yi-34B"]) is SHAPES["Yi-34B"]


def test_a_card_in_a_machine_gathers_over_the_link_and_in_several_machines_over_the_network():
    waits = [speed_of(Training(settings_of(of(), "zero3", 1), fleet("A100-80", 16, machines, network=5),
                               "zero3")).parts["等通信"] for machines in (1, 2)]
    assert waits[1] > 5 * waits[0]


def test_buffers_are_those_of_the_engine():
    trained = Training(settings_of(of(), "ddp", 1), fleet("A100-80", 8), "ddp")
    assert sharing(trained).buffers == 4 * trained.trained
    zero2 = Training(settings_of(of(), "zero2", 1), fleet("A100-80", 8), "zero2")
    assert sharing(zero2).buffers == 2 * 5e8 * 2


def test_the_methods_stand_beside_each_other_as_the_plans_tell_them_one_by_one():
    parts = by_method("Llama-2-7B", "A100-80", batch=1, tokens=1_000_000)
    for method, name in METHODS.items():
        alone = plan(of(method=method), fleet("A100-80"), batch=1).parts()["单卡"]
        assert parts[name].to_dict() == {part: size for part, size in alone.items() if part in parts.index}
        assert parts.loc["合计", name] == alone["合计"]
    assert parts.loc["合计", "QLoRA"] < parts.loc["合计", "QLoRA，不开激活检查点"]
    assert parts.any(axis=1).all()


def test_bars_end_where_the_sum_of_their_parts_is():
    parts = by_method("Llama-2-7B", "A100-80", batch=1, tokens=1_000_000)
    [axes] = parts_chart(parts, 24, "显存").axes
    ends = {round(bar.get_x() + bar.get_width(), 3) for bar in axes.patches}
    assert set(parts.loc["合计"].round(3)) <= ends
