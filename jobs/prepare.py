#!/usr/bin/env python3
"""Text and a tokenizer.json into a token file for cloqwork: .npy, one dimension, int32 (uint32 where ids need it).

    python jobs/prepare.py --tokenizer MODEL/tokenizer.json --out calib.npy text1.txt [text2.txt ...]

The files are joined in the order given and tokenized as one long text, without special tokens unless --bos names one, which then
stands once at the very start. Needs numpy and tokenizers.
"""
import argparse
import hashlib
import json
import os
import sys

EXIT_USAGE, EXIT_INPUT, EXIT_IO = 2, 3, 6


def fail(code, message):
    print(f"prepare.py: {message}", file=sys.stderr)
    sys.exit(code)


def read_text(path):
    try:
        data = sys.stdin.buffer.read() if path == "-" else open(path, "rb").read()
    except OSError as e:
        fail(EXIT_INPUT, f"{path}: cannot read: {e.strerror}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        fail(EXIT_INPUT, f"{path}: expected UTF-8 text, found byte 0x{data[e.start]:02x} at offset {e.start}")


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


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("text", nargs="+", help="text files, UTF-8; - is standard input")
    ap.add_argument("--tokenizer", required=True, metavar="FILE", help="tokenizer.json of the model")
    ap.add_argument("--out", required=True, metavar="FILE.npy", help="the token file to write")
    ap.add_argument("--separator", default="\n\n", metavar="TEXT", help="put between two files (default: an empty line; \\n is understood)")
    ap.add_argument("--bos", metavar="TOKEN", help="a token to put once at the start, such as '<s>'")
    ap.add_argument("--limit", type=int, metavar="N", help="keep the first N tokens")
    args = ap.parse_args()
    if not args.out.endswith(".npy"):
        fail(EXIT_USAGE, f"--out: expected a name ending in .npy, found {args.out}")
    if args.limit is not None and args.limit < 1:
        fail(EXIT_USAGE, f"--limit: expected at least 1, found {args.limit}")
    try:
        import numpy as np
        from tokenizers import Tokenizer
    except ImportError as e:
        fail(EXIT_USAGE, f"Python package {e.name} is missing: pip install numpy tokenizers")

    if not os.path.isfile(args.tokenizer):
        fail(EXIT_INPUT, f"{args.tokenizer}: no such file")
    try:
        tokenizer = Tokenizer.from_file(args.tokenizer)
    except Exception as e:
        fail(EXIT_INPUT, f"{args.tokenizer}: not a tokenizer.json: {e}")
    tokenizer.no_truncation()
    tokenizer.no_padding()

    ids = []
    if args.bos is not None:
        bos = tokenizer.token_to_id(args.bos)
        if bos is None:
            fail(EXIT_INPUT, f"{args.tokenizer}: --bos: no token named {args.bos}")
        ids.append(bos)
    separator = args.separator.replace("\\n", "\n").replace("\\t", "\t")
    text = separator.join(read_text(p) for p in args.text)
    for part in pieces(text, 1 << 18) if splits_safely(args.tokenizer) else [text]:
        ids.extend(tokenizer.encode(part, add_special_tokens=False).ids)
    if args.limit is not None:
        ids = ids[: args.limit]
    if not ids:
        fail(EXIT_INPUT, f"{', '.join(args.text)}: no tokens in the text")

    tokens = np.asarray(ids, dtype=np.int32 if max(ids) < 2**31 else np.uint32)
    temporary = args.out + ".tmp"
    try:
        os.makedirs(os.path.dirname(args.out) or ".", exist_ok=True)
        with open(temporary, "wb") as f:
            np.save(f, tokens)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, args.out)
    except OSError as e:
        fail(EXIT_IO, f"{args.out}: cannot write: {e.strerror}")
    digest = hashlib.sha256(open(args.out, "rb").read()).hexdigest()
    print(f"{args.out}: {len(tokens)} tokens, largest id {tokens.max()}, sha256 {digest}")


if __name__ == "__main__":
    main()
