"""Pairs of encoders: BERT in three layouts, CLIP in two."""

from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, BertModel, CLIPConfig, CLIPModel

from .encoders import EncoderSizes, OpenClip, RenamedBert, TorchBert, TowerSizes
from .gpt_pairs import tokens
from .outputs import logits
from .pair import Pair
from .rules import Rule, fused, renames, rule, transposed, truth

BERT_TINY = EncoderSizes(97, 20, 48, 3, 4, 64)
BERT_BASE = EncoderSizes(30522, 512, 768, 12, 12, 3072)


def _bert_config(tiny: bool) -> BertConfig:  # noqa: FBT001
    names = (
        "vocab_size",
        "max_position_embeddings",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
    )
    sizes = dict(zip(names, astuple(BERT_TINY if tiny else BERT_BASE), strict=True))
    return BertConfig(**sizes, num_labels=5, attn_implementation="eager")


def bert_classifier(tiny: bool) -> nn.Module:  # noqa: FBT001
    return BertForSequenceClassification(_bert_config(tiny))


def bert_renamed(tiny: bool) -> nn.Module:  # noqa: FBT001
    return RenamedBert(BERT_TINY if tiny else BERT_BASE, classes=5)


def bert_model(tiny: bool) -> nn.Module:  # noqa: FBT001
    return BertModel(_bert_config(tiny))


def bert_torch(tiny: bool) -> nn.Module:  # noqa: FBT001
    return TorchBert(BERT_TINY if tiny else BERT_BASE)


BERT_RENAMED = truth(
    renames("""
        bert.embeddings.word_embeddings.weight                 tok_embed.weight
        bert.embeddings.position_embeddings.weight             pos_embed.weight
        bert.embeddings.token_type_embeddings.weight           segment_embed.weight
        bert.embeddings.LayerNorm.{}                           embed_norm.{}
        bert.encoder.layer.{}.attention.self.query.{}          blocks.{}.self_attn.wq.{}
        bert.encoder.layer.{}.attention.self.key.{}            blocks.{}.self_attn.wk.{}
        bert.encoder.layer.{}.attention.self.value.{}          blocks.{}.self_attn.wv.{}
        bert.encoder.layer.{}.attention.output.dense.{}        blocks.{}.self_attn.wo.{}
        bert.encoder.layer.{}.attention.output.LayerNorm.{}    blocks.{}.attn_norm.{}
        bert.encoder.layer.{}.intermediate.dense.{}            blocks.{}.ffn_up.{}
        bert.encoder.layer.{}.output.dense.{}                  blocks.{}.ffn_down.{}
        bert.encoder.layer.{}.output.LayerNorm.{}              blocks.{}.ffn_norm.{}
        bert.pooler.dense.{}                                   pool.{}
        classifier.{}                                          head.{}
    """)
)
BERT_TORCH = truth(
    renames("""
        embeddings.word_embeddings.weight               token_embedding.weight
        embeddings.position_embeddings.weight           position_embedding.weight
        embeddings.token_type_embeddings.weight         type_embedding.weight
        embeddings.LayerNorm.{}                         embedding_norm.{}
        encoder.layer.{}.attention.output.dense.{}      encoder.layers.{}.self_attn.out_proj.{}
        encoder.layer.{}.attention.output.LayerNorm.{}  encoder.layers.{}.norm1.{}
        encoder.layer.{}.intermediate.dense.{}          encoder.layers.{}.linear1.{}
        encoder.layer.{}.output.dense.{}                encoder.layers.{}.linear2.{}
        encoder.layer.{}.output.LayerNorm.{}            encoder.layers.{}.norm2.{}
        pooler.dense.{}                                 pooler.{}
    """),
    [
        rule(
            " ".join(f"encoder.layer.{{}}.attention.self.{part}.{kind}" for part in ("query", "key", "value")),
            f"encoder.layers.{{}}.self_attn.in_proj_{kind}",
            fused,
        )
        for kind in ("weight", "bias")
    ],
)


def clip_hf(tiny: bool) -> nn.Module:  # noqa: FBT001
    if not tiny:
        return CLIPModel(CLIPConfig(attn_implementation="eager"))
    text = {"hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 5}
    vision = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**text, "vocab_size": 97, "max_position_embeddings": 20, "eos_token_id": 96},
        vision_config={**vision, "image_size": 24, "patch_size": 8},
        projection_dim=28,
        attn_implementation="eager",
    )
    return CLIPModel(config)


def clip_open(tiny: bool) -> nn.Module:  # noqa: FBT001
    if tiny:
        towers = TowerSizes(48, 3, 4, 64), TowerSizes(40, 2, 5, 56)
        return OpenClip(*towers, image=24, patch=8, vocabulary=97, context=20, joint=28)
    towers = TowerSizes(768, 12, 12, 3072), TowerSizes(512, 12, 8, 2048)
    return OpenClip(*towers, image=224, patch=32, vocabulary=49408, context=77, joint=512)


def _tower(old: str, new: str) -> list[Rule]:
    parts = [
        ("layer_norm1.{}", "ln_1.{}"),
        ("self_attn.out_proj.{}", "attn.out_proj.{}"),
        ("layer_norm2.{}", "ln_2.{}"),
        ("mlp.fc1.{}", "mlp.c_fc.{}"),
        ("mlp.fc2.{}", "mlp.c_proj.{}"),
    ]
    before, after = f"{old}.encoder.layers.{{}}", f"{new}transformer.resblocks.{{}}"
    fusions = [
        rule(
            " ".join(f"{before}.self_attn.{part}_proj.{kind}" for part in "qkv"), f"{after}.attn.in_proj_{kind}", fused
        )
        for kind in ("weight", "bias")
    ]
    return [*(rule(f"{before}.{a}", f"{after}.{b}") for a, b in parts), *fusions]


CLIP = truth(
    _tower("text_model", ""),
    _tower("vision_model", "visual."),
    renames("""
        logit_scale                                      logit_scale
        text_model.embeddings.token_embedding.weight     token_embedding.weight
        text_model.embeddings.position_embedding.weight  positional_embedding
        text_model.final_layer_norm.{}                   ln_final.{}
        vision_model.embeddings.class_embedding          visual.class_embedding
        vision_model.embeddings.patch_embedding.weight   visual.conv1.weight
        vision_model.embeddings.position_embedding.weight visual.positional_embedding
        vision_model.pre_layrnorm.{}                     visual.ln_pre.{}
        vision_model.post_layernorm.{}                   visual.ln_post.{}
    """),
    renames(
        """
        text_projection.weight   text_projection
        visual_projection.weight visual.proj
        """,
        transposed,
    ),
)


def _states(out: Any) -> Tensor:
    """Last states of a BERT and, as one state more, what its pooler makes."""
    if isinstance(out, Tensor):
        return out
    return torch.cat((out.last_hidden_state, out.pooler_output.unsqueeze(1)), dim=1)


def _captioned() -> dict[str, Any]:
    """Images and sentences that end in the last token of the vocabulary."""
    images, ids = torch.randn(3, 3, 24, 24), torch.randint(0, 96, (3, 11))
    ids[:, -1] = 96
    return {"source": (ids, images), "target": (images, ids)}


def _joint(out: Any) -> Tensor:
    """Features of images and texts, and their scaled similarities."""
    if not isinstance(out, tuple):
        return torch.cat((out.image_embeds, out.text_embeds, out.logits_per_image), dim=1)
    image, text, scale = out
    return torch.cat((image, text, scale * image @ text.T), dim=1)


ENCODERS = [
    Pair("bert hf→renamed", bert_classifier, bert_renamed, BERT_RENAMED, tokens, logits),
    Pair("bert hf→torch", bert_model, bert_torch, BERT_TORCH, tokens, _states),
    Pair("clip hf→open_clip", clip_hf, clip_open, CLIP, _captioned, _joint),
]
