"""prepare.py FOLDER PROGRAM: token files of jobs/prepare.py against what a few plain lines of Python make of the same text."""
import gzip, hashlib, json, os, random, subprocess, sys
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

folder, program = sys.argv[1:]
draw = random.Random(7)
at = lambda *parts: os.path.join(folder, *parts)

# Text with everything that joins badly: blank lines, lone line ends, digits, other scripts, a separator that is no line end to Python's files.
WORDS = "the of cat sat über naïve 模型 42 3.14 don't I'll  two   spaces tab\t = == @-@ <unk> e\u0301 \u2028 end".split(" ")


def paragraph(n):
    return " ".join(draw.choice(WORDS) for _ in range(n))


articles = ["".join(f" = Title {k} = \n\n" if j == 0 else f" {paragraph(draw.randint(5, 60))} \n{' ' * (j % 2)}\n" for j in range(draw.randint(2, 8))) for k in range(40)]
documents = [paragraph(draw.randint(3, 400)) + ("\n" if k % 3 else "") for k in range(120)]


def byte_level(bos):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(articles + documents, trainers.BpeTrainer(vocab_size=500, special_tokens=["<s>"], show_progress=False,
                                                                    initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", t.token_to_id("<s>"))])
    return t


tokenizers = {}
for bos in (False, True):
    tokenizers[bos] = byte_level(bos)
    tokenizers[bos].save(at(f"bos{int(bos)}.json"))
BOS = tokenizers[True].token_to_id("<s>")


def write(name, text):
    path = at(name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with (gzip.open if name.endswith(".gz") else open)(path, "wb") as f:
        f.write(text.encode())
    return path


def prepare(*args, bos=False, code=0, words=()):
    r = subprocess.run([sys.executable, program, "--tokenizer", at(f"bos{int(bos)}.json"), *args], capture_output=True, text=True, timeout=120)
    lines = r.stderr.splitlines()
    good = r.returncode == code and (code == 0 or len(lines) == 1 and all(w in lines[0] for w in words))
    assert good, (args, r.returncode, code, r.stderr)
    assert not [n for n in os.listdir(folder) if n.endswith(".tmp")], args
    return r.stdout


def made(name="a.npy"):
    a = np.load(at(name))
    assert a.ndim == 1 and a.dtype == np.int32
    return a.tolist()


def plain(tokenizer, text, special=False):
    return tokenizer.encode(text, add_special_tokens=special).ids


out = ["--out", at("a.npy")]
both = out + ["--heldout-out", at("b.npy")]
t = tokenizers[False]

# Text, JSON lines and folders, joined.
one, two = write("texts/b.txt", documents[0] + "\n" + documents[1]), write("texts/a/z.txt", documents[2])
lines = write("texts/c.jsonl", "".join(json.dumps({"text": d, "id": k}) + "\n\n" for k, d in enumerate(documents[3:9])))
write("texts/ignored.md", "not text of ours")
printed = prepare(*out, one, two)
assert made() == plain(t, documents[0] + "\n" + documents[1] + "\n\n" + documents[2])
assert hashlib.sha256(open(at("a.npy"), "rb").read()).hexdigest() in printed and f"{len(made())} tokens" in printed and len(printed.splitlines()) == 1
prepare(*out, at("texts"))
assert made() == plain(t, "\n\n".join([documents[2], documents[0] + "\n" + documents[1]] + documents[3:9]))
prepare(*out, "--bos", "<s>", "--separator", "\\n", "--limit", "50", lines, bos=True)
assert made() == ([BOS] + plain(t, "\n".join(documents[3:9])))[:50]
other = write("other.json.gz", "".join(json.dumps({"content": d}) + "\n" for d in documents[:20]))
prepare(*out, "--field", "content", other)
assert made() == plain(t, "\n\n".join(documents[:20]))
long_text = "".join("\n".join(articles) + d for d in documents[:30])  # longer than a piece
prepare(*out, write("long.txt", long_text))
assert len(long_text) > 2**19 and made() == plain(t, long_text)

# WikiText-2: rows as the data set has them, joined by an empty line, one BOS.
raw = "".join(articles)
rows = []
with open(write("wiki.train.raw", raw), encoding="utf-8") as f:
    for line in f:
        rows.append(line if line.strip() else "")
for bos in (False, True):
    prepare(*out, "--convention", "wikitext2", at("wiki.train.raw"), bos=bos)
    ids = plain(tokenizers[bos], "\n\n".join(rows), special=True)
    assert made() == ids and (ids[0] == BOS) == bos and ids.count(BOS) == bos
prepare(*out, "--convention", "wikitext2", write("wiki.jsonl", "".join(json.dumps({"text": r}) + "\n" for r in rows)), bos=True)
assert made() == ids
try:
    import pyarrow, pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), at("wiki.parquet"))
    prepare(*out, "--convention", "wikitext2", at("wiki.parquet"), bos=True)
    assert made() == ids
except ImportError:
    print("pyarrow is missing: parquet not tried")

# C4 as GPTQ's datautils draws it, but for documents of exactly the window's length, which make it raise.
shard = write("c4-train.00000-of-01024.json.gz", "".join(json.dumps({"text": d, "url": "x"}) + "\n" for d in documents))


def c4(tokenizer, seed, windows, length):
    random.seed(seed)
    ids = []
    for _ in range(windows):
        while True:
            i = random.randint(0, len(documents) - 1)
            found = plain(tokenizer, documents[i], special=True)
            if len(found) > length:
                break
        start = random.randint(0, len(found) - length - 1)
        ids += found[start : start + length]
    return ids


for bos, seed, windows, length in ((False, 0, 16, 100), (True, 5, 9, 64)):
    prepare(*out, "--convention", "c4", "--windows", str(windows), "--length", str(length), "--seed", str(seed), shard, bos=bos)
    assert made() == c4(tokenizers[bos], seed, windows, length)
prepare(*both, "--convention", "c4", "--windows", "16", "--length", "100", "--heldout-tokens", "250", shard)
assert made() == c4(t, 0, 16, 100) and len(made("b.npy")) == 300
owner = lambda w: {i for i, d in enumerate(documents) if str(w)[1:-1] in str(plain(t, d))}
parts = [{o for k in range(0, len(a), 100) for o in owner(a[k : k + 100])} for a in (made(), made("b.npy"))]
assert parts[0] and parts[1] and not parts[0] & parts[1], parts

# Held-out text: the last documents; a cut where there is one only; nothing that calibration has.
rest = write("rest.jsonl", "".join(json.dumps({"text": d}) + "\n" for d in documents))
prepare(*both, "--heldout-fraction", "0.25", rest)
cut = next(k for k in range(len(documents)) if made() == plain(t, "\n\n".join(documents[:k])))
assert made("b.npy") == plain(t, "\n\n".join(documents[cut:]))
share = sum(map(len, documents[cut:])) / sum(map(len, documents))
assert 0.22 < share < 0.28, share
assert "no overlap" in prepare(*both, "--heldout-tokens", "700", "--bos", "<s>", rest, bos=True)
found = made("b.npy")
cut = next(k for k in range(len(documents)) if made() == [BOS] + plain(t, "\n\n".join(documents[:k])))
assert found == ([BOS] + plain(t, "\n\n".join(documents[cut:])))[:701] and len(found) == 701
prepare(*both, "--heldout-tokens", "700", at("long.txt"))
assert made() + made("b.npy") == plain(t, long_text) and len(made("b.npy")) == 700
prepare(*both, write("twice.jsonl", "".join(json.dumps({"text": d}) + "\n" for d in documents[:30] + [documents[4], documents[31], documents[32], documents[4]])))
assert made("b.npy") == plain(t, "\n\n".join([documents[31], documents[32]])), len(made("b.npy"))

# Bad input: one line, the right code, and the file that was there stays.
before = made()
prepare(*out, at("none.txt"), code=3, words=("none.txt", "cannot read"))
prepare(*out, write("bad.txt", "x").replace("bad.txt", "texts/none"), code=3, words=("texts/none",))
open(at("latin.txt"), "wb").write(b"caf\xe9 au lait")
prepare(*out, at("latin.txt"), code=3, words=("latin.txt", "0xe9 at offset 3"))
prepare(*out, write("bad.jsonl", '{"text": "a"}\n{"content": "b"}\n'), code=3, words=("bad.jsonl:2", "text", "content"))
prepare(*out, write("bad2.jsonl", '{"text": "a"}\n{"text": \n'), code=3, words=("bad2.jsonl:2", "JSON"))
open(at("broken.json.gz"), "wb").write(open(shard, "rb").read()[:200])
prepare(*out, at("broken.json.gz"), code=3, words=("broken.json.gz",))
os.makedirs(at("nothing"))
prepare(*out, at("nothing"), code=3, words=("nothing", "*.txt"))
prepare(*out, write("empty.txt", ""), code=3, words=("empty.txt", "no tokens"))
prepare(*out, "--convention", "c4", "--length", "100000", shard, code=3, words=("longer than 100000",))
prepare(*both, "--heldout-tokens", "100000000", at("long.txt"), code=3, words=("held-out",))
prepare("--out", at("a.txt"), one, code=2, words=("--out", ".npy"))
prepare(*out, "--heldout-tokens", "5", one, code=2, words=("--heldout-out",))
prepare(*out, "--heldout-out", at("a.npy"), one, code=2, words=("another file",))
prepare(*both, "--heldout-fraction", "1.5", one, code=2, words=("--heldout-fraction", "1.5"))
prepare(*out, "--windows", "5", one, code=2, words=("--windows", "c4"))
prepare(*out, "--convention", "wikitext2", "--separator", " ", one, code=2, words=("--separator",))
prepare("--out", "/proc/none/a.npy", one, code=6, words=("cannot write",))
assert made() == before
print("token files equal the plain script's; splits do not overlap; bad input is refused")
