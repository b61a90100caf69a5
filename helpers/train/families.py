"""What is known of each family of models: how it computes, by its model_type, and how it talks, by its chat template.

python -m helpers.train.families [MODEL]   prints the table, or what it says of a model folder.
"""
import json
from dataclasses import dataclass, field
from pathlib import Path

from helpers.machine import commands
from helpers.machine.commands import CourseError


@dataclass(frozen=True)
class Architecture:
    """How models of one model_type compute.

    `linears` are a block's linear layers, each from size to size: d hidden, f feed-forward, g two of those, q all query
    heads, k all key heads, p queries, keys and values in one. `biases` are layers with a bias and the entry of
    config.json that decides it, with its default; no entry decides where its name is empty. `entries` are other names
    for entries of config.json.
    """

    model_class: str
    linears: dict[str, str]
    biases: tuple[tuple[str, bool, tuple[str, ...]], ...] = ()
    head: str = "lm_head"
    norms: int = 2  # of a block
    tied: bool = False  # where config.json does not say
    entries: dict[str, str] = field(default_factory=dict)
    attention: str = "sdpa"  # transformers' choice
    takes_flash: bool = True  # XTuner chooses flash attention where that is installed
    # The loss peaks with three fp32 tensors of vocabulary x tokens: log-probabilities and two gradients. Beside them,
    # transformers keeps its 16-bit logits when it shifts a batch of several.
    logit_bytes: int = 3 * 4 + 2
    gguf: str | None = None  # llama.cpp's name, where our conversion knows the layout
    edits: dict[str, str] = field(default_factory=dict)  # of an XTuner config
    only_planned: bool = False  # shapes.py tells their sizes; no folder of theirs is read

    @property
    def down(self) -> str:
        """The layer that leads from the wide middle of a block back."""
        return next(name for name, sizes in self.linears.items() if sizes == "fd")

    @property
    def gated(self) -> bool:
        """Whether one wide layer decides how much of another passes."""
        sizes = list(self.linears.values())
        return "dg" in sizes or sizes.count("df") == 2

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """The layers that XTuner adapts when a config names none: all linear ones but the two heads that it knows."""
        return (*self.linears, *({self.head} - {"lm_head", "output_layer"}))


SEPARATE = {"q_proj": "dq", "k_proj": "dk", "v_proj": "dk", "o_proj": "qd",
            "gate_proj": "df", "up_proj": "df", "down_proj": "fd"}
QKV = ("q_proj", "k_proj", "v_proj")
ATTENTION = (*QKV, "o_proj")
ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM", SEPARATE, gguf="LLAMA",
        biases=(("attention_bias", False, ATTENTION), ("mlp_bias", False, ("gate_proj", "up_proj", "down_proj")))),
    "internlm2": Architecture(
        "InternLM2ForCausalLM", {"wqkv": "dp", "wo": "qd", "w1": "df", "w3": "df", "w2": "fd"},
        biases=(("bias", True, ("wqkv", "wo")),), head="output", attention="eager", logit_bytes=3 * 4,
        gguf="INTERNLM2"),
    "qwen2": Architecture("Qwen2ForCausalLM", SEPARATE, biases=(("", True, QKV),), gguf="QWEN2"),
    "mistral": Architecture("MistralForCausalLM", SEPARATE),
    "gemma2": Architecture(  # sdpa leaves out the cap on its attention's scores; the logits' cap keeps two copies more
        "Gemma2ForCausalLM", SEPARATE, biases=(("attention_bias", False, ATTENTION),), norms=4, tied=True,
        takes_flash=False, logit_bytes=3 * 4 + 2 * 2, edits={"model.llm.attn_implementation": '"eager"'}),
    "phi3": Architecture(
        "Phi3ForCausalLM", {"qkv_proj": "dp", "o_proj": "qd", "gate_up_proj": "dg", "down_proj": "fd"}),
    "glm": Architecture(
        "GlmForCausalLM", {"q_proj": "dq", "k_proj": "dk", "v_proj": "dk", "o_proj": "qd", "gate_up_proj": "dg",
                           "down_proj": "fd"}, biases=(("attention_bias", False, QKV),), takes_flash=False),
    "chatglm": Architecture(
        "ChatGLMForConditionalGeneration",
        {"query_key_value": "dp", "dense": "qd", "dense_h_to_4h": "dg", "dense_4h_to_h": "fd"},
        biases=(("add_qkv_bias", False, ("query_key_value",)),
                ("add_bias_linear", True, ("dense", "dense_h_to_4h", "dense_4h_to_h"))),
        head="output_layer", takes_flash=False,
        entries={"intermediate_size": "ffn_hidden_size", "num_hidden_layers": "num_layers", "head_dim": "kv_channels",
                 "num_key_value_heads": "multi_query_group_num", "vocab_size": "padded_vocab_size"}),
    "qwen": Architecture(
        "QWenLMHeadModel", {"c_attn": "dp", "attn.c_proj": "qd", "w1": "df", "w2": "df", "mlp.c_proj": "fd"},
        only_planned=True),
    "mpt": Architecture(
        "MPTForCausalLM", {"Wqkv": "dp", "out_proj": "qd", "up_proj": "df", "down_proj": "fd"}, only_planned=True),
}


@dataclass(frozen=True)
class Template:
    """A template of XTuner's or LMDeploy's, by its name there, and what has to be said differently.

    XTuner's of an empty START is for tokenizers that begin nothing with a first token.
    """

    name: str
    changes: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Dialogue:
    """How models talk: the marks in their chat template, how XTuner and LMDeploy write it, what ends an answer.

    The first of XTuner's templates whose tokens equal those of the model's own chat_template is the right one;
    helpers.train.tokens says what can be changed in them.
    """

    name: str
    marks: tuple[str, ...]
    xtuner: tuple[Template, ...]
    lmdeploy: Template
    stops: tuple[str, ...]
    folds_system: bool = False  # the system prompt is the beginning of the first question
    not_gguf: str = ""  # why our conversion refuses its tokenizer


QWEN2 = "You are a helpful assistant."
QWEN2_5 = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
LLAMA3_SYSTEM = "<|start_header_id|>system<|end_header_id|>\n\n"
LLAMA3_1_SYSTEM = f"{LLAMA3_SYSTEM}Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
TODAY = {"date_string": "26 Jul 2024"}  # for chat templates that would write another date every day
SYSTEM_IN_INPUT = {"SYSTEM": "{system}\n\n", "SYSTEM_IN_INPUT": True, "SUFFIX_AS_EOS": True}


def _mistral(question, prefix=""):
    return Template("mistral", SYSTEM_IN_INPUT | {
        "INSTRUCTION": question, "PREFIX": prefix, "SUFFIX": "</s>", "SEP": "", "STOP_WORDS": ["</s>"]})


# From the special to the general: the first whose marks all stand in a chat template.
DIALOGUES = (
    Dialogue("Qwen2.5", ("<|im_start|>", QWEN2_5), (Template("qwen_chat", {"DEFAULT_SYSTEM": QWEN2_5}),),
             Template("qwen2d5"), ("<|im_end|>",)),
    Dialogue("Qwen2", ("<|im_start|>", QWEN2), (Template("qwen_chat", {"DEFAULT_SYSTEM": QWEN2}),),
             Template("qwen"), ("<|im_end|>",)),
    Dialogue("Yi-1.5", ("<|im_start|>", "{{ system_message }}"),
             (Template("internlm2_chat", {"START": "", "SYSTEM": "{system}"}),),
             Template("yi", {"system": "", "eosys": ""}), ("<|im_end|>",)),
    # LMDeploy's yi has the same marks as its internlm2, which also writes a system prompt where there is none.
    Dialogue("InternLM2.5、Yi", ("<|im_start|>",),
             (Template("internlm2_chat"), Template("internlm2_chat", {"START": ""})), Template("yi"), ("<|im_end|>",)),
    Dialogue("Llama 3.1、3.2、3.3", ("<|start_header_id|>", "Cutting Knowledge Date"),
             (Template("llama3_chat", {"SYSTEM": f"{LLAMA3_1_SYSTEM}{{system}}<|eot_id|>", "DEFAULT_SYSTEM": ""}),),
             # LMDeploy's llama3_1 writes the dates only where there is no system prompt, and then one of its own.
             Template("llama3", {"system": LLAMA3_1_SYSTEM, "meta_instruction": ""}),
             ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"), not_gguf="跳过合并的 ignore_merges"),
    Dialogue("Llama 3", ("<|start_header_id|>",), (Template("llama3_chat"),), Template("llama3"),
             ("<|eot_id|>", "<|end_of_text|>"), not_gguf="跳过合并的 ignore_merges"),
    Dialogue("Gemma 2", ("<start_of_turn>",), (Template("gemma", SYSTEM_IN_INPUT),), Template("gemma"),
             ("<end_of_turn>", "<eos>"), folds_system=True),
    # An answer ends where the next question begins; the line break before it is the model's own to write, which
    # LMDeploy does in its stead.
    Dialogue("GLM-4", ("[gMASK]<sop>",),
             (Template("chatglm3", {
                 "START": "[gMASK]<sop>", "INSTRUCTION": "<|user|>\n{input}<|assistant|>", "PREFIX": "\n",
                 "SUFFIX": "<|user|>", "SUFFIX_AS_EOS": True, "SEP": "",
                 "STOP_WORDS": ["<|user|>", "<|observation|>"]}),),
             Template("glm4"), ("<|user|>", "<|observation|>", "<|endoftext|>")),
    Dialogue("Phi-3", ("<|end|>", "<|assistant|>"), (Template("phi3_chat"), Template("phi3_chat", {"START": ""})),
             Template("phi-3"), ("<|end|>", "<|endoftext|>")),
    Dialogue("Mistral", ("[INST]",),  # each version has its own spaces
             (_mistral("[INST] {input} [/INST]"), _mistral(" [INST] {input} [/INST]", " "),
              _mistral("[INST] {input}[/INST]", " "), _mistral("[INST]{input}[/INST]")),
             Template("mistral"), ("</s>",), folds_system=True),
)
KNOWN = "、".join(kind for kind, known in ARCHITECTURES.items() if not known.only_planned)
UNREADABLE = "读不懂 {}，它不像语言模型的 config.json：{}。"
BY_HAND = "照模型的说明自己写 prompt_template，再用 python -m helpers.train.check 配置，逐个词元核对"


def architecture(folder: str | Path) -> Architecture:
    """How the model in a folder computes."""
    kind = read_config(folder)["model_type"]
    known = ARCHITECTURES.get(kind)
    if not known or known.only_planned:
        raise CourseError(f"{Path(folder, 'config.json')} 的模型结构 {kind} 不支持：课程只认得 {KNOWN}。"
                          "修复：换一个这些结构的基座。")
    return known


def read_config(folder: str | Path) -> dict:
    """The config.json of a model folder."""
    path = Path(folder, "config.json")
    if not path.is_file():
        raise FileNotFoundError(f"找不到 {path}：请把 pretrained_model_name_or_path 改成本机的模型文件夹。")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CourseError(UNREADABLE.format(path, error)) from error
    if "model_type" not in config:
        raise CourseError(UNREADABLE.format(path, "没有 model_type"))
    return config


def chat_template(folder: str | Path) -> str | None:
    """The chat template in a model folder, a file of its own or part of the tokenizer's."""
    separate, settings = Path(folder, "chat_template.jinja"), Path(folder, "tokenizer_config.json")
    if separate.is_file():
        return separate.read_text(encoding="utf-8")
    if not settings.is_file():
        raise FileNotFoundError(f"找不到 {settings}：请改成完整的模型文件夹。")
    template = json.loads(settings.read_text(encoding="utf-8")).get("chat_template")
    return template if isinstance(template, str) else None


def dialogue(template: str | None) -> Dialogue:
    """How a model with this chat template talks."""
    if template is None:
        raise CourseError("这个模型没有 chat_template，多半是没有教过对话的基座。"
                          f"修复：换成名字里有 chat、instruct 或 it 的那一个；一定要用它，就{BY_HAND}。")
    if known := find_dialogue(template):
        return known
    names = "、".join(known.name for known in DIALOGUES)
    raise CourseError(f"不认识这个模型的对话格式，课程只认得 {names}。"
                      f"修复：换一个这些系列的基座；一定要用它，就{BY_HAND}。")


def find_dialogue(template: str) -> Dialogue | None:
    """The same; None where it is not known."""
    return next((known for known in DIALOGUES if all(mark in template for mark in known.marks)), None)


def write(tokenizer, messages: list[dict], **options):
    """What the tokenizer's apply_chat_template gives, the same on every day, and with a system prompt everywhere."""
    return tokenizer.apply_chat_template(fold_system(messages, tokenizer.chat_template), **TODAY, **options)


def fold_system(messages: list[dict], template: str | None) -> list[dict]:
    """The messages as a chat template takes them: some have no place for a system prompt but in the first question."""
    known = find_dialogue(template or "")
    if not known or not known.folds_system or messages[0]["role"] != "system":
        return messages
    system, question, *rest = messages
    return [question | {"content": f"{system['content']}\n\n{question['content']}"}, *rest]


@commands.command
def main() -> None:
    """The command line."""
    parser = commands.parser("课程认得哪些系列的模型；写上文件夹，就只说这一个")
    parser.add_argument("model", nargs="?", help="模型文件夹")
    folder = parser.parse_args().model
    if folder:
        computes, talks = architecture(folder), dialogue(chat_template(folder))
        refused = talks.not_gguf or ("" if computes.gguf else f"结构 {computes.model_class}")
        print(f"结构：{computes.model_class}\nLoRA 改的层：{'、'.join(computes.lora_targets)}\n对话：{talks.name}\n"
              f"停止词元：{'、'.join(talks.stops)}\nLMDeploy 的模板：{talks.lmdeploy.name}\n"
              f"GGUF：{f'不支持（{refused}）' if refused else '支持'}")
        return
    for known in DIALOGUES:
        print(f"{known.name}：停止词元 {'、'.join(known.stops)}，LMDeploy 用 {known.lmdeploy.name}")
    print(f"结构：{KNOWN}")


if __name__ == "__main__":
    main()
