"""Quantizes a model with GPTQModel on the CPU, with its own defaults but bits, group and tokens, and tells the seconds from loading to the saved folder
(its imports and the compiling of its packing are not counted).

    gptqmodel_peer.py MODEL TOKENS.npy OUT [--bits 4] [--group 64] [--windows 16] [--length 2048] [--threads 2]
    gptqmodel_peer.py MODEL TOKENS.npy OUT --eora RANK      then its EoRA adapter for the folder OUT, into OUT/eora

The windows are those that `sampling: random, seed: 0` of a job takes.
"""
import os

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it asks for two, and on two cores starts a pool of one, by its own defaults (7.6.0)

import argparse
import random
import time

import numpy as np
import torch
from gptqmodel import GPTQModel, QuantizeConfig, extension
from gptqmodel.adapter.adapter import Lora


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("out")
    for name, value in (("bits", 4), ("group", 64), ("windows", 16), ("length", 2048), ("threads", 2), ("eora", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in "model", "tokens", "out":
        setattr(args, name, os.path.abspath(getattr(args, name)))
    os.makedirs(args.out, exist_ok=True)
    os.chdir(os.path.dirname(args.out))  # it leaves a folder of logs where it runs
    ids, rng = np.load(args.tokens), random.Random(0)
    starts = [rng.randint(0, len(ids) - args.length - 1) for _ in range(args.windows)]
    windows = [{"input_ids": ids[s:s + args.length].tolist(), "attention_mask": [1] * args.length} for s in starts]
    extension.load("pack_block_cpu")  # its packing is compiled at first use
    start = time.monotonic()
    if args.eora:
        GPTQModel.adapter.generate(adapter=Lora(rank=args.eora, path=os.path.join(args.out, "eora")), model_id_or_path=args.model,
                                   quantized_model_id_or_path=args.out, calibration_dataset=windows, calibration_dataset_concat_size=0)
    else:
        model = GPTQModel.load(args.model, QuantizeConfig(bits=args.bits, group_size=args.group), device="cpu")
        model.quantize(windows, batch_size=1)
        model.save(args.out)
    print(f"RAW gptqmodel_{'eora_' if args.eora else ''}seconds {time.monotonic() - start:.2f}", flush=True)
    os._exit(0)  # its worker threads have been seen not to end


main()
