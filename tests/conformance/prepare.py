"""prepare.py PROJECT FOLDER: jobs/prepare.py, option by option, against plain encodings of whole texts; every error; nothing in both token files."""
import contextlib, gzip, importlib.util, io, json, os, random, subprocess, sys
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

project, folder = sys.argv[1:]
program = os.path.join(project, "jobs", "prepare.py")
os.chdir(folder)
spec = importlib.util.spec_from_file_location("prepare", program)
prepare = importlib.util.module_from_spec(spec)
spec.loader.exec_module(prepare)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def run(*options):
    """Code, standard output and standard error of prepare.py in this process, which has its libraries loaded already."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["prepare.py", *map(str, options)]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            prepare.main()
        except SystemExit as e:
            code = e.code or 0
    return code, out.getvalue(), err.getvalue()


def made(tokenizer, *options, heldout=False):
    """The ids of a run that must succeed: calibration, or both."""
    both = ["--heldout-out", "h.npy"] if heldout else []
    for name in "c.npy", "h.npy":
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)
    code, out, err = run("--tokenizer", tokenizer, "--out", "c.npy", *both, *options)
    assert code == 0, (options, err)
    ids = [np.load(n) for n in ["c.npy"] + ["h.npy"] * heldout]
    for name, a, line in zip(["c.npy", "h.npy"], ids, out.splitlines()):
        digest = subprocess.run(["sha256sum", name], capture_output=True, text=True).stdout.split()[0] if heldout else line[-64:]
        assert a.ndim == 1 and a.dtype == np.int32 and line == f"{name}: {len(a)} tokens, largest id {a.max()}, sha256 {digest}", line
    assert not [n for n in os.listdir() if n.endswith(".tmp")]
    return [a.tolist() for a in ids] if heldout else ids[0].tolist()


def refused(code, text, *options):
    before = {n: os.stat(n).st_mtime_ns for n in os.listdir() if n.endswith(".npy")}
    found, out, err = run(*options)
    assert (found, out) == (code, "") and text in err and err.startswith("prepare.py: ") and err.count("\n") == 1, (options, found, err)
    assert before == {n: os.stat(n).st_mtime_ns for n in os.listdir() if n.endswith((".npy", ".tmp"))}, options


def write(path, data):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    data = data if isinstance(data, bytes) else data.encode()
    with gzip.open(path, "wb") if path.endswith(".gz") else open(path, "wb") as f:
        f.write(data)
    return path


def json_lines(path, texts, field="text"):
    return write(path, "".join(json.dumps({field: t, "url": "x"}, ensure_ascii=n % 2 == 0) + "\n" + "\n" * (n % 3 == 0) for n, t in enumerate(texts)))


# --- texts and tokenizers ---

dice = random.Random(7)
WORDS = ["".join(dice.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(dice.randint(1, 9))) for _ in range(400)]
ODD = ["don't", "Ünïcode", "1234567", "42", "漢字", "🙂🙂", "e\u0301", "x=y+1;", "--", "«a»", "\u00a0", "ไทย"]


def sentence():
    return " ".join(dice.choice(ODD) if dice.random() < 0.06 else dice.choice(WORDS) for _ in range(dice.randint(3, 14)))


def prose(characters):
    parts, n = [], 0
    while n < characters:
        parts.append(sentence().capitalize() + dice.choice([". ", ".\n", "\n", ".\n\n", "\r\n", "\n    ", " \n\n\n ", ":\n\t- ", "\n\n\n\n", "  \n", ".\n "]))
        n += len(parts[-1])
    return "".join(parts)


def rows(count):
    """As WikiText's raw files have them: ' \\n' for empty ones, headings, paragraphs with a space at both ends."""
    return [dice.choice([" \n", " \n", f" = {sentence()} = \n", " " + " . ".join(sentence() for _ in range(8)) + " . \n"]) for _ in range(count)]


def template(tokenizer, single, *named):
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(n, tokenizer.token_to_id(n)) for n in named])


def byte_level(path, splitter, single=None):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = splitter, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    t.train_from_iterator([prose(30000)], trainer)
    if single:
        template(t, single, "<s>", *(["</s>"] if "</s>" in single else []))
    t.save(path)
    return path


def sentence_piece(path, newer):
    """As Llama 2's: spaces as a visible mark, the text one word, unknown characters as bytes; newer files write it as a Metaspace step."""
    t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=names, limit_alphabet=40, show_progress=False)
    t.train_from_iterator([sentence() for _ in range(300)], trainer)
    template(t, "<s> $A", "<s>")
    spec = json.loads(t.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    mark = {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    spec["normalizer"] = None if newer else {"type": "Sequence", "normalizers": mark}
    spec["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False} if newer else None
    write(path, json.dumps(spec))
    return path


TINY = os.path.join(project, "data", "tiny", "tokenizer.json")
GPT2 = byte_level("gpt2.json", pre_tokenizers.ByteLevel(add_prefix_space=False))
UNSPLIT_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
LLAMA = byte_level("llama3.json", pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), UNSPLIT_BYTES]), "<s> $A")
BOTH = byte_level("both.json", pre_tokenizers.ByteLevel(add_prefix_space=True), "<s> $A </s>")
UNSPLIT = byte_level("unsplit.json", UNSPLIT_BYTES)
LLAMA2, LLAMA2_NEW = sentence_piece("llama2.json", False), sentence_piece("llama2-new.json", True)
IN_PARTS, WHOLE = [TINY, GPT2, LLAMA, LLAMA2, LLAMA2_NEW], [BOTH, UNSPLIT]
library = {p: Tokenizer.from_file(p) for p in IN_PARTS + WHOLE}
hugging = {p: PreTrainedTokenizerFast(tokenizer_file=p) for p in (GPT2, LLAMA, LLAMA2, BOTH)}


def ids(tokenizer, text):
    return library[tokenizer].encode(text, add_special_tokens=False).ids


# --- plain text ---

def feeding_in_parts():
    """Long texts cut at many places are tokenized as if they were not."""
    text = prose(60000)
    wiki = "\n\n".join(r if r.strip() else "" for r in rows(400))
    size, prepare.Encoder.SIZE = prepare.Encoder.SIZE, 2000
    try:
        for tokenizer in IN_PARTS + WHOLE:
            encoder = prepare.Encoder(tokenizer)
            assert encoder.parts == (tokenizer in IN_PARTS), tokenizer
            for t, least in (text, 20), (wiki, 10), ("", 1), ("\n", 1), (" \n a", 1), ("a" * 9000, 1), ("a\nb" * 3000, 1):
                texts = [t[i : i + 700] for i in range(0, len(t), 700)]
                assert encoder.tokens(texts).tolist() == ids(tokenizer, t), (tokenizer, t[:50])
                assert encoder.tokens([t], limit=100).tolist() == ids(tokenizer, t)[:100]
                count = len(list(encoder.pieces(texts)))
                assert not encoder.parts or count >= least, (tokenizer, t[:50], len(t), count)
    finally:
        prepare.Encoder.SIZE = size


def plain_files():
    a, b = write("a.txt", prose(9000)), write("b.txt", b"\xef\xbb\xbf" + prose(5000).encode())
    ta, tb = open(a, newline="").read(), open(b, newline="", encoding="utf-8-sig").read()
    for t in IN_PARTS + WHOLE:
        assert made(t, a, b) == ids(t, ta + "\n\n" + tb)
    assert made(GPT2, "--separator", "\\n--\\n", "--bos", "</s>", "--limit", 500, b, a) == ([1] + ids(GPT2, tb + "\n--\n" + ta))[:500]
    assert made(GPT2, "--separator", "", a, a) == ids(GPT2, ta + ta)        # a file may be named twice
    piped = subprocess.run([sys.executable, program, "--tokenizer", GPT2, "--out", "new/piped.npy", "-"], input=ta.encode(), capture_output=True)
    assert piped.returncode == 0 and np.load("new/piped.npy").tolist() == ids(GPT2, ta), piped.stderr


def documents():
    texts = [prose(400) for _ in range(12)]
    join = "\n\n".join
    lines = json_lines("d.jsonl", texts[:4] + [""] + texts[4:])
    assert made(LLAMA, lines) == ids(LLAMA, join(texts))
    assert made(LLAMA, json_lines("d.json.gz", texts, "body"), "--field", "body") == ids(LLAMA, join(texts))
    for n, name in enumerate(["z.txt", "a/b.md", "a/c.text", "a/d.txt.gz", "a/.hidden.txt", ".git/x.txt", "a/picture.png"]):
        write("tree/" + name, texts[n])
    json_lines("tree/b/e.ndjson", texts[7:9])
    assert made(LLAMA, "tree") == ids(LLAMA, join([texts[1], texts[2], texts[3], texts[7], texts[8], texts[0]]))
    assert made(LLAMA, "tree/b", "tree/z.txt") == ids(LLAMA, join([texts[7], texts[8], texts[0]]))


# --- splits ---

def marked(number, words=60):
    """A document whose tokens tell which it is."""
    return f"begin{number} " + " ".join(f"n{number}" for _ in range(words)) + f" end{number}."


def split_by_documents():
    texts = [marked(n) for n in range(20)]
    join = "\n\n".join
    lines = json_lines("s.jsonl", texts)
    assert made(GPT2, lines, heldout=True) == made(GPT2, lines, "--heldout-fraction", 0.1, heldout=True)
    c, h = made(GPT2, lines, "--heldout-fraction", 0.2, heldout=True)
    count = next(k for k in range(1, 21) if sum(map(len, texts[-k:])) >= 0.2 * sum(map(len, texts)))
    assert (c, h) == (ids(GPT2, join(texts[:-count])), ids(GPT2, join(texts[-count:])))
    c, h = made(GPT2, lines, "--heldout-tokens", 300, "--bos", "<s>", "--limit", 100, heldout=True)
    kept = max(k for k in range(20) if len([0] + ids(GPT2, join(texts[k:]))) >= 300)
    assert h == ([0] + ids(GPT2, join(texts[kept:])))[:300] and c == ([0] + ids(GPT2, join(texts[:kept])))[:100]

    seen = set()
    for seed in range(6):
        c, h = made(GPT2, lines, "--heldout-fraction", 0.25, "--seed", seed, heldout=True)
        assert (c, h) == tuple(made(GPT2, lines, "--heldout-fraction", 0.25, "--seed", seed, heldout=True))
        inside = [[n for n, t in enumerate(texts) if f" end{n}." in text] for text in (library[GPT2].decode(c), library[GPT2].decode(h))]
        assert sorted(inside[0] + inside[1]) == list(range(20)) and (c, h) == tuple(ids(GPT2, join(texts[n] for n in part)) for part in inside)
        seen.add(tuple(inside[1]))
    assert len(seen) > 3

    twice = json_lines("t.jsonl", [texts[3], texts[0], texts[1], texts[2], texts[3]])
    c, h = made(GPT2, twice, "--heldout-fraction", 0.1, heldout=True)
    assert (c, h) == (ids(GPT2, join(texts[:3])), ids(GPT2, join([texts[3], texts[3]])))


def split_of_one_text():
    text = prose(20000)
    one = write("one.txt", text)
    all_ids = [0] + ids(LLAMA2, text)
    for options, count in (("--heldout-tokens", 777), 777), (("--heldout-fraction", 0.1), round(0.1 * len(all_ids))):
        c, h = made(LLAMA2, one, *options, "--bos", "<unk>", heldout=True)
        assert c + h == all_ids and len(h) == count
        c, h = made(LLAMA2, one, *options, "--bos", "<unk>", "--limit", 50, heldout=True)
        assert c == all_ids[:50] and h == all_ids[-count:]


def split_by_files():
    texts = [marked(n) for n in range(6)]
    a, b, both = json_lines("f1.jsonl", texts[:4]), json_lines("f2.jsonl", texts[4:]), json_lines("f3.jsonl", texts[2:5])
    c, h = made(GPT2, a, "--bos", "<s>", "--limit", 70, "--heldout", b, write("f.txt", marked(9)), heldout=True)
    assert c == ([0] + ids(GPT2, "\n\n".join(texts[:4])))[:70] and h == [0] + ids(GPT2, "\n\n".join(texts[4:] + [marked(9)]))
    code, _, err = run("--tokenizer", GPT2, "--out", "c.npy", "--heldout-out", "h.npy", a, "--heldout", both)
    assert code == 0 and "too: 2\n" in err and np.load("h.npy").tolist() == ids(GPT2, texts[4])


# --- conventions ---

def wikitext():
    raw = {"train": rows(300), "test": rows(80)}
    data = {k: [r if r.strip() else "" for r in v] for k, v in raw.items()}             # what load_dataset gives for the raw files
    files = {k: write(f"wiki.{k}.raw", "".join(v)) for k, v in raw.items()}
    lines = {k: json_lines(f"wiki.{k}.jsonl", v) for k, v in data.items()}
    if importlib.util.find_spec("pyarrow"):
        import pyarrow, pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.table({"text": data["train"]}), "train-00000-of-00001.parquet")
    for t, tokenizer in hugging.items():
        train, spaced, test = (tokenizer(j.join(data[k])).input_ids for j, k in (("\n\n", "train"), (" ", "train"), ("\n\n", "test")))
        for f in files, lines:
            assert made(t, "--convention", "wikitext2", f["train"], "--heldout", f["test"], heldout=True) == [train, test]
            assert made(t, "--convention", "sparsegpt", f["train"], "--heldout", f["test"], heldout=True) == [spaced, test]
        assert made(t, "--convention", "wikitext2", files["test"], "--limit", 99) == test[:99]
        c, h = made(t, "--convention", "wikitext2", files["train"], "--heldout-fraction", 0.25, heldout=True)
        assert c + h == train and len(h) == round(0.25 * len(train))
        if importlib.util.find_spec("pyarrow"):
            assert made(t, "--convention", "wikitext2", "train-00000-of-00001.parquet") == train


def c4():
    texts = [prose(dice.choice([40, 200, 900, 2500])) for _ in range(60)] + [""]
    shard = json_lines("c4-train.json.gz", texts)
    fresh = [prose(900) for _ in range(10)]
    other = json_lines("c4-validation.json", fresh)

    def reference(tokenizer, data, n, length, seed):
        random.seed(seed)
        loader = []
        for _ in range(n):
            while True:
                i = random.randint(0, len(data) - 1)
                enc = tokenizer(data[i]).input_ids
                if len(enc) > length:
                    break
            i = random.randint(0, len(enc) - length - 1)
            loader += enc[i : i + length]
        return loader

    def holds(whole, part):
        return any(whole[i : i + len(part)] == part for i in range(len(whole)) if whole[i] == part[0])

    for t, tokenizer in hugging.items():
        for n, length, seed in (8, 300, 0), (5, 64, 3):
            options = ["--convention", "c4", "--windows", n, "--length", length] + (["--seed", seed] if seed else [])
            assert made(t, *options, shard) == reference(tokenizer, texts, n, length, seed)
        c, h = made(t, *options, shard, "--heldout", other, heldout=True)
        assert (c, h) == (reference(tokenizer, texts, n, length, seed), reference(tokenizer, fresh, n, length, seed))
        for further, count in ((), 1), (("--heldout-fraction", 0.4), 2), (("--heldout-tokens", 65), 2):
            again, h = made(t, *options, *further, shard, heldout=True)
            homes = [{i for i, d in enumerate(texts) for k in range(0, len(a), 64) if holds(tokenizer(d).input_ids, a[k : k + 64])} for a in (c, h)]
            assert again == c and len(h) == 64 * count and all(homes) and not homes[0] & homes[1]
    out = run("--tokenizer", t, "--out", "c.npy", *options, shard)[1].splitlines()
    assert out[1] == "in the job file:  calibration: { tokens: c.npy, windows: 5, length: 64, sampling: sequential }"


# --- errors ---

def errors():
    t, o = ("--tokenizer", GPT2), ("--out", "e.npy")
    both = (*t, *o, "--heldout-out", "e2.npy")
    a, b = write("ea.txt", "Some text.\n"), write("eb.txt", "More text.\n")

    for text, options in {
        "required: text": (*t, *o), "required: --out": (*t, a), "required: --tokenizer": (*o, a), "unrecognized": (*t, *o, a, "--no-such"),
        "--out: expected a name ending in .npy": (*t, "--out", "x.bin", a),
        "--heldout-out: expected a name ending in .npy": (*t, *o, a, "--heldout-out", "x", "--heldout", b),
        "expected at least 1, found 0": (*t, *o, a, "--limit", 0), "invalid number value: 'x'": (*t, *o, a, "--limit", "x"),
        "expected a number between 0 and 1": (*both, a, "--heldout-fraction", 1), "invalid fraction": (*both, a, "--heldout-fraction", "x"),
        "invalid choice": (*t, *o, a, "--convention", "ptb"),
        "--heldout-fraction: expected --heldout-out": (*t, *o, a, "--heldout-fraction", 0.1),
        "--heldout-out: expected --heldout with --convention sparsegpt": (*both, a, "--convention", "sparsegpt"),
        "found --heldout-tokens, --heldout\n": (*both, a, "--heldout-tokens", 5, "--heldout", b),
        "--seed: goes with": (*t, *o, a, "--seed", 1), "--seed: chooses among documents": (*both, a, "--heldout-tokens", 1, "--seed", 1),
        "--windows: goes with --convention c4": (*t, *o, a, "--windows", 4), "--length: goes with": (*t, *o, a, "--length", 4),
        "--separator: does not go with --convention wikitext2": (*t, *o, a, "--convention", "wikitext2", "--separator", ""),
        "--bos: does not go with": (*t, *o, a, "--convention", "c4", "--bos", "<s>"),
        "--limit: does not go with --convention c4": (*t, *o, a, "--convention", "c4", "--limit", 4),
        "--heldout-fraction: does not go with --convention sparsegpt": (*both, a, "--convention", "sparsegpt", "--heldout-fraction", 0.5),
        "--heldout-tokens: does not go with": (*both, a, "--convention", "sparsegpt", "--heldout-tokens", 5),
        "--length: does not go with --convention wikitext2": (*t, *o, a, "--convention", "wikitext2", "--length", 5),
        "--seed: does not go with --convention wikitext2": (*both, a, "--convention", "wikitext2", "--seed", 5, "--heldout-tokens", 2),
        "e.npy: cannot be both the output and the held-out output": (*t, *o, "--heldout-out", "./e.npy", a, "--heldout", b),
        "c.npy: cannot be both text and the output": (*t, "--out", "c.npy", "c.npy"),
        "h.npy: cannot be both held-out text and the held-out output": (*t, *o, "--heldout-out", "h.npy", a, "--heldout", "h.npy"),
        "ea.txt: cannot be both text and held-out text": (*both, a, "--heldout", b, a),
        "gpt2.json: cannot be both text and the tokenizer": (*t, *o, GPT2), "standard input can be read only once": (*both, "-", "--heldout", "-"),
    }.items():
        refused(2, text, *options)

    write("bad.txt", b"abc\xff"), write("empty.txt", ""), write("bad.jsonl", b'{"text": "a"}\n{"text": "\xc3("}\n')
    write("cut.txt.gz", "text " * 500), write("fake.gz", "x"), write("empty/readme.rst", "x"), write("not.parquet", "PAR1")
    for path, data in ("cut.txt.gz", open("cut.txt.gz", "rb").read()[:-12]), ("fake.gz", b"not gzip"):
        with open(path, "wb") as f:
            f.write(data)
    for name, lines in {
        "nofield": '{"text": "a"}\n\n{"b": 1, "a": 2}\n', "nojson": '{"text": "a"\n', "list": "[1]\n", "number": '{"text": 5}\n', "half": '{"text": "\\ud800"}\n',
    }.items():
        write(name + ".jsonl", lines)
    one, same = json_lines("one.jsonl", ["just one"]), json_lines("same.jsonl", ["both", "both"])
    for text, options in {
        "none.txt: cannot read: No such file": (*t, *o, a, "none.txt"), "none.json: no such file": ("--tokenizer", "none.json", *o, a),
        "ea.txt: not a tokenizer.json": ("--tokenizer", a, *o, b), "no token named <x>": (*t, *o, a, "--bos", "<x>"),
        "bad.txt: expected UTF-8 text, found byte 0xff at offset 3": (*t, *o, "bad.txt"),
        "bad.jsonl:2: expected UTF-8 text, found byte 0xc3": (*t, *o, "bad.jsonl"),
        'nofield.jsonl:3: expected a field "text" (--field), found a, b': (*t, *o, "nofield.jsonl"),
        "nojson.jsonl:1: expected a JSON object": (*t, *o, "nojson.jsonl"), "list.jsonl:1: expected a JSON object": (*t, *o, "list.jsonl"),
        'number.jsonl:1: expected text in "text", found int': (*t, *o, "number.jsonl"), "half of a surrogate pair": (*t, *o, "half.jsonl"),
        "cut.txt.gz: cannot read": (*t, *o, "cut.txt.gz"), "fake.gz: cannot read": (*t, *o, "fake.gz"),
        "empty: expected files named": (*t, *o, "empty"), "empty.txt: no tokens": (*t, *o, "empty.txt", "--bos", "<s>"),
        "empty.txt: no tokens in the text": ("--tokenizer", LLAMA, *o, "--convention", "wikitext2", "empty.txt"),
        "eb.txt, empty.txt: expected documents that are not calibration text": (*both, write("copy.txt", open(b).read()), "--heldout", b, "empty.txt"),
        "expected text for 500 held-out tokens and for calibration": (*both, a, "--heldout-tokens", 500),
        "for 500 held-out tokens and for calibration, found 2 documents": (*both, a, b, "--heldout-tokens", 500),
        "found 2 documents (2 different": (*both, a, b, "--heldout-fraction", 0.9), "found 2 documents (1 different": (*both, same, "--heldout-fraction", 0.1),
        "found 0 tokens": (*both, "empty.txt", "--heldout-fraction", 0.5),
        "found none among 2 (drawn before: 1)": (*both, json_lines("few.jsonl", [prose(2500), "x"]), "--convention", "c4", "--length", 64),
        "expected a document of more than 2048 tokens, found none among 2": (*t, *o, same, "--convention", "c4"),
    }.items():
        refused(3, text, *options)
    if importlib.util.find_spec("pyarrow"):
        refused(3, "not.parquet: not a Parquet file", *t, *o, "not.parquet")
    else:
        refused(2, "pyarrow is missing", *t, *o, "not.parquet")

    os.makedirs("dir.npy", exist_ok=True)
    refused(6, "dir.npy: cannot write: is a folder", *t, "--out", "dir.npy", one)
    refused(6, "ea.txt/x.npy: cannot write", *t, *o, "--heldout-out", "ea.txt/x.npy", b, "--heldout", one)
    if os.path.exists("/dev/full"):
        os.symlink("/dev/full", "full.npy.tmp")
        code, _, err = run(*t, "--out", "full.npy", a)
        assert code == 6 and "full.npy: cannot write" in err and not os.path.exists("full.npy"), (code, err)


for test in feeding_in_parts, plain_files, documents, split_by_documents, split_of_one_text, split_by_files, wikitext, c4, errors:
    test()
    print(f"ok {test.__name__}")
