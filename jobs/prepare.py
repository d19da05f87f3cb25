#!/usr/bin/env python3
"""Text and a tokenizer.json into token files for cloqwork: .npy, one dimension, int32 (uint32 where ids need it).

    prepare.py --tokenizer MODEL/tokenizer.json --out calib.npy text1.txt text2.txt
    prepare.py --tokenizer MODEL/tokenizer.json --out calib.npy --heldout-out heldout.npy --heldout-fraction 0.1 texts/
    prepare.py --tokenizer MODEL/tokenizer.json --out calib.npy --heldout-out heldout.npy train.jsonl.gz --heldout test.jsonl.gz
    prepare.py --tokenizer MODEL/tokenizer.json --out calib.npy --heldout-out test.npy --convention wikitext2 wiki.train.raw --heldout wiki.test.raw
    prepare.py --tokenizer MODEL/tokenizer.json --out calib.npy --heldout-out heldout.npy --convention c4 c4-train.00000-of-01024.json.gz

A text file is a document; in JSON lines (.jsonl, .ndjson, .json) and .parquet every line or row is one, its text in --field. A folder stands for all
such files in it (.txt, .text, .md too), sorted by path. All but .parquet may be gzipped (.gz). Documents are joined by --separator and tokenized as
one long text, without special tokens unless --bos names one, which then stands once at the very start. Empty documents are passed over.

Held-out tokens measure what calibration did not see. --heldout-fraction and --heldout-tokens hold out whole documents, the last ones or those that
--seed draws (equal ones stay together); where there is but one document, the end of its tokens. --heldout names files of their own; a document
of theirs that is also calibration text is left out.

Conventions of the literature, for files that you have:
  wikitext2   a line of wiki.train.raw or wiki.test.raw (or a JSON line, or row of .parquet) is a row; rows are joined by an empty line and tokenized
              once, with the special tokens that the tokenizer itself adds
  sparsegpt   the same, but the calibration rows joined by a space (SparseGPT, Wanda)
  c4          draws documents of a C4 shard, as random.seed(seed) gives them, until one has more than --length tokens, and a window from it; the
              token file is --windows such windows, to be read with `sampling: sequential`. Held-out windows are further ones, from documents
              that gave none before. Documents are held in memory: about 1.5 GiB for a shard

Needs numpy and tokenizers. Exit codes: 0 done; 2 usage; 3 input; 6 cannot write.
"""
import argparse
import errno
import gzip
import hashlib
import itertools
import json
import os
import random
import re
import sys
import zlib

EXIT_USAGE, EXIT_INPUT, EXIT_IO = 2, 3, 6
JSON_LINES = (".jsonl", ".ndjson", ".json")
IN_FOLDERS = (".txt", ".text", ".md", ".parquet") + JSON_LINES

# What does not go with a convention (None: without one). sparsegpt has no one text to hold a part of.
MISFITS = {
    None: ("windows", "length"),
    "wikitext2": ("separator", "bos", "windows", "length", "seed"),
    "sparsegpt": ("separator", "bos", "windows", "length", "seed", "heldout_fraction", "heldout_tokens"),
    "c4": ("separator", "bos", "limit"),
}


def fail(code, message):
    print(f"prepare.py: {message}", file=sys.stderr)
    sys.exit(code)


# --- reading ---


def expand(paths):
    """The files that the arguments stand for."""
    files = []
    for path in paths:
        if not os.path.isdir(path):
            files.append(path)
            continue
        found = []
        for folder, below, names in os.walk(path, onerror=lambda e: fail(EXIT_INPUT, f"{e.filename}: cannot read: {e.strerror}")):
            below[:] = [d for d in below if not d.startswith(".")]
            found += [os.path.join(folder, n) for n in names if not n.startswith(".") and ending(n) in IN_FOLDERS]
        if not found:
            fail(EXIT_INPUT, f"{path}: expected files named *{', *'.join(IN_FOLDERS)} in this folder, found none")
        files += sorted(found)
    return files


def ending(path):
    path = path.lower()
    return os.path.splitext(path.removesuffix(".gz"))[1]


def open_bytes(path):
    if path == "-":
        return sys.stdin.buffer
    return gzip.open(path) if path.lower().endswith(".gz") else open(path, "rb")


def decode(data, where):
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        fail(EXIT_INPUT, f"{where}: expected UTF-8 text, found byte 0x{data[e.start]:02x} at offset {e.start}")


def checked(value, field, where):
    """A document out of JSON or Parquet: text that can be encoded."""
    if not isinstance(value, str):
        fail(EXIT_INPUT, f'{where}: expected text in "{field}", found {type(value).__name__}')
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        fail(EXIT_INPUT, f'{where}: expected text in "{field}", found half of a surrogate pair')
    return value


def json_lines(path, field):
    with open_bytes(path) as f:
        for number, line in enumerate(f, 1):
            where = f"{path}:{number}"
            line = decode(line, where)
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as e:
                fail(EXIT_INPUT, f"{where}: expected a JSON object on one line, found no JSON: {e}")
            if not isinstance(record, dict):
                fail(EXIT_INPUT, f"{where}: expected a JSON object on one line, found {type(record).__name__}")
            if field not in record:
                fail(EXIT_INPUT, f'{where}: expected a field "{field}" (--field), found {", ".join(sorted(record)) or "none"}')
            yield checked(record[field], field, where)


def parquet(path, field):
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        fail(EXIT_USAGE, f"{path}: Python package pyarrow is missing: pip install pyarrow, or give JSON lines")
    try:
        with ParquetFile(path) as f:
            if field not in f.schema_arrow.names:
                fail(EXIT_INPUT, f'{path}: expected a column "{field}" (--field), found {", ".join(f.schema_arrow.names)}')
            rows = (value for batch in f.iter_batches(columns=[field]) for value in batch.column(0).to_pylist())
            for number, value in enumerate(rows, 1):
                yield checked(value, field, f"{path}, row {number}")
    except pyarrow.ArrowException as e:
        fail(EXIT_INPUT, f"{path}: not a Parquet file: {str(e).splitlines()[0]}")


def documents(files, field, as_rows=False):
    """The texts of files; `as_rows`: the lines of a text file one by one, as the WikiText dataset has them."""
    for path in files:
        try:
            if ending(path) in JSON_LINES:
                yield from json_lines(path, field)
            elif ending(path) == ".parquet":
                yield from parquet(path, field)
            else:
                with open_bytes(path) as f:
                    text = decode(f.read(), path)
                yield from wikitext_rows(text) if as_rows else [text]
        except (OSError, EOFError, zlib.error) as e:
            fail(EXIT_INPUT, f"{path}: cannot read: {getattr(e, 'strerror', None) or e}")


def wikitext_rows(text):
    """Rows keep their line end; those of white space alone are empty, as in the published dataset."""
    for line in re.findall(r"[^\n]*\n|[^\n]+$", text.replace("\r\n", "\n").replace("\r", "\n")):
        yield line if line.strip() else ""


# --- tokenizing ---


class Encoder:
    """Long texts to ids in parts, so that millions of tokens do not stand in memory with all their offsets.

    A cut follows a line end, where no token of the whole text joins or looks across:
    - with the splitting rules of byte-level tokenizers, a single line end between a visible character and a letter, or any before a space and a letter;
    - with BPE over the unsplit text (Llama 2, Mistral) if no longer token contains a line end.
    Every part but the first is led by a line end whose tokens are dropped again, since some tokenizers mark the start of a text. Where neither
    rule holds, a text is encoded whole.
    """

    CUT = re.compile(r"(?<=\S)\n(?=[^\W\d_])|\n(?= [^\W\d_])")
    SIZE, CONTEXT, TRIALS, BATCH = 1 << 18, 64, 100, 8

    def __init__(self, path):
        from tokenizers import Tokenizer

        if not os.path.isfile(path):
            fail(EXIT_INPUT, f"{path}: no such file")
        try:
            self.tokenizer = Tokenizer.from_file(path)
        except Exception as e:
            fail(EXIT_INPUT, f"{path}: not a tokenizer.json: {str(e).splitlines()[0]}")
        self.path = path
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.parts = splits_safely(json.loads(self.tokenizer.to_str()))
        self.lead = self.plain("\n")

    def plain(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def with_special(self, text):
        return self.tokenizer.encode(text).ids

    def special(self):
        """The ids that the tokenizer puts before and after a text by itself."""
        bare, full = self.plain("a"), self.with_special("a")
        at = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
        return full[:at], full[at + len(bare) :]

    def named(self, token):
        found = self.tokenizer.token_to_id(token)
        if found is None:
            fail(EXIT_INPUT, f"{self.path}: --bos: no token named {token}")
        return found

    def tokens(self, texts, begin=(), end=(), limit=None):
        """The ids of the texts put together, as an array of uint32; with a limit, no more text is read than the first ids need."""
        import numpy as np

        found = [np.asarray(begin, dtype=np.uint32)]
        count = len(begin)
        for number, encoding in enumerate(self.encodings(self.pieces(texts) if self.parts else iter(["".join(texts)]))):
            found.append(np.asarray(encoding.ids[len(self.lead) if number else 0 :], dtype=np.uint32))
            count += len(found[-1])
            if limit is not None and count >= limit:
                break
        return np.concatenate(found + [np.asarray(end, dtype=np.uint32)])[:limit]

    def encodings(self, parts):
        while batch := list(itertools.islice(parts, self.BATCH)):
            yield from self.tokenizer.encode_batch(batch, add_special_tokens=False)

    def pieces(self, texts):
        """Parts of about SIZE characters, all but the first with the lead."""
        lead, held, length, enough = "", [], 0, self.SIZE
        for text in texts:
            held.append(text)
            length += len(text)
            if length <= enough:
                continue
            whole, at = "".join(held), 0
            while len(whole) - at > self.SIZE and (cut := self.cut(whole, at + self.SIZE)):
                yield lead + whole[at:cut]
                lead, at = "\n", cut
            held, length = [whole[at:]], len(whole) - at
            enough = max(self.SIZE, 2 * length)                           # where no cut is found, the text is not put together each time
        yield lead + "".join(held)

    def cut(self, text, start):
        """A safe cut from start on, or None; each is tried on its surroundings, in case a tokenizer's rules are unlike those known."""
        for match in itertools.islice(self.CUT.finditer(text, start), self.TRIALS):
            cut = match.end()
            left, right = text[cut - self.CONTEXT : cut], text[cut : cut + self.CONTEXT]
            if self.plain(left + right) == self.plain(left) + self.plain("\n" + right)[len(self.lead) :]:
                return cut
        return None


def splits_safely(spec):
    """Whether one of Encoder's two rules holds for a tokenizer.json."""
    splits, normalizers = steps(spec["pre_tokenizer"], "pretokenizers"), steps(spec["normalizer"], "normalizers")
    kinds, changes = {s["type"] for s in splits}, {n["type"] for n in normalizers}
    by_regex = any(s["type"] == "Split" or s.get("use_regex") for s in splits)
    prefixed = any(s.get("add_prefix_space") for s in splits)
    if "ByteLevel" in kinds and by_regex:
        return not prefixed and changes <= {"NFC"}
    if spec["model"]["type"] != "BPE" or not kinds <= {"ByteLevel", "Metaspace"} or not changes <= {"NFC", "Prepend", "Replace"}:
        return False
    return not any(len(token) > 1 and ("\n" in token or "Ċ" in token) for token in spec["model"]["vocab"])


def steps(part, name):
    """The single steps of a normalizer or pre-tokenizer, which may be nothing, one, or sequences of them."""
    if not part:
        return []
    return [s for p in part[name] for s in steps(p, name)] if part["type"] == "Sequence" else [part]


# --- splitting ---


def joined(texts, separator):
    for number, text in enumerate(texts):
        yield separator + text if number else text


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def too_few(args, found):
    wanted = f"{args.heldout_tokens} held-out tokens" if args.heldout_tokens else f"a held-out fraction of {args.heldout_fraction:g}"
    fail(EXIT_INPUT, f"{', '.join(args.text)}: expected text for {wanted} and for calibration, found {found}")


def cut_tokens(args, ids):
    """The end of one long text is held out."""
    count = args.heldout_tokens or max(1, round(len(ids) * args.heldout_fraction))
    if count >= len(ids):
        too_few(args, f"{len(ids)} tokens")
    return ids[:-count][: args.limit], ids[-count:]


def split_documents(args, texts, encode):
    """Whole documents, in their order: those that are calibration text, and the held-out ids. Equal documents are on one side."""
    groups = {}
    for number, text in enumerate(texts):
        groups.setdefault(digest(text), []).append(number)
    order = sorted(groups.values(), key=lambda group: -group[-1])
    if args.seed is not None:
        random.Random(args.seed).shuffle(order)
    held, size = set(), 0
    goal = args.heldout_tokens or args.heldout_fraction * sum(map(len, texts))
    for group in order:
        held.update(group)
        one = texts[group[0]]
        size += len(group) * (len(encode([one])) if args.heldout_tokens else len(one))
        if size < goal or len(held) == len(texts):
            continue
        ids = encode([texts[i] for i in sorted(held)], args.heldout_tokens)
        if not args.heldout_tokens or len(ids) == goal:
            return [t for i, t in enumerate(texts) if i not in held], ids
    too_few(args, f"{len(texts)} documents ({len(groups)} different ones) that cannot be shared out so")


# --- the three ways ---


def solid(ids, special, files):
    """The ids, if there are others than the special ones."""
    if len(ids) <= special:
        fail(EXIT_INPUT, f"{', '.join(files)}: no tokens in the text")
    return ids


def from_documents(args, encoder):
    """Calibration and held-out ids (or None) of documents joined by the separator."""
    separator = (args.separator if args.separator is not None else "\n\n").replace("\\n", "\n").replace("\\t", "\t")
    begin = [encoder.named(args.bos)] if args.bos is not None else []

    def encode(texts, limit=None):
        return encoder.tokens(joined(texts, separator), begin, limit=limit)

    texts = filter(None, documents(args.files, args.field))
    if args.heldout_fraction or args.heldout_tokens:
        texts = list(texts)
        if len(texts) > 1:
            texts, heldout = split_documents(args, texts, encode)
            return encode(texts, args.limit), heldout
        if args.seed is not None:
            fail(EXIT_USAGE, f"--seed: chooses among documents, found {len(texts)}")
        return cut_tokens(args, encode(texts))
    used, doubles = set(), []
    calibration = solid(encode((used.add(digest(t)) or t for t in texts), args.limit), len(begin), args.text)
    if not args.heldout:
        return calibration, None
    heldout = encode(t for t in documents(args.heldout_files, args.field) if t and (digest(t) not in used or doubles.append(t)))
    if doubles and len(heldout) <= len(begin):
        fail(EXIT_INPUT, f"{', '.join(args.heldout)}: expected documents that are not calibration text, too, found none")
    if doubles:
        print(f"prepare.py: {args.heldout_out}: documents left out since they are calibration text, too: {len(doubles)}", file=sys.stderr)
    return calibration, solid(heldout, len(begin), args.heldout)


def from_rows(args, encoder):
    """The same of WikiText's rows."""
    begin, end = encoder.special()

    def encode(files, separator, limit=None):
        ids = encoder.tokens(joined(documents(files, args.field, as_rows=True), separator), begin, end, limit)
        return solid(ids, len(begin) + len(end), files)

    separator = " " if args.convention == "sparsegpt" else "\n\n"
    if args.heldout_fraction or args.heldout_tokens:
        return cut_tokens(args, encode(args.files, separator))
    return encode(args.files, separator, args.limit), encode(args.heldout_files, "\n\n") if args.heldout else None


def from_windows(args, encoder):
    """The same of windows drawn from documents; held-out windows come from other files, or from documents that gave no window before."""
    texts, generator = list(documents(args.files, args.field)), random.Random(args.seed or 0)
    calibration, used = draw_windows(args, encoder, args.files, texts, generator, args.windows)
    if not args.heldout_out:
        return calibration, None
    if args.heldout:
        texts, generator, count = list(documents(args.heldout_files, args.field)), random.Random(args.seed or 0), args.windows
    elif args.heldout_tokens:
        count = -(-args.heldout_tokens // args.length)
    else:
        count = max(1, round(args.windows * args.heldout_fraction))
    return calibration, draw_windows(args, encoder, args.heldout_files or args.files, texts, generator, count, used)[0]


def draw_windows(args, encoder, files, texts, generator, count, used=frozenset()):
    """Ids of `count` windows, and the texts that they are from. Texts in `used` are passed over like those that are too short.

    The calls of the random generator are those of the literature: the document, until one is long enough, then the window's start.
    The reference takes documents of at least `length` tokens and then fails where one has exactly so many; here they need more.
    """
    import numpy as np

    passed, windows, drawn = {i for i, t in enumerate(texts) if t in used}, [], set()
    while len(windows) < count:
        if len(passed) == len(texts):
            found = f"found none among {len(texts)}" + (f" (drawn before: {len(used)})" if used else "")
            fail(EXIT_INPUT, f"{', '.join(files)}: expected a document of more than {args.length} tokens, {found}")
        number = generator.randint(0, len(texts) - 1)
        ids = [] if number in passed else encoder.with_special(texts[number])
        if len(ids) <= args.length:
            passed.add(number)
            continue
        drawn.add(texts[number])
        start = generator.randint(0, len(ids) - args.length - 1)
        windows.append(np.asarray(ids[start : start + args.length], dtype=np.uint32))
    return np.concatenate(windows), drawn


# --- arguments and output ---


class Parser(argparse.ArgumentParser):
    def error(self, message):
        fail(EXIT_USAGE, f"{message} (--help explains)")


def at_least(least):
    def number(text):
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected at least {least}, found {value}")
        return value

    return number


def fraction(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, found {text}")
    return value


def arguments():
    ap = Parser(prog="prepare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("text", nargs="+", help="text files in UTF-8, JSON lines, Parquet, folders; - is text on standard input")
    ap.add_argument("--tokenizer", required=True, metavar="FILE", help="tokenizer.json of the model")
    ap.add_argument("--out", required=True, metavar="FILE.npy", help="the token file to write")
    ap.add_argument("--heldout-out", metavar="FILE.npy", help="the token file of what is held out, by one of the next three options")
    ap.add_argument("--heldout-fraction", type=fraction, metavar="F", help="hold out at least this share of the text (default 0.1); with c4, of --windows")
    ap.add_argument("--heldout-tokens", type=at_least(1), metavar="N", help="hold out N tokens; with c4, windows of at least so many")
    ap.add_argument("--heldout", nargs="+", action="extend", metavar="FILE", help="files and folders of their own; name them after the others")
    ap.add_argument("--seed", type=int, metavar="S", help="draw the documents to hold out, instead of the last ones; with c4, draw the windows (default 0)")
    ap.add_argument("--field", default="text", metavar="NAME", help="where JSON lines and Parquet have the text (default: text)")
    ap.add_argument("--separator", metavar="TEXT", help="put between two documents (default: an empty line; \\n is understood)")
    ap.add_argument("--bos", metavar="TOKEN", help="a token to put once at the start, such as '<s>'")
    ap.add_argument("--limit", type=at_least(1), metavar="N", help="keep the first N tokens of the calibration text")
    ap.add_argument("--convention", choices=[c for c in MISFITS if c], help="as the literature does it: see above")
    ap.add_argument("--windows", type=at_least(1), metavar="N", help="c4: windows to draw (default 128)")
    ap.add_argument("--length", type=at_least(1), metavar="L", help="c4: tokens in each (default 2048)")
    args = ap.parse_args()
    check_options(args)
    args.files, args.heldout_files = expand(args.text), expand(args.heldout or [])
    check_files(args)
    args.windows, args.length = args.windows or 128, args.length or 2048
    return args


def option(name):
    return "--" + name.replace("_", "-")


def check_options(args):
    for name in MISFITS[args.convention]:
        if getattr(args, name) is not None:
            fail(EXIT_USAGE, f"{option(name)}: " + (f"does not go with --convention {args.convention}" if args.convention else "goes with --convention c4"))
    for name in "out", "heldout_out":
        path = getattr(args, name)
        if path is not None and not path.endswith(".npy"):
            fail(EXIT_USAGE, f"{option(name)}: expected a name ending in .npy, found {path}")
    ways = [w for w in ("heldout_fraction", "heldout_tokens", "heldout") if getattr(args, w) is not None]
    if len(ways) > 1:
        fail(EXIT_USAGE, f"expected one of --heldout-fraction, --heldout-tokens and --heldout, found {', '.join(map(option, ways))}")
    if ways and not args.heldout_out:
        fail(EXIT_USAGE, f"{option(ways[0])}: expected --heldout-out with it, found none")
    if args.heldout_out and not ways:
        if args.convention == "sparsegpt":
            fail(EXIT_USAGE, "--heldout-out: expected --heldout with --convention sparsegpt, found none")
        args.heldout_fraction, ways = 0.1, ["heldout_fraction"]
    if args.seed is not None and args.convention != "c4" and ways not in (["heldout_fraction"], ["heldout_tokens"]):
        fail(EXIT_USAGE, "--seed: goes with --heldout-fraction, --heldout-tokens and --convention c4")


def check_files(args):
    """No file has two roles."""
    if (args.files + args.heldout_files).count("-") > 1:
        fail(EXIT_USAGE, "-: standard input can be read only once")
    outputs = [("the output", [args.out]), ("the held-out output", [args.heldout_out] if args.heldout_out else [])]
    roles = {}
    for role, files in [("text", args.files), ("held-out text", args.heldout_files), ("the tokenizer", [args.tokenizer])] + outputs:
        for path in files:
            other = roles.setdefault(os.path.realpath(path), role)
            if other != role:
                fail(EXIT_USAGE, f"{path}: cannot be both {other} and {role}")


def write(path, ids):
    import numpy as np

    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "is a folder")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path + ".tmp", "wb") as f:
        np.save(f, ids.astype(np.int32) if ids.max() < 2**31 else ids)
        f.flush()
        os.fsync(f.fileno())


def save(results):
    """Every token file under a temporary name first: either all get their names or none."""
    try:
        for path, ids in results:
            write(path, ids)
        for path, _ in results:
            os.replace(path + ".tmp", path)
    except OSError as e:
        for temporary, _ in results:
            if os.path.isfile(temporary + ".tmp"):
                os.remove(temporary + ".tmp")
        fail(EXIT_IO, f"{path}: cannot write: {e.strerror or e}")
    for path, ids in results:
        with open(path, "rb") as f:
            print(f"{path}: {len(ids)} tokens, largest id {ids.max()}, sha256 {hashlib.file_digest(f, 'sha256').hexdigest()}")


def main():
    args = arguments()
    try:
        import numpy  # noqa: F401
        import tokenizers  # noqa: F401
    except ImportError as e:
        fail(EXIT_USAGE, f"Python package {e.name} is missing: pip install numpy tokenizers")
    make = {None: from_documents, "c4": from_windows}.get(args.convention, from_rows)
    calibration, heldout = make(args, Encoder(args.tokenizer))
    results = [(args.out, calibration)] + ([(args.heldout_out, heldout)] if args.heldout_out else [])
    save(results)
    if args.convention == "c4":
        for section, (path, ids) in zip(("calibration", "heldout"), results):
            print(f"in the job file:  {section}: {{ tokens: {path}, windows: {len(ids) // args.length}, length: {args.length}, sampling: sequential }}")


if __name__ == "__main__":
    main()
