"""XTuner 0.2.0's QLoRA on a machine without a GPU: a config names this class instead of xtuner.model's.

It belongs to the room `train` and stays at the top all the same: every config that was ever written, and every
checkpoint that was trained with one, names helpers.cpu.

Two places assume an accelerator: XTuner asks torch.cpu for is_bf16_supported, and transformers 4.48.0 lets
bitsandbytes run on a CPU only beside Intel's IPEX, which bitsandbytes has not needed since 0.46. A third is for
inference only: where the processor has AVX512-BF16, bitsandbytes repacks NF4 weights when a model first answers and
rounds their scales, back and forth at every save; a training that asks its evaluation questions, or that is resumed,
would go on from another base than it began with.
"""
import bitsandbytes.nn.modules as quantized
import torch
import transformers.integrations.bitsandbytes as integration
from xtuner.model import SupervisedFinetune as OnAnyDevice

torch.cpu.is_bf16_supported = lambda: True
integration.is_ipex_available = lambda: True
quantized.has_avx512bf16 = lambda: False


class SupervisedFinetune(OnAnyDevice):
    """XTuner's model, trainable on a CPU."""
