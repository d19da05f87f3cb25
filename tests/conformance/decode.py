"""What an export's bytes mean, read with numpy alone: safetensors, GPTQ, bitsandbytes NF4, pack-quantized, PEFT LoRA; and the container, with h5py.

Shares no code with the program or with the libraries that load exports. A linear is decoded to Linear: values as they stand in the file,
`weight` in float32 with no rounding but the format's own."""
import json
import os
import re
from types import SimpleNamespace as Linear

import h5py
import numpy as np

LINEARS = {"self_attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}
TYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1", "I32": "<i4", "I64": "<i8"}
NF4 = np.array([0xBF800000, 0xBF3239B1, 0xBF066B30, 0xBECA32A0, 0xBE91A24D, 0xBE3D353F, 0xBDBA7871, 0x00000000, 0x3DA2FAFF, 0x3E24CAE3,
                0x3E7C04DD, 0x3EAD033A, 0x3EE1A4B8, 0x3F1007AB, 0x3F3913B3, 0x3F800000], np.uint32).view(np.float32)
NF = {"nf2": np.array([0xBF800000, 0, 0x3EAD033A, 0x3F800000], np.uint32).view(np.float32),
      "nf3": np.array([0xBF800000, 0xBEF50EE3, 0xBE5E5A6B, 0, 0x3E24CAE3, 0x3EAD033A, 0x3F1007AB, 0x3F800000], np.uint32).view(np.float32),
      "nf4": NF4}


class Malformed(Exception):
    """The bytes break a rule of the format."""


def rule(holds, what):
    if not holds:
        raise Malformed(what)


def bfloat16(x):
    """float32 rounded to bfloat16, ties to even, as float32."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


ROUND = {"F32": lambda x: np.asarray(x, np.float32), "F16": lambda x: np.asarray(x).astype(np.float16).astype(np.float32), "BF16": bfloat16}
ROUND.update(float32=ROUND["F32"], float16=ROUND["F16"], bfloat16=ROUND["BF16"], fp32=ROUND["F32"], fp16=ROUND["F16"], bf16=ROUND["BF16"])


# ---- safetensors ----


def read_safetensors(path):
    """(metadata, {name: array}, {name: dtype}); BF16 becomes float32, everything else stays as it is."""
    with open(path, "rb") as f:
        data = f.read()
    rule(len(data) >= 8, f"{path}: no header")
    n = int.from_bytes(data[:8], "little")
    rule(8 + n <= len(data) and (8 + n) % 8 == 0, f"{path}: length of the header: {n}")

    def unique(pairs):
        rule(len({k for k, _ in pairs}) == len(pairs), f"{path}: a name occurs twice")
        return dict(pairs)

    rule(data[8:9] == b"{", f"{path}: header does not start with {{")
    header = json.loads(data[8 : 8 + n].decode("utf-8"), object_pairs_hook=unique)
    metadata = header.pop("__metadata__", {})
    rule(all(isinstance(v, str) for v in metadata.values()), f"{path}: metadata other than strings")
    rule(metadata.get("format") == "pt", f"{path}: metadata has no format: pt")
    at, arrays, types = 0, {}, {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        rule(entry["dtype"] in TYPES, f"{path}: {name}: dtype {entry['dtype']}")
        kind = np.dtype(TYPES[entry["dtype"]])
        rule(begin == at, f"{path}: {name}: begins at {begin}, the one before ends at {at}")
        rule(end - begin == int(np.prod(entry["shape"], dtype=np.int64)) * kind.itemsize, f"{path}: {name}: bytes against shape")
        rule((8 + n + begin) % kind.itemsize == 0, f"{path}: {name}: not aligned")
        a = np.frombuffer(data, kind, offset=8 + n + begin, count=(end - begin) // kind.itemsize).reshape(entry["shape"])
        arrays[name] = (a.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else a
        types[name], at = entry["dtype"], end
    rule(at + 8 + n == len(data), f"{path}: {len(data) - at - 8 - n} bytes behind the last tensor")
    return metadata, arrays, types


def write_safetensors(path, metadata, arrays, types):
    """The opposite, for the tests that break an export on purpose: tensors in the order given (widest first)."""
    header, at, parts = {"__metadata__": metadata}, 0, []
    for name, a in arrays.items():
        raw = np.asarray(a)
        raw = (raw.astype(np.float32).view(np.uint32) >> 16).astype("<u2") if types[name] == "BF16" else raw.astype(TYPES[types[name]])
        header[name] = {"dtype": types[name], "shape": list(raw.shape), "data_offsets": [at, at + raw.nbytes]}
        at += raw.nbytes
        parts.append(raw.tobytes())
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text + b"".join(parts))


def read_json(*path):
    with open(os.path.join(*path), encoding="utf-8") as f:
        return json.load(f)


def read_base(folder):
    """(config, {name: array}, {name: dtype}) of a folder with one file or with shards and an index."""
    config = read_json(folder, "config.json")
    files = sorted(n for n in os.listdir(folder) if n.endswith(".safetensors"))
    arrays, types, where = {}, {}, {}
    for name in files:
        _, more, kinds = read_safetensors(os.path.join(folder, name))
        rule(not set(more) & set(arrays), f"{name}: a tensor is in two shards")
        arrays.update(more)
        types.update(kinds)
        where.update(dict.fromkeys(more, name))
    if files != ["model.safetensors"]:
        index = read_json(folder, "model.safetensors.index.json")
        rule(index["weight_map"] == where, "model.safetensors.index.json: weight_map is not what the shards hold")
        rule(index["metadata"]["total_size"] == sum(np.dtype(TYPES[types[n]]).itemsize * arrays[n].size for n in arrays), "index: total_size")
    return config, arrays, types


# ---- integer codes ----


def unpack(words, bits, count):
    """[..., W] 32-bit words -> [..., count] codes: code i is bits [i bits, (i+1) bits) of the little-endian stream."""
    stream = np.ascontiguousarray(words).view(np.uint32).astype(np.uint64)
    stream = np.concatenate([stream, np.zeros_like(stream[..., :1])], axis=-1)
    at = np.arange(count) * bits
    pair = stream[..., at // 32] | stream[..., at // 32 + 1] << np.uint64(32)
    return (pair >> (at % 32).astype(np.uint64) & np.uint64(2**bits - 1)).astype(np.uint8)


def uniform(codes, scales, zeros, group_of):
    """float32 weight: exact, since fp16 times a difference of 8 bits fits the mantissa."""
    difference = codes.astype(np.int32) - zeros.astype(np.int32)[:, group_of]
    return Linear(codes=codes, scales=scales, zeros=zeros, weight=scales.astype(np.float32)[:, group_of] * difference.astype(np.float32))


def valid_scales(name, scales):
    rule(bool(np.all(np.isfinite(scales)) and np.all(scales > 0)), f"{name}: a scale that is not finite and positive")


SYMMETRIC_WORDS = {2: [0xAAAAAAAA], 4: [0x88888888], 8: [0x80808080], 3: [0x24924924, 0x49249249, 0x92492492]}
SYMMETRIC_WORDS_V1 = {2: [0x55555555], 4: [0x77777777], 8: [0x7F7F7F7F], 3: [0xDB6DB6DB, 0xB6DB6DB6, 0x6DB6DB6D]}


def gptq(config, t, types, module):
    q = config["quantization_config"]
    rule(q["quant_method"] == "gptq" and q["checkpoint_format"] == q["format"], f"quantization_config: {q['format']}, {q['checkpoint_format']}")
    v1, bits = {"gptq": True, "gptq_v2": False}[q["checkpoint_format"]], q["bits"]
    qweight, qzeros, scales, g_idx = (t[f"{module}.{s}"] for s in ("qweight", "qzeros", "scales", "g_idx"))
    rule([types[f"{module}.{s}"] for s in ("qweight", "qzeros", "scales", "g_idx")] == ["I32", "I32", "F16", "I32"], f"{module}: dtypes")
    rule(f"{module}.weight" not in t, f"{module}: has a weight too")
    inputs, outputs = len(g_idx), qweight.shape[1]
    size = inputs if q["group_size"] == -1 else q["group_size"]
    groups = -(-inputs // size)
    rule(qweight.shape == (inputs * bits // 32, outputs) and qzeros.shape == (groups, outputs * bits // 32), f"{module}: shapes")
    rule(scales.shape == (groups, outputs) and np.array_equal(g_idx, np.arange(inputs) // size), f"{module}: scales, g_idx")
    valid_scales(module, scales)
    zeros = unpack(qzeros, bits, outputs)
    if v1:
        rule(int(zeros.max()) < 2**bits - 1, f"{module}: a v1 zero point that wraps when a loader adds one")
        zeros = zeros + 1
    if q["sym"]:
        words = (SYMMETRIC_WORDS_V1 if v1 else SYMMETRIC_WORDS)[bits]
        expected = np.tile(np.array(words, np.uint32), -(-qzeros.shape[1] // len(words)))[: qzeros.shape[1]]
        rule(bool((qzeros.view(np.uint32) == expected).all()), f"{module}: qzeros of symmetric codes: {qzeros.view(np.uint32).flat[0]:08X}")
    return uniform(unpack(qweight.T, bits, inputs), scales.T, zeros.T, g_idx)


def glob_target(target, module):
    """How compressed-tensors chooses: re:PATTERN matches from the start of the name, else the name itself; "Linear" is the class."""
    return target == "Linear" or (re.match(target[3:], module) is not None if target.startswith("re:") else target == module)


def compressed(config, t, types, module):
    q = config["quantization_config"]
    rule(q["quant_method"] == "compressed-tensors" and q["format"] == "pack-quantized", "quantization_config: format")
    rule(not any(glob_target(i, module) for i in q["ignore"]), f"{module}: ignored")
    weights = [g["weights"] for g in q["config_groups"].values() if any(glob_target(i, module) for i in g["targets"])]
    rule(len(weights) == 1, f"{module}: {len(weights)} config_groups claim it")
    w = weights[0]
    bits = w["num_bits"]
    packed, scales, shape = t[f"{module}.weight_packed"], t[f"{module}.weight_scale"], t[f"{module}.weight_shape"]
    rule([types[f"{module}.{s}"] for s in ("weight_packed", "weight_scale", "weight_shape")] == ["I32", "F16", "I64"], f"{module}: dtypes")
    outputs, inputs = (int(x) for x in shape)
    size = inputs if w["strategy"] == "channel" else w["group_size"]
    rule((w["strategy"] == "channel") == (w["group_size"] is None), f"{module}: strategy {w['strategy']}, group_size {w['group_size']}")
    groups = -(-inputs // size)
    rule(packed.shape == (outputs, -(-inputs * bits // 32)) and scales.shape == (outputs, groups), f"{module}: shapes")
    valid_scales(module, scales)
    rule(w["symmetric"] == (f"{module}.weight_zero_point" not in t), f"{module}: symmetric and weight_zero_point")
    if w["symmetric"]:
        zeros = np.full((outputs, groups), 2 ** (bits - 1), np.uint8)
    else:
        words = t[f"{module}.weight_zero_point"]
        rule(words.shape == (-(-outputs * bits // 32), groups), f"{module}: shape of weight_zero_point")
        zeros = unpack(words.T, bits, outputs).T
    return uniform(unpack(packed, bits, inputs), scales, zeros, np.arange(inputs) // size)


def nf4(config, t, types, module):
    q = config["quantization_config"]
    rule(q["quant_method"] == "bitsandbytes" and q["bnb_4bit_quant_type"] == "nf4" and q["load_in_4bit"], "quantization_config")
    name = f"{module}.weight"
    state = json.loads(t[f"{name}.quant_state.bitsandbytes__nf4"].tobytes().decode())
    double = q["bnb_4bit_use_double_quant"]
    keys = {"quant_type", "blocksize", "dtype", "shape"} | ({"nested_blocksize", "nested_dtype", "nested_offset"} if double else set())
    rule(set(state) == keys and state["quant_type"] == "nf4", f"{name}: quant_state {state}")
    outputs, inputs = state["shape"]
    blocks = -(-outputs * inputs // state["blocksize"])
    rule(t[name].shape == (-(-outputs * inputs // 2), 1) and types[name] == "U8", f"{name}: shape")
    rule(np.array_equal(t[f"{name}.quant_map"].view(np.uint32), NF4.view(np.uint32)), f"{name}: quant_map")
    absmax = t[f"{name}.absmax"]
    rule(absmax.shape == (blocks,) and types[f"{name}.absmax"] == ("U8" if double else "F32"), f"{name}: absmax")
    if double:
        rule(state["nested_blocksize"] == 256 and state["nested_dtype"] == "float32", f"{name}: nested {state}")
        table, nested = t[f"{name}.nested_quant_map"], t[f"{name}.nested_absmax"]
        rule(table.shape == (256,) and nested.shape == (-(-blocks // 256),), f"{name}: nested shapes")
        absmax = table[absmax] * nested[np.arange(blocks) // 256] + np.float32(state["nested_offset"])
    rule(bool(np.all(np.isfinite(absmax)) and np.all(absmax >= 0)), f"{name}: absmax")
    bytes_ = t[name].reshape(-1)
    codes = np.stack([bytes_ >> 4, bytes_ & 15], axis=1).reshape(-1)[: outputs * inputs]
    values = NF4[codes] * np.repeat(absmax, state["blocksize"])[: outputs * inputs]
    return Linear(codes=codes.reshape(outputs, inputs), absmax=absmax.reshape(outputs, -1),
                  weight=ROUND[state["dtype"]](values).reshape(outputs, inputs))


def dense(config, t, types, module):
    rule("quantization_config" not in config, "quantization_config in a dense model")
    return Linear(weight=t[f"{module}.weight"].astype(np.float32), dtype=types[f"{module}.weight"])


DECODERS = {"gptq": gptq, "compressed-tensors": compressed, "bnb": nf4, "dense": dense}


# ---- PEFT ----


def pattern(patterns, module, default):
    """PEFT's choice: the first key that matches as (.*\\.)?(KEY)$, else the default."""
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", module)), default)


def read_adapter(folder, modules):
    """{module: Linear(A, B, scale)} for the modules that target_modules claims among those of the base."""
    c = read_json(folder, "adapter_config.json")
    metadata, t, types = read_safetensors(os.path.join(folder, "adapter_model.safetensors"))
    rule(c["peft_type"] == "LORA" and not c["use_rslora"] and not c["use_dora"] and c["bias"] == "none" and not c["fan_in_fan_out"], "config")
    rule(c["lora_alpha"] == c["r"], f"lora_alpha {c['lora_alpha']}, r {c['r']}")
    rule(c["alpha_pattern"] == c["rank_pattern"], "alpha_pattern is not rank_pattern")
    rule(c["init_lora_weights"] is True, "init_lora_weights")
    targets = c["target_modules"]
    if isinstance(targets, str):
        claimed = [m for m in modules if re.fullmatch(targets, m)]
    else:
        claimed = [m for m in modules if any(m == n or m.endswith("." + n) for n in targets)]
    expected = {f"base_model.model.{m}.lora_{x}.weight" for m in claimed for x in "AB"}
    rule(set(t) == expected, f"target_modules and tensors: {sorted(set(t) ^ expected)[:2]}")
    found = {}
    for m in claimed:
        a, b = (t[f"base_model.model.{m}.lora_{x}.weight"] for x in "AB")
        rank = pattern(c["rank_pattern"], m, c["r"])
        rule(a.shape[0] == rank and b.shape[1] == rank and rank >= 1, f"{m}: rank {a.shape[0]}, config {rank}")
        found[m] = Linear(A=a.astype(np.float32), B=b.astype(np.float32), scale=pattern(c["alpha_pattern"], m, c["lora_alpha"]) / rank,
                          dtype=types[f"base_model.model.{m}.lora_A.weight"])
    return metadata, found


# ---- the container ----


def modules_of(config):
    return [f"model.layers.{i}.{part}.{name}" for i in range(config["num_hidden_layers"]) for part, names in LINEARS.items() for name in names]


def unpack_widths(words, widths, size):
    """The same for groups of `size` columns with bits of their own, one behind another in a row's stream."""
    stream = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=-1, bitorder="little")
    at, parts = 0, []
    for bits in widths.astype(int):
        cells = stream[:, at : at + size * bits].reshape(len(words), size, bits)
        parts.append(cells @ (1 << np.arange(bits)).astype(np.uint8))
        at += size * bits
    return np.concatenate(parts, axis=1).astype(np.uint8)


def real_zeros(codes, scales, zeros, group_of):
    """float32 weight with zero points that are numbers: difference and product are exact in double, then rounded once."""
    difference = codes.astype(np.float64) - zeros.astype(np.float64)[:, group_of]
    weight = (scales.astype(np.float64)[:, group_of] * difference).astype(np.float32)
    return Linear(codes=codes, scales=scales, zeros=zeros, weight=weight)


def binary(codes, magnitudes, salient, group_of):
    """Signs and four magnitudes: an ordinary column takes one of the first two, a salient one both of the others."""
    m = magnitudes.astype(np.float64).reshape(len(codes), -1, 4)[:, group_of]
    first, second = np.where(codes & 1, 1.0, -1.0), np.where(codes & 2, 1.0, -1.0)
    ordinary = first * np.where(codes & 2, m[..., 1], m[..., 0])
    weight = np.where(salient == 1, first * m[..., 2] + second * m[..., 3], ordinary).astype(np.float32)
    return Linear(codes=codes, magnitudes=magnitudes, salient=salient, weight=weight)


def read_container(run, setting, module, rank=0):
    """One linear of a solution: codes, grid, weight as the formats hold it, and the whole adapter; rank: of a variant, if it has any."""
    layer, name = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", module).groups()
    with h5py.File(os.path.join(run, "solutions", setting, f"layer-{int(layer):03d}.h5"), "r") as f:
        g = f[name]
        g = g[f"rank-{rank}"] if "ranks" in g.attrs else g
        grid, bits, a, b = g.attrs["grid"], int(g.attrs["bits"]), g["lora_A"][...], g["lora_B"][...]
        size = int(g.attrs["group"]) or a.shape[1]
        group_of = np.arange(a.shape[1]) // size
        groups = -(-a.shape[1] // size)
        widths = g["widths"][...] if "widths" in g else None
        rule(widths is None or len(widths) == groups, f"{setting}: {module}: widths")
        words = g["codes"][...]
        codes = unpack(words, 2 if grid == "binary" else bits, a.shape[1]) if widths is None else unpack_widths(words, widths, size)
        stored = (g["absmax"] if grid in NF else g["magnitudes"] if grid == "binary" else g["scales"]).shape[1]
        rule(stored == groups * (4 if grid == "binary" else 1), f"{setting}: {module}: {stored} columns of the grid")
        if grid in NF:
            absmax = g["absmax"][...]
            product = NF[grid][codes] * absmax[:, group_of]
            linear = Linear(codes=codes, absmax=absmax, product=product, weight=ROUND[g.attrs["values"]](product))
        elif grid == "binary":
            linear = binary(codes, g["magnitudes"][...], g["salient"][...], group_of)
        else:
            make = {"int": uniform, "real": real_zeros}[g.attrs["zero"]]
            linear = make(codes, g["scales"][...], g["zeros"][...], group_of)
            linear.symmetric = bool(g.attrs["symmetric"])
        linear.A, linear.B, linear.bits, linear.group, linear.widths, linear.attrs = a, b, bits, size, widths, dict(g.attrs)
        curves = ("loss", "loss_heldout", "eigenvalues", "rounds")
        linear.loss, linear.heldout, linear.eigenvalues, linear.rounds = (g[k][...] if k in g else None for k in curves)
    return linear


def full_gram(group):
    """One input's Gram, float32, from the tiles of its lower triangle."""
    tiles, n = group["tiles"][...], group["tiles"].attrs["n"]
    t, side = tiles.shape[1], -(-n // tiles.shape[1])
    h = np.zeros((side * t, side * t), np.float32)
    for i in range(side):
        for j in range(i + 1):
            tile = tiles[i * (i + 1) // 2 + j]
            h[i * t:(i + 1) * t, j * t:(j + 1) * t] = tile
            h[j * t:(j + 1) * t, i * t:(i + 1) * t] = tile.T
    return h[:n, :n]
