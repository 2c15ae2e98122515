"""Small tokenizers by the rules of today's model families, made by Hugging Face's library, and hard texts for them."""

import json
import random

import pytest

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers comes with transformers, a development dependency")
AddedToken, decoders, models, normalizers = (
    tokenizers.AddedToken, tokenizers.decoders, tokenizers.models, tokenizers.normalizers
)  # fmt: skip
pre_tokenizers, processors, trainers = tokenizers.pre_tokenizers, tokenizers.processors, tokenizers.trainers

SENTENCES = {
    "English": "It's a café, isn't it? THEY'VE 12,345 of them... and \"more\" than that; we'll see, I'd say.",
    "German": "Größe, Übermut und Straßenbahn: »Äh«, sagte Jörg, »daß ich’s weiß!«",
    "French": "L'été où j'ai vécu à l'œuvre, naïf — « ça va ? » Noël coûte 3,50 €.",
    "Spanish": "¿Cuántos años tiene el niño? ¡Mañana cumplirá diez! Él vive en Logroño.",
    "Turkish": "İstanbul'da ılık bir akşam; ağaçların gölgesinde çay içtik, IĞDIR.",
    "Polish": "Zażółć gęślą jaźń. Źdźbło trawy, łódź i żółw.",
    "Vietnamese": "Tiếng Việt có nhiều dấu: đường phố, người Việt, xin chào buổi sáng.",
    "Russian": "Съешь же ещё этих мягких французских булок, да выпей чаю. Ёлка!",
    "Greek": "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Όχι, ΆΛΦΑ και ς.",
    "Hebrew": "שָׁלוֹם עולם! מה שלומך היום?",
    "Arabic": "كان يا ما كان، في قديم الزمان، طفلٌ شجاع. ١٢٣٤٥",
    "Hindi": "नमस्ते दुनिया! यह हिन्दी है। १२३ किताबें",
    "Thai": "สวัสดีชาวโลก วันนี้อากาศดีมาก ๑๒๓",
    "Chinese": "从前有一个勇敢的孩子，名叫小明。他丢了铃铛！三〇二年",
    "Japanese": "むかしむかし、あるところに、おじいさんとおばあさんが住んでいました。ｶﾀｶﾅ",
    "Korean": "옛날 옛적에 용감한 아이가 살았습니다. 한국어",
    "code": "def f(x):\n    return {'a': [x**2 for _ in x]}  # ok\r\n\tif x<=0: pass\n\n\n#include <a/b.h>\n// x",
    "emoji": "👩🏽‍🚀 and 👨‍👩‍👧‍👦, e\u0301 and \u00e9; 🇩🇪 \u200b\u2028\u00a0x ❤️ 🙂🙂🙂",
    "digits": "3.14159 1,000,000 0x1F 2024-11-28T23:05 ½ Ⅷ x² ₁₂ 7٣ 1234567890 12 345 6789",
    "spaces": " a  b   c\n\nd \n e\t\tf\r\n\r\n g\u00a0h\u2003 i \u3000j  1   2\n 3 \n\n  \n   k\x85l\x1cm   \n  ",
    "signs": "a--b __init__ (((())) !!! ?!\n\n'S 'LL can't CAN'T o'clock \"'re\" <|x|> [INS] \\n $%^&*~`/ //\n/",
}


def mixed_texts(n: int, seed: int = 0) -> list[str]:
    """Return the sentences, then mixes of their pieces, n texts in all; the seed determines them."""
    draw, pieces, texts = random.Random(seed), list(SENTENCES.values()), list(SENTENCES.values())
    while len(texts) < n:
        parts = []
        for _ in range(draw.randint(1, 6)):
            source = draw.choice(pieces)
            start = draw.randrange(len(source))
            parts.append(source[start : start + draw.randint(1, 12)])
        texts.append(draw.choice(["", " ", "\n", "  "]).join(parts))
    return texts


# --- families, as published -------------------------------------------------------------------------------------------

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_by(pattern):
    """Return the pre-tokenizer of models that publish a pattern of their own."""
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def gpt2_words():
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def byte_level(splitter, first=(), last=(), normalizer=None, size=700):
    """Return byte-level byte pairs learned from SENTENCES, with special tokens before and after the others."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = splitter, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(first), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*SENTENCES.values()] * 3, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in last])
    return tokenizer


def starting_with(tokenizer, name):
    """Let a tokenizer put a special token before each text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{name} $A", pair=f"{name} $A $B", special_tokens=[(name, tokenizer.token_to_id(name))]
    )
    return tokenizer


def smollm2():
    """The first 17 ids are special tokens; the bytes that no text has, and a few more, have no token."""
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2_words()])
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<name_{n}>" for n in range(14))]
    file = json.loads(byte_level(digits, first=names).to_str())
    spelling = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for character in "\x04\x06\x13\x14\x16\x1d":
        file["model"]["vocab"].pop(spelling.pre_tokenize_str(character)[0][0])
    in_order = sorted(file["model"]["vocab"], key=file["model"]["vocab"].get)
    file["model"]["vocab"] = {token: i for i, token in enumerate(in_order)}
    return tokenizers.Tokenizer.from_str(json.dumps(file))


def llama3():
    """As converted from tiktoken's file: each way to merge a token is listed, and whole words need no merge."""
    file = json.loads(byte_level(split_by(LLAMA3)).to_str())
    model = file["model"]
    vocab = model["vocab"]
    for word in ("\u0120moved", "Hello", "\u0120\u0120\u0120\u0120x"):  # no two tokens make one of the three
        vocab.setdefault(word, len(vocab))
    model["merges"], model["ignore_merges"] = [], True
    for token in vocab:  # in the order of ids
        ways = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in vocab and token[i:] in vocab]
        model["merges"] += sorted(ways, key=lambda way: (vocab[way[0]], vocab[way[1]]))
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return starting_with(tokenizer, "<|begin_of_text|>")


def qwen():
    """Text is composed (NFC) before it is split; <think> is a token of its own, but not a special one."""
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(split_by(QWEN2), last=names, normalizer=normalizers.NFC())
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    return tokenizer


def mistral():
    """Mistral's tekken: special tokens first."""
    return starting_with(byte_level(split_by(TEKKEN), first=["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]), "<s>")


def sentencepiece(metaspace=True):
    """Llama 2's and the first Mistral's: characters, and bytes where there is no such character.

    `metaspace` as transformers writes it; otherwise as in the files published in 2023.
    """
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prepend = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = prepend
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=names, limit_alphabet=150, max_token_length=8, show_progress=False
    )
    words = (word for text in SENTENCES.values() for word in text.split(" "))
    tokenizer.train_from_iterator(list(words) * 3, trainer)
    file = json.loads(tokenizer.to_str())
    file["added_tokens"] = file["added_tokens"][:3]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(file))
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return starting_with(tokenizer, "<s>")


FAMILIES = {  # by name: how to make the tokenizer, and what ends and starts a text
    "gpt2": (lambda: byte_level(gpt2_words(), last=["<|endoftext|>"]), "<|endoftext|>", None),
    "smollm2": (smollm2, "<|im_end|>", None),
    "llama3": (llama3, "<|eot_id|>", "<|begin_of_text|>"),
    "qwen": (qwen, "<|im_end|>", None),
    "tekken": (mistral, "</s>", "<s>"),
    "sentencepiece": (sentencepiece, "</s>", "<s>"),
    "sentencepiece of 2023": (lambda: sentencepiece(metaspace=False), "</s>", "<s>"),
}


def write_family(name, folder, **config):
    """Write the tokenizer of a family as a model's folder has it; more settings go to tokenizer_config.json."""
    make, eos, bos = FAMILIES[name]
    folder.mkdir(parents=True, exist_ok=True)
    make().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "bos_token": bos, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
