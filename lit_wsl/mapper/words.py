"""What the words of parameter names mean: synonyms across the model zoos, and meanings that exclude one another."""

import re
from functools import lru_cache

_TOKEN = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

_PHRASES: dict[str, str] = {
    # attention
    "c_attn": "attn qkv",
    "in_proj": "qkv",
    "query_key_value": "qkv",
    "Wqkv": "qkv",
    "wqkv": "qkv",
    "qkv_proj": "qkv",
    "kv_proj": "kv",
    "key_value": "kv",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "q_lin": "q",
    "k_lin": "k",
    "v_lin": "v",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "wq": "q",
    "wk": "k",
    "wv": "v",
    "wo": "out",
    "o_proj": "out",
    "out_proj": "out",
    "out_lin": "out",
    "to_out": "out",
    "c_proj": "out",
    "proj_out": "out",
    "output_proj": "out",
    "linear_out": "out",
    "EncDecAttention": "cross attn",
    "encoder_attn": "cross attn",
    "encoder_attn_layer_norm": "cross attn norm",
    "encoder_decoder_attention": "cross attn",
    "cross_attn": "cross attn",
    "cross_attn_ln": "cross attn norm",
    "crossattention": "cross attn",
    "SelfAttention": "self attn",
    "self_attn": "self attn",
    "self_attn_layer_norm": "attn norm first",
    "sa_layer_norm": "attn norm first",
    "sa_norm": "attn norm first",
    "attn_ln": "attn norm first",
    "attention_norm": "attn norm first",
    "attn_norm": "attn norm first",
    # feed forward
    "DenseReluDense": "mlp",
    "feed_forward": "mlp",
    "feedforward": "mlp",
    "c_fc": "mlp in",
    "dense_h_to_4h": "mlp in",
    "dense_4h_to_h": "mlp out",
    "intermediate": "mlp in",
    "intermediate_dense": "mlp in",
    "output_dense": "mlp out",
    "fc1": "mlp in",
    "fc2": "mlp out",
    "lin1": "mlp in",
    "lin2": "mlp out",
    "linear1": "mlp in",
    "linear2": "mlp out",
    "wi": "mlp in",
    "wi_0": "mlp gate",
    "wi_1": "mlp up",
    "gate_proj": "mlp gate",
    "up_proj": "mlp up",
    "down_proj": "mlp out",
    "gate_up_proj": "mlp gate_up",
    "w1": "mlp gate",
    "w2": "mlp out",
    "w3": "mlp up",
    "fc_1": "mlp gate",
    "fc_2": "mlp up",
    "ffn_norm": "mlp norm second",
    "mlp_norm": "mlp norm second",
    "mlp_ln": "mlp norm second",
    "output_layer_norm": "mlp norm second",
    # norms of a block
    "ln_1": "norm first",
    "norm_1": "norm first",
    "norm1": "norm first",
    "ln1": "norm first",
    "layer_norm1": "norm first",
    "layer_norm_1": "norm first",
    "input_layernorm": "norm first input",
    "layernorm_before": "norm first",
    "ln_2": "norm second",
    "norm_2": "norm second",
    "norm2": "norm second",
    "ln2": "norm second",
    "layer_norm2": "norm second",
    "layer_norm_2": "norm second",
    "layernorm_after": "norm second",
    "post_attention_layernorm": "norm second post attn",
    "final_layer_norm": "norm final second",
    # embeddings and heads
    "wte": "embed token",
    "wpe": "embed position",
    "embed_tokens": "embed token",
    "tok_embeddings": "embed token",
    "embed_in": "embed token",
    "embed_out": "head",
    "embed_positions": "embed position",
    "pos_embed": "embed position",
    "cls_token": "embed class",
    "class_embedding": "embed class",
    "ln_f": "norm final",
    "ln_post": "norm final post",
    "ln_final": "norm final",
    "ln_pre": "norm pre",
    "pre_layrnorm": "norm pre",
    "lm_head": "head",
    "final_layernorm": "norm final",
    "gamma_1": "scale first",
    "gamma_2": "scale second",
    "lambda_1": "scale first",
    "lambda_2": "scale second",
    "layer_scale1": "scale first",
    "layer_scale2": "scale second",
    "ls1": "scale first",
    "ls2": "scale second",
    "layer_scale_parameter": "scale",
    # convolutions
    "conv_pw": "conv pointwise",
    "conv_pwl": "conv pointwise linear",
    "conv_dw": "conv depthwise",
    "dwconv": "conv depthwise",
    "depthwise_conv": "conv depthwise",
    "conv_reduce": "conv squeeze",
    "conv_expand": "conv excite",
    "pwconv1": "mlp in",
    "pwconv2": "mlp out",
}

_WORDS: dict[str, str] = {
    "attention": "attn",
    "sa": "attn",
    "mha": "attn",
    "query": "q",
    "key": "k",
    "value": "v",
    "o": "out",
    "output": "out",
    "ffn": "mlp",
    "ff": "mlp",
    "down": "out",
    "ln": "norm",
    "bn": "norm",
    "gn": "norm",
    "layernorm": "norm",
    "layrnorm": "norm",
    "batchnorm": "norm",
    "groupnorm": "norm",
    "rmsnorm": "norm",
    "normalization": "norm",
    "convolution": "conv",
    "embedding": "embed",
    "embeddings": "embed",
    "emb": "embed",
    "pos": "position",
    "positions": "position",
    "positional": "position",
    "tok": "token",
    "tokens": "token",
    "word": "token",
    "words": "token",
    "vocab": "token",
    "segment": "type",
    "seg": "type",
    "cls": "class",
    "dist": "distillation",
    "patches": "patch",
    "classifier": "head",
    "shortcut": "downsample",
    "downsampling": "downsample",
    "visual": "vision",
    "image": "vision",
    "img": "vision",
    "enc": "encoder",
    "dec": "decoder",
    "gamma": "scale",
    "f": "final",
    "last": "final",
    "dw": "depthwise",
    "pw": "pointwise",
    "rel": "relative",
    "pre": "pre",
    "post": "post",
}

_GENERIC = frozenset(
    {"dense", "linear", "proj", "projection", "fc", "layer", "layers", "module", "block", "blocks", "model", "conv"}
    | {"transformer", "weight", "bias", "param", "parameter", "parameters", "c", "w", "lin", "h", "table", "kernel"}
)
"""Words that say little: they count for a quarter."""

_TOWERS = frozenset({"encoder", "decoder", "text", "vision", "language", "self", "cross"})
"""Words that tell parts of a model apart and count wherever they stand."""

EXCLUSIVE: tuple[frozenset[str], ...] = (
    frozenset({"q", "k", "v", "out", "qkv", "kv"}),
    frozenset({"in", "out", "gate", "up", "gate_up"}),
    frozenset({"attn", "mlp"}),
    frozenset({"self", "cross"}),
    frozenset({"first", "second"}),
    frozenset({"encoder", "decoder"}),
    frozenset({"text", "vision"}),
    frozenset({"language", "vision"}),
    frozenset({"token", "position", "type", "class", "patch", "mask", "distillation"}),
    frozenset({"embed", "head"}),
    frozenset({"norm", "head"}),
    frozenset({"squeeze", "excite"}),
    frozenset({"depthwise", "pointwise"}),
    frozenset({"pre", "post"}),
)
"""Meanings of which a tensor has at most one."""


@lru_cache(maxsize=16384)
def meanings(component: str) -> tuple[str, ...]:
    """Meanings of one component of a name; a word without known synonym means itself, a number is left out."""
    if component in _PHRASES:
        return tuple(_PHRASES[component].split())
    lower = component.lower()
    if lower in _PHRASES:
        return tuple(_PHRASES[lower].split())
    tokens = _TOKEN.findall(component)
    joined = "".join(tokens).lower()
    if joined in _WORDS:
        return (_WORDS[joined],)
    words = (token.lower() for token in tokens if not token.isdigit())
    return tuple(_WORDS.get(word, word) for word in words)


@lru_cache(maxsize=16384)
def features(path: tuple[str, ...]) -> dict[str, float]:
    """Weighted meanings of a path: the last component counts fully, those in front of it less and less."""
    found: dict[str, float] = {}
    weight = 1.0
    for component in reversed(path):
        words = meanings(component)
        for word in words:
            value = max(weight, 0.7) if word in _TOWERS else weight * (0.25 if word in _GENERIC else 1.0)
            found[word] = max(found.get(word, 0.0), value)
        if words:
            weight *= 0.7
    return _in_context(found)


def _in_context(found: dict[str, float]) -> dict[str, float]:
    """Complete what a name leaves to its place.

    An output without attention is that of the feed-forward part; the norm inside attention is the block's first, one
    with the feed-forward part its second.
    """
    if "out" in found and "attn" not in found and "mlp" not in found:
        found["mlp"] = 0.35
    if "norm" in found and not {"first", "second", "cross", "q", "k"} & found.keys():
        if "attn" in found:
            found["first"] = 0.35
        elif "mlp" in found or "out" in found:
            found["second"] = 0.35
    return found


def role(path: tuple[str, ...], roles: frozenset[str]) -> str | None:
    """The one of ``roles`` that the last components name, or None."""
    for component in reversed(path[-2:]):
        found = [word for word in meanings(component) if word in roles]
        if found:
            return found[0]
    return None
