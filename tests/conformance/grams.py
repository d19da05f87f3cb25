"""grams.py FOLDER [again]: Grams of FOLDER/run, as the container, numpy and safetensors have them; then those that numpy made, once more."""
import json
import sys

import h5py
import numpy as np
from safetensors.numpy import load_file, save_file

from decode import full_gram

folder = sys.argv[1]
INPUTS = ("attn_in", "attn_out", "mlp_in", "mlp_out")
LAYERS = 6


def made(layer, name, n):
    """A Gram of numpy's own, in double."""
    x = np.random.default_rng(layer * 10 + INPUTS.index(name)).standard_normal((1024, n))
    return x.T @ x


def check_written():
    for where, run in (("", "grams"), ("heldout/", "heldout")):
        for layer in range(LAYERS):
            tensors = load_file(f"{folder}/safetensors/{where}layer-{layer:03}.safetensors")
            assert len(tensors) == 12, sorted(tensors)
            with h5py.File(f"{folder}/run/{run}/layer-{layer:03}.h5") as f:
                for name in INPUTS:
                    h = np.load(f"{folder}/npy/{where}layer-{layer:03}.{name}.npy")
                    assert h.dtype == np.float32 and h.flags.c_contiguous and (h == h.T).all()
                    assert (h == full_gram(f[name])).all() and (tensors[name] == h).all(), (layer, name)
                    for which in ("mean_abs", "max_mean_abs"):
                        v = np.load(f"{folder}/npy/{where}layer-{layer:03}.{name}.{which}.npy")
                        assert v.dtype == np.float64 and (v == f[name][which][...]).all() and (tensors[f"{name}.{which}"] == v).all()
                    assert (f[name]["mean_abs"][...] <= f[name]["max_mean_abs"][...]).all()
                side = json.load(open(f"{folder}/npy/{where}grams.json"))
                assert side["tokens"] == f["attn_in"].attrs["tokens"] == (512 if where else 1024)
                assert side["tokens_fingerprint"] == f.attrs["tokens_fingerprint"] and side["model_fingerprint"] == f.attrs["model_fingerprint"]
                assert side["inputs"]["mlp_out"] == 384 and side["layers"] == list(range(LAYERS))


def make_own():
    import os

    for kind in ("npy", "safetensors"):
        os.mkdir(f"{folder}/own-{kind}")
    for layer in range(LAYERS):
        all_of = {name: made(layer, name, 384 if name == "mlp_out" else 128) for name in INPUTS}
        for name, h in all_of.items():
            np.save(f"{folder}/own-npy/layer-{layer:03}.{name}.npy", np.asfortranarray(h))
        save_file(all_of, f"{folder}/own-safetensors/layer-{layer:03}.safetensors")


def check_again():
    for kind in ("npy", "safetensors"):
        for layer in range(LAYERS):
            for name in INPUTS:
                h = made(layer, name, 384 if name == "mlp_out" else 128)
                again = np.load(f"{folder}/own-{kind}-again/layer-{layer:03}.{name}.npy")
                assert (again == (0.5 * (h + h.T)).astype(np.float32)).all(), (kind, layer, name)


if sys.argv[2:] == ["again"]:
    check_again()
else:
    check_written()
    make_own()
