"""The entries of an InternLM2's config.json, written from its description; the file comes with the model."""
from transformers import PretrainedConfig


class InternLM2Config(PretrainedConfig):
    """The shape of an InternLM2."""

    model_type = "internlm2"
    keys_to_ignore_at_inference = ("past_key_values",)

    def __init__(self, vocab_size=92544, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                 num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=32768, rms_norm_eps=1e-5,
                 rope_theta=1e6, bias=False, initializer_range=0.02, tie_word_embeddings=False, **more):
        self.vocab_size, self.hidden_size, self.intermediate_size = vocab_size, hidden_size, intermediate_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.num_key_value_heads, self.max_position_embeddings = num_key_value_heads, max_position_embeddings
        self.rms_norm_eps, self.rope_theta, self.bias = rms_norm_eps, rope_theta, bias
        self.initializer_range = initializer_range
        super().__init__(tie_word_embeddings=tie_word_embeddings, **more)
