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

    @property
    def down(self) -> str:
        """The layer that leads from the wide middle of a block back."""
        return next(name for name, sizes in self.linears.items() if sizes == "fd")

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
}


@dataclass(frozen=True)
class Dialogue:
    """How models talk: the marks in their chat template, XTuner's templates for it, after which tokens an answer ends.

    A template is XTuner's, by its name, or one of our own, to be written into the config. The first whose tokens equal
    those of the model's own chat_template is the right one; helpers.train.tokens says what is new in ours.
    """

    name: str
    marks: tuple[str, ...]
    templates: tuple[str | dict, ...]
    stops: tuple[str, ...]
    lmdeploy: str
    folds_system: bool = False  # the system prompt is the beginning of the first question
    not_gguf: str = ""  # why our conversion refuses its tokenizer


def _chatml(**more):
    return {
        "SYSTEM": "<|im_start|>system\n{system}<|im_end|>\n",
        "INSTRUCTION": "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
        "SUFFIX": "<|im_end|>", "SUFFIX_AS_EOS": True, "SEP": "\n", "STOP_WORDS": ["<|im_end|>"],
    } | more


def _llama3(**more):
    return {
        "SYSTEM": "<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        "INSTRUCTION": "<|start_header_id|>user<|end_header_id|>\n\n{input}<|eot_id|>"
                       "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "SUFFIX": "<|eot_id|>", "SUFFIX_AS_EOS": True, "STOP_WORDS": ["<|eot_id|>"],
    } | more


def _phi3(**more):
    return {
        "SYSTEM": "<|system|>\n{system}<|end|>\n", "INSTRUCTION": "<|user|>\n{input}<|end|>\n<|assistant|>\n",
        "SUFFIX": "<|end|>", "SUFFIX_AS_EOS": True, "SEP": "\n", "STOP_WORDS": ["<|end|>"],
    } | more


def _mistral(**more):
    return {
        "SYSTEM": "{system}\n\n", "SYSTEM_IN_INPUT": True, "INSTRUCTION": "[INST] {input} [/INST]",
        "SUFFIX": "</s>", "SUFFIX_AS_EOS": True, "STOP_WORDS": ["</s>"],
    } | more


QWEN2, QWEN2_5 = ("You are a helpful assistant.",
                  "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
LLAMA3_1 = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
# From the special to the general: the first whose marks all stand in a chat template.
DIALOGUES = (
    Dialogue("Qwen2.5", ("<|im_start|>", QWEN2_5), (_chatml(DEFAULT_SYSTEM=QWEN2_5),), ("<|im_end|>",), "qwen2d5"),
    Dialogue("Qwen2", ("<|im_start|>", QWEN2), (_chatml(DEFAULT_SYSTEM=QWEN2),), ("<|im_end|>",), "qwen"),
    # LMDeploy's yi has the same marks as its internlm2, which also writes a system prompt where there is none.
    Dialogue("InternLM2、InternLM2.5", ("<|im_start|>",), ("internlm2_chat",), ("<|im_end|>",), "yi"),
    Dialogue("Llama 3.1", ("<|start_header_id|>", "Cutting Knowledge Date"),
             (_llama3(DEFAULT_SYSTEM="", SYSTEM="<|start_header_id|>system<|end_header_id|>\n\n"
                                                f"{LLAMA3_1}{{system}}<|eot_id|>"),),
             ("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"), "llama3_1", not_gguf="跳过合并的 ignore_merges"),
    Dialogue("Llama 3", ("<|start_header_id|>",), ("llama3_chat",), ("<|eot_id|>", "<|end_of_text|>"), "llama3",
             not_gguf="跳过合并的 ignore_merges"),
    Dialogue("Gemma 2", ("<start_of_turn>",),
             ({"SYSTEM": "{system}\n\n", "SYSTEM_IN_INPUT": True,
               "INSTRUCTION": "<start_of_turn>user\n{input}<end_of_turn>\n<start_of_turn>model\n",
               "SUFFIX": "<end_of_turn>", "SUFFIX_AS_EOS": True, "SEP": "\n", "STOP_WORDS": ["<end_of_turn>"]},),
             ("<end_of_turn>", "<eos>"), "gemma", folds_system=True),
    # An answer ends where the next question begins; the line break before it is the model's own to write.
    Dialogue("GLM-4", ("[gMASK]<sop>",),
             ({"START": "[gMASK]<sop>", "SYSTEM": "<|system|>\n{system}",
               "INSTRUCTION": "<|user|>\n{input}<|assistant|>", "PREFIX": "\n",
               "SUFFIX": "<|user|>", "SUFFIX_AS_EOS": True, "STOP_WORDS": ["<|user|>", "<|observation|>"]},),
             ("<|user|>", "<|observation|>", "<|endoftext|>"), "glm4"),
    Dialogue("Phi-3", ("<|end|>", "<|assistant|>"), ("phi3_chat", _phi3(START="")),
             ("<|end|>", "<|endoftext|>"), "phi-3"),
    Dialogue("Mistral", ("[INST]",),
             (_mistral(), _mistral(INSTRUCTION="[INST] {input}[/INST]", PREFIX=" "),
              _mistral(INSTRUCTION="[INST] {input}[/INST]")), ("</s>",), "mistral", folds_system=True),
)
KNOWN = "、".join(ARCHITECTURES)
BY_HAND = "照模型的说明自己写 prompt_template，再用 python -m helpers.train.check 配置，逐个词元核对"


def architecture(folder: str | Path) -> Architecture:
    """How the model in a folder computes."""
    path = Path(folder, "config.json")
    kind = json.loads(path.read_text(encoding="utf-8"))["model_type"]
    if kind not in ARCHITECTURES:
        raise CourseError(f"{path} 的模型结构 {kind} 不支持：课程只认得 {KNOWN}。修复：换一个这些结构的基座。")
    return ARCHITECTURES[kind]


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
    if not isinstance(template, str):
        raise CourseError("这个模型没有 chat_template，多半是没有教过对话的基座。"
                          f"修复：换成名字里有 chat、instruct 或 it 的那一个；一定要用它，就{BY_HAND}。")
    if known := find_dialogue(template):
        return known
    names = "、".join(known.name for known in DIALOGUES)
    raise CourseError(f"不认识这个模型的对话格式，课程只认得 {names}。"
                      f"修复：换一个这些系列的基座；一定要用它，就{BY_HAND}。")


def find_dialogue(template: str) -> Dialogue | None:
    """The same, or None."""
    return next((known for known in DIALOGUES if all(mark in template for mark in known.marks)), None)


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
              f"停止词元：{'、'.join(talks.stops)}\nLMDeploy 的模板：{talks.lmdeploy}\n"
              f"GGUF：{f'不支持（{refused}）' if refused else '支持'}")
        return
    for known in DIALOGUES:
        print(f"{known.name}：停止词元 {'、'.join(known.stops)}，LMDeploy 用 {known.lmdeploy}")
    print(f"结构：{KNOWN}")


if __name__ == "__main__":
    main()
