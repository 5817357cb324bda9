"""Packaging of jinstr. Exact versions for the launch scripts are in launch/requirements.lock."""

import setuptools

CORE = [
    "array-record>=0.8.1",
    "etils[epath]>=1.12",
    "flax>=0.12.8,<0.14",
    "gin-config==0.5.0",
    "grain>=0.2.15,<0.4",
    "jax>=0.10.2,<0.13",
    "jinja2>=3.1",
    "matplotlib>=3.9",
    "msgpack>=1.1",
    "numpy>=2.0",
    "openpyxl>=3.1",
    "optax>=0.2.8,<0.4",
    "orbax-checkpoint>=0.12.8,<0.14",
    "protobuf>=4.25",
    "pyarrow>=18",
    # model cards begin with YAML and import-config reads it; flax and orbax bring it anyway (safe_load only)
    "pyyaml>=6",
    "safetensors>=0.6",  # 0.6: bfloat16 as numpy arrays
    "sentencepiece>=0.2.3",
    "tensorboardX>=2.6.4",
    "tokenizers>=0.20",
    "tqdm>=4.66",
    "xxhash>=3.5",
]
EXTRAS = {
    # seqio brings tensorflow-text, and with it the one TensorFlow wheel of the environment.
    "data": ["seqio>=0.0.20", "tensorflow>=2.19", "tensorflow-datasets>=4.9.9"],
    # For jinstr prepare RUNNER=…, in an environment of its own: Beam wants older libraries than the lock file has
    # (protobuf, pyarrow, pillow, python-dateutil). With that protobuf, `jinstr tokenizer` does not run there.
    "beam": ["apache-beam>=2.77,<3"],
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    "cuda": ["jax[cuda12]>=0.10.2,<0.13"],
    "plan": [
        "libtpu==0.0.52"
    ],  # the TPU compiler; the version that the anchors of tests/benchmarks were made with
    "hub": ["huggingface_hub>=0.30"],
    "wandb": ["wandb>=0.19"],
    "test": ["pytest>=8.3", "pytest-xdist>=3.6", "ruff>=0.11"],
}

setuptools.setup(
    name="jinstr",
    version="0.1.0",
    description="Japanese instruction-following language models from raw text to answers, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=setuptools.find_packages(include=["jinstr", "jinstr.*"]),
    package_data={
        "jinstr.samples": ["*.jsonl", "*.txt"],
        "jinstr.train": ["*.j2"],
        "jinstr.evaluate": ["*.j2"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["jinstr = jinstr.run:console"]},
)
