#!/usr/bin/env python3
"""Text and a tokenizer.json into token files for cloqwork: .npy, one dimension, int32 (uint32 where ids need it).

    python jobs/prepare.py --tokenizer MODEL/tokenizer.json --out calib.npy INPUT...
    python jobs/prepare.py --tokenizer MODEL/tokenizer.json --out calib.npy --heldout-out heldout.npy --heldout-fraction 0.1 INPUT...

INPUT is a text file (a document), JSON lines (.jsonl, .json, also .gz: a document per line, its text in --field), .parquet (with pyarrow),
a folder (every *.txt and *.jsonl below it, sorted), or - for text on standard input. Documents are joined in the order given and tokenized
as one long text, without special tokens unless --bos names one, which then stands once at the very start.

Held-out tokens come from the last documents, whole ones where that gives about the size asked for, else from the end of the text; a
document that calibration has too is left out of them.

--convention wikitext2   the literature's WikiText-2: the lines of wiki.train.raw (or the rows of .parquet or .jsonl) joined by empty lines,
                         tokenized once, with the tokenizer's own BOS at the start
--convention c4          the literature's C4: --windows windows of --length tokens from documents of the given shards, drawn as
                         random.seed(--seed) does; one after the other in the file, so read them with `sampling: sequential`

Needs numpy and tokenizers."""
import argparse
import gzip
import hashlib
import json
import os
import random
import sys

EXIT_USAGE, EXIT_INPUT, EXIT_IO = 2, 3, 6


def fail(code, message):
    print(f"prepare.py: {message}", file=sys.stderr)
    sys.exit(code)


# ---- documents ----


def read_text(path):
    try:
        if path == "-":
            data = sys.stdin.buffer.read()
        else:
            with (gzip.open if path.endswith(".gz") else open)(path, "rb") as f:
                data = f.read()
    except (OSError, EOFError) as e:
        fail(EXIT_INPUT, f"{path}: cannot read: {getattr(e, 'strerror', None) or e}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        fail(EXIT_INPUT, f"{path}: expected UTF-8 text, found byte 0x{data[e.start]:02x} at offset {e.start}")


def read_json_lines(path, field):
    documents = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            fail(EXIT_INPUT, f"{path}:{number}: expected a JSON object per line: {e}")
        if not isinstance(row, dict) or not isinstance(row.get(field), str):
            found = f"keys {', '.join(row)}" if isinstance(row, dict) else type(row).__name__
            fail(EXIT_INPUT, f"{path}:{number}: expected an object with a text in {field} (--field names another), found {found}")
        documents.append(row[field])
        try:
            row[field].encode()
        except UnicodeEncodeError as e:
            fail(EXIT_INPUT, f"{path}:{number}: expected text in {field}, found half of a surrogate pair at character {e.start}")
    return documents


def read_parquet(path, field):
    try:
        import pyarrow.parquet
    except ImportError:
        fail(EXIT_USAGE, f"{path}: Python package pyarrow is missing: pip install pyarrow")
    try:
        rows = pyarrow.parquet.read_table(path, columns=[field]).column(field).to_pylist()
    except (OSError, KeyError, ValueError) as e:  # pyarrow's errors are among these
        fail(EXIT_INPUT, f"{path}: cannot read column {field}: {str(e).splitlines()[0]}")
    if not all(isinstance(r, str) for r in rows):
        fail(EXIT_INPUT, f"{path}: expected text in every row of {field}")
    return rows


def files_of(path):
    if not os.path.isdir(path):
        return [path]
    found = sorted(os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names if name.endswith((".txt", ".jsonl")))
    if not found:
        fail(EXIT_INPUT, f"{path}: expected *.txt or *.jsonl in the folder, found none")
    return found


def lines_as_rows(text):
    """The rows that the WikiText-2 data set makes of its raw file: lines with their end, blank ones empty."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    rows = [line + "\n" for line in lines[:-1]] + lines[-1:]
    return [row if row.strip() else "" for row in (rows if rows[-1] else rows[:-1])]


def read_documents(paths, field, lines):
    """lines: the rows of a text file are its lines, not the whole of it."""
    documents = []
    for path in (f for p in paths for f in files_of(p)):
        name = path.removesuffix(".gz")
        if name.endswith((".jsonl", ".json")):
            documents += read_json_lines(path, field)
        elif name.endswith(".parquet"):
            documents += read_parquet(path, field)
        else:
            documents += lines_as_rows(read_text(path)) if lines else [read_text(path)]
    return documents


# ---- tokens ----


def pieces(text, size):
    """Cuts the text into parts of about `size` characters, so that millions of tokens do not stand in memory with all their offsets.

    A cut lies after a single line end between a visible character and a letter: there no byte-level pre-tokenizer joins or
    looks across, so that the tokens are those of the whole text.
    """
    at = 0
    while len(text) - at > size:
        cut = text.find("\n", at + size)
        while 0 <= cut < len(text) - 1 and (text[cut - 1].isspace() or not text[cut + 1].isalpha()):
            cut = text.find("\n", cut + 1)
        if cut < 0 or cut >= len(text) - 1:
            break
        yield text[at : cut + 1]
        at = cut + 1
    yield text[at:]


def splits_safely(path):
    """Byte-level tokenizers can be fed in parts; others mark the start of a text."""
    with open(path, encoding="utf-8") as f:
        spec = json.load(f)
    steps = json.dumps(spec.get("pre_tokenizer"))
    return '"ByteLevel"' in steps and '"add_prefix_space": true' not in steps and (spec.get("normalizer") or {"type": "NFC"})["type"] == "NFC"


class Text:
    """Documents as one long text, in tokens."""

    def __init__(self, tokenizer, separator, start, in_parts):
        self.tokenizer, self.separator, self.start, self.in_parts = tokenizer, separator, start, in_parts

    def ids(self, documents):
        text, ids = self.separator.join(documents), list(self.start)
        for part in pieces(text, 1 << 18) if self.in_parts else [text]:
            ids.extend(self.tokenizer.encode(part, add_special_tokens=False).ids)
        return ids


def own_start(tokenizer):
    """What the tokenizer's post-processor puts before a text: BOS, or nothing."""
    found = tokenizer.encode("a", add_special_tokens=True)
    return found.ids[: found.special_tokens_mask.index(0)] if 0 in found.special_tokens_mask else []


def first_heldout(text, documents, fraction, count):
    """Index of the first held-out document, so that those from there on have about `fraction` of the characters, or `count` tokens; None
    where whole documents do not give that."""
    at, size = len(documents), 0
    if count is not None:
        while at > 1 and size < count:
            at -= 1
            size += len(text.tokenizer.encode(documents[at], add_special_tokens=False).ids)
        return at if size >= count else None
    wanted = fraction * sum(map(len, documents))
    while at > 1 and size + len(documents[at - 1]) / 2 < wanted:
        at -= 1
        size += len(documents[at])
    return at if wanted / 2 <= size <= 2 * wanted else None


def split(text, documents, fraction, count):
    """(calibration, held-out, how they were parted)"""
    at = first_heldout(text, documents, fraction, count)
    if at is None:
        ids = text.ids(documents)
        own = len(ids) - len(text.start)
        heldout = count if count is not None else max(1, round(fraction * own))
        if heldout >= own:
            fail(EXIT_INPUT, f"held-out tokens: expected fewer than the text's {own}, found {heldout}")
        return ids[:-heldout], text.start + ids[-heldout:], f"cut at token {len(ids) - heldout} of one text"
    known = set(documents[:at])
    kept = [d for d in documents[at:] if d not in known]
    if not any(d.strip() for d in kept):
        fail(EXIT_INPUT, "held-out documents: every one of them is among those for calibration too")
    assert not known & set(kept)
    twice = len(documents) - at - len(kept)
    ids = text.ids(kept)
    if count is not None:
        ids = ids[: len(text.start) + count]
    return text.ids(documents[:at]), ids, f"documents 1 to {at} and {at + 1} to {len(documents)}" + (f" less {twice} that are in both" if twice else "")


def c4_windows(tokenizer, documents, draw, windows, length, used):
    """The C4 sampler of the GPTQ literature; documents in `used`, which grows, are passed over. (ids, documents drawn)"""
    ids, short, drawn = [], set(used), set()
    for _ in range(windows):
        while True:
            if len(short) == len(documents):
                fail(EXIT_INPUT, f"documents: expected some longer than {length} tokens, found none among {len(documents)}" + (" unused ones" if used else ""))
            i = draw.randint(0, len(documents) - 1)
            if i in short:
                continue
            found = tokenizer.encode(documents[i], add_special_tokens=True).ids
            if len(found) > length:
                break
            short.add(i)
        drawn.add(i)
        at = draw.randint(0, len(found) - length - 1)
        ids += found[at : at + length]
    return ids, drawn


def draw_c4(tokenizer, documents, args):
    draw = random.Random(args.seed)
    calibration, drawn = c4_windows(tokenizer, documents, draw, args.windows, args.length, set())
    if not args.heldout_out:
        return calibration, None, f"{args.windows} windows"
    texts = {documents[i] for i in drawn}
    used = {i for i, d in enumerate(documents) if d in texts}
    count = max(1, round(args.windows * args.heldout_fraction) if args.heldout_fraction else -(-args.heldout_tokens // args.length))
    heldout, more = c4_windows(tokenizer, documents, draw, count, args.length, used)
    assert not used & more
    return calibration, heldout, f"{args.windows} windows from {len(drawn)} documents, {count} from {len(more)} others"


# ---- the program ----


def write(path, ids, np):
    """Whole or not at all; returns a line about it."""
    tokens = np.asarray(ids, dtype=np.int32 if max(ids) < 2**31 else np.uint32)
    temporary = path + ".tmp"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(temporary, "wb") as f:
            np.save(f, tokens)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        if os.path.exists(temporary):
            os.unlink(temporary)
        fail(EXIT_IO, f"{path}: cannot write: {e.strerror}")
    with open(path, "rb") as f:
        digest = hashlib.sha256(f.read()).hexdigest()
    return f"{path}: {len(tokens)} tokens, largest id {tokens.max()}, sha256 {digest}"


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("text", nargs="+", metavar="INPUT", help="text, JSON lines, parquet or folders; - is standard input")
    ap.add_argument("--tokenizer", required=True, metavar="FILE", help="tokenizer.json of the model")
    ap.add_argument("--out", required=True, metavar="FILE.npy", help="the token file to write")
    ap.add_argument("--heldout-out", metavar="FILE.npy", help="a second one, of other text")
    ap.add_argument("--heldout-fraction", type=float, metavar="F", help="its share (default 0.1)")
    ap.add_argument("--heldout-tokens", type=int, metavar="N", help="or its tokens")
    ap.add_argument("--field", default="text", metavar="NAME", help="where JSON lines and parquet hold the text (default: text)")
    ap.add_argument("--separator", metavar="TEXT", help="put between two documents (default: an empty line; \\n is understood)")
    ap.add_argument("--bos", metavar="TOKEN", help="a token to put once at the start, such as '<s>'")
    ap.add_argument("--limit", type=int, metavar="N", help="keep the first N tokens for calibration")
    ap.add_argument("--convention", choices=["wikitext2", "c4"], help="as the literature does with these data sets")
    ap.add_argument("--windows", type=int, metavar="N", help="c4: how many (default 128)")
    ap.add_argument("--length", type=int, metavar="N", help="c4: tokens of a window (default 2048)")
    ap.add_argument("--seed", type=int, metavar="N", help="c4: of the draws (default 0)")
    args = ap.parse_args()
    for name in ("out", "heldout_out"):
        if getattr(args, name) is not None and not getattr(args, name).endswith(".npy"):
            fail(EXIT_USAGE, f"--{name.replace('_', '-')}: expected a name ending in .npy, found {getattr(args, name)}")
    for name in ("limit", "heldout_tokens", "windows", "length"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            fail(EXIT_USAGE, f"--{name.replace('_', '-')}: expected at least 1, found {getattr(args, name)}")
    if args.heldout_fraction is not None and not 0 < args.heldout_fraction < 1:
        fail(EXIT_USAGE, f"--heldout-fraction: expected a number between 0 and 1, found {args.heldout_fraction}")
    if args.heldout_fraction is not None and args.heldout_tokens is not None:
        fail(EXIT_USAGE, "--heldout-tokens: expected it or --heldout-fraction, found both")
    if not args.heldout_out and (args.heldout_fraction is not None or args.heldout_tokens is not None):
        fail(EXIT_USAGE, "--heldout-out: expected a file for the held-out tokens, found none")
    if args.heldout_out and os.path.realpath(args.heldout_out) == os.path.realpath(args.out):
        fail(EXIT_USAGE, f"--heldout-out: expected another file than --out, found {args.heldout_out}")
    if args.heldout_out and args.heldout_tokens is None and args.heldout_fraction is None:
        args.heldout_fraction = 0.1
    if args.convention != "c4":
        for name in ("windows", "length", "seed"):
            if getattr(args, name) is not None:
                fail(EXIT_USAGE, f"--{name}: expected with --convention c4 only (the job file has windows, length and seed)")
    else:
        args.windows, args.length, args.seed = args.windows or 128, args.length or 2048, args.seed or 0
    for name in ("separator",) + (("bos", "limit") if args.convention == "c4" else ()):
        if args.convention and getattr(args, name) is not None:
            fail(EXIT_USAGE, f"--{name}: --convention {args.convention} says that itself")
    return args


def load_tokenizer(path):
    from tokenizers import Tokenizer

    if not os.path.isfile(path):
        fail(EXIT_INPUT, f"{path}: no such file")
    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as e:
        fail(EXIT_INPUT, f"{path}: not a tokenizer.json: {e}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def main():
    args = arguments()
    try:
        import numpy as np
        import tokenizers  # noqa: F401
    except ImportError as e:
        fail(EXIT_USAGE, f"Python package {e.name} is missing: pip install numpy tokenizers")
    tokenizer = load_tokenizer(args.tokenizer)
    start = own_start(tokenizer) if args.convention == "wikitext2" else []
    if args.bos is not None:
        start = [tokenizer.token_to_id(args.bos)]
        if start[0] is None:
            fail(EXIT_INPUT, f"{args.tokenizer}: --bos: no token named {args.bos}")
    separator = "\n\n" if args.separator is None else args.separator.replace("\\n", "\n").replace("\\t", "\t")

    documents = read_documents(args.text, args.field, args.convention == "wikitext2")
    heldout, how = None, None
    if not any(documents):
        fail(EXIT_INPUT, f"{', '.join(args.text)}: no tokens in the text")
    if args.convention == "c4":
        calibration, heldout, how = draw_c4(tokenizer, documents, args)
    else:
        text = Text(tokenizer, separator, start, splits_safely(args.tokenizer))
        if args.heldout_out:
            calibration, heldout, how = split(text, documents, args.heldout_fraction, args.heldout_tokens)
        else:
            calibration = text.ids(documents)
    if args.limit is not None:
        calibration = calibration[: args.limit]
    if len(calibration) == 0:
        fail(EXIT_INPUT, f"{', '.join(args.text)}: no tokens in the text")

    lines = [write(args.heldout_out, heldout, np)] if heldout is not None else []
    print(write(args.out, calibration, np))
    for line in lines + ([f"no overlap: {how}"] if heldout is not None else []):
        print(line)


if __name__ == "__main__":
    main()
