"""Package metadata: floors without upper caps; the exact versions that were tested stand in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION: dict[str, str] = {}
exec((HERE / "src/ratlip_hf/version.py").read_text(), VERSION)

EXTRAS = {
    "train": ["datasets>=5.2", "tensorboard>=2.18", "tqdm>=4.66"],
    "eval": ["evaluate>=0.4.6", "datasets>=5.2"],
    "demo": ["gradio>=6"],
    "plots": ["matplotlib>=3.9"],
    "export": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
}
EXTRAS["dev"] = [
    *EXTRAS["train"],
    *EXTRAS["eval"],
    *EXTRAS["export"],
    "build>=1.2",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "setuptools>=77",
]

setup(
    name="ratlip_hf",
    version=VERSION["__version__"],
    description="RATLIP and GALIP text-to-image GANs in the Hugging Face ecosystem",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={
        "ratlip_hf": [
            "assets/**/*.json",
            "assets/**/*.md",
            "assets/**/*.safetensors",
            "evaluate_modules/*/*.py",
            "synthetic_birds/*.jsonl",
            "training/configs/*.json",
        ]
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=5.23",
        "diffusers>=0.42.1",
        "accelerate>=1.15",
        "huggingface_hub>=1.32",
        "safetensors>=0.8",
        "Jinja2>=3.1",
        "Pillow>=10.1",
        "numpy>=1.26",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["ratlip=ratlip_hf.cli.main:main"]},
)
