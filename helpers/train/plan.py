"""A plan for a training: does it fit these cards and why, shared in which way, how many steps, hours, how much money.

What it computes, and from what: scale.py. How far that is from published trainings: tests/published.py.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pandas import DataFrame

from helpers.machine import charts, commands
from helpers.machine.commands import CourseError
from helpers.train.cards import CARDS, Card, Fleet, fleet
from helpers.train.memory import GB, Estimate, Settings, Shape
from helpers.train.scale import WAYS, Speed, Training, host_memory, memory_of, speed_of, with_batch
from helpers.train.shapes import SHAPES, shape_of

METHODS = {"full": "全量微调", "lora": "LoRA", "qlora": "QLoRA"}
COUNTS = tuple(2**power for power in range(11))  # 1, 2, 4, ... 1024
# A simpler way is taken when it is slower by no more than the plan's own error, see tests/published.py.
HARDLY = 1.25
# When waiting for other cards takes a larger share of a step, it is said.
MUCH_WAITING = 0.2
# With fewer updates than this a learning rate's warm-up and decay have no room; XTuner's own warm-up of 3 % needs 67.
FEW_STEPS = 67


@dataclass(frozen=True)
class Job:
    """What is to be trained. `tokens` are those of one epoch; `together` is how many samples make a step."""

    name: str
    shape: Shape
    method: str
    tokens: int
    length: int
    epochs: float
    together: int
    rank: int
    dropout: float
    checkpointing: bool
    attention: str

    @property
    def samples(self) -> int:
        """How many samples of full length an epoch has, packed as XTuner packs them."""
        return ceil(self.tokens / self.length)


def job(model: str | Path | Shape, method: str = "qlora", *, rows: int | None = None, tokens: int | None = None,
        tokens_per_row: float | None = None, length: int = 2048, epochs: float = 3, together: int = 16, rank: int = 64,
        dropout: float = 0.1, checkpointing: bool = True, attention: str = "flash_attention_2") -> Job:
    """A job as XTuner's templates would do it. Rows of unknown size count as full ones: an upper limit."""
    if method not in METHODS:
        raise CourseError(f"不认识方法 {method}：请写 {'、'.join(METHODS)} 中的一个。")
    if (rows is None) == (tokens is None):
        raise CourseError("数据量请写一个：rows（行数），或者 tokens（一轮的 token 数）。")
    tokens = tokens or ceil((rows or 0) * (tokens_per_row or length))
    numbers = {"rows / tokens": tokens, "length": length, "epochs": epochs, "together": together, "rank": rank}
    for name, number in numbers.items():
        if number <= 0:
            raise CourseError(f"{name} 是 {number}：要大于 0。")
    name = model if isinstance(model, str) else getattr(model, "name", "模型")
    return Job(name, shape_of(model), method, tokens, length, epochs, together, rank, dropout, checkpointing, attention)


def settings_of(job: Job, way: str, batch: int) -> Settings:
    """The job as memory.py counts it, shared in that way.

    Under DeepSpeed weights have 16 bits and Adam keeps them in fp32 too. Without it they have 32 and are cast to
    compute: PEFT makes even a frozen base so, and a whole model needs it, or small updates are lost.
    """
    divided = WAYS[way].engine == "DeepSpeed"
    return Settings(
        job.shape, quantization="NF4 双重量化" if job.method == "qlora" else None, plain_bytes=2 if divided else 4,
        compute_bytes=2, state_bytes=12 if divided else 8, logit_bytes=job.shape.architecture.logit_bytes,
        rank=0 if job.method == "full" else job.rank, targets=(), dropout=0.0 if job.method == "full" else job.dropout,
        batch=batch, length=job.length, checkpointing=job.checkpointing, attention=job.attention)


def ways_for(method: str, count: int) -> list[str]:
    """The ways that XTuner offers, the simplest first. bitsandbytes' weights cannot be offloaded."""
    ways = ["single" if count == 1 else "ddp", "zero2"] + ["zero3"] * (count > 1)
    return ways if method == "qlora" else [*ways, "zero2_offload", "zero3_offload"]


@dataclass(frozen=True)
class Option:
    """The job, shared in one way, with what each card needs and how long a step takes."""

    job: Job
    training: Training
    memory: Estimate
    speed: Speed

    @property
    def way(self) -> str:
        """Its name for people."""
        return WAYS[self.training.way].name

    @property
    def missing(self) -> float:
        """Bytes that a card lacks; a card sold as 80 GB counts as 80 x 10^9 bytes, as in memory.py."""
        return max(self.memory.total - GB * self.training.fleet.card.gigabytes, 0)

    @property
    def missing_in_machine(self) -> float:
        """Bytes of its own memory that a machine lacks for what is offloaded."""
        cards = self.training.fleet
        return max(host_memory(self.training) - GB * cards.ram * cards.in_machine, 0)

    @property
    def fits(self) -> bool:
        """Whether cards and machines have the memory."""
        return not (self.missing or self.missing_in_machine)

    @property
    def together(self) -> int:
        """How many samples make a step: what was asked for, or more where there are more cards than that."""
        return self.training.settings.batch * self.training.accumulation * self.training.fleet.count

    @property
    def steps(self) -> int:
        """Updates of the weights in all epochs."""
        return ceil(self.job.samples * self.job.epochs / self.together)

    @property
    def hours(self) -> float:
        """Hours of training; loading, evaluating and saving not counted."""
        return self.steps * self.speed.seconds / 3600

    @property
    def why(self) -> str:
        """Whether it fits, with the parts that decide."""
        cards = self.training.fleet
        gigabytes = cards.card.gigabytes
        largest = sorted(self.memory.parts.items(), key=lambda part: -part[1])[:3]
        parts = "，".join(f"{name} {size / GB:.1f} GB" for name, size in largest)
        need = f"每卡要 {self.memory.total / GB:.1f} GB（最大的几项：{parts}）"
        if self.missing:
            return f"放不下：{need}，一张卡只有 {gigabytes:g} GB，差 {self.missing / GB:.1f} GB"
        if self.missing_in_machine:
            return (f"放不下：每台机器卸载到内存里的有 {host_memory(self.training) / GB:.0f} GB，"
                    f"内存只有 {cards.ram * cards.in_machine:g} GB")
        offloaded = host_memory(self.training)
        aside = f"，另外每台机器要 {offloaded / GB:.0f} GB 内存" if offloaded else ""
        return f"放得下：{need}，一张卡有 {gigabytes:g} GB{aside}"


def option(job: Job, cards: Fleet, way: str, batch: int | None = None) -> Option:
    """The job in one way, with that many samples in a pass, or as many (1, 2, 4, ...) as are fastest and fit."""
    if batch:
        return _option(job, cards, way, batch)
    best = _option(job, cards, way, 1)
    while best.fits and 2 * best.training.settings.batch * cards.count <= job.together:
        larger = _option(job, cards, way, 2 * best.training.settings.batch)
        if not larger.fits or larger.hours >= best.hours:
            break
        best = larger
    return best


def _option(job, cards, way, batch):
    training = Training(settings_of(job, way, batch), cards, way)
    training = with_batch(training, batch, ceil(job.together / (batch * cards.count)))
    return Option(job, training, memory_of(training), speed_of(training))


@dataclass(frozen=True)
class Plan:
    """All ways to do a job with these cards, and the one to take."""

    job: Job
    cards: Fleet
    options: tuple[Option, ...]
    price: float | None = None
    deadline: float | None = None
    currency: str = "元"

    @property
    def chosen(self) -> Option | None:
        """The fastest way that fits, or a simpler one that is hardly slower; none if none fits."""
        fitting = [option for option in self.options if option.fits]
        fastest = min((option.hours for option in fitting), default=0)
        return next((option for option in fitting if option.hours <= HARDLY * fastest), None)

    @property
    def money(self) -> float | None:
        """What the cards cost for all hours, if a price is known."""
        if self.chosen is None or self.price is None:
            return None
        return self.chosen.hours * self.cards.count * self.price

    @property
    def in_time(self) -> bool | None:
        """Whether it is done in the hours there are; None if nobody said how many."""
        if self.chosen is None or self.deadline is None:
            return None
        return self.chosen.hours <= self.deadline

    @property
    def notes(self) -> list[str]:
        """What else to know before starting."""
        best, notes = self.chosen, []
        if best is None:
            return [self._what_would_fit()]
        if best.together > self.job.together:
            notes.append(f"每步 {best.together} 个样本，比要的 {self.job.together} 个多（每张卡至少 1 个）："
                         "步数变少，学习率要重新调")
        if best.steps < FEW_STEPS:
            notes.append(f"一共只有 {best.steps} 步，太少：预热和衰减没有余地，卡多了没有用")
        waiting = best.speed.parts["等通信"] / best.speed.seconds
        if waiting > MUCH_WAITING:
            between = f"机器之间按每台 {self.cards.network:g} GB/s 计" if self.cards.machines > 1 else (
                f"卡之间按 {self.cards.card.link:g} GB/s 计")
            notes.append(f"每步有 {waiting:.0%} 的时间在等通信，{between}："
                         "每步的样本多一些，或者网络快一些，才值得加卡")
        if self.in_time is False:
            notes.append(self._what_would_be_in_time())
        return notes

    def _what_would_fit(self):
        """The fewest cards of the kind that are enough, and another method for which these are."""
        fewest = self._fewest(lambda other: other.chosen is not None)
        more = f"至少 {fewest.cards.count} 张 {self.cards.card.name}（{fewest.chosen.way}）" if fewest else ""
        lighter = list(METHODS)[list(METHODS).index(self.job.method) + 1:]
        others = (plan(replace(self.job, method=method), self.cards) for method in lighter)
        other = next((other for other in others if other.chosen), None)
        instead = f"换成 {METHODS[other.job.method]}，现在的卡就够（{other.chosen.way}）" if other else ""
        if more or instead:
            return "要放得下：" + "；或者".join(filter(None, (more, instead)))
        return f"{COUNTS[-1]} 张这样的卡也放不下：请换更大的卡、更小的模型，或者把 length 改小"

    def _what_would_be_in_time(self):
        late = f"{self.deadline:g} 小时里做不完，要 {self.chosen.hours:.3g} 小时"
        fewest = self._fewest(lambda other: other.chosen is not None and other.chosen.hours <= self.deadline)
        enough = f"至少 {fewest.cards.count} 张" if fewest else f"{COUNTS[-1]} 张也不够，请换更快的卡或减少数据"
        return f"{late}；{enough}"

    def _fewest(self, good):
        """The plan with the fewest of 1, 2, 4, ... cards that is good, of those with more cards than this one."""
        more = (count for count in COUNTS if count > self.cards.count)
        return next(filter(good, (plan(self.job, at_scale(self.cards, count)) for count in more)), None)

    @property
    def efficiency(self) -> str:
        """What speed was counted on, and where that comes from."""
        card, speed = self.cards.card, self.chosen.speed
        return (f"每卡 {speed.tokens_per_second:,.0f} tokens/s，MFU {speed.mfu:.0%}；"
                f"矩阵乘按标称 {card.tflops:g} TFLOPS 的 {card.kernels:.0%} 计（{card.known_from}）")

    def __str__(self) -> str:
        cards, best = self.cards, self.chosen
        where = f"，{cards.machines} 台机器" if cards.machines > 1 else ""
        lines = [f"{self.job.name} {METHODS[self.job.method]}，{cards.count} 张 {cards.card.name}{where}"]
        if best is None:
            lines += [f"{option.way}{option.why}。" for option in self.options]
        else:
            training = best.training
            simpler = self.options[:self.options.index(best)]
            lines += [f"{option.way}{option.why}。" for option in simpler if not option.fits]
            lines += [
                f"用 {best.way}：{best.why}。",
                f"每卡每次 {training.settings.batch} 个样本，累积 {training.accumulation} 次，每步 {best.together} 个；"
                f"共 {best.steps:,} 步，{best.hours:.3g} 小时。",
                f"效率：{self.efficiency}。"]
            if self.money is not None:
                lines.append(f"费用：{self.money:,.0f} {self.currency}（每卡每小时 {self.price:g} {self.currency}）。")
        return "\n".join([*lines, *(f"注意：{note}。" for note in self.notes)])

    def parts(self) -> DataFrame:
        """What a card holds in each way, in GB (10^9 bytes): a row for each part, a column for each way."""
        columns = {option.way: {_plain(name): size / GB for name, size in option.memory.parts.items()}
                   for option in self.options}
        table = DataFrame(columns).fillna(0.0)
        table.loc["合计"] = table.sum()
        return table

    def ways(self) -> DataFrame:
        """Every way beside the others: whether it fits, why, and how long it takes."""
        return DataFrame({
            option.way: {"放得下": "是" if option.fits else "否", "每卡 GB": option.memory.total / GB,
                         "每卡批量": option.training.settings.batch, "小时": option.hours if option.fits else None,
                         "原因": option.why}
            for option in self.options}).T


def _plain(part):
    """A part's name without what is in brackets, so that every way has the same rows but for its peak."""
    return "峰值（激活或更新参数）" if "峰值" in part else part.partition("（")[0]


def plan(job: Job, cards: Fleet, *, price: float | None = None, deadline: float | None = None, currency: str = "元",
         batch: int | None = None) -> Plan:
    """The plan for a job on these cards. `price` is per card and hour, `deadline` is in hours."""
    options = tuple(option(job, cards, way, batch) for way in ways_for(job.method, cards.count))
    return Plan(job, cards, options, price, deadline, currency)


def at_scale(cards: Fleet, count: int) -> Fleet:
    """So many of the same cards, in machines with as many as these have, or eight where there is one machine."""
    per_machine = cards.in_machine if cards.machines > 1 else max(8, cards.count)
    return fleet(cards.card, count, ceil(count / per_machine), cards.network, cards.ram)


def table(job: Job, card: str | Card | Fleet, counts: Iterable[int] = COUNTS, *, price: float | None = None,
          deadline: float | None = None, currency: str = "元") -> DataFrame:
    """The plan for each number of cards, a row for each."""
    one = card if isinstance(card, Fleet) else fleet(card)
    rows = []
    for count in counts:
        made = plan(job, at_scale(one, count), price=price, deadline=deadline, currency=currency)
        best = made.chosen
        row = {"卡": count, "机器": made.cards.machines, "做法": best.way if best else "放不下"}
        if best:
            row |= {"每卡 GB": round(best.memory.total / GB, 1), "每卡批量": best.training.settings.batch,
                    "每步样本": best.together, "步数": best.steps, "每卡 tokens/s": round(best.speed.tokens_per_second),
                    "MFU": round(best.speed.mfu, 3), "小时": best.hours}
            row |= {} if price is None else {f"费用（{currency}）": made.money}
            row |= {} if deadline is None else {"来得及": "是" if made.in_time else "否"}
        rows.append(row | {"说明": "；".join(made.notes) if best else made.options[-1].why})
    planned = DataFrame(rows).set_index("卡")
    whole = {column: "Int64" for column in ("每卡批量", "每步样本", "步数", "每卡 tokens/s") if column in planned}
    planned = planned.astype(whole)
    return planned[[column for column in planned if column != "说明"] + ["说明"]]


def by_method(model: str | Path | Shape, card: str | Card, batch: int, **data) -> DataFrame:
    """What one card holds of each method in GB, part by part, and of QLoRA without checkpointing; `data` is job's."""
    jobs = {METHODS[method]: job(model, method, **data) for method in METHODS}
    jobs["QLoRA，不开激活检查点"] = replace(jobs["QLoRA"], checkpointing=False)
    table = DataFrame({name: plan(one, fleet(card), batch=batch).parts()["单卡"] for name, one in jobs.items()})
    return table[table.any(axis=1)]


def parts_chart(parts: DataFrame, gigabytes: float, title: str) -> Figure:
    """Bars of what a card holds, part on part, beside the line of a card of that size."""
    charts.use_chinese_font()
    figure = Figure(figsize=(9, 3))
    axes = figure.subplots()
    parts.drop("合计").T[::-1].plot.barh(stacked=True, ax=axes, width=0.7, colormap="tab20")
    axes.axvline(gigabytes, color="black", linestyle="--")
    axes.set(xlabel="GB", title=title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def chart(planned: DataFrame, title: str = "") -> Figure:
    """Hours against cards from a table, beside the line of twice the cards in half the time; money, if there is any."""
    charts.use_chinese_font()
    fitting = planned[planned["做法"] != "放不下"]
    if fitting.empty:
        raise CourseError("这张表里没有放得下的方案，没有什么可画。")
    money = next((column for column in planned if column.startswith("费用")), None)
    figure = Figure(figsize=(9, 3.4) if money else (7, 3.4), layout="constrained")
    panels = figure.subplots(1, 2 if money else 1, squeeze=False)[0]
    _panel(panels[0], fitting, "小时", planned.index)
    first = fitting["小时"].iloc[0] * fitting.index[0]
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].minorticks_off()
    panels[0].plot(fitting.index, first / fitting.index, color="gray", linestyle=":", label="加倍的卡，一半的时间")
    panels[0].legend(frameon=False, fontsize=8)
    if money:
        _panel(panels[1], fitting, money, planned.index)
        panels[1].set_ylim(bottom=0)
        panels[1].yaxis.set_major_formatter("{x:,.0f}")
    figure.suptitle(title)
    return figure


COLORS = {"单卡": "#b8c4d0", "DDP": "#4878a8", "ZeRO-2": "#6aa86a", "ZeRO-3": "#d0823c", "ZeRO-2 offload": "#a06ab4",
          "ZeRO-3 offload": "#a04848"}


def _panel(axes, fitting, column, counts: Sequence[int]):
    """One column against the cards, a colour for each way; numbers of cards that do not fit stay empty."""
    axes.plot(fitting.index, fitting[column], color="#66727f", linewidth=1)
    for way, rows in fitting.groupby("做法", sort=False):
        axes.scatter(rows.index, rows[column], color=COLORS[way], label=way, zorder=3)
    axes.set(xlabel="卡", ylabel=column, xscale="log", xlim=(0.8 * min(counts), 1.25 * max(counts)))
    axes.set_xticks(list(counts), [str(count) for count in counts], fontsize=8)
    axes.minorticks_off()
    axes.grid(alpha=0.3)


@commands.command
def main():
    """The command line: one plan, or the table from 1 to 1,024 cards."""
    parser = commands.parser(__spec__, "给一次训练做计划：放得下吗，怎么分到几张卡上，几步，几小时，多少钱")
    parser.add_argument("model", help=f"模型文件夹，或者 {'、'.join(SHAPES)}")
    parser.add_argument("--method", choices=METHODS, default="qlora")
    parser.add_argument("--rows", type=int, help="数据的行数")
    parser.add_argument("--tokens-per-row", type=float, help="平均每行多少 token；不写就按 length 算，是上限")
    parser.add_argument("--tokens", type=int, help="一轮的 token 数，代替 --rows")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--card", default="A100-80", help="、".join(CARDS))
    parser.add_argument("--count", type=int, help="几张卡；不写就从 1 到 1024 各算一遍")
    parser.add_argument("--machines", type=int, help="几台机器；不写就是每台 8 张卡")
    parser.add_argument("--price", type=float, help="每卡每小时的价钱")
    parser.add_argument("--hours", type=float, help="有多少小时")
    given = parser.parse_args()
    wanted = job(given.model, given.method, rows=given.rows, tokens=given.tokens, length=given.length,
                 tokens_per_row=given.tokens_per_row, epochs=given.epochs)
    if given.count:
        print(plan(wanted, fleet(given.card, given.count, given.machines), price=given.price, deadline=given.hours))
    else:
        planned = table(wanted, given.card, price=given.price, deadline=given.hours)
        print(planned.drop(columns="说明").to_string(float_format="{:.3g}".format, na_rep=""))


if __name__ == "__main__":
    main()
