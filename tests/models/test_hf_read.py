"""Hugging Face checkpoints: in and out again bit for bit, on any mesh, and what is wrong with one is said in a line."""

import json
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jinstr import errors
from jinstr.models import config as config_lib
from jinstr.models import decoder, hf_config, hf_layout, hf_read, hf_write
from jinstr.parallel import mesh as mesh_lib
from tests.models import hf_cases

# One number of each case at each of three places, from transformers 5.24 in float32 (tests/models/test_hf_peers.py
# holds all of them equal): logits[0, [0, 13, 39], 5] of `hf_cases.token_ids(values, 2, 40)`.
LOGITS = {
    "llama": [-1.01155, -0.88209, 0.42423],
    "llama-biases-tied": [-1.58395, -0.70892, -0.43124],
    "llama-3.1": [-1.01155, -0.52586, 0.14115],
    "llama-linear": [1.02995, -0.64715, 0.85142],
    "llama-new-layout": [-1.01155, -0.52227, 0.13704],
    "gpt-neox": [-1.44382, 0.51081, 0.43972],
    "gpt-neox-one-after-the-other": [-0.23857, 0.19579, 0.40231],
    "gpt-neox-tied": [-0.44239, -0.36819, -0.31042],
    "qwen2": [-0.75137, -0.73624, -0.95227],
    "qwen2-tied": [-0.18048, 0.14927, 0.26299],
    "qwen2-windows": [-0.75137, -0.87184, 0.13480],
    "qwen3": [1.23582, -1.00504, -0.72961],
    "qwen3-tied": [1.82183, -0.29273, 0.42658],
    "qwen3-biases": [0.90263, -0.77659, -0.82868],
    "gemma-2": [0.03950, -0.00422, 0.87888],
    "gemma-2-no-caps": [-0.43275, -0.23334, -1.61133],
    "gemma-2-wide-heads": [-0.29851, -0.79552, -0.27981],
    "mistral": [-1.01155, -0.32020, -0.26706],
    "mistral-no-window": [1.10111, -0.16411, 0.51069],
    "mistral-tied": [1.82183, -0.13628, -0.19515],
    "gemma-3": [0.03950, -0.02479, 0.10678],
    "gemma-3-scaled": [0.03950, -0.03707, 0.01021],
    "gemma-3-pattern": [1.27500, -1.47927, -0.32066],
}


def abstract_of(config, dtype=jnp.float32, mesh=None):
    if mesh is None:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shardings = jax.tree.map(lambda _: place, decoder.abstract_params(config))
    else:
        shardings = decoder.param_shardings(config, mesh, mesh_lib.AxisRules())
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place),
        decoder.abstract_params(config),
        shardings,
    )


def read(folder, **how):
    checkpoint = hf_read.open_checkpoint(folder)
    params = hf_read.load_params(checkpoint, abstract_of(checkpoint.config, **how), progress=False)
    return checkpoint.config, params


@pytest.mark.parametrize("name", list(LOGITS))
def test_logits_are_those_that_transformers_computes(name, tmp_path):
    values = hf_cases.write(tmp_path, name)
    config, params = read(tmp_path)
    ids = hf_cases.token_ids(values, 2, 40)[:1]
    positions = np.arange(40, dtype=np.int32)[None]
    hidden = decoder.forward(config, params, ids, positions, np.ones_like(ids))
    got = decoder.logits(config, params, hidden[0, jnp.array([0, 13, 39])])[:, 5]
    np.testing.assert_allclose(got, LOGITS[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", hf_cases.NAMES)
def test_in_and_out_again_gives_the_same_bits(name, tmp_path):
    hf_cases.write(tmp_path / "in", name)
    config, params = read(tmp_path / "in")
    hf_write.save(
        tmp_path / "out", config, params, dtype="float32", shard_bytes=50_000, progress=False
    )
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 1
    found = {}
    for file in files:
        found |= safetensors.numpy.load_file(file)
    original = safetensors.numpy.load_file(tmp_path / "in/model.safetensors")
    assert found.keys() == original.keys()
    for tensor in original:
        np.testing.assert_array_equal(found[tensor], original[tensor])
    assert read(tmp_path / "out")[0] == config


@pytest.mark.parametrize("name", ["llama-biases-tied", "gpt-neox", "gemma-3"])
@pytest.mark.parametrize("axes", [{"fsdp": 8}, {"tensor": 4, "data": 2}, {"fsdp": 2, "tensor": 2}])
def test_every_mesh_gets_the_same_weights(name, axes, tmp_path):
    """Slices of fused and transposed tensors, also where a border falls within a head."""
    hf_cases.write(tmp_path, name, vocab_size=96)
    config, whole = read(tmp_path)
    mesh = mesh_lib.make_mesh(mesh_lib.MeshConfig(**({"data": -1} | axes)))
    _, split = read(tmp_path, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, split, whole)
    query = split["blocks"]["attention"]["query"]["kernel"]
    assert query.addressable_shards[0].data.size < query.size


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_types_on_disk(dtype, tmp_path):
    hf_cases.write(tmp_path / "in", "qwen3")
    config, params = read(tmp_path / "in")
    hf_write.save(tmp_path / "out", config, params, dtype=dtype, progress=False)
    kind = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    stored = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {kind}
    _, rounded = read(tmp_path / "out")
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(
            a, np.asarray(b).astype(kind).astype(np.float32)
        ),
        rounded,
        params,
    )
    _, narrow = read(tmp_path / "out", dtype=jnp.dtype(kind))
    assert narrow["embed"]["embedding"].dtype == kind


def test_old_files_may_hold_tensors_that_are_computed(tmp_path):
    hf_cases.write(tmp_path, "gpt-neox")
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    more = {
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": np.zeros(2, np.float32),
        "gpt_neox.layers.1.attention.bias": np.zeros((1, 4), np.uint8),
        "gpt_neox.layers.1.attention.masked_bias": np.array(-1e9, np.float32),
    }
    _, plain = read(tmp_path)
    safetensors.numpy.save_file(tensors | more, path)
    _, found = read(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    # Negative control: a tensor that nobody computes is not passed over.
    safetensors.numpy.save_file(tensors | {"gpt_neox.more": np.zeros(2, np.float32)}, path)
    with pytest.raises(errors.StorageError, match="gpt_neox.more"):
        read(tmp_path)


def test_a_tied_head_may_be_there_twice_but_not_differ(tmp_path):
    hf_cases.write(tmp_path, "qwen2-tied")
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    safetensors.numpy.save_file(tensors, path)
    read(tmp_path)
    tensors["lm_head.weight"][-1, -1] += 1
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(errors.StorageError, match="ties lm_head.weight .* but they differ"):
        read(tmp_path)


def test_a_model_that_no_architecture_has_is_named():
    config = config_lib.DecoderConfig(vocab_size=64, qk_norm=True, logit_softcap=3.0)
    with pytest.raises(errors.ConfigError, match="logit_softcap = 3.0; the nearest is Qwen3"):
        hf_config.to_hf(config)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(architectures=["BertModel"]), "'BertModel' is not supported"),
        (dict(architectures=["LlamaForCausalLm"]), "did you mean LlamaForCausalLM"),
        (dict(model_type="qwen2"), "do not fit together"),
        (dict(auto_map={"AutoModelForCausalLM": "modeling_x.Model"}), "its own Python code"),
        (dict(trust_remote_code=True), "its own Python code"),
        (dict(quantization_config={"bits": 4}), "quantised"),
        (dict(num_hidden_layers="3"), "num_hidden_layers = '3': a positive whole number"),
        (dict(num_hidden_layers=10**9), "says 1000000000 layers, the files hold 3"),
        (dict(hidden_size=10**8), "config.json makes it"),
        (dict(vocab_size=-4), "vocab_size = -4"),
        (dict(num_key_value_heads=3), "4 heads are no multiple"),
        (dict(rope_scaling={"type": "yarn", "factor": 2.0}), "'yarn' is not supported"),
        (dict(hidden_act="relu"), "hidden_act = 'relu'"),
        (dict(hidden_act=["silu"]), "hidden_act = "),
        (dict(rope_theta=0), "rope_theta = 0: a number above 0"),
        (dict(rope_scaling=["linear"]), "rope_scaling = .*: an object is needed"),
        (dict(rope_scaling={"type": "linear", "factor": 0}), "rope_scaling: factor = 0"),
        (dict(rope_parameters=[1]), "rope_parameters = .*: an object is needed"),
        (dict(rope_parameters={"rope_theta": "x"}), "rope_parameters: rope_theta = 'x'"),
        (dict(rope_parameters={"rope_theta": 1e4, "rope_type": {}}), "rope_type = {}"),
        (dict(rms_norm_eps=-1), "rms_norm_eps = -1"),
        (dict(vocab_size=98), r"model.embed_tokens.weight is \[97, 64\], but config.json makes it \[98, 64\]"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_refused(change, message, tmp_path):
    hf_cases.write(tmp_path, "llama")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(errors.JinstrError, match=message) as caught:
        hf_read.open_checkpoint(tmp_path)
    assert "\n" not in caught.value.message and str(tmp_path) in caught.value.message


def test_layer_types_of_another_kind_are_refused(tmp_path):
    hf_cases.write(tmp_path, "gemma-2")
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    for kinds in ([{}] * 7, ["full_attention"], "full_attention", ["chunked_attention"] * 7):
        path.write_text(json.dumps(values | {"layer_types": kinds}))
        with pytest.raises(errors.ConfigError, match="layer_types = .* are needed"):
            hf_read.open_checkpoint(tmp_path)


def test_devices_that_hold_the_same_read_it_once(tmp_path, monkeypatch):
    hf_cases.write(tmp_path, "gpt-neox", vocab_size=96)
    size = sum(
        tensor.nbytes
        for tensor in safetensors.numpy.load_file(tmp_path / "model.safetensors").values()
    )
    fused = 2 * sum(  # query, key and value are cut out of one tensor, which each reads whole
        tensor.nbytes
        for name, tensor in safetensors.numpy.load_file(tmp_path / "model.safetensors").items()
        if "query_key_value" in name
    )
    read_bytes = []
    original = hf_read._Reader.slice

    def counted(self, name, index):
        found = original(self, name, index)
        read_bytes.append(found.nbytes)
        return found

    monkeypatch.setattr(hf_read._Reader, "slice", counted)
    for axes in ({"fsdp": 8}, {"data": 4, "fsdp": 2}, {"data": 2, "tensor": 4}):
        read_bytes.clear()
        read(tmp_path, mesh=mesh_lib.make_mesh(mesh_lib.MeshConfig(**({"data": 1} | axes))))
        assert sum(read_bytes) == size + fused


def test_a_mesh_that_does_not_divide_a_tensor_is_named(tmp_path):
    hf_cases.write(tmp_path, "llama")
    with pytest.raises(
        errors.ConfigError, match=r"embed.embedding \[97, 64\] does not divide over 2 devices"
    ):
        read(tmp_path, mesh=mesh_lib.make_mesh(mesh_lib.MeshConfig(tensor=2)))


def _renamed(tensors):
    return {name.replace("layers.1.", "layers.7."): value for name, value in tensors.items()}


def _without(name):
    return lambda tensors: {n: value for n, value in tensors.items() if n != name}


@pytest.mark.parametrize(
    "change, message",
    [
        (_without("model.norm.weight"), "no tensor model.norm.weight"),
        (_without("lm_head.weight"), "no tensor lm_head.weight"),
        (_renamed, "says 3 layers, the files hold 8"),
        (lambda t: t | {f"model.layers.{'9' * 5000}.x": np.zeros(3, np.float32)}, "does not have"),
        (lambda t: t | {"model.extra.weight": np.zeros(3, np.float32)}, "model.extra.weight"),
        (lambda t: t | {"model.norm.weight": np.zeros(64, np.int8)}, "model.norm.weight is of type I8"),
        (lambda t: t | {"model.norm.weight": np.zeros(65, np.float32)}, r"is \[65\], but"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    hf_cases.write(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(path)), path)
    with pytest.raises(errors.StorageError, match=message):
        hf_read.open_checkpoint(tmp_path)


def _bytes(path, data):
    path.write_bytes(data)


def _index(folder, names):
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / hf_read.INDEX).write_text(json.dumps({"weight_map": names}))


def _config(folder, **change):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


DAMAGES = {
    "another architecture": (lambda f: _config(f, architectures=["BertModel"]), "is not supported"),
    "code of its own": (lambda f: _config(f, auto_map={"AutoModel": "m.M"}), "its own Python code"),
    "a shape that differs": (lambda f: _config(f, intermediate_size=95), "but config.json makes it"),
    "a giant by its config": (lambda f: _config(f, hidden_size=2**30), "but config.json makes it"),
    "missing": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config not JSON": (lambda f: _bytes(f / "config.json", b"{"), "not JSON"),
    "config a list": (lambda f: _bytes(f / "config.json", b"[1]"), "not a JSON object"),
    "config nested": (lambda f: _bytes(f / "config.json", b"[" * 10**6), "not JSON"),
    "config of 20 MB": (lambda f: _bytes(f / "config.json", b" " * 20_000_000), "too many"),
    "empty": (lambda f: _bytes(f / "model.safetensors", b""), "not safetensors"),
    "cut short": (
        lambda f: _bytes(f / "model.safetensors", (f / "model.safetensors").read_bytes()[:-5]),
        "damaged or cut short",
    ),
    "cut in the header": (
        lambda f: _bytes(f / "model.safetensors", (f / "model.safetensors").read_bytes()[:100]),
        "cut short",
    ),
    "header bomb, length only": (
        lambda f: _bytes(f / "model.safetensors", struct.pack("<Q", 2**62) + b"{}"),
        "cut short",
    ),
    "header bomb, 50 MB": (
        lambda f: _bytes(
            f / "model.safetensors",
            struct.pack("<Q", 50_000_000) + b'{"a":' + b"[" * 49_999_994 + b"}",
        ),
        "a header of 50,000,000 bytes is refused",
    ),
    "header of lies": (
        lambda f: _bytes(
            f / "model.safetensors",
            struct.pack("<Q", 64)
            + b'{"a":{"dtype":"F32","shape":[99999999],"data_offsets":[0,4]}}'.ljust(64)
            + b"1234",
        ),
        "damaged or cut short",
    ),
    "pickle under a good name": (
        lambda f: _bytes(f / "model.safetensors", b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00cos\nsystem\n."),
        "not safetensors",
    ),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "is a pickle, .*save_pretrained",
    ),
    "a shard is missing": (
        lambda f: _index(f, {"a": "model-1.safetensors", "b": "model-2.safetensors"}),
        "model-2.safetensors is missing",
    ),
    "the index climbs": (lambda f: _index(f, {"a": "../model-1.safetensors"}), "is not the name of a file"),
    "the index is absolute": (lambda f: _index(f, {"a": "/etc/passwd"}), "is not the name of a file"),
    "the index names no file": (lambda f: _index(f, {"a": 3}), "no weight_map"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(DAMAGES))
def test_damage_is_told_in_one_line(name, tmp_path):
    damage, message = DAMAGES[name]
    hf_cases.write(tmp_path, "llama")
    hf_read.open_checkpoint(tmp_path)
    damage(tmp_path)
    with pytest.raises(errors.JinstrError, match=message) as caught:
        hf_read.open_checkpoint(tmp_path)
    assert "\n" not in caught.value.message


def test_refusals_take_little_memory(tmp_path):
    """Peak of a process that is given every damaged folder: at most 200 MB above one that imports the module."""
    for name, (damage, _) in DAMAGES.items():
        folder = tmp_path / name.replace(" ", "_")
        hf_cases.write(folder, "llama")
        damage(folder)
    code = """
import pathlib, sys
from jinstr import errors
from jinstr.models import hf_read
def peak():  # in MB; not ru_maxrss, which begins at what the parent had
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
before, refused = peak(), 0
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        hf_read.open_checkpoint(folder)
    except errors.JinstrError:
        refused += 1
told = peak() - before
seen = bytearray(b"x") * 300_000_000
print(refused, told, peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    refused, megabytes, control = map(int, done.stdout.split())
    assert refused == len(DAMAGES) and megabytes < 200
    assert control > 250  # what is measured moves


def test_layouts_name_every_leaf_once():
    for name in hf_cases.NAMES:
        config = hf_config.from_hf(hf_cases.config_json(name))
        places = hf_layout.places(config)
        assert set(places) == set(hf_layout.paths(decoder.abstract_params(config)))
        used = [(place.name, place.part) for place in places.values()]
        assert len(set(used)) == len(used)
