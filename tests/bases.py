"""Small bases of other families than the tiny base's: of its own weights where these can be laid out so, else random.

The chat templates say what the families' own say, as far as a conversation without tools goes.
"""
import json
import shutil
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer
from tokenizers.pre_tokenizers import Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast, Qwen2TokenizerFast, models

from helpers.machine.profile import TINY_BASE
from helpers.train.families import QWEN2, QWEN2_5
from helpers.train.memory import Shape

CODE = Path(__file__).parent / "internlm2"
AS_INTERNLM2 = {"model.embed_tokens": "model.tok_embeddings", "self_attn.o_proj": "attention.wo",
                "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
                "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
                "post_attention_layernorm": "ffn_norm"}
TINY = json.loads((TINY_BASE / "config.json").read_text(encoding="utf-8"))
QWEN2_ROWS = 5888  # a multiple of 128
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512}


def _turns(turn, start="{{ bos_token }}", system="", ask=""):
    """A chat template: what starts it, where the system prompt goes, each message, the call for an answer."""
    return (f"{start}{system}{{% for m in messages %}}{turn}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {ask!r} }}}}{{% endif %}}")


CHATML = "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
HEADED = "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
ASK_CHATML, ASK_HEADED = "<|im_start|>assistant\n", "<|start_header_id|>assistant<|end_header_id|>\n\n"


def _by_default(system):
    return ("{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n" + system + "<|im_end|>\n' }}{% endif %}")


DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% set given = messages[0].role == 'system' %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n' }}"
    "{{ 'Today Date: ' + date_string + '\n\n' }}"
    "{% if given %}{{ messages[0].content }}{% endif %}{{ '<|eot_id|>' }}"
    "{% set messages = messages[1:] if given else messages %}")
PLAIN_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set system_message = messages[0].content %}"
    "{% set messages = messages[1:] %}{% endif %}{% if system_message is defined %}{{ system_message }}{% endif %}")
GEMMA = ("{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim "
         "+ '<end_of_turn>\n' }}")
MISTRAL = "{{ '%s' + m.content + '%s' if m.role == 'user' else '%s' + m.content + eos_token }}"
PHI3 = "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}"
GLM = "{{ '<|' + m.role + '|>\n' + m.content }}"
# The first token, what ends an answer, the other marks, the chat template.
SPEAKERS = {
    "internlm2": ("<s>", "<|im_end|>", ["<|im_start|>"], _turns(CHATML, ask=ASK_CHATML)),
    "qwen2": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"],
              _turns(CHATML, start="", system=_by_default(QWEN2), ask=ASK_CHATML)),
    "qwen2.5": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"],
                _turns(CHATML, start="", system=_by_default(QWEN2_5), ask=ASK_CHATML)),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"],
               _turns(HEADED, ask=ASK_HEADED)),
    "yi": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"], _turns(CHATML, start="", ask=ASK_CHATML)),
    "yi1.5": (None, "<|im_end|>", ["<|im_start|>", "<|endoftext|>"],
              _turns(CHATML, start="", system=PLAIN_SYSTEM, ask=ASK_CHATML)),
    "llama3.1": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"],
                 _turns(HEADED, system=DATED, ask=ASK_HEADED)),
    "gemma2": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"],
               _turns(GEMMA, system=NO_SYSTEM, ask="<start_of_turn>model\n")),
    "glm": (None, "<|endoftext|>", ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
            _turns(GLM, start="[gMASK]<sop>", ask="<|assistant|>")),
    "phi3": ("<s>", "<|endoftext|>", ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
             _turns(PHI3, start="", ask="<|assistant|>\n")),
    "mistral": ("<s>", "</s>", ["[INST]", "[/INST]"], _turns(MISTRAL % ("[INST] ", " [/INST]", ""), system=NO_SYSTEM)),
    "mistral v0.2": ("<s>", "</s>", ["[INST]", "[/INST]"],
                     _turns(MISTRAL % (" [INST] ", " [/INST]", " "), system=NO_SYSTEM)),
    "mistral v0.3": ("<s>", "</s>", ["[INST]", "[/INST]"],
                     _turns(MISTRAL % ("[INST] ", "[/INST]", " "), system=NO_SYSTEM)),
    "mistral nemo": ("<s>", "</s>", ["[INST]", "[/INST]"],
                     _turns(MISTRAL % ("[INST]", "[/INST]", ""), system=NO_SYSTEM)),
}
LAYOUTS = {
    "llama3": models.llama.LlamaForCausalLM, "gemma2": models.gemma2.Gemma2ForCausalLM,
    "glm": models.glm.GlmForCausalLM, "phi3": models.phi3.Phi3ForCausalLM,
    "mistral": models.mistral.MistralForCausalLM,
}


def tokenizer_of(speaker: str) -> PreTrainedTokenizerFast:
    """The tiny base's tokenizer with a family's marks and chat template in place of its own."""
    first, last, marks, template = SPEAKERS[speaker]
    tokens = Tokenizer.from_file(str(TINY_BASE / "tokenizer.json"))
    if speaker.startswith("llama"):  # line breaks stand alone
        tokens.pre_tokenizer = Sequence([Split(Regex(r"[\r\n]+"), "isolated"), tokens.pre_tokenizer])
    kind = Qwen2TokenizerFast if speaker.startswith("qwen") else PreTrainedTokenizerFast
    tokens.add_special_tokens([mark for mark in (first, last, *marks) if mark])
    adds_first = template.startswith("{{ bos_token }}")
    tokens.post_processor = TemplateProcessing(
        single=f"{first} $A" if adds_first else "$A",
        special_tokens=[(first, tokens.token_to_id(first))] if adds_first else [])
    names_none = speaker.startswith(("llama", "mistral"))
    return kind(tokenizer_object=tokens, bos_token=first, eos_token=last, unk_token=None,
                pad_token=None if names_none else "<pad>",
                additional_special_tokens=marks, chat_template=template, clean_up_tokenization_spaces=False,
                model_input_names=["input_ids", "attention_mask"])


def write_internlm2(folder: Path) -> Path:
    """The tiny base as InternLM2 lays it out: wqkv, w1 to w3, an output of its own, code beside it, in two shards."""
    weights = _tiny_weights()
    size, heads = TINY["head_dim"], TINY["num_key_value_heads"]
    for layer in range(TINY["num_hidden_layers"]):
        parts = [weights.pop(f"model.layers.{layer}.self_attn.{part}_proj.weight").view(heads, -1, size, 256)
                 for part in "qkv"]
        weights[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat(parts, 1).reshape(-1, 256)
    for old, new in AS_INTERNLM2.items():
        weights = {name.replace(old, new): weight for name, weight in weights.items()}
    weights["output.weight"] = weights["model.tok_embeddings.weight"].clone()
    code = {"AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"}
    _write(folder, weights, 2, architectures=["InternLM2ForCausalLM"], model_type="internlm2", auto_map=code,
           bias=False, tie_word_embeddings=False)
    for file in CODE.glob("*_internlm2.py"):
        shutil.copy(file, folder)
    return folder


def write_qwen2(folder: Path, tied: bool = True) -> Path:
    """The tiny base as Qwen2 lays it out: biases, which add nothing, and more rows in its embedding than tokens."""
    weights = _tiny_weights()
    for name in [name for name in weights if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight"))]:
        weights[name.replace("weight", "bias")] = torch.zeros(256, dtype=torch.bfloat16)
    table = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = torch.cat([table, table[:1].expand(QWEN2_ROWS - len(table), -1)])
    if not tied:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    _write(folder, weights, 1, architectures=["Qwen2ForCausalLM"], model_type="qwen2", tie_word_embeddings=tied,
           vocab_size=QWEN2_ROWS)
    return folder


def write_qwen2_5(folder: Path) -> Path:
    """The same with Qwen2.5's way of talking: no first token, and a system prompt where a conversation has none."""
    write_qwen2(folder)
    tokenizer_of("qwen2.5").save_pretrained(folder)
    return folder


def _tiny_weights():
    return load_file(TINY_BASE / "model.safetensors")


def _write(folder, weights, shards, **changes):
    """A model folder with these weights, the tiny base's tokenizer and its config.json but for the changes."""
    folder.mkdir(parents=True, exist_ok=True)
    names, places = sorted(weights), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        own = names[number::shards]
        save_file({name: weights[name].contiguous() for name in own}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(own, file)
    size = sum(weight.nbytes for weight in weights.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})
    _write_json(folder / "config.json", TINY | changes)
    shutil.copy(TINY_BASE / "generation_config.json", folder)
    AutoTokenizer.from_pretrained(TINY_BASE).save_pretrained(folder)


def _write_json(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


def write_random(folder: Path, family: str) -> Path:
    """A family's own class of transformers with random weights, and a tokenizer that speaks as the family does."""
    tokenizer, layout = tokenizer_of(family), LAYOUTS[family]
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    sizes = SMALL | {"head_dim": 16} if family in ("gemma2", "glm") else SMALL
    config = layout.config_class(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes, **ends)
    layout(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_untrained(folder: Path, shape: Shape) -> Path:
    """An InternLM2.5 of that shape: random weights, the public code, which XTuner brings along, the tiny base's
    tokenizer with its vocabulary filled up.
    """
    from xtuner._lite.modelings import internlm2

    code = Path(internlm2.__file__).parent
    config = internlm2.InternLM2Config(
        shape.vocab_size, shape.hidden_size, shape.intermediate_size, shape.num_hidden_layers,
        shape.num_attention_heads, shape.num_key_value_heads, max_position_embeddings=32768, eos_token_id=3,
        bias=False, rope_theta=1e6, rope_scaling={"type": "dynamic", "factor": 2.0}, attn_implementation="eager",
        architectures=["InternLM2ForCausalLM"], torch_dtype="bfloat16",
        auto_map={"AutoConfig": "configuration_internlm2.InternLM2Config",
                  "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"})
    config.save_pretrained(folder)
    with init_empty_weights():
        model = internlm2.InternLM2ForCausalLM(config)
    write_random_weights(folder, model, shards=8)
    for file in (*code.glob("*_internlm2.py"), *TINY_BASE.glob("*token*.json"), TINY_BASE / "generation_config.json"):
        shutil.copy(file, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    known = tokenizer["model"]["vocab"]
    known |= {f"[PAD{number}]": number for number in range(len(known), shape.vocab_size)}
    _write_json(folder / "tokenizer.json", tokenizer)
    return folder


def write_random_weights(folder: Path, model: PreTrainedModel, shards: int) -> None:
    """Random weights in 16 bits for a model without any, a file at a time, so that the model may be large."""
    torch.manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    where = {name: f"model-{1 + place * shards // len(shapes):05}-of-{shards:05}.safetensors"
             for place, name in enumerate(shapes)}
    for file in sorted(set(where.values())):
        save_file({name: _random(shape) for name, shape in shapes.items() if where[name] == file}, folder / file,
                  {"format": "pt"})
    size = 2 * sum(map(torch.Size.numel, shapes.values()))
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def _random(shape):
    """A matrix as models are initialized; a norm's weights, which change nothing."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.randn(shape, dtype=torch.bfloat16) * 0.02
