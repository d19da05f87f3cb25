"""nf4.py RUN MODEL: every NF4 linear of a run, decoded by numpy from the definition of the format; with bitsandbytes, by the library too."""
import glob, json, os, struct, sys
import h5py, numpy as np

try:
    import torch, bitsandbytes.functional as bnb
except ImportError:
    bnb = None

run, model = sys.argv[1:]
f32 = np.float32
LEVELS = np.array([int(x, 16) for x in """bf800000 bf3239b1 bf066b30 beca32a0 be91a24d be3d353f bdba7871 00000000 3da2faff 3e24cae3
    3e7c04dd 3ead033a 3ee1a4b8 3f1007ab 3f3913b3 3f800000""".split()], "u4").view(f32)
LINEARS = {"self_attn.q_proj": "attn_in", "self_attn.k_proj": "attn_in", "self_attn.v_proj": "attn_in", "self_attn.o_proj": "attn_out",
           "mlp.gate_proj": "mlp_in", "mlp.up_proj": "mlp_in", "mlp.down_proj": "mlp_out"}


def tensors(folder):
    """name -> float32, of bfloat16 safetensors."""
    out = {}
    for path in glob.glob(os.path.join(folder, "*.safetensors")):
        raw = open(path, "rb").read()
        n = struct.unpack("<Q", raw[:8])[0]
        for name, t in json.loads(raw[8 : 8 + n]).items():
            if name == "__metadata__":
                continue
            assert t["dtype"] == "BF16"
            begin, end = t["data_offsets"]
            bits = np.frombuffer(raw[8 + n + begin : 8 + n + end], "<u2").astype("u4") << 16
            out[name] = bits.view(f32).reshape(t["shape"])
    return out


def to_bf16(x):
    u = np.ascontiguousarray(x, f32).view("u4").astype("u8")
    return ((u + 0x7FFF + (u >> 16 & 1) & 0xFFFF0000).astype("u4")).view(f32)


def dynamic_map():
    """The signed 8-bit map, its boundaries in float, each rounded once."""
    values = [0.0, 1.0]
    for e in range(7):
        cells = 2**e
        step = float((f32(1) - f32(0.1)) / f32(cells))
        edge = [f32(float(f32(0.1)) + step * k) if k < (cells + 1) // 2 else f32(1 - step * (cells - k)) for k in range(cells + 1)]
        for a, b in zip(edge, edge[1:]):
            v = f32(10.0 ** (e - 6)) * ((a + b) / f32(2))
            values += [v, -v]
    return np.sort(np.array(values, f32))


def gram(layer, name):
    with h5py.File(f"{run}/grams/layer-{layer:03d}.h5") as f:
        g = f[name]
        n, t, tiles = int(g["tiles"].attrs["n"]), int(g["tiles"].attrs["tile"]), g["tiles"][...].astype("f8")
    side = -(-n // t)
    h = np.zeros((side * t, side * t))
    for i in range(side):
        for j in range(i + 1):
            h[i * t : (i + 1) * t, j * t : (j + 1) * t] = tiles[i * (i + 1) // 2 + j]
    h = np.tril(h[:n, :n])
    return h + np.tril(h, -1).T


def check_linear(g, w, h, group):
    out, width = w.shape
    blocks = w.reshape(out, -1, group)
    words = g["codes"][...]
    codes = (words[:, :, None] >> (4 * np.arange(8, dtype="u4")) & 15).reshape(out, width)
    absmax = g["absmax"][...]
    assert absmax.dtype == f32 and absmax.shape == blocks.shape[:2] and g.attrs["grid"] == "nf4" and g.attrs["values"] == "bf16"
    assert "scales" not in g and "zeros" not in g
    exact = abs(blocks).max(axis=2)
    nested = g.attrs["nf_double"] == "on"
    if nested:
        code, scale, offset = g["absmax_codes"][...].ravel(), g["nested_absmax"][...], g["nested_offset"][0]
        table, each = dynamic_map(), np.arange(code.size) // 256
        assert abs(offset - exact.mean(dtype="f8")) <= 1e-6 * offset
        assert ((table[code] * scale[each]).astype(f32) + offset == absmax.ravel()).all()
        moved = exact.ravel() - offset
        assert all(scale[b] == abs(moved[each == b]).max() for b in range(scale.size))
        far = abs(table[None, :].astype("f8") * scale[each][:, None] - moved[:, None])
        assert (far[np.arange(code.size), code] <= far.min(axis=1) + 1e-7 * scale[each]).all()
    else:
        assert (absmax == exact).all()
    middle = (LEVELS[:-1] + LEVELS[1:]) / f32(2)
    x = blocks * (f32(1) / np.maximum(absmax, f32(1e-38)))[:, :, None]
    assert (np.searchsorted(middle, x, side="left").reshape(out, width) == codes).all()
    q = to_bf16(LEVELS[codes].reshape(blocks.shape) * absmax[:, :, None]).reshape(out, width)
    if bnb:
        check_library(g, w, codes, absmax, q, group, nested)
    a, b, loss = g["lora_A"][...].astype("f8"), g["lora_B"][...].astype("f8"), g["loss"][...]
    e = w.astype("f8") - q
    for r in (0, 1, 4, loss.size - 1):
        rest = e - b[:, :r] @ a[:r]
        found = np.einsum("ij,jk,ik", rest, h, rest, optimize=True)
        assert abs(found - loss[r]) <= 1e-8 * loss[0], (r, found, loss[r])
    tail = np.cumsum(g["eigenvalues"][...][::-1])[::-1]
    assert abs(tail - loss).max() <= 1e-5 * loss[0]


def check_library(g, w, codes, absmax, q, group, nested):
    """Our bytes through dequantize_4bit give our values; without double quantization our codes are the library's own."""
    packed = torch.from_numpy((codes[:, ::2] << 4 | codes[:, 1::2]).astype("u1").reshape(-1, 1))
    state = dict(shape=torch.Size(w.shape), dtype=torch.bfloat16, blocksize=group, quant_type="nf4", code=torch.from_numpy(LEVELS))
    if nested:
        table = bnb.create_dynamic_map()
        assert (table.numpy() == dynamic_map()).all()
        second = bnb.QuantState(absmax=torch.from_numpy(g["nested_absmax"][...]), blocksize=256, code=table, dtype=torch.float32)
        state |= dict(absmax=torch.from_numpy(g["absmax_codes"][...].ravel()), offset=torch.tensor(g["nested_offset"][0]), state2=second)
    else:
        state |= dict(absmax=torch.from_numpy(absmax.ravel()))
        own, made = bnb.quantize_4bit(torch.from_numpy(w).to(torch.bfloat16), blocksize=group, quant_type="nf4")
        assert (own == packed).all() and (made.absmax.numpy() == absmax.ravel()).all()
    assert (bnb.dequantize_4bit(packed, bnb.QuantState(**state)).float().numpy() == q).all()


weights = tensors(model)
count = 0
for name in sorted(os.listdir(f"{run}/solutions")):
    for path in sorted(glob.glob(f"{run}/solutions/{name}/layer-*.h5")):
        layer = int(path[-6:-3])
        grams = {i: gram(layer, i) for i in set(LINEARS.values())}
        with h5py.File(path) as f:
            for linear, source in LINEARS.items():
                g = f[linear]
                check_linear(g, weights[f"model.layers.{layer}.{linear}.weight"], grams[source], int(g.attrs["group"]))
                count += 1
print(f"{count} NF4 linears as numpy decodes them" + (", and as bitsandbytes does" if bnb else "; bitsandbytes is not here"))
