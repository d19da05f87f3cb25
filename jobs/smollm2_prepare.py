#!/usr/bin/env python3
"""Makes a Hugging Face folder from a GGUF file, and text files from a Debian-packaged R data base of novels.

    python jobs/smollm2_prepare.py model  FILE.gguf OUTDIR         config.json, model.safetensors (bf16), tokenizer files
    python jobs/smollm2_prepare.py novels DATADIR OUTDIR           OUTDIR/<name>.txt for every character vector in DATADIR/Rdata.rd[bx]

Needs numpy, gguf and tokenizers; no torch, no R. Called by jobs/smollm2.sh. Files appear under their final names only
when complete; model.safetensors comes last.
"""
import bz2
import gzip
import json
import lzma
import os
import struct
import sys
import zlib
from pathlib import Path


def fail(message):
    print(f"smollm2_prepare.py: {message}", file=sys.stderr)
    sys.exit(3)


def write(path, data):
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def write_json(path, value):
    write(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


# ---------------------------------------------------------------- the model

# GGUF name -> Hugging Face name, inside blk.N. / model.layers.N.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name):
    stem = name.removesuffix(".weight")
    if stem in TOP_NAMES:
        return TOP_NAMES[stem] + ".weight"
    parts = stem.split(".")
    if len(parts) == 3 and parts[0] == "blk" and parts[2] in LAYER_NAMES:
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    fail(f"tensor {name}: no such tensor in a Llama model")


def rotate_half_order(w, heads):
    """llama.cpp keeps the rows of a head as rotated pairs (0, D/2, 1, D/2 + 1, ...); Hugging Face's order is 0, 1, 2, ... D - 1."""
    rows, columns = w.shape
    return w.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def bf16_bytes(x):
    """float32 -> bfloat16, to nearest, ties to even."""
    import numpy as np

    u = np.ascontiguousarray(x, dtype="<f4").view("<u4")
    if not np.isfinite(x).all():
        fail("a weight is not finite")
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype("<u2").tobytes()


def safetensors_bytes(tensors):
    """name -> (shape, bf16 bytes), as one safetensors file: length of the header, header padded to 8 bytes, data without holes."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        shape, data = tensors[name]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *(tensors[name][1] for name in sorted(tensors))])


def make_model(source, out):
    import gguf
    import numpy as np

    try:
        reader = gguf.GGUFReader(source)
    except ValueError as e:
        fail(f"{source}: not a GGUF file: {e}")

    def key(name, default=None):
        field = reader.get_field(name)
        if field is None and default is None:
            fail(f"{source}: metadata {name} is missing")
        return default if field is None else field.contents()

    if key("general.architecture") != "llama":
        fail(f"{source}: expected architecture llama, found {key('general.architecture')}")
    heads, kv_heads = key("llama.attention.head_count"), key("llama.attention.head_count_kv")
    hidden = key("llama.embedding_length")
    tensors, kinds = {}, {}
    for t in reader.tensors:
        w = gguf.dequantize(t.data, t.tensor_type).astype(np.float32, copy=False)
        if t.name.endswith("attn_q.weight"):
            w = rotate_half_order(w, heads)
        elif t.name.endswith("attn_k.weight"):
            w = rotate_half_order(w, kv_heads)
        kinds[t.tensor_type.name] = kinds.get(t.tensor_type.name, 0) + 1
        tensors[hf_name(t.name)] = (list(w.shape), bf16_bytes(w))
    layers = key("llama.block_count")
    tied = "lm_head.weight" not in tensors
    if len(tensors) != 9 * layers + (2 if tied else 3):
        fail(f"{source}: expected {9 * layers + 2} tensors, found {len(tensors)}")
    tokens = key("tokenizer.ggml.tokens")

    out.mkdir(parents=True, exist_ok=True)
    make_tokenizer(key, tokens, out)
    bos, eos = key("tokenizer.ggml.bos_token_id"), key("tokenizer.ggml.eos_token_id")
    pad = key("tokenizer.ggml.padding_token_id", eos)
    write_json(out / "generation_config.json", {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad, "transformers_version": "4.46.0"})
    write_json(
        out / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "head_dim": hidden // heads,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": key("llama.feed_forward_length"),
            "max_position_embeddings": key("llama.context_length"),
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "pad_token_id": pad,
            "pretraining_tp": 1,
            "rms_norm_eps": float(str(np.float32(key("llama.attention.layer_norm_rms_epsilon")))),
            "rope_scaling": None,
            "rope_theta": float(str(np.float32(key("llama.rope.freq_base")))),
            "tie_word_embeddings": tied,
            "torch_dtype": "bfloat16",
            "transformers_version": "4.46.0",
            "use_cache": True,
            "vocab_size": tensors["model.embed_tokens.weight"][0][0],
        },
    )
    write(out / "model.safetensors", safetensors_bytes(tensors))
    print(f"{out}: {layers} layers, {len(tensors)} tensors in bf16 from {', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}")


def make_tokenizer(key, tokens, out):
    """The metadata hold vocabulary and merges; the kind of pre-tokenizer is only a name, whose meaning stands here."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    model, kind = key("tokenizer.ggml.model"), key("tokenizer.ggml.pre")
    if (model, kind) != ("gpt2", "smollm"):
        fail(f"tokenizer: expected gpt2 with pre-tokenizer smollm, found {model} with {kind}")
    merges = [tuple(m.split(" ")) for m in key("tokenizer.ggml.merges")]
    tok = Tokenizer(BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tok.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    tok.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, key("tokenizer.ggml.token_type")) if kind == 3]
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    write(out / "tokenizer.json", tok.to_str(pretty=True).encode())

    def name(which, default=0):
        return tokens[key(f"tokenizer.ggml.{which}_token_id", default)]

    write_json(
        out / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "added_tokens_decoder": {
                str(tokens.index(t)): {"content": t, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True} for t in control
            },
            "additional_special_tokens": [name("bos"), name("eos")],
            "bos_token": name("bos"),
            "chat_template": key("tokenizer.chat_template"),
            "clean_up_tokenization_spaces": False,
            "eos_token": name("eos"),
            "model_max_length": key("llama.context_length"),
            "pad_token": name("padding"),
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": name("unknown"),
        },
    )


# ---------------------------------------------------------------- R's lazy-load data base


class Serialized:
    """R's serialization, XDR form, versions 2 and 3: what a list of character vectors and integers needs (R Internals, 1.8)."""

    NIL, GLOBAL, BASE, EMPTY, NAMESPACE, PACKAGE, PERSISTENT = 254, 253, 241, 242, 249, 250, 247
    REFERENCE, SYMBOL, PAIRS, CHAR, LOGICAL, INTEGER, REAL, STRINGS, LIST = 255, 1, 2, 9, 10, 13, 14, 16, 19

    def __init__(self, data):
        self.data, self.at, self.references = data, 0, []
        if self.take(2) != b"X\n":
            fail("R data: not in XDR form")
        version = self.int()
        self.at += 8
        if version == 3:
            self.at += 4 + struct.unpack_from(">i", data, self.at)[0]
        elif version != 2:
            fail(f"R data: serialization version {version}")

    def take(self, n):
        if self.at + n > len(self.data):
            fail("R data: ends too early")
        self.at += n
        return self.data[self.at - n : self.at]

    def int(self):
        return struct.unpack(">i", self.take(4))[0]

    def attributes(self, flags):
        return self.item() if flags & 0x200 else {}

    def item(self):
        flags = self.int()
        kind = flags & 0xFF
        if kind in (self.NIL, self.GLOBAL, self.BASE, self.EMPTY):
            return None
        if kind == self.REFERENCE:
            return self.references[(flags >> 8 or self.int()) - 1]
        if kind == self.SYMBOL:
            name = self.item()
            self.references.append(name)
            return name
        if kind == self.PAIRS:                                   # attributes: tag and value, then the rest
            result = {}
            while kind == self.PAIRS:
                if flags & 0x200:
                    self.item()
                tag = self.item() if flags & 0x400 else None
                result[tag] = self.item()
                flags = self.int()
                kind = flags & 0xFF
            return result
        if kind in (self.NAMESPACE, self.PACKAGE, self.PERSISTENT):
            self.int()
            names = [self.item() for _ in range(self.int())]
            self.references.append(names)
            return names
        if kind == self.CHAR:
            n = self.int()
            return None if n < 0 else self.take(n).decode("latin-1" if flags & (1 << 14) else "utf-8")
        if kind in (self.LOGICAL, self.INTEGER):
            n = self.int()
            value = list(struct.unpack(f">{n}i", self.take(4 * n)))
        elif kind == self.REAL:
            n = self.int()
            value = list(struct.unpack(f">{n}d", self.take(8 * n)))
        elif kind in (self.STRINGS, self.LIST):
            value = [self.item() for _ in range(self.int())]
        else:
            fail(f"R data: object of type {kind} is not understood")
        names = (self.attributes(flags) or {}).get("names")
        return dict(zip(names, value)) if names else value


def unpack_record(record):
    """A record of the .rdb file: length of the data (big-endian), then zlib, or a letter and bzip2 ('2') or xz ('Z')."""
    size, body = struct.unpack(">I", record[:4])[0], record[4:]
    if body[:1] == b"2":
        data = bz2.decompress(body[1:])
    elif body[:1] == b"Z":
        # R writes raw LZMA2 without the container
        data = body[1:]
        if data[:6] == b"\xfd7zXZ\x00":
            data = lzma.decompress(data)
        else:
            data = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}]).decompress(data)
    else:
        data = zlib.decompress(body)
    if len(data) != size:
        fail(f"R data: expected a record of {size} bytes, found {len(data)}")
    return data


def make_novels(folder, out):
    try:
        index = Serialized(gzip.decompress((folder / "Rdata.rdx").read_bytes())).item()
        base = (folder / "Rdata.rdb").read_bytes()
    except OSError as e:
        fail(f"{e.filename}: {e.strerror}")
    out.mkdir(parents=True, exist_ok=True)
    for name, (offset, length) in index["variables"].items():
        lines = Serialized(unpack_record(base[offset : offset + length])).item()
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            continue                                             # a function or a table, not a text
        write(out / f"{name}.txt", ("\n".join(lines).strip("\n") + "\n").encode())
        print(f"{out / name}.txt: {len(lines)} lines")


def main():
    if sys.argv[1:] in (["-h"], ["--help"]):
        print(__doc__.strip())
        return
    work = {"model": make_model, "novels": make_novels}.get(sys.argv[1]) if len(sys.argv) == 4 else None
    if work is None:
        print("smollm2_prepare.py: expected: model FILE.gguf OUTDIR, or: novels DATADIR OUTDIR", file=sys.stderr)
        sys.exit(2)
    try:
        work(Path(sys.argv[2]), Path(sys.argv[3]))
    except ImportError as e:
        fail(f"Python package {e.name} is missing")
    except OSError as e:
        fail(f"{e.filename or sys.argv[2]}: {e.strerror or e}")


if __name__ == "__main__":
    main()
