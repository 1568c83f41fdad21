"""The tokenizer of the drawn world: one token a word of the caption grammar."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import BatchEncoding, PreTrainedTokenizerFast

from mixcache.zoo import world
from mixcache.zoo.world import MAX_SEQUENCE_LENGTH


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cases, splits at spaces, ends with `</s>` and pads with `<pad>`; a word outside the grammar is `<unk>`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    motions = {word for phrase in world.MOTIONS.values() for word in phrase.split()}
    words = {"a", "and", "on", "background"} | motions
    words |= {*world.COLOURS, *world.SHAPES, *world.SIZES, *world.PATTERNS, *world.TONES}
    vocabulary = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_SEQUENCE_LENGTH,
        model_input_names=["input_ids", "attention_mask"],
    )


def tokenized(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> BatchEncoding:
    """Captions as the model was trained on them: `input_ids` and `attention_mask`, each [len(captions),
    MAX_SEQUENCE_LENGTH]."""
    return tokenizer(list(captions), padding="max_length", max_length=MAX_SEQUENCE_LENGTH, return_tensors="pt")
