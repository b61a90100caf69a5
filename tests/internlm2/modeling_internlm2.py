"""An InternLM2, written from its description: queries, keys and values in one layer, and w1, w3 and w2."""
import torch
from torch import nn
from torch.nn import functional
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_internlm2 import InternLM2Config


class InternLM2RMSNorm(nn.Module):
    """Every vector by its root mean square, computed in float32."""

    def __init__(self, size, epsilon):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(size)), epsilon

    def forward(self, vectors):
        """The vectors at their own length."""
        exact = vectors.float()
        exact = exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * exact.to(vectors.dtype)


def turn(vectors, places, base):
    """Turns pairs of a head's numbers, half a head apart, by angles that grow with the place."""
    size = vectors.shape[-1]
    frequencies = base ** (-torch.arange(0, size, 2, device=vectors.device).float() / size)
    angles = places[:, None, :, None].float() * frequencies
    cosines, sines = (table.repeat(1, 1, 1, 2).to(vectors.dtype) for table in (angles.cos(), angles.sin()))
    first, second = vectors.chunk(2, -1)
    return vectors * cosines + torch.cat((-second, first), -1) * sines


class Attention(nn.Module):
    """For every key head its query heads, its key and its value stand together in wqkv."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.base = layer, config.rope_theta
        self.keys, self.groups = config.num_key_value_heads, config.num_attention_heads // config.num_key_value_heads
        self.size = config.hidden_size // config.num_attention_heads
        rows = (config.num_attention_heads + 2 * self.keys) * self.size
        self.wqkv = nn.Linear(config.hidden_size, rows, bias=config.bias)
        self.wo = nn.Linear(config.num_attention_heads * self.size, config.hidden_size, bias=config.bias)

    def forward(self, hidden, places, mask, cache):
        """What each token learns from those before it."""
        samples, length, _ = hidden.shape
        together = self.wqkv(hidden).view(samples, length, self.keys, self.groups + 2, self.size)
        queries = together[..., :-2, :].flatten(2, 3).transpose(1, 2)
        keys, values = together[..., -2, :].transpose(1, 2), together[..., -1, :].transpose(1, 2)
        queries, keys = turn(queries, places, self.base), turn(keys, places, self.base)
        if cache is not None:
            keys, values = cache.update(keys, values, self.layer)
        keys, values = keys.repeat_interleave(self.groups, 1), values.repeat_interleave(self.groups, 1)
        seen = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return self.wo(seen.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """w1 decides how much of w3 passes; w2 leads back."""

    def __init__(self, config):
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden):
        """Each token by itself."""
        return self.w2(functional.silu(self.w1(hidden)) * self.w3(hidden))


class InternLM2DecoderLayer(nn.Module):
    """Attention, then the feed-forward layers, each on what a norm has passed, each added to what was there."""

    def __init__(self, config, layer):
        super().__init__()
        self.attention_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config, layer)
        self.ffn_norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, hidden, places, mask, cache):
        """One step from the embedding to the answer."""
        hidden = hidden + self.attention(self.attention_norm(hidden), places, mask, cache)
        return (hidden + self.feed_forward(self.ffn_norm(hidden)),)


class InternLM2PreTrainedModel(PreTrainedModel):
    """What transformers asks of every model."""

    config_class = InternLM2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("InternLM2DecoderLayer",)
    _supports_cache_class = True
    _supports_sdpa = True

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(0, self.config.initializer_range)


class InternLM2Model(InternLM2PreTrainedModel):
    """Everything but the output layer."""

    def __init__(self, config):
        super().__init__(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(InternLM2DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = InternLM2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
                use_cache=None, **_):
        """The last block's vectors, and what to remember of them."""
        hidden = self.tok_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        cache, use_cache = past_key_values, self.config.use_cache if use_cache is None else use_cache
        if use_cache and not self.training and cache is None:
            cache = DynamicCache()
        known = cache.get_seq_length() if cache is not None else 0
        samples, length, _ = hidden.shape
        if attention_mask is None:
            attention_mask = torch.ones(samples, known + length, device=hidden.device)
        if position_ids is None:
            position_ids = torch.arange(known, known + length, device=hidden.device).expand(samples, -1)
        mask = self._mask(hidden, attention_mask)
        for block in self.layers:
            if self.gradient_checkpointing and self.training:
                (hidden,) = self._gradient_checkpointing_func(block.__call__, hidden, position_ids, mask, None)
            else:
                (hidden,) = block(hidden, position_ids, mask, cache)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=cache)

    def _mask(self, hidden, attended):
        """Which tokens each may look at: those before it that are no padding, and itself."""
        length, total = hidden.shape[1], attended.shape[1]
        before = torch.ones(length, total, dtype=torch.bool, device=hidden.device).tril(total - length)
        mask = before & attended.bool()[:, None, None]
        return mask | ~mask.any(-1, keepdim=True)  # padding looks anywhere, for a softmax over nothing is no number

    def get_input_embeddings(self):
        """The embedding."""
        return self.tok_embeddings

    def set_input_embeddings(self, value):
        """Another embedding."""
        self.tok_embeddings = value


class InternLM2ForCausalLM(InternLM2PreTrainedModel, GenerationMixin):
    """The model that answers."""

    def __init__(self, config):
        super().__init__(config)
        self.model = InternLM2Model(config)
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self):
        """The embedding."""
        return self.model.tok_embeddings

    def get_output_embeddings(self):
        """The output layer."""
        return self.output

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
                inputs_embeds=None, labels=None, use_cache=None, **_):
        """The scores of every next token, and the loss where labels are given."""
        seen = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        logits = self.output(seen.last_hidden_state).float()
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=seen.past_key_values)
