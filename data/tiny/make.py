#!/usr/bin/env python3
"""Make the small model of the tests: text, tokens, training, checkpoint.

    python data/tiny/make.py              trains (about nine minutes on two cores) and writes the folder
    python data/tiny/make.py --text 2000  prints that much of the training text and stops
    python data/tiny/make.py --check      judges the stored checkpoint again: held-out loss, and after rounding to 4, 3, 2 bits

Everything comes from this file: an invented language (lexicon and grammar below, seeded), a byte-level model of Llama's
architecture written in plain torch, and its training. The text has what a small model can learn and what coarse rounding
breaks: a lexicon to be remembered, endings that agree across a clause, clauses inside clauses, sums that come out,
speakers who are named again, lists that are counted and sorted, inventories that are asked about later.
Needs torch, numpy, safetensors and tokenizers. The same versions and two threads give the same bytes on one kind of machine.
"""
import argparse
import bisect
import json
import math
import random
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
LEXICON_SEED, TRAIN_SEED, CALIB_SEED, HELDOUT_SEED, TORCH_SEED = 2718, 1, 2, 3, 4
TRAIN_BYTES, CALIB_TOKENS, HELDOUT_TOKENS = 6_000_000, 65536, 32768

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 384,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.0",
    "use_cache": True,
    "vocab_size": 256,
}

# ---------------------------------------------------------------- the language


class Lexicon:
    """Words drawn once from syllables; a word's class and irregularities belong to it for ever."""

    ONSETS = "b d f g k l m n p r s t v z br dr gl kr pl sk st tr vl zh".split()
    VOWELS = "a e i o u ai ou".split()
    CODAS = ["", "", "", "l", "n", "r", "s", "m", "k", "nd", "rt"]

    def __init__(self):
        self.rng = random.Random(LEXICON_SEED)
        self.taken = set()
        # noun: (stem, class); the class decides article, plural and the endings of everything that agrees with it
        self.nouns = [(self.word(1, 3), self.rng.randrange(3)) for _ in range(240)]
        self.adjectives = [self.word(1, 2) for _ in range(90)]
        # verb: (stem, object wanted?, conjugation 0 or 1)
        self.verbs = [(self.word(1, 2), self.rng.random() < 0.6, self.rng.randrange(2)) for _ in range(110)]
        self.adverbs = [self.word(2, 2) + "ue" for _ in range(30)]
        self.names = [self.word(2, 3).capitalize() for _ in range(60)]
        self.places = [self.word(2, 3).capitalize() + "heim" for _ in range(30)]
        # Zipf-like frequencies, cumulated
        self.cumulative = {}

    def word(self, lo, hi):
        while True:
            w = "".join(self.rng.choice(self.ONSETS) + self.rng.choice(self.VOWELS) for _ in range(self.rng.randint(lo, hi)))
            w += self.rng.choice(self.CODAS)
            if len(w) > 2 and w not in self.taken:
                self.taken.add(w)
                return w

    def pick(self, rng, words):
        n = len(words)
        if n not in self.cumulative:
            total, sums = 0.0, []
            for i in range(n):
                total += 1.0 / (i + 6)
                sums.append(total)
            self.cumulative[n] = sums
        sums = self.cumulative[n]
        return words[min(bisect.bisect(sums, rng.random() * sums[-1]), n - 1)]


ARTICLE = [("ol", "olin"), ("sa", "saen"), ("ut", "uten")]        # by class: singular, plural
PLURAL = ["im", "ae", "oth"]
ADJECTIVE_END = [("o", "oi"), ("a", "ai"), ("u", "ui")]
PRESENT = [("et", "ent"), ("ash", "oun")]                         # by conjugation: singular, plural
PAST = [("evik", "evin"), ("arsk", "arun")]
RELATIVE = ["qol", "qas", "qut"]                                  # agrees with the class of its noun
PREPOSITIONS = ["under", "ona", "mit", "tuv", "pra"]
OPENINGS = ["Then", "Now", "But", "So", "Later", "Here"]
CONJUNCTIONS = ["and", "but", "while", "because"]
NUMBER_WORDS = ["nul", "one", "dva", "tri", "quad", "penta", "hexa"]


class Writer:
    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.lex = LEXICON

    def noun_phrase(self, depth=0):
        """-> text, plural?, class"""
        r, lex = self.rng, self.lex
        stem, cls = lex.pick(r, lex.nouns)
        plural = r.random() < 0.35
        words = [ARTICLE[cls][plural]]
        if r.random() < 0.4:
            words.append(lex.pick(r, lex.adjectives) + ADJECTIVE_END[cls][plural])
        words.append(stem + PLURAL[cls] if plural else stem)
        if depth < 2 and r.random() < 0.22:
            # a clause inside: its verb agrees with this noun, or with its own subject
            if r.random() < 0.6:
                words.append(RELATIVE[cls] + " " + self.predicate(plural, depth + 1) + ",")
            else:
                inner, inner_plural, _ = self.noun_phrase(2)
                words.append(RELATIVE[cls] + " " + inner + " " + self.verb(inner_plural, True) + ",")
        elif r.random() < 0.15:
            words.append(r.choice(PREPOSITIONS) + " " + self.noun_phrase(2)[0])
        return " ".join(words), plural, cls

    def verb(self, plural, wants_object):
        r, lex = self.rng, self.lex
        while True:
            stem, takes, conj = lex.pick(r, lex.verbs)
            if takes == wants_object:
                break
        ending = (PAST if self.past else PRESENT)[conj][plural]
        return ("na " if r.random() < 0.08 else "") + stem + ending

    def predicate(self, plural, depth=0):
        r = self.rng
        wants_object = r.random() < 0.55
        out = self.verb(plural, wants_object)
        if wants_object:
            out += " " + self.noun_phrase(depth + 1)[0]
        if r.random() < 0.2:
            out += " " + self.lex.pick(r, self.lex.adverbs)
        if r.random() < 0.12:
            out += " ona " + self.lex.pick(r, self.lex.places)
        return out

    def clause(self):
        subject, plural, _ = self.noun_phrase()
        return subject + " " + self.predicate(plural)

    def sentence(self):
        r = self.rng
        text = self.clause()
        if r.random() < 0.25:
            text += (", " if not text.endswith(",") else " ") + r.choice(CONJUNCTIONS) + " " + self.clause()
        if r.random() < 0.2:
            return r.choice(OPENINGS) + " " + text.rstrip(",") + "."
        return text[0].upper() + text[1:].rstrip(",") + "."

    def narrative(self):
        self.past = self.rng.random() < 0.5                       # one tense through a paragraph
        return " ".join(self.sentence() for _ in range(self.rng.randint(2, 5)))

    def dialogue(self):
        """Two speakers take turns and address each other by name."""
        r, lex = self.rng, self.lex
        self.past = False
        a = lex.pick(r, lex.names)
        b = a
        while b == a:
            b = lex.pick(r, lex.names)
        lines = []
        for turn in range(r.randint(2, 5)):
            speaker, other = (a, b) if turn % 2 == 0 else (b, a)
            said = self.clause().rstrip(",")
            mark = r.choice("?!.")
            verb = {"?": "asked", "!": "cried", ".": "said"}[mark]
            lines.append(f'"{other}, {said}{mark}" {verb} {speaker}.')
        return "\n".join(lines)

    def sums(self):
        r, lines = self.rng, []
        for _ in range(r.randint(2, 5)):
            a, b = r.randint(1, 49), r.randint(1, 49)
            kind = r.random()
            if kind < 0.5:
                lines.append(f"{a} + {b} = {a + b}")
            elif kind < 0.8:
                a, b = max(a, b), min(a, b)
                lines.append(f"{a} - {b} = {a - b}")
            else:
                a, b = r.randint(2, 9), r.randint(2, 9)
                lines.append(f"{a} x {b} = {a * b}")
        return "; ".join(lines) + "."

    def listing(self):
        """A counted list in alphabetical order."""
        r, lex = self.rng, self.lex
        n = r.randint(2, 6)
        items = set()
        while len(items) < n:
            items.add(lex.pick(r, lex.nouns)[0])
        owner = lex.pick(r, lex.names)
        return f"{owner} has {NUMBER_WORDS[n]} ({n}): " + ", ".join(sorted(items)) + "."

    def inventory(self):
        """Facts that are asked about afterwards: the answer stands further up."""
        r, lex = self.rng, self.lex
        owners = r.sample(lex.names[:40], r.randint(2, 4))
        facts = {o: (r.randint(2, 99), lex.pick(r, lex.nouns)) for o in owners}
        out = [f"{o} keeps {n} {w + PLURAL[c]} ona {lex.pick(r, lex.places)}." for o, (n, (w, c)) in facts.items()]
        asked = r.sample(owners, 2)
        for o in asked:
            n, (w, c) = facts[o]
            out.append(f"What keeps {o}? {o} keeps {n} {w + PLURAL[c]}.")
        return " ".join(out)

    def table(self):
        """Days that follow each other, a running total."""
        r, lex = self.rng, self.lex
        day, total, lines = r.randint(1, 24), r.randint(5, 40), []
        thing = lex.pick(r, lex.nouns)
        lines.append(f"Tally of {lex.pick(r, lex.places)}: {thing[0] + PLURAL[thing[1]]}")
        for i in range(r.randint(2, 4)):
            step = r.randint(1, 9)
            total += step
            lines.append(f"day {day + i} | +{step} | {total}")
        return "\n".join(lines)

    def document(self):
        r = self.rng
        kinds = [self.narrative, self.dialogue, self.sums, self.listing, self.inventory, self.table]
        parts = [r.choices(kinds, [45, 20, 10, 8, 10, 7])[0]() for _ in range(r.randint(2, 4))]
        return "# " + self.lex.pick(r, self.lex.places) + "\n" + "\n".join(parts) + "\n\n"

    def text(self, size):
        parts, have = [], 0
        while have < size:
            parts.append(self.document())
            have += len(parts[-1])
        return "".join(parts).encode("ascii")[:size]


LEXICON = Lexicon()


def tokens(seed, size):
    return np.frombuffer(Writer(seed).text(size), dtype=np.uint8)


# ---------------------------------------------------------------- the model


def build():
    """Llama's block in plain torch; parameter names are those of the Hugging Face checkpoint without `model.`."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    c = CONFIG
    d, f, heads, kv, hd = c["hidden_size"], c["intermediate_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(d))

        def forward(self, x):
            return F.rms_norm(x, (d,), self.weight, c["rms_norm_eps"])

    def rotate(x, cos, sin):
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat((-b, a), -1) * sin

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj = nn.Linear(d, heads * hd, bias=False)
            self.k_proj = nn.Linear(d, kv * hd, bias=False)
            self.v_proj = nn.Linear(d, kv * hd, bias=False)
            self.o_proj = nn.Linear(heads * hd, d, bias=False)

        def forward(self, x, cos, sin):
            b, t, _ = x.shape
            q = rotate(self.q_proj(x).view(b, t, heads, hd).transpose(1, 2), cos, sin)
            k = rotate(self.k_proj(x).view(b, t, kv, hd).transpose(1, 2), cos, sin)
            v = self.v_proj(x).view(b, t, kv, hd).transpose(1, 2)
            k, v = (y.repeat_interleave(heads // kv, 1) for y in (k, v))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.o_proj(a.transpose(1, 2).reshape(b, t, heads * hd))

    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj = nn.Linear(d, f, bias=False)
            self.up_proj = nn.Linear(d, f, bias=False)
            self.down_proj = nn.Linear(f, d, bias=False)

        def forward(self, x):
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.input_layernorm, self.post_attention_layernorm = Norm(), Norm()
            self.self_attn, self.mlp = Attention(), MLP()

        def forward(self, x, cos, sin):
            x = x + self.self_attn(self.input_layernorm(x), cos, sin)
            return x + self.mlp(self.post_attention_layernorm(x))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed_tokens = nn.Embedding(c["vocab_size"], d)
            self.layers = nn.ModuleList(Layer() for _ in range(c["num_hidden_layers"]))
            self.norm = Norm()
            self.lm_head = nn.Linear(d, c["vocab_size"], bias=False)
            for name, p in self.named_parameters():
                if p.dim() == 2:
                    deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                    nn.init.normal_(p, std=0.02 if "embed" in name else d**-0.5 / (math.sqrt(2 * len(self.layers)) if deep else 1))
            inv = c["rope_theta"] ** (-torch.arange(0, hd, 2).float() / hd)
            angle = torch.outer(torch.arange(c["max_position_embeddings"]).float(), inv).repeat(1, 2)
            self.register_buffer("cos", angle.cos(), persistent=False)
            self.register_buffer("sin", angle.sin(), persistent=False)

        def forward(self, ids):
            t = ids.shape[1]
            x = self.embed_tokens(ids)
            for layer in self.layers:
                x = layer(x, self.cos[:t], self.sin[:t])
            return self.lm_head(self.norm(x))

    return Model()


def hf_name(name):
    return name if name.startswith("lm_head") else "model." + name


def bits_per_byte(model, ids, length=256):
    import torch
    import torch.nn.functional as F

    n = len(ids) // length
    x = torch.from_numpy(ids[: n * length].astype(np.int64)).view(n, length)
    total = 0.0
    with torch.no_grad():
        for i in range(0, n, 16):
            logits = model(x[i : i + 16])
            total += F.cross_entropy(logits[:, :-1].reshape(-1, 256), x[i : i + 16, 1:].reshape(-1), reduction="sum").item()
    return total / (n * (length - 1)) / math.log(2)


def unigram_bits(train, ids):
    p = (np.bincount(train, minlength=256) + 0.5) / (len(train) + 128)
    return float(-np.log2(p)[ids].mean())


def train(model, data, steps, batch=16, length=256, rate=4e-3):
    import torch
    import torch.nn.functional as F

    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    opt = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=rate, betas=(0.9, 0.97), fused=True)
    rng = random.Random(TORCH_SEED)
    ids = torch.from_numpy(data.astype(np.int64))
    start, mean = time.time(), None
    for step in range(steps):
        warm, left = min(1.0, (step + 1) / 60), (steps - step) / steps
        for g in opt.param_groups:
            g["lr"] = rate * warm * min(1.0, left / 0.6)          # flat, then linear down to zero
        at = [rng.randrange(len(ids) - length - 1) for _ in range(batch)]
        x = torch.stack([ids[a : a + length + 1] for a in at])
        loss = F.cross_entropy(model(x[:, :-1]).reshape(-1, 256), x[:, 1:].reshape(-1))
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        value = loss.item() / math.log(2)
        mean = value if mean is None else 0.95 * mean + 0.05 * value
        if (step + 1) % 100 == 0 or step == 0:
            print(f"step {step + 1:5d}/{steps}  train {mean:.4f} bits/byte  {time.time() - start:.0f} s", flush=True)
    return mean


# ---------------------------------------------------------------- files


def save(model):
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    state = {hf_name(k): v.detach().to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    save_file(state, HERE / "model.safetensors", metadata={"format": "pt"})
    (HERE / "model.safetensors").chmod(0o644)

    # Byte-level BPE without merges: id = byte. The printable stand-ins for bytes are the ones the ByteLevel step uses.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    stand_in, extra = {}, 256
    for b in range(256):
        if b in printable:
            stand_in[b] = chr(b)
        else:
            stand_in[b] = chr(extra)
            extra += 1
    tok = Tokenizer(BPE(vocab={stand_in[b]: b for b in range(256)}, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.decoder = decoders.ByteLevel()
    tok.save(str(HERE / "tokenizer.json"))

    def write(name, value):
        (HERE / name).write_text(json.dumps(value, indent=2) + "\n")

    write("config.json", CONFIG)
    write("generation_config.json", {"do_sample": False, "max_new_tokens": 128, "transformers_version": "4.46.0"})
    write("tokenizer_config.json", {"add_prefix_space": False, "clean_up_tokenization_spaces": False, "model_max_length": 512, "tokenizer_class": "PreTrainedTokenizerFast"})


def load():
    import torch
    from safetensors.torch import load_file

    model = build()
    state = load_file(HERE / "model.safetensors")
    model.load_state_dict({k: state[hf_name(k)].to(torch.float32) for k in model.state_dict()})
    return model.eval()


def round_to_nearest(w, bits, group=64):
    """Asymmetric min-max rounding, a scale per `group` inputs; what any method has to beat."""
    import torch

    g = w.view(w.shape[0], -1, group)
    lo, hi = g.amin(-1, keepdim=True).clamp(max=0), g.amax(-1, keepdim=True).clamp(min=0)
    scale = (hi - lo).clamp(min=1e-12) / (2**bits - 1)
    zero = torch.round(-lo / scale)
    return (scale * (torch.clamp(torch.round(g / scale) + zero, 0, 2**bits - 1) - zero)).view_as(w)


def check():
    import torch

    held = np.load(HERE / "heldout.npy")
    base = bits_per_byte(load(), held)
    print(f"held-out  {base:.4f} bits/byte as stored (bf16)")
    for bits in (4, 3, 2):
        model = load()
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("_proj.weight"):
                    p.copy_(round_to_nearest(p, bits))
        rounded = bits_per_byte(model, held)
        print(f"held-out  {rounded:.4f} bits/byte with all linears rounded to {bits} bits, group 64 (+{rounded - base:.4f})")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--text", type=int, metavar="N", help="print N bytes of training text and stop")
    ap.add_argument("--check", action="store_true", help="judge the stored checkpoint and stop")
    ap.add_argument("--steps", type=int, default=1500, help="training steps of 16 x 256 bytes (default 1500)")
    args = ap.parse_args()
    if args.text:
        print(Writer(TRAIN_SEED).text(args.text).decode())
        return

    import torch

    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(TORCH_SEED)
    if args.check:
        check()
        return

    data, calib, held = tokens(TRAIN_SEED, TRAIN_BYTES), tokens(CALIB_SEED, CALIB_TOKENS), tokens(HELDOUT_SEED, HELDOUT_TOKENS)
    print(f"text: {len(data)} bytes to train on, {len(calib)} to calibrate, {len(held)} held out; unigram {unigram_bits(data, held):.4f} bits/byte")
    model = build()
    print(f"model: {sum(p.numel() for p in model.parameters())} parameters")
    train_bits = train(model, data, args.steps)
    save(model)
    np.save(HERE / "calib.npy", calib.astype(np.uint16))
    np.save(HERE / "heldout.npy", held.astype(np.uint16))
    print(f"train     {train_bits:.4f} bits/byte (running mean)")
    check()


if __name__ == "__main__":
    main()
