"""container.py FOLDER PROGRAM: reads what `PROGRAM sample FOLDER/layer-000.h5` wrote, then makes bad files for `PROGRAM check`."""
import hashlib, os, shutil, subprocess, sys
import h5py, numpy as np

folder, program = sys.argv[1:]
path = os.path.join(folder, "layer-000.h5")

# What interface.md promises to readers, in the types a notebook would compare with.
with h5py.File(path, "r") as f:
    a = f.attrs
    assert a["format"] == "cloqwork" and isinstance(a["format"], str)
    assert a["format_version"] == 1 and a["complete"] == 1 and a["kind"] == "solution"
    assert isinstance(a["program_version"], str) and a["model_fingerprint"] == "überall – 模型"
    assert a["most"] == 2**63 - 1 and a["most"].dtype == np.int64
    q = f["self_attn.q_proj"]
    assert q.attrs["empty"] == "" and q.attrs["method"] == "cloq" and q.attrs["bits"] == -2
    assert q.attrs["damping"] == 0.1 and q.attrs["damping"].dtype == np.float64 and q.attrs["tiny"] == 5e-324
    assert [q.attrs[f"option_{i}"] for i in range(40)] == list(range(40))
    assert f["attn_in/tiles"].attrs["n"] == 10 and f["attn_in/tiles"].attrs["tile"] == 5
    assert f["bare"].attrs["n"] == 10 and len(f["bare"]) == 0
    expected = {
        "attn_in/tiles": ("float32", (3, 5, 5)), "attn_in/mean_abs": ("float64", (13,)), "self_attn.q_proj/codes": ("uint32", (37, 12)),
        "self_attn.q_proj/scales": ("float16", (37, 3)), "self_attn.q_proj/zeros": ("uint8", (37, 3)),
        "self_attn.q_proj/rank-16/lora_A": ("float32", (7, 41)), "empty/none": ("float64", (0,)), "empty/rows": ("float32", (0, 5)),
        "empty/columns": ("uint8", (4, 0)), "one": ("float64", (1,)), "two_wide": ("uint8", (2, 1, 100003)), "large": ("float32", (1003, 257)),
    }
    found = {}
    f.visititems(lambda name, o: found.update({name: o}) if isinstance(o, h5py.Dataset) else None)
    assert set(found) == set(expected), set(found) ^ set(expected)
    for name, d in found.items():
        assert (d.dtype, d.shape) == (np.dtype(expected[name][0]), expected[name][1]), name
        assert d.attrs["sha256"] == hashlib.sha256(d[...].tobytes()).hexdigest(), name
        assert d.chunks is None and d.compression is None, name

# The master, after its folder has moved, from another working directory.
os.chdir("/")
with h5py.File(os.path.join(folder, "run.h5"), "r") as f:
    assert f.attrs["kind"] == "run" and f.attrs["complete"] == 1
    link = f.get("layers/layer-000", getlink=True)
    assert isinstance(link, h5py.ExternalLink) and link.filename == "layer-000.h5" and link.path == "/"
    assert f["layers/layer-000/self_attn.q_proj/codes"].shape == (37, 12)


def check(change, words):
    """A copy changed by h5py: refused with exit code 3 and one line with these words; accepted if words is None."""
    bad = os.path.join(folder, "bad.h5")
    shutil.copy(path, bad)
    with h5py.File(bad, "r+", libver=("v110", "v110")) as f:
        change(f)
    r = subprocess.run([program, "check", bad], capture_output=True, text=True, timeout=60)
    lines = r.stderr.splitlines()
    good = r.returncode == 0 if words is None else r.returncode == 3 and len(lines) == 1 and words in lines[0] and bad in lines[0]
    assert good, (words, r.returncode, r.stderr)


def replace(name, make):
    def change(f):
        del f[name]
        make(f)
    return change


def loop(f):
    f["bare/again"] = f["bare"]


def write(name, index, value):
    return lambda f: f[name].__setitem__(index, value)


virtual = h5py.VirtualLayout(shape=(37, 12), dtype="<u4")
virtual[...] = h5py.VirtualSource(path, "self_attn.q_proj/codes", shape=(37, 12))
codes = "self_attn.q_proj/codes"
check(lambda f: None, None)
check(write(codes, (5, 5), 7), codes)
check(write("one", 0, 3.5), "one: damaged data")
check(lambda f: f.attrs.modify("complete", 0), "not finished")
check(lambda f: f.attrs.modify("format_version", 2), "expected format version 1, found 2")
check(lambda f: f.attrs.modify("format", "other"), "expected")
check(lambda f: f.attrs.__delitem__("format"), "expected")
check(lambda f: f["self_attn.q_proj"].attrs.modify("damping", 0.2), "damaged attributes")
check(lambda f: f["self_attn.q_proj"].attrs.modify("bits", 3), "damaged attributes")
check(lambda f: f["one"].attrs.__delitem__("sha256"), "expected")
check(lambda f: f.create_dataset("more", data=np.zeros(3)), "more: expected a SHA-256")
other = "one that another program wrote"
check(lambda f: f.create_dataset("text", data="a scalar of text"), "expected a dataset of float64, float32")
check(lambda f: f.create_dataset("big", data=np.zeros(3, ">f8")), "expected a dataset of float64, float32")
check(lambda f: f.create_dataset("deep", data=np.zeros((1, 1, 1, 1))), "1 to 3 dimensions")
check(replace(codes, lambda f: f.create_dataset(codes, data=np.zeros((37, 12), "<u4"), chunks=(37, 12), compression="gzip")), other)
check(replace(codes, lambda f: f.create_virtual_dataset(codes, virtual)), other)
check(replace(codes, lambda f: f.create_dataset(codes, (37, 12), "<u4", external=[("/etc/passwd", 0, 4 * 37 * 12)])), other)
check(replace(codes, lambda f: f.__setitem__(codes, h5py.ExternalLink(path, codes))), "expected a link to a file inside the folder")
check(replace("one", lambda f: f.__setitem__("one", h5py.SoftLink("/two_wide"))), "expected a link to an object or another file")
for outside in "/etc/passwd", "../x.h5", "a/../../x.h5", "..":
    check(lambda f: f.__setitem__("x", h5py.ExternalLink(outside, "/")), "expected a link to a file inside the folder")
check(lambda f: f.__setitem__("x", h5py.ExternalLink("a/..b/x.h5", "/")), None)
check(loop, other)

# Written anew by another program, however good: HDF5's parsers get to see nothing but what this program makes.
repacked = os.path.join(folder, "repacked.h5")
with h5py.File(path, "r") as f, h5py.File(repacked, "w") as g:
    for name in f:
        f.copy(name, g)
    g.attrs.update(f.attrs)
path = repacked
check(lambda f: None, other)
print("h5py", h5py.__version__, "with HDF5", h5py.version.hdf5_version, "reads everything; bad files are refused")
